"""Tuning, pairing and equal time, with runs whose numbers are told."""

import pytest

from stillroom.config.cases import read_claim
from stillroom.core import Failure
from stillroom.evidence import trial
from stillroom.evidence.trial import Trial

pytestmark = pytest.mark.extra("claims")
GRID = [{"key": "train.lr", "times": [0.5, 1]}]


def judged(file, *, seeds=2, **options):
    return Trial(case=read_claim(str(file)), seeds=seeds, **options).judge()


@pytest.fixture
def fake(monkeypatch):
    """Runs that are told by a function of the recipe; returns the list of those that were asked."""
    asked = []

    def give(numbers):
        def kept(recipe, again):
            asked.append(recipe)
            told = numbers(recipe)
            spent = {"steps": recipe.train.steps or 9, "cpu_seconds": told.get("cpu", 1.0)}
            rest = {"selected_step": 1, "tokens": {"trained": 5, "generated": 0}, "notes": []}
            named = {name: told.get(name, {}) for name in ("validation", "test")}
            return {**spent, **rest, **named, **told}, True

        monkeypatch.setattr(trial, "kept", kept)
        return asked

    return give


def test_differences_are_paired_by_seed_and_summed_up_by_hand(claim_file, fake):
    def numbers(recipe):
        seed, long = recipe.run.seed, recipe.train.steps == 6
        return {"test": {"validity": 10.0 * seed + (seed + 2 if long else 1)}}

    fake(numbers)
    told = judged(claim_file(), seeds=3)
    # differences 1, 2, 3 although the seeds themselves lie 10 apart
    assert told["difference"]["by_seed"] == [1.0, 2.0, 3.0]
    assert told["difference"]["mean"] == 2.0
    assert told["difference"]["low"] == pytest.approx(2 - 2.484138, abs=1e-5)
    assert told["verdict"] == "undecided"
    assert told["arms"]["long"]["numbers"]["validity"] == {
        "mean": 13.0,
        "sd": 11.0,
        "by_seed": [2.0, 13.0, 24.0],
    }
    assert told["arms"]["short"]["spent"]["steps"] == {"mean": 2, "sd": 0, "by_seed": [2, 2, 2]}
    assert told["full"]


@pytest.mark.parametrize(("select", "best"), [("validity", 0.005), ("nll", 0.01)])
def test_the_grid_is_chosen_from_on_validation_with_tuning_seeds_alone(
    claim_file, fake, select, best
):
    def numbers(recipe):
        rate = recipe.train.lr
        # on the test split, and with seed 1001 alone, the other rate looks better
        worth = 1 / rate if recipe.run.seed == 1000 else 10 * rate
        validation = {"validity": worth, "nll": worth}
        return {"validation": validation, "test": {"validity": rate, "nll": rate}}

    asked = fake(numbers)
    file = claim_file(arms={"long": {}, "short": {}}, grid=GRID, select=select, tuning_seeds=2)
    told = judged(file)
    for arm, steps in {"long": 6, "short": 2}.items():
        ours = [recipe for recipe in asked if recipe.train.steps == steps]
        tried = [(recipe.train.lr, recipe.run.seed) for recipe in ours[:4]]
        assert tried == [(0.005, 1000), (0.005, 1001), (0.01, 1000), (0.01, 1001)]
        assert [(recipe.train.lr, recipe.run.seed) for recipe in ours[4:]] == [(best, 0), (best, 1)]
        assert told["arms"][arm]["tuned"] == {"train.lr": best}
        assert told["arms"][arm]["tried"][0] == {
            "values": {"train.lr": 0.005},
            "by_seed": [200.0, 0.05],
            "mean": pytest.approx(100.025),
        }


def test_the_other_arm_learns_for_as_long_as_the_first_one_as_tuned_took_with_that_seed(
    claim_file, fake
):
    def numbers(recipe):
        seconds = recipe.run.seed + 100 * recipe.train.lr
        return {"validation": {"nll": recipe.train.lr}, "test": {"validity": 0.5}, "cpu": seconds}

    asked = fake(numbers)
    # long is tuned to 0.005, so it takes seed + 0.5 seconds
    told = judged(claim_file(grid=GRID, select="nll", budget={"cpu_seconds": "long"}))
    timed = [recipe for recipe in asked if recipe.train.cpu_seconds is not None]
    spent = [(recipe.train.lr, recipe.run.seed, recipe.train.cpu_seconds) for recipe in timed]
    assert spent == [(0.01, 1000, 1000.5), (0.02, 1000, 1000.5), (0.01, 0, 0.5), (0.01, 1, 1.5)]
    assert {recipe.train.steps for recipe in timed} == {None}
    assert told["arms"]["long"]["spent"]["cpu_seconds"]["by_seed"] == [0.5, 1.5]


def test_a_point_that_diverges_is_not_chosen_and_a_run_that_diverges_is_told(claim_file, fake):
    def numbers(recipe):
        if recipe.train.lr == 0.01 or (recipe.run.seed, recipe.train.steps) == (1, 2):
            return {"failed": "loss is nan", "validation": {}, "test": {}}
        return {"validation": {"nll": 9.0}, "test": {"validity": 0.5}}

    fake(numbers)
    arms = {"long": {}, "short": {}}
    with pytest.raises(Failure, match="short, seed 1: there is nothing to compare: loss is nan"):
        judged(claim_file(arms=arms, grid=GRID, select="nll"))


def test_a_grid_on_which_all_diverges_is_told(claim_file, fake):
    fake(lambda recipe: {"failed": "loss is nan", "validation": {}, "test": {}})
    with pytest.raises(Failure, match="long: no point of the grid gives a finite nll"):
        judged(claim_file(grid=GRID, select="nll"))


def test_too_few_seeds_are_told_before_anything_runs(claim_file, fake):
    asked = fake(lambda recipe: {})
    with pytest.raises(Failure, match="at least 2 seeds, got 1"):
        judged(claim_file(), seeds=1)
    assert asked == []


def test_the_last_arms_mistake_is_told_before_the_first_learns(claim_file, fake):
    asked = fake(lambda recipe: {})
    file = claim_file(arms={"long": {}, "short": {"train": {"lr": {"critic": 0.1}}}})
    with pytest.raises(Failure, match=r"arms\.short: train\.lr\.critic"):
        judged(file)
    assert asked == []
