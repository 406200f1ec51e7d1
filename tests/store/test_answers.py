"""The store: append-only, one writer, damage told, nothing asked twice after a kill."""

import sqlite3
import subprocess
import sys

import pytest

from stillroom.failures import Failure
from stillroom.store.answers import FILE, Store
from stillroom.store.requests import Decoding, Outcome, Request, Tokens, key

WHO = {"kind": "api", "model": "m", "base_url": "http://a/v1"}
MOST, TOLD = Tokens(100, 20), Tokens(7, 3)
HOLDS = """
import sys, time
from stillroom.store.answers import Store
with Store(sys.argv[1]).writing():
    print("writing", flush=True)
    sys.stdin.read()
"""


def asked(store: Store, name: str, outcome: Outcome | None) -> None:
    number = store.begin(WHO, name, {"prompt": name}, MOST)
    if outcome:
        store.end(number, outcome)


def test_attempts_come_back_in_order_and_an_unfinished_one_has_no_outcome(tmp_path):
    store = Store(tmp_path)
    failed, answer = Outcome("failed", why="HTTP 500", tokens=Tokens()), Outcome(
        "answer", "words \u2028 \U0001f600", "", TOLD
    )  # fmt: skip
    asked(store, "a", failed)
    asked(store, "a", None)
    asked(store, "b", Outcome("empty"))
    asked(store, "a", answer)
    again = Store(tmp_path)
    assert again.past("a") == [(MOST, failed), (MOST, None), (MOST, answer)]
    assert again.past("b") == [(MOST, Outcome("empty"))]
    assert again.past("c") == []
    assert again.sources() == [WHO]


@pytest.mark.parametrize("table", ["sources", "requests", "attempts", "outcomes"])
@pytest.mark.parametrize("verb", ["DELETE FROM {}", "UPDATE {} SET rowid = rowid"])
def test_nothing_is_changed_or_taken_out(tmp_path, table, verb):
    asked(Store(tmp_path), "a", Outcome("answer", "words", "", TOLD))
    with sqlite3.connect(tmp_path / FILE) as db, pytest.raises(sqlite3.Error, match="append-only"):
        db.execute(verb.format(table))
    db.close()
    assert len(Store(tmp_path).past("a")) == 1


def test_an_attempt_has_one_outcome(tmp_path):
    store = Store(tmp_path)
    number = store.begin(WHO, "a", {}, MOST)
    store.end(number, Outcome("answer", "first", "", TOLD))
    with pytest.raises(Failure, match=r"answers\.sqlite"):
        store.end(number, Outcome("answer", "second", "", TOLD))


def test_two_processes_do_not_write_at_once_and_the_other_is_named(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout
        assert other.stdout.readline() == "writing\n"
        named = pytest.raises(Failure, match=f"process {other.pid} on .* since ")
        with named as told, Store(tmp_path).writing():
            pass
        assert str(tmp_path) in str(told.value)
        assert Store(tmp_path).past("a") == []  # reading is free
        other.kill()
    with Store(tmp_path).writing():
        pass


def test_the_same_process_does_not_write_twice_at_once(tmp_path):
    refused = pytest.raises(Failure, match="is being written by process")
    with Store(tmp_path).writing(), refused, Store(tmp_path).writing():
        pass


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path):
    (tmp_path / FILE).write_text("these are my notes " * 50, encoding="utf-8")
    with pytest.raises(Failure, match="damaged or is none") as told:
        Store(tmp_path)
    assert FILE in str(told.value)
    assert (tmp_path / FILE).read_text(encoding="utf-8") == "these are my notes " * 50


def test_another_database_is_refused(tmp_path):
    with sqlite3.connect(tmp_path / FILE) as db:
        db.execute("CREATE TABLE other (x)")
    db.close()
    with pytest.raises(Failure, match="no store of answers"):
        Store(tmp_path)


def test_a_damaged_store_is_refused(tmp_path):
    store = Store(tmp_path)
    for i in range(200):
        asked(store, f"k{i}", Outcome("answer", "words " * 40, "", TOLD))
    store.close()
    whole = (tmp_path / FILE).read_bytes()
    assert len(whole) > 40_000
    (tmp_path / FILE).write_bytes(whole[:8192] + b"\x00\xff" * 8192 + whole[24576:])
    with pytest.raises(Failure, match="damaged"):
        Store(tmp_path)
    (tmp_path / FILE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Failure, match="damaged"):
        Store(tmp_path)


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(Failure, match="cannot be made"):
        Store(tmp_path / "file" / "store")


def test_a_key_tells_apart_all_that_an_answer_depends_on():
    base = key(WHO, {"prompt": "a", "temperature": 0.5}, 0)
    assert base == key(dict(reversed(WHO.items())), {"temperature": 0.5, "prompt": "a"}, 0)
    others = [
        key({**WHO, "model": "n"}, {"prompt": "a", "temperature": 0.5}, 0),
        key(WHO, {"prompt": "b", "temperature": 0.5}, 0),
        key(WHO, {"prompt": "a", "temperature": 0.6}, 0),
        key(WHO, {"prompt": "a", "temperature": 0.5}, 1),
    ]
    assert len({base, *others}) == 5


def test_copies_have_seeds_of_their_own():
    assert Request("a", Decoding(seed=5), 2).seed == 7
    assert Request("a", Decoding(), 2).seed is None
