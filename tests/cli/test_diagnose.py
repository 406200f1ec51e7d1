"""Run folders put before a diagnostic at the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from stillroom.cli import main

LINES = [
    {"step": 10 * i, "validation/kl": 4 - i, "validation/source_kl": abs(i - 2) + 1.0}
    for i in range(4)
]


@pytest.fixture
def say(monkeypatch, capsys, tmp_path):
    """Gives words to the command line; returns its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")

    def told(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stillroom", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return told


def written(folder: Path, arms: tuple[str, ...] = ("few", "many")) -> str:
    """A finished run with arms that have the same readings."""
    recipe: dict[str, Any] = {"name": "x", "method": {"name": "kd"}, "train": {"steps": 30}}
    result = {"steps": 30, "tokens": {"trained": 1}, "cpu_seconds": 1.0, "seconds": 1.0, "test": {}}
    table = {"rows": [{"name": a, "kind": "method", "values": {}} for a in arms], "columns": {}}
    for place in [folder, *(folder / "arms" / arm for arm in arms)]:
        place.mkdir(parents=True)
        (place / "recipe.yaml").write_text(
            yaml.safe_dump(
                {**recipe, "arms": dict.fromkeys(arms, recipe)} if place == folder else recipe
            )
        )
        (place / "environment.json").write_text("{}")
        (place / "table.json").write_text(json.dumps(table))
        (place / "result.json").write_text(json.dumps({**result, "start": {}, "data": {}}))
        (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return str(folder)


def test_the_arms_of_a_run_stand_beside_each_other(say, tmp_path) -> None:
    written(tmp_path / "run")
    code, out, _ = say("diagnose", "teacher_hacking", "run")
    assert code == 0
    assert out.splitlines()[0] == "teacher_hacking"
    assert "few" in out
    assert "many" in out
    assert "from step 20 to 30 proxy fell from 2 to 1 while golden rose from 1 to 2" in out
    assert "bend" not in out  # no run has one


def test_as_json_with_fields_changed(say, tmp_path) -> None:
    written(tmp_path / "run")
    code, out, _ = say("diagnose", "teacher_hacking", "run", "golden=kl", "--json")
    found = json.loads(out)
    assert code == 0
    assert set(found) == {"columns", "rows", "sentences"}
    assert found["rows"]["few"]["gap"] == 0
    assert found["rows"]["few"]["golden"] == 1


def test_several_runs_keep_their_names_apart(say, tmp_path) -> None:
    written(tmp_path / "one"), written(tmp_path / "two")
    rows = json.loads(say("diagnose", "teacher_hacking", "one", "two", "--json")[1])["rows"]
    assert list(rows) == ["one/few", "one/many", "two/few", "two/many"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("teacher_hacking", "window=0.5"), "name the folder of a finished run"),
        (("teacher_hacking", "run", "window=2"), "teacher_hacking.window: "),
        (("teacher_hacking", "run", "windov=0.5"), "did you mean 'window'"),
        (("teacher_haking", "run"), "did you mean 'teacher_hacking'"),
        (("kd", "run"), "'kd' is a method; it takes a diagnostic here"),
        (("teacher_hacking", "nowhere"), "nowhere is no run folder"),
        (("teacher_hacking", "run", "golden=truth"), "no validation told 'truth'"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(say, tmp_path, words, why) -> None:
    written(tmp_path / "run")
    code, _, err = say("diagnose", *words)
    assert code == 2
    assert why in " ".join(err.split())


def test_listing_and_showing_know_it(say) -> None:
    rows = {row["name"]: row for row in json.loads(say("list", "--json")[1])}
    assert rows["teacher_hacking"]["kind"] == "diagnostic"
    shown = " ".join(say("show", "teacher_hacking")[1].split())
    assert "2502.02671" in shown
    assert "golden(b) > golden(a)" in shown
