"""What every method of the catalogue must keep, walking the files: nobody lists anything here."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ranges import edges, hints, inside, members, refused
from worlds import World, broken_off, every_world, gap, job, label, steps

from stillroom import catalogue
from stillroom.config.values import checked, plain
from stillroom.core import Batch, Failure, Method, Needs, Paper
from stillroom.evaluation.suite import Suite
from stillroom.reports.fields import described, read_docstring
from stillroom.teachers.local import Local

NAMES = list(catalogue.names("methods"))
WORLDS = every_world()
TEXTS = [(name, world) for name, world in WORLDS if world.kind == "text"]
STEPS = 4
MODALITIES = {"any", "text", "image", "tabular", "embeddings", "graph", "speech", "diffusion"}
each_name = pytest.mark.parametrize("name", NAMES)
each_world = pytest.mark.parametrize(("name", "world"), WORLDS, ids=label)
each_text = pytest.mark.parametrize(("name", "world"), TEXTS, ids=label)
each_values = pytest.mark.parametrize("values", ["default", "other"])


def made(name: str, values: str) -> Method:
    """A method at its defaults, or with each field at another value of its range."""
    cls = catalogue.load(name)
    if values == "default":
        return cls()
    found = {f: inside(*next(members(h)), getattr(cls(), f)) for f, h in hints(cls).items()}
    return cls(**found)


@cache
def traced(name: str, world: World, values: str) -> Any:
    return steps(job(made(name, values), world, steps=STEPS, every=1, keep=STEPS + 1))


def fields_with(values: Any) -> list[Any]:
    """Each name and field with each value that a function of its hint yields."""
    return [
        pytest.param(name, field, value, id=f"{name}-{field}-{value}")
        for name in NAMES
        for field, hint in hints(catalogue.load(name)).items()
        for value in values(hint)
    ]


@each_name
def test_a_method_is_one_frozen_dataclass_with_defaults_for_all(name: str) -> None:
    cls = catalogue.load(name)
    assert cls() == cls()
    parameters = cls.__dataclass_params__
    assert parameters.frozen
    with pytest.raises(TypeError, match="positional"):
        cls(1)


@each_name
def test_its_body_states_the_literals_and_the_listing_reads_the_same(name: str) -> None:
    cls, row = catalogue.load(name), catalogue.row(name)
    assert set(catalogue.TOLD) <= set(vars(cls))
    assert isinstance(cls.needs, Needs)
    told = {
        k: sorted(v) if isinstance(v, frozenset | set) else v for k, v in vars(cls.needs).items()
    }
    assert row["needs"] == told
    assert (row["modality"], row["family"]) == (cls.modality, cls.family)
    assert cls.modality in MODALITIES
    assert cls.family
    assert cls.needs.teacher | cls.needs.student <= set(catalogue.SIGNALS)
    assert row["paper"] == (cls.paper and {**vars(cls.paper), "url": cls.paper.url})


@each_name
def test_its_docstring_has_a_formula_and_where_it_differs_from_its_paper(name: str) -> None:
    cls = catalogue.load(name)
    first, body, told = read_docstring(inspect.getdoc(cls) or "")
    assert first.endswith((".", ":"))
    assert [code for code in re.findall(r"``([^`]+)``", body) if re.search(r"[(|=+*/]", code)]
    if cls.paper is not None:
        assert isinstance(cls.paper, Paper)
        assert re.fullmatch(r"\d{4}\.\d{4,5}|https://doi\.org/.+", cls.paper.id)
        assert re.fullmatch(r".+, (19|20)\d\d", cls.paper.authors)
        assert cls.paper.title
        assert re.search(r"^Differences: ", body, re.MULTILINE)
    assert set(told) <= set(hints(cls)), "Args tells of fields that are not there"


@each_name
def test_every_field_is_described_and_every_number_has_a_range(name: str) -> None:
    cls = catalogue.load(name)
    for field in described(cls):
        assert field["says"], f"{field['name']} has no entry under Args"
    for field, hint in hints(cls).items():
        for kind, marks in members(hint):
            assert kind not in (int, float) or marks, f"{field} may be any number"


@pytest.mark.parametrize(("name", "field", "value"), fields_with(refused))
def test_a_value_out_of_range_is_refused_by_the_name_of_its_field(
    name: str, field: str, value: Any
) -> None:
    with pytest.raises(Failure, match=rf"^method\.{field}: ") as refusal:
        checked(catalogue.load(name), {field: value}, "method")
    assert repr(value) in str(refusal.value)


@pytest.mark.parametrize(("name", "field", "value"), fields_with(edges))
def test_the_ends_of_a_range_are_allowed(name: str, field: str, value: Any) -> None:
    assert getattr(checked(catalogue.load(name), {field: value}, "method"), field) == value


@each_name
@each_values
def test_values_come_back_from_yaml_as_they_were(name: str, values: str) -> None:
    method = made(name, values)
    written = yaml.safe_dump(plain(method))
    assert checked(type(method), yaml.safe_load(written), "method") == method


@each_world
@each_values
def test_steps_are_finite_and_the_student_learns(name: str, world: World, values: str) -> None:
    run = traced(name, world, values)
    assert len(run.logs) == STEPS
    assert all(math.isfinite(value) for log in run.logs for value in log.values())
    assert any(key.startswith("loss/") for key in run.logs[-1])
    assert gap(run.states[0]["networks"]["student"], run.final["student"]) > 0


@each_world
@each_values
def test_only_players_that_an_update_names_move(name: str, world: World, values: str) -> None:
    run = traced(name, world, values)
    for step, log in enumerate(run.logs, start=1):
        before, after = run.states[step - 1], run.states[step]
        named = {key.removeprefix("lr/") for key in log if key.startswith("lr/")}
        assert named <= set(after["optimizers"])
        for player in after["optimizers"]:  # tables and snapshots belong to the method alone
            moved = gap(before["networks"][player], after["networks"][player])
            assert (moved > 0) == (player in named), f"{player} in step {step}"


@each_world
def test_the_teacher_stays_as_it_was(name: str, world: World) -> None:
    given = job(catalogue.load(name)(), world)
    networks = [t.network for t in given.teachers.values() if isinstance(t, Local)]
    before = [{k: v.clone() for k, v in n.state_dict().items()} for n in networks]
    steps(given)
    for network, state in zip(networks, before, strict=True):
        assert gap(state, dict(network.state_dict())) == 0
        assert not any(module.training for module in network.modules())
        assert all(p.grad is None for p in network.parameters())


@each_world
def test_a_seed_gives_the_same_numbers_and_another_others(name: str, world: World) -> None:
    first = traced(name, world, "default")
    again = steps(job(made(name, "default"), world, steps=STEPS, every=1, keep=STEPS + 1))
    assert again.logs == first.logs
    assert gap(again.states, first.states) == 0
    other = steps(job(made(name, "default"), world, steps=STEPS, seed=1))
    assert gap(other.final["student"], first.final["student"]) > 0


@each_text
@each_values
def test_what_stands_at_a_padded_position_changes_nothing(
    name: str, world: World, values: str
) -> None:
    def noise(batch: Batch) -> Batch:
        assert not batch.real.all()
        other = (batch.ids + batch.positions + 3) % 11
        return batch.add(ids=torch.where(batch.real, batch.ids, other))

    plainly = traced(name, world, values)
    changed = dataclasses.replace(world, change=noise)
    noisy = steps(job(made(name, values), changed, steps=STEPS, pad_id=7))
    assert noisy.logs == plainly.logs
    assert gap(noisy.final, plainly.final) == 0


@each_world
@each_values
def test_the_label_of_a_masked_row_changes_nothing(name: str, world: World, values: str) -> None:
    def masked(batch: Batch, shift: int) -> Batch:
        out = torch.arange(len(batch.mask)) % 3 == 1
        classes = 11 if world.kind == "text" else 3
        moved = (batch.labels + shift) % (2 if world.many else classes)
        labels = torch.where(out[:, None] if world.many else out, moved, batch.labels)
        return batch.add_rows(mask=torch.where(out, 0.0, batch.mask), labels=labels)

    runs = []
    for shift in (0, 1):
        changed = dataclasses.replace(world, change=lambda batch, s=shift: masked(batch, s))
        runs.append(steps(job(made(name, values), changed, steps=STEPS)))
    assert runs[0].logs == runs[1].logs
    assert gap(runs[0].final, runs[1].final) == 0


@each_world
@each_values
def test_a_run_that_was_broken_off_goes_on_as_if_it_had_not_been(
    name: str, world: World, values: str, tmp_path: Path
) -> None:
    whole, again = broken_off(lambda: job(made(name, values), world, steps=STEPS), 2, tmp_path)
    assert again.logs == whole.logs
    assert gap(again.states, whole.states) == 0


@each_world
def test_evaluation_uses_none_of_the_random_numbers_of_training(
    name: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, splits = Suite.measure, []

    def draws(suite: Suite, players: Any, split: str) -> dict[str, float]:
        splits.append(split)
        torch.rand(3)
        return measure(suite, players, split)

    monkeypatch.setattr(Suite, "measure", draws)
    told = job(made(name, "default"), world, steps=STEPS, every=1, metrics=True, samples=0)
    measured = steps(told)
    assert splits.count("validation") == STEPS + 1
    assert measured.logs == traced(name, world, "default").logs
    assert gap(measured.final, traced(name, world, "default").final) == 0
