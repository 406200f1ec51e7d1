"""What is said of runs made by hand: what is missing, sweeps, fidelity against accuracy."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stillroom.config.build import build
from stillroom.config.recipe import make
from stillroom.core import Failure
from stillroom.diagnostics.does_kd_work import DoesKDWork


def past(name: str, agreement: float, **more: Any) -> Any:
    """``more``: learned, accuracy, barrier, near, rows, seed, test."""
    test = {"agreement": agreement, "kl": 0.1, "accuracy": more.get("accuracy", 0.8)}
    test |= {"class_nll": 0.5, "barrier": more.get("barrier", 1.0)}
    if "learned" in more:
        test |= {"train_agreement": more["learned"], "train_kl": 0.01}
    recipe = {
        "run": {"seed": more.get("seed", 0)},
        "student": {"near": more.get("near", 0.0)},
        "method": {"name": "kd", "temperature": 4.0},
    }
    rows = {"rows": {"train": more.get("rows", 300)}}
    result = {"test": more.get("test", test), "data": rows}
    return SimpleNamespace(name=name, metrics=[], recipe=recipe, result=result)


def test_what_is_missing_is_parted_in_optimisation_and_generalisation() -> None:
    found = DoesKDWork().read([past("one", 0.9, learned=0.96)])
    row = found.rows["one"]
    assert row["optimisation"] == pytest.approx(0.04)
    assert row["generalisation"] == pytest.approx(0.06)
    assert row["optimisation"] + row["generalisation"] == pytest.approx(1 - 0.9)  # type: ignore[operator]
    assert "0.040 are missing" in found.sentences[0]
    assert "+0.060 beyond" in found.sentences[0]
    assert len(found.sentences) == 1
    assert set(row) == set(found.columns)
    assert row["near"] is row["rows"] is row["temperature"] is None  # nothing was tried


def test_without_the_learned_examples_the_rest_is_told() -> None:
    found = DoesKDWork().read([past("one", 0.9)])
    assert found.rows["one"]["optimisation"] is None
    assert found.rows["one"]["agreement"] == 0.9
    assert "optimisation" not in found.sentences[0]


def test_more_examples_are_swept_over_seeds_from_random_starts_alone() -> None:
    runs = [
        *(past(f"few {s}", 0.8 + s / 100, rows=100, seed=s) for s in (0, 2)),
        *(past(f"many {s}", 0.9 + s / 100, rows=900, seed=s) for s in (0, 2)),
        past("near", 1.0, rows=100, near=0.5),
    ]
    (said,) = [s for s in DoesKDWork().read(runs).sentences if "by examples" in s]
    assert said.endswith("100: 0.810, 900: 0.910 (+0.100)")


def test_the_farthest_start_that_matches_must_match_and_lie_in_the_basin() -> None:
    told = {0.0: (0.9, 0.97, 2.0), 0.2: (0.93, 0.995, 0.5), 0.4: (0.95, 0.995, 0.004)}
    told[0.6] = (0.99, 1.0, 0.0)
    runs = [
        past(f"near {near}", a, learned=learned, barrier=barrier, near=near)
        for near, (a, learned, barrier) in told.items()
    ]
    *_, curve, least, _ = DoesKDWork().read(runs).sentences
    assert "0: 0.900, 0.2: 0.930, 0.4: 0.950, 0.6: 0.990" in curve
    assert least.endswith("barrier 0.01 at most): 0.4")
    *_, least, _ = DoesKDWork(flat=0.6).read(runs).sentences
    assert least.endswith("barrier 0.6 at most): 0.2")
    *_, least, _ = DoesKDWork(matched=0.999).read(runs).sentences
    assert least.endswith(": 0.6")
    *_, none, _ = DoesKDWork().read(runs[:2]).sentences
    assert none.startswith("from no start")


def test_pairs_of_one_seed_in_which_fidelity_and_accuracy_part() -> None:
    runs = [
        past("a", 0.90, accuracy=0.80),
        past("b", 0.95, accuracy=0.75),
        past("c", 0.99, accuracy=0.85),
        past("d", 0.80, accuracy=0.99, seed=1),
    ]
    assert DoesKDWork().read(runs).sentences[-1].startswith("in 1 of 3 pairs")


def test_a_run_that_lacks_a_number_is_named() -> None:
    with pytest.raises(Failure, match=r"one: its test split told no agreement, kl; eval\.metrics"):
        DoesKDWork().read([past("one", 0.9, test={"accuracy": 0.8, "class_nll": 0.5})])


NET = {"net": {"kind": "mlp", "widths": [8]}}


def test_a_student_may_begin_near_its_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn", reason="the extra 'classes' is not installed")
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    data = {"items": {"name": "digits", "train": 32, "validation": 16, "test": 16}}

    def job(near: float, **changes: Any) -> Any:
        told = {
            "method": "kd",
            "student": {**NET, "near": near},
            "teacher": {"trained": {"student": NET, "steps": 2, "seed": 5}},
            "data": data,
            "train": {"steps": 2, "batch": 16, "lr": 0.01},
            **changes,
        }
        return build(make(told, folder=tmp_path))

    fresh, some, same = (job(near) for near in (0.0, 0.25, 1.0))
    teacher = fresh.teachers["teacher"].network.state_dict()
    for name, value in fresh.student.state_dict().items():
        wanted = 0.75 * value + 0.25 * teacher[name]
        torch.testing.assert_close(some.student.state_dict()[name], wanted)
        assert torch.equal(same.student.state_dict()[name], teacher[name])
        assert not torch.equal(value, teacher[name])
    with pytest.raises(Failure, match=r"student\.near: there is no line between networks"):
        job(0.5, student={"net": {"kind": "mlp", "widths": [4]}, "near": 0.5})
    with pytest.raises(Failure, match=r"student\.near: the teacher must be one network"):
        job(0.5, method="seqkd", teacher={"recorded": True})
