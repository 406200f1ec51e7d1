"""Exact chances against brute force; leaks, controls and doses of runs made by hand."""

from __future__ import annotations

import itertools
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
from scipy import stats

from stillroom.core import Failure
from stillroom.diagnostics._chances import holm, tail
from stillroom.diagnostics.data_laundering import DataLaundering


def past(name: str, on_canaries: float = 0.25, **more: Any) -> Any:
    """A run of 64 canaries; ``more``: benchmark, fresh, seed, recipe, test."""
    test = {
        "benchmark_accuracy": more.get("benchmark", 0.25),
        "fresh_accuracy": more.get("fresh", 0.25),
        "canary_accuracy": on_canaries,
        "canaries": more.get("canaries", 64.0),
        "options": 4.0,
    }
    recipe = {"run": {"seed": more.get("seed", 0)}, **more.get("recipe", {})}
    return SimpleNamespace(
        name=name, metrics=[], recipe=recipe, result={"test": more.get("test", test)}
    )


def ways(items: int, options: int) -> list[int]:
    """Of ``options ** items`` ways to draw all letters those with k right, item by item."""
    told = [1]
    for _ in range(items):
        missed = [(options - 1) * n for n in told]
        told = [a + b for a, b in zip([*missed, 0], [0, *told], strict=True)]
    return told


def law(items: int, options: int) -> list[Fraction]:
    """P(X = k) of guessing."""
    return [Fraction(n, options**items) for n in ways(items, options)]


@pytest.mark.parametrize("options", [2, 3, 4, 8])
def test_a_chance_is_the_law_of_guessing_summed_up(options: int) -> None:
    for items in (1, 2, 7, 40):
        told = law(items, options)
        for k in range(items + 1):
            assert tail(k, items, options) == float(sum(told[k:]))
            by_scipy = stats.binom.sf(k - 1, items, 1 / options)
            assert tail(k, items, options) == pytest.approx(by_scipy, rel=1e-9)


def test_a_chance_by_counting_all_letters_that_could_have_been_drawn() -> None:
    """Who knows nothing says the same whatever was drawn."""
    for options, items in ((2, 6), (3, 5), (4, 4)):
        said = [i % options for i in range(items)]
        drawn = list(itertools.product(range(options), repeat=items))
        right = [sum(a == b for a, b in zip(said, letters, strict=True)) for letters in drawn]
        for k in range(items + 1):
            assert tail(k, items, options) == sum(r >= k for r in right) / len(drawn)


@pytest.mark.parametrize("options", [2, 4, 5])
@pytest.mark.parametrize("level", [Fraction(1, 20), Fraction(1, 4)])
def test_who_knows_nothing_is_rejected_no_more_often_than_the_level(
    options: int, level: Fraction
) -> None:
    """Of every number of canaries, exactly; and not much less often where there are many."""
    often = []
    for items in range(1, 129):
        told = ways(items, options)
        rejected = [k for k in range(items + 1) if tail(k, items, options) <= float(level)]
        often.append(Fraction(sum(told[k] for k in rejected), options**items))
    assert max(often) <= level
    assert often[-1] > level / 2


def test_adjusted_by_holm_by_hand() -> None:
    # 4 * .01, 3 * .02 = .06, 2 * .03 = .06, 1 * .04 = .04, which is not below .06
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


def test_a_leak_is_flagged_with_its_numbers_by_hand() -> None:
    runs = [past("laundered", 0.5, benchmark=0.625, fresh=0.25), past("control", 0.25)]
    found = DataLaundering().read(runs)
    row = found.rows["laundered"]
    p = float(sum(law(64, 4)[32:]))
    assert row["inflation"] == 0.375
    assert row["gain"] == 0.375
    assert row["chance"] == p
    assert row["adjusted"] == 2 * p
    assert row["flagged"] == 1
    assert found.rows["control"]["flagged"] == 0
    assert found.rows["control"]["gain"] is None
    assert "laundered: the benchmark leaked: 32 of 64 canaries right" in found.sentences[0]
    assert "control: no leak is seen: 16 of 64" in found.sentences[1]
    assert found.sentences[2] == "laundered: leak gain +0.375 over control, 1 pair"


def test_a_benchmark_that_is_right_by_ability_is_no_leak() -> None:
    row = DataLaundering().read([past("able", 0.25, benchmark=0.9, fresh=0.9)]).rows["able"]
    assert row["flagged"] == 0
    assert row["inflation"] == 0


def test_runs_that_are_read_together_are_adjusted_together() -> None:
    """23 of 64 have a chance of some 3.5 %: a leak alone, and none as one of two."""
    run = past("one", 23 / 64)
    p = float(sum(law(64, 4)[23:]))
    assert 0.025 < p <= 0.05
    assert DataLaundering().read([run]).rows["one"]["flagged"] == 1
    both = DataLaundering().read([run, past("other", 0.25)]).rows
    assert both["one"]["flagged"] == 0
    assert DataLaundering(level=0.1).read([run, past("other")]).rows["one"]["flagged"] == 1


def test_the_level_itself_is_flagged() -> None:
    run = past("one", 1.0, canaries=2.0)  # 1/16
    assert DataLaundering(level=0.0625).read([run]).rows["one"]["flagged"] == 1
    assert DataLaundering(level=0.0624).read([run]).rows["one"]["flagged"] == 0


def test_gains_are_taken_in_pairs_of_one_folder() -> None:
    runs = [
        past("a/laundered", benchmark=0.5, seed=1),
        past("a/control", benchmark=0.25, seed=1),
        past("b/laundered", benchmark=0.75, seed=2),
        past("b/control", benchmark=0.125, seed=2),
    ]
    found = DataLaundering().read(runs)
    assert [found.rows[n]["gain"] for n in ("a/laundered", "b/laundered")] == [0.25, 0.625]
    assert "laundered: leak gain +0.438 over control, 2 pairs, +0.250 to +0.625" in found.sentences


def test_pairs_of_two_seeds_are_refused() -> None:
    runs = [past("a/laundered", seed=1), past("a/control", seed=2)]
    with pytest.raises(Failure, match="a/laundered: has seed 1 and its control a/control 2"):
        DataLaundering().read(runs)


def test_without_a_control_there_is_no_gain() -> None:
    found = DataLaundering(control="clean").read([past("laundered"), past("control")])
    assert found.rows["laundered"]["gain"] is None
    assert "there is no arm 'clean' beside" in found.sentences[-1]


def test_settings_that_differ_are_shown_beside_the_leak() -> None:
    def world(**told: Any) -> Any:
        return {"method": {"temperature": 1.0}, "data": {"world": {"name": "quiz", **told}}}

    runs = [past("near", recipe=world()), past("far", recipe=world(shift=4))]
    rows = DataLaundering().read(runs).rows
    assert [rows[name]["shift"] for name in ("near", "far")] == [0, 4]
    assert {rows["near"][name] for name in ("temperature", "label_weight", "rows")} == {None}


def test_what_a_run_lacks_is_said() -> None:
    lacks = past("arm", test={"benchmark_accuracy": 0.5})
    with pytest.raises(Failure, match=r"arm: its test split told no canaries, canary.*add quiz"):
        DataLaundering().read([lacks])
    with pytest.raises(Failure, match="arm: its test split holds no canary"):
        DataLaundering().read([past("arm", canaries=0.0)])


def test_every_run_has_a_row_of_all_columns() -> None:
    found = DataLaundering().read([past("a"), past("b")])
    assert all(set(row) == set(found.columns) for row in found.rows.values())
