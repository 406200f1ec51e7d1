"""The benchmarks refuse a wrong arm, and leave what their page is written from."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from benchmarks import bakeoff, fresh, head, measure, oracle, write
from benchmarks.arms import stillroom
from stillroom.config.recipe import make

CASE = head.Case(8, 64, 16, ("jsd",))


def test_float64_agrees_with_a_value_worked_out_by_hand():
    one = torch.eye(2)[:1].requires_grad_()  # reads the first column of each head as logits
    teacher, student = torch.tensor([0.75, 0.25]).log(), torch.tensor([0.5, 0.5]).log()
    heads = [torch.stack([x, torch.zeros(2)], 1) for x in (student, teacher)]
    x = oracle.Inputs(one, heads[0].requires_grad_(), one.detach(), heads[1], torch.tensor([0]))
    assert oracle.truth(x, "forward_kl").value == pytest.approx(0.1308, abs=5e-5)
    assert oracle.truth(x, "reverse_kl").value == pytest.approx(0.1438, abs=5e-5)
    assert oracle.truth(x, "jsd").value == pytest.approx(0.0338, abs=5e-5)
    both = oracle.truth(x, "forward_kl+labels")  # the gradient of the logits is p - q + p - label
    assert both.value == pytest.approx(0.1308 + 0.6931, abs=1e-4)
    gradient = torch.tensor([[-0.75, 0.0], [0.75, 0.0]])
    torch.testing.assert_close(both.d_head, gradient.double())


def without(part):
    """An arm whose value is right and whose ``part``, hidden or weight, gets no gradient."""

    def arm(x, divergence):
        rest = {**vars(x), ({"hidden": "weight", "weight": "hidden"})[part]: None}
        still = {k: getattr(x, k).detach() if v is None else v for k, v in rest.items()}
        alone = stillroom(oracle.Inputs(**still), divergence)
        return stillroom(x, divergence) - (alone - alone.detach())

    return arm


@pytest.mark.slow
def test_an_arm_that_is_wrong_in_any_part_is_refused_and_not_timed():
    arms = {
        "right": stillroom,
        "value": lambda x, name: stillroom(x, name) + 0.01,
        "d_hidden": without("hidden"),
        "d_head": without("weight"),
        "nan": lambda x, name: stillroom(x, name) * torch.nan,
    }
    told = {arm["name"]: arm for arm in head.measured(asdict(CASE), 2, arms)["arms"]}
    assert [name for name in arms if "seconds" in told[name]] == ["right"]
    assert [name for name in arms if told[name]["refused"]] == [n for n in arms if n != "right"]
    for name in ("value", "d_hidden", "d_head"):
        errors = dict(told[name]["errors"])
        assert errors.pop(name) > 1e-3
        assert max(errors.values()) < 1e-4


@pytest.mark.slow
def test_a_quick_run_leaves_all_that_the_page_tells(tmp_path):
    command = [sys.executable, "-m", "benchmarks.head", "--quick", "--repeats", "2"]
    subprocess.run([*command, "--only", "jsd", "--out", str(tmp_path)], cwd=fresh.ROOT, check=True)
    cases = json.loads((tmp_path / "head.json").read_text())["cases"]
    assert [case["dtype"] for case in cases] == ["float32", "bfloat16"]
    for case in cases:
        (own,) = [arm for arm in case["arms"] if arm["name"] == "stillroom"]
        assert 0 < own["ratio"]["low"] <= own["ratio"]["median"] <= own["ratio"]["high"]
        assert max(own["errors"].values()) < own["bound"]
    page = write.page(tmp_path)
    assert page.count("| stillroom |") == len(cases)
    assert "| refused |" not in page
    assert f"torch {torch.__version__}" in page
    cases[0]["arms"][0].update(refused=True)
    write.json_file(tmp_path / "head.json", {"cases": cases})
    assert "| refused |" in write.page(tmp_path)


def test_arms_take_turns_after_a_round_that_is_not_counted():
    calls: list[str] = []
    arms = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    spent = measure.interleaved(arms, 3)
    assert "".join(calls) == "abababab"
    assert [len(seconds) for seconds in spent.values()] == [3, 3]


def test_ratios_are_taken_round_by_round():
    told = measure.against([1.0, 2.0, 4.0, 1.0, 1.0], [2.0, 6.0, 4.0, 1.0, 5.0])
    assert told == {"median": 2.0, "low": 1.0, "high": 3.0}  # of 2, 3, 1, 1, 5


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone tells it")
def test_the_peak_is_what_was_held_at_once_and_not_what_is_left():
    """In a process of its own, as all measurements: this one may hold freed memory to use again."""
    code = (
        "import torch; from benchmarks import measure; "
        "call = lambda: sum(int(torch.ones(2**24).sum()) for _ in range(3)); "
        "print(measure.peak(call))"
    )
    command = [sys.executable, "-c", code]
    told = subprocess.run(command, cwd=fresh.ROOT, capture_output=True, text=True, check=True)
    assert 2**26 - 2**21 < int(told.stdout) < 2**26 + 2**24  # 64 MiB, not 192


@pytest.mark.slow
def test_a_fresh_process_has_one_thread_and_the_settings_that_it_is_told(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    told = fresh.call("measure.environment", env=fresh.WITHOUT_BF16, settings={})
    assert told["threads"] == 1
    assert told["instructions"] != "unknown"
    assert "bfloat16" not in told["instructions"]


def test_the_bake_off_cleans_answers_and_its_arms_are_recipes(tmp_path):
    row = bakeoff._row({"question": "How many?", "answer": "It is 4/2=<<4/2=2>>2.\n#### 2"})
    assert row == {"prompt": "Question: How many?\nAnswer:", "completion": " It is 4/2=2.\n#### 2"}
    told = bakeoff._recipe()
    told["train"]["steps"] = 1
    arms = make(told, folder=tmp_path).arms
    assert set(arms) == set(bakeoff.ORDER) - {"healed"}
    rates = {name: arm.train.lr for name, arm in arms.items()}
    assert len({str(rate) for rate in rates.values()}) == 1  # nothing is tuned for one of them
    assert {name: arm.data.train for name, arm in arms.items()} == {
        name: "human.jsonl" if name == "ce" else "teacher.jsonl" for name in arms
    }


def test_the_bake_offs_numbers_come_from_the_folders_of_its_arms(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "environment", lambda settings: {})
    for i, name in enumerate(bakeoff.ORDER[1:]):
        told = {
            "steps": 24, "cpu_seconds": 50.0 * (i + 1), "start": {"kl": 1.5}, "test": {"kl": i / 4},
            "tokens": {"trained": 1200, "generated": 7 * i},
        }  # fmt: skip
        folder = tmp_path / "arms" / name
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(told), encoding="utf-8")
    case = bakeoff.result(tmp_path, "steps", 3)
    assert list(case["arms"]) == list(bakeoff.ORDER)
    assert case["arms"]["healed"] == {"kl": 1.5}
    lines = "".join(write._bakeoff([case])).split("\n")
    (taid,) = [line.split(" | ") for line in lines if " | taid | " in line]
    assert taid[0] == f"| {bakeoff.SIZE['steps']} steps, seed 3"
    numbers = dict(zip(bakeoff.NUMBERS, taid[2:], strict=True))
    assert (numbers["kl"], numbers["reverse_kl"]) == ("0.75", "-")
    assert (numbers["tokens_trained"], numbers["tokens_per_second"]) == ("1,200", "6")
    assert numbers["tokens_generated"] == "21 |"


def test_the_page_is_what_its_files_tell():
    folder = fresh.ROOT / "docs" / "benchmarks"
    told = folder.with_suffix(".md").read_text(encoding="utf-8")
    assert told == write.page(folder), "run `python -m benchmarks.write`"
