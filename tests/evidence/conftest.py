"""A claim whose runs take a fraction of a second, kept runs of the test's own, the command line."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from stillroom.cli import main
from stillroom.evidence import trial

QUICK: dict[str, Any] = {
    "method": "seqkd",
    "paper": "none, section 0",
    "sentence": "Six steps give a higher validity than two.",
    "about": "It shows nothing.",
    "recipe": {
        "method": "seqkd",
        "student": {"lm": {"model_type": "windowed", "window": 2, "sinks": 5}},
        "teacher": {"recorded": True},
        "data": {"world": {"name": "marked_orders", "prompts": 32}},
        "train": {"steps": 4, "lr": 0.01},
        "eval": {"metrics": ["marked_orders", "likelihood"], "samples": 0, "every": 1},
        "sampling": {"max_new_tokens": 9},
        "run": {"threads": 1},
        "tiny": {"train": {"steps": 1}},
    },
    "arms": {"long": {}, "short": {"train": {"lr": 0.02}}},
    "compare": ["long", "short"],
    "metric": "validity",
    "sign": "higher",
    "budget": {"steps": {"long": 6, "short": 2}},
    "seeds": 2,
}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("STILLROOM_CACHE", str(folder))
    return folder


@pytest.fixture
def claim_file(tmp_path) -> Callable[..., Path]:
    """Writes the quick claim with changes; a key told as None is left out."""

    def write(**changes: Any) -> Path:
        told = {k: v for k, v in {**QUICK, **changes}.items() if v is not None}
        file = tmp_path / "quick.yaml"
        file.write_text(yaml.safe_dump(told, sort_keys=False))
        return file

    return write


@pytest.fixture
def say(monkeypatch, capsys, tmp_path):
    """Gives words to the command line; returns what it printed and how it ended."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")

    def told(*words):
        monkeypatch.setattr(sys, "argv", ["stillroom", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        out = capsys.readouterr()
        return ended.value.code or 0, out.out, " ".join(out.err.split())

    return told


@pytest.fixture
def fake(monkeypatch):
    """A run's validity is 0.1 times its steps, more with a larger seed; ``more`` is added."""
    more = {"long": 0.0}

    def kept(recipe, again):
        steps, seed = recipe.train.steps, recipe.run.seed
        extra = more["long"] if steps == 6 else 0.0
        test = {"validity": 0.1 * steps + 0.01 * seed * steps + extra, "modes": 3.0 / steps}
        spent = {"steps": steps, "cpu_seconds": 2.0 * steps, "tokens": {"trained": 5 * steps}}
        rest = {"selected_step": steps, "notes": [], "validation": test}
        return {"test": test, **spent, **rest}, True

    monkeypatch.setattr(trial, "kept", kept)
    return more
