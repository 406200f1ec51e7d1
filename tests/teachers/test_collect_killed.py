"""``stillroom collect`` as a process: killed, interrupted, beside another, among faults."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from servers import FAULTS, Server
from speakers import Canned

from stillroom.store.answers import Store
from stillroom.store.requests import Decoding, Request, key
from stillroom.teachers.api import Api

pytest.importorskip("httpx2", reason="the extra 'api' is not installed")
pytestmark = [pytest.mark.extra("api"), pytest.mark.slow]

KEY = "sk-planted-0123456789abcdef"
LANES, LIMIT = 8, 12


def say(prompt: str) -> str:
    return f"so you said {prompt}, and I heard it"


class Place:
    """A folder with prompts, and the command that collects answers to them."""

    def __init__(self, folder: Path, prompts: int, url: str) -> None:
        self.folder, self.url = folder, url
        self.prompts = [f"question {i} of many" for i in range(prompts)]
        rows = "".join(json.dumps({"prompt": p}) + "\n" for p in self.prompts)
        (folder / "rows.jsonl").write_text(rows, encoding="utf-8")

    def start(self, *words: str) -> subprocess.Popen[str]:
        told = [
            "--debug", "collect", "rows.jsonl", "--teacher", "openai:canned",
            "--base-url", self.url, "--store", "store", "--out", "out.jsonl",
            "--max-tokens", str(LIMIT), "--concurrency", str(LANES), *words,
        ]  # fmt: skip
        return subprocess.Popen(
            [sys.executable, "-m", "stillroom", *told],
            cwd=self.folder,
            env={**os.environ, "OPENAI_API_KEY": KEY},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=heeds_interrupts,
        )

    def run(self, *words: str) -> tuple[int, str, str]:
        with self.start(*words) as process:
            out, err = process.communicate(timeout=300)
            return process.returncode, out, err

    def ended(self, server: Server, at: int, how: signal.Signals, *words: str) -> tuple[int, str]:
        """Starts it, and sends a signal when the server has answered ``at`` requests."""
        with self.start(*words) as process:
            until(lambda: sum(server.answered.values()) >= at or process.poll() is not None)
            process.send_signal(how)
            _, err = process.communicate(timeout=60)
            return process.returncode, err

    def arrived(self) -> set[str]:
        """Prompts whose answers the store holds."""
        source, store = Api(model="canned", base_url=self.url), Store(self.folder / "store")
        asked = {p: Request(p, Decoding(max_tokens=LIMIT)) for p in self.prompts}
        names = {p: key(source.identity, source.rendered(r), 0) for p, r in asked.items()}
        return {p for p in self.prompts if any(o and o.arrived for _, o in store.past(names[p]))}

    def rows(self, name: str = "out.jsonl") -> list[dict[str, Any]]:
        text = (self.folder / name).read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def ledger(self) -> dict[str, Any]:
        return json.loads((self.folder / "out.jsonl.ledger.json").read_text(encoding="utf-8"))


def heeds_interrupts() -> None:
    """As in a terminal: what a script starts in the background ignores Ctrl-C, children too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def until(true: Callable[[], bool]) -> None:
    for _ in range(6000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it never came")


def found(folder: Path, secret: str) -> list[Path]:
    """Files in which a secret stands, byte by byte."""
    return [p for p in folder.rglob("*") if p.is_file() and secret.encode() in p.read_bytes()]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_after_a_kill_only_what_was_in_flight_is_asked_again(tmp_path, how):
    with Server(Canned(say), pause=0.03) as server:
        place = Place(tmp_path, 120, server.url)
        code, err = place.ended(server, 50, how)
        assert code == (-9 if how == signal.SIGKILL else 130)
        if how == signal.SIGINT:
            assert "the same command goes on" in err
            assert "Traceback" not in err
        assert not (tmp_path / "out.jsonl").exists()
        arrived = place.arrived()
        assert 50 - LANES <= len(arrived) < 120
        code, _, err = place.run()
        assert code == 0, err
        twice = [p for p in place.prompts if server.asked[p] == 2]
        assert set(server.asked) == set(place.prompts)
        assert max(server.asked.values()) <= 2
        assert len(twice) <= LANES
        assert not arrived & set(twice)
        assert server.most <= LANES
    assert place.rows() == [{"prompt": p, "completion": say(p)} for p in place.prompts]
    told = place.ledger()
    assert told["from_store"] == len(arrived)
    spent = told["cost_of_all_runs"]
    assert spent["prompt_tokens"] >= server.tokens["prompt"]  # what was cut off counts in full
    assert spent["answer_tokens"] >= server.tokens["answer"]


def test_a_thousand_prompts_through_faults_are_answered_or_dropped_with_a_reason(tmp_path):
    passing = ("busy", "wait", "broken", "unavailable", "reset", "half", "empty", "slow")
    rates = {name: 0.01 if name in ("wait", "slow") else 0.06 for name in passing}
    rates |= {"rejected": 0.02}
    with Server(Canned(say), rates, seed=5, slow=1.5) as server:
        place = Place(tmp_path, 1000, server.url)
        code, out, err = place.run(
            "--timeout", "1", "--concurrency", "32", "--budget-tokens", "900000"
        )
        assert code == 0, err
        assert max(server.asked.values()) > 3
    told = place.ledger()
    dropped = place.rows("out.jsonl.dropped.jsonl")
    assert told["answered"] == len(place.rows())
    assert sum(told["dropped"].values()) == len(dropped)
    assert told["answered"] + len(dropped) == told["questions"] == 1000
    assert told["left"] == 0
    assert all(row["why"] for row in dropped)
    assert told["dropped"]["rejected"] > 5
    assert {row["prompt"] for row in place.rows()} <= set(server.answered)
    assert all(row["completion"] == say(row["prompt"]) for row in place.rows())
    assert sum(told["faults"].values()) > 250
    said = " ".join(told["faults"])
    for words in ("429", "500", "503", "400", "no answer in 1 s", "broke", "whole JSON", "choices"):
        assert words in said
    assert KEY not in out + err
    assert found(tmp_path, KEY) == []


def test_a_budget_is_never_passed_by_the_servers_own_count_also_over_a_kill(tmp_path):
    budget = 6000
    with Server(Canned(say), {"reset": 0.05, "half": 0.05, "broken": 0.05}, pause=0.02) as server:
        place = Place(tmp_path, 400, server.url)
        words = ("--budget-tokens", str(budget))
        place.ended(server, 40, signal.SIGKILL, *words)
        killed = sum(server.tokens.values())
        assert 0 < killed < budget
        for _ in range(2):
            code, _, err = place.run(*words)
            assert code == 2
            assert "the budget is reached" in err
            assert sum(server.tokens.values()) <= budget
        told = place.ledger()
        counted = told["cost_of_all_runs"]
        assert sum(server.tokens.values()) <= sum(counted.values()) <= budget
        assert told["answered"] + told["left"] + sum(told["dropped"].values()) == 400
        assert told["left"] > 0
        assert len(place.rows()) == told["answered"]


def test_two_processes_on_one_store_do_not_mix(tmp_path):
    gate = threading.Event()
    with Server(Canned(lambda prompt: gate.wait() and say(prompt))) as server:
        place = Place(tmp_path, 60, server.url)
        with place.start() as first:
            until(lambda: server.flying == LANES)
            code, out, err = place.run()
            gate.set()
            assert (code, out) == (2, "")
            assert f"is being written by process {first.pid} " in err.splitlines()[-1]
            _, err = first.communicate(timeout=60)
            assert first.returncode == 0, err
        assert set(server.asked.values()) == {1}
        assert len(place.rows()) == 60


STAYING = ("unauthorised", "forbidden", "no model", "no money", "rejected")


@pytest.mark.parametrize("faults", [{}, *({name: 0.5} for name in STAYING)], ids=str)
def test_a_planted_key_is_found_in_no_file_and_no_word(tmp_path, faults):
    with Server(Canned(lambda prompt: f"your key is {KEY}")) as server:
        server.faults = faults or {name: 0.1 for name in FAULTS if name not in STAYING}
        server.slow = 0.1
        place = Place(tmp_path, 12, server.url)
        code, out, err = place.run("--budget-tokens", "90000")
        assert all(head["Authorization"] == f"Bearer {KEY}" for head, _ in server.seen)
    assert server.seen
    assert KEY not in out + err
    assert found(tmp_path, KEY) == []
    assert found(tmp_path, "canned")  # the search itself finds what is there
    if code == 0:
        assert {row["completion"] for row in place.rows()} == {"your key is ***"}
    assert code == 0 or any(fault in STAYING for fault in faults)
