"""Text to SQL in recipes: questions from a file of the collection, run on ``data.database``."""

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from stillroom.api import run
from stillroom.config.build import build
from stillroom.config.recipe import make, read
from stillroom.config.texts import gathered
from stillroom.core import Failure
from stillroom.data.sql import QueryError, select

SPLITS = ("train", "dev", "test")
NAMES = ("iowa", "ohio", "utah")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("STILLROOM_DATA", raising=False)
    connection = sqlite3.connect(tmp_path / "states.sqlite")
    connection.execute("CREATE TABLE state (name TEXT, size INTEGER)")
    connection.executemany("INSERT INTO state VALUES (?, ?)", [(n, len(n)) for n in NAMES])
    connection.commit()
    connection.close()
    sentences = [
        {"text": f"{word} n0", "question-split": split, "variables": {"n0": name}}
        for word in ("size of", "how large is", "how big is")
        for split, name in zip(SPLITS, NAMES, strict=True)
    ]
    rows = [{"sql": ["SELECT size FROM state WHERE name = 'n0'"], "sentences": sentences}]
    (tmp_path / "states.json").write_text(json.dumps(rows))
    return tmp_path


def recipe(folder: Path, **data: Any) -> Any:
    lm = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    files = dict.fromkeys(("train", "validation", "test"), "states.json")
    told = {
        "method": "seqkd",
        "student": {"lm": {**lm, "max_position_embeddings": 128}, "vocab_size": 300},
        "teacher": {"recorded": True},
        "data": {**files, "form": "text2sql", "database": "states.sqlite", **data},
        "train": {"steps": 1, "batch": 2},
        "eval": {"metrics": ["sql"], "samples": 0},
        "sampling": {"max_new_tokens": 4, "temperature": 0.0},
        "run": {"threads": 1},
    }
    return make(told, folder=folder)


def test_each_split_has_its_own_questions(folder):
    rows = gathered(recipe(folder), None).rows
    told = {split: {row["completion"][-5:-1] for _, row in found} for split, found in rows.items()}
    assert told == {"train": {"iowa"}, "validation": {"ohio"}, "test": {"utah"}}
    assert rows["train"][1][1]["prompt"] == "how large is iowa"
    columns = {"prompt": "{{ prompt }}?", "completion": "{{ completion | upper }}"}
    ((_, row), *_) = gathered(recipe(folder, columns=columns), None).rows["test"]
    assert row["prompt"] == "size of utah?"
    assert row["completion"] == "SELECT SIZE FROM STATE WHERE NAME = 'UTAH'"


def test_a_run_measures_queries_on_the_database_and_leaves_it_alone(folder, tmp_path):
    before = (folder / "states.sqlite").read_bytes()
    done = run(recipe(folder), tmp_path / "run")
    (test,) = (result.test for result in done.results.values())
    assert test == {"execution_accuracy": 0.0, "valid_sql": 0.0}  # of four random tokens
    assert (folder / "states.sqlite").read_bytes() == before


def test_a_database_that_is_not_there_is_told_before_anything_learns(folder, tmp_path):
    with pytest.raises(Failure, match=r"data\.database: there is no file none\.sqlite .*STILLROOM"):
        build(recipe(folder, database="none.sqlite"))
    for name, says in ((None, "name the SQLite file"), ("states.json", "is no SQLite database")):
        told = recipe(folder, database=name)
        with pytest.raises(Failure, match=says):
            run(told, tmp_path / says)
        assert not (tmp_path / says / "metrics.jsonl").exists()


def test_a_split_without_questions_is_named(folder):
    told = json.loads((folder / "states.json").read_text())
    told[0]["sentences"] = [s for s in told[0]["sentences"] if s["question-split"] != "dev"]
    (folder / "states.json").write_text(json.dumps(told))
    with pytest.raises(Failure, match=r"data\.validation: no question is of the split 'dev'"):
        gathered(recipe(folder), None)


@pytest.mark.skipif(
    not os.environ.get("STILLROOM_DATA"), reason="STILLROOM_DATA is not set: it holds geography/"
)
def test_the_references_of_the_packaged_recipe_run_on_its_database():
    """All but those that SQLite does not know: ALL, and a name that is not in scope."""
    rows = gathered(read("kid"), None).rows
    assert {split: len(found) for split, found in rows.items()} == {
        "train": 549,
        "validation": 49,
        "test": 279,
    }
    database = Path(os.environ["STILLROOM_DATA"]) / "geography" / "geography.sqlite"
    failed, empty = [], 0
    for query in (row["completion"] for found in rows.values() for _, row in found):
        assert '"' not in query
        try:
            empty += select(database, query) in ([], [(None,)])
        except QueryError as error:
            failed.append(str(error))
    assert len(failed) == 5
    assert all("no such column" in told or 'near "ALL"' in told for told in failed)
    assert empty == 28
