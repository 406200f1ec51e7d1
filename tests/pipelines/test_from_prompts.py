"""From a file of prompts to a shipped student, through a server that counts; killed on the way."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from servers import Server
from speakers import Canned

from stillroom.data.chains import Chains

pytest.importorskip("httpx2", reason="the extra 'api' is not installed")
pytestmark = [pytest.mark.extra("api"), pytest.mark.slow]

KEY = "sk-planted-0123456789abcdef"
LANES, ROWS, HELD = 4, 40, 16
IN, OUT = 1.0, 2.0
"""Dollars a million tokens."""
WORLD = Chains(rows=ROWS, held=HELD, wrong=0.3, style="jumps")


def program(said: str) -> str:
    """The teacher: a function of what it is asked alone."""
    return WORLD.program()(said, random.Random(said))


class Place:
    """A folder with prompts and a recipe that names a server."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        for split, rows in WORLD.splits(0).items():
            lines = [{"problem": r["prompt"], "result": r["gold"]} for r in rows]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
        columns = {"prompt": "{{ problem }}", "completion": "{{ result }}", "gold": "{{ result }}"}
        recipe: dict[str, Any] = {
            "pipeline": {"name": "undo", "rounds": 2, "eps": None},
            "student": {
                "lm": {"model_type": "llama", **sizes, "num_attention_heads": 2},
                "vocab_size": 300,
                "tokenizer": "from-data",
            },
            "teacher": {
                "api": "openai:canned",
                "base_url": url,
                "store": "store",
                "concurrency": LANES,
                "price": [IN, OUT],
                "budget_usd": 1.0,
                "sampling": {"max_tokens": 40, "temperature": 0.0},
            },
            "data": {s: f"{s}.jsonl" for s in ("train", "validation", "test")}
            | {"columns": columns},
            "verify": {"kind": "numeric"},
            "train": {"steps": 9, "batch": 8, "lr": 0.003},
            "eval": {"every": None, "metrics": ["verified"], "samples": 2},
            "sampling": {"max_new_tokens": 8, "temperature": 0.0},
            "run": {"threads": 1},
        }
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "stillroom", "--debug", *words],
            cwd=self.folder,
            env={
                **os.environ,
                "OPENAI_API_KEY": KEY,
                "STILLROOM_CACHE": str(self.folder / "cache"),
                "CI": "true",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str) -> str:
        with self.start(*words) as process:
            out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        return out + err

    def result(self) -> Any:
        return json.loads((self.folder / "out" / "result.json").read_text(encoding="utf-8"))

    def lessons(self) -> dict[str, int]:
        """Trainings that are kept, with the time at which each was over."""
        places = (self.folder / "cache" / "stages").glob("lesson-*/result.json")
        return {place.parent.name: place.stat().st_mtime_ns for place in places}


def asked(ledger: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in ledger if "cost" in line]


def test_a_recipe_goes_from_prompts_to_a_shipped_student(tmp_path: Path) -> None:
    with Server(Canned(program)) as server:
        place = Place(tmp_path, server.url)
        most = f"at most {3 * ROWS:,} questions to the teacher"
        assert most in place.run("check", "recipe.yaml").replace("\n", " ")
        assert not server.asked
        said = place.run("run", "recipe.yaml", "--out", "out")
        told = asked(place.result()["data"]["pipeline"])
        assert sum(line["questions"] for line in told) == sum(server.asked.values())
        assert max(server.asked.values()) == 1
        cost = {k: sum(line["cost"][k] for line in told) for k in told[0]["cost"]}
        billed = {
            "prompt_tokens": server.tokens["prompt"],
            "answer_tokens": server.tokens["answer"],
        }
        assert {k: v for k, v in cost.items() if k != "dollars"} == billed
        dollars = (IN * server.tokens["prompt"] + OUT * server.tokens["answer"]) / 1e6
        assert cost["dollars"] == pytest.approx(dollars)
        for line in told:
            assert line["cost"]["dollars"] <= line["at_most"]["dollars"]
            assert f"{line['what']}: questions {line['questions']}" in said
        again = place.run("run", "recipe.yaml", "--out", "out")
        assert "finished" in again
        assert max(server.asked.values()) == 1
    assert "verified" in said
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "asked undo.refine" in page
    student = tmp_path / "out" / "student"
    assert (student / "model.safetensors").is_file()
    assert "asked undo.refine" in (student / "README.md").read_text(encoding="utf-8")
    secrets = [f for f in tmp_path.rglob("*") if f.is_file() and KEY.encode() in f.read_bytes()]
    assert not secrets


def killed_at(server: Server, place: Place, when: Callable[[str], bool]) -> None:
    """Runs the recipe and kills it once the server is asked something of the kind."""
    reached = threading.Event()
    answer = server.speaker

    def watched(told: Any, words: dict[str, Any]) -> Any:
        if when(told if isinstance(told, str) else told[-1]["content"]):
            reached.set()
        return answer(told, words)

    watched.name = "canned"  # type: ignore[attr-defined]
    server.speaker = watched  # type: ignore[assignment]
    with place.start("run", "recipe.yaml", "--out", "out") as process:
        assert reached.wait(240), "it never asked that"
        process.send_signal(signal.SIGKILL)
        process.communicate()
    server.speaker = answer


def test_one_that_is_killed_in_round_two_goes_on_in_round_two(tmp_path: Path) -> None:
    """Its first lessons are not taught again, and nothing that was answered is asked again."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "whole").mkdir()
    refined = 0

    def second(said: str) -> bool:
        nonlocal refined
        refined += "Rewrite the solution" in said
        return refined > ROWS  # questions of round 2: at most so many were of round 1

    with Server(Canned(program), pause=0.02) as server:
        place = Place(tmp_path / "parts", server.url)
        killed_at(server, place, second)
        kept, had = place.lessons(), dict(server.answered)
        assert len(kept) == 2, "it was in round 2"
        place.run("run", "recipe.yaml", "--out", "out")
        more = {prompt: n - had.get(prompt, 0) for prompt, n in server.answered.items()}
        twice = sum(n for prompt, n in more.items() if prompt in had)
        assert twice <= LANES  # those in flight at the kill, whose answers nobody kept
        assert place.lessons() == kept
        whole = Place(tmp_path / "whole", server.url)
        whole.run("run", "recipe.yaml", "--out", "out")
    weights = [p.folder / "out" / "student" / "model.safetensors" for p in (place, whole)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
