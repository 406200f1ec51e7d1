"""Which arms share one healing."""

from pathlib import Path

import pytest

from stillroom.config.recipe import make
from stillroom.config.students import Beginning, heal_recipe, healed


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where a recipe's healing is kept, by its sections; what is made is an empty folder."""
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path))

    def told(method="seqkd", **sections):
        heal = {"steps": 2, "method": method, "train": {"batch": 8, "lr": 1e-4}}
        base = {
            "method": {"name": "seqkd"},
            "student": {"model": "some", "heal": heal},
            "teacher": {"recorded": True},
            "data": {"train": "rows.jsonl"},
            "train": {"steps": 9, "batch": 2, "lr": 1e-5},
        }
        recipe = heal_recipe(make({**base, **sections}, folder=Path()), logits=True)
        assert (recipe.eval.samples, recipe.eval.metrics) == (0, ())
        return healed(recipe, Beginning("some"), lambda folder: None, {}).source

    return told


def test_how_an_arm_samples_and_how_long_it_learns_is_its_own(place):
    first = place()
    assert place(sampling={"temperature": 0.9}) == first
    assert place(train={"steps": 0, "batch": 4, "lr": 1.0}, eval={"copies": 3}) == first
    assert place(run={"seed": 1}) != first
    assert place(train={"steps": 9, "clip": 5.0}) != first


def test_a_healing_that_samples_depends_on_how(place):
    assert place("gkd", sampling={"temperature": 0.9}) != place("gkd")
