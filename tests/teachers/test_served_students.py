"""A shipped student says in a fresh process, and served, what it said where it was trained."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from serving import LIMIT, collected, served
from transformers import AutoTokenizer

from stillroom.api import run
from stillroom.config.recipe import make
from stillroom.rollouts.sampling import Sampling, sample

for module in ("peft", "httpx2", "fastapi", "uvicorn", "openai"):
    pytest.importorskip(module, reason="lora, api or transformers[serving] is not installed")
pytestmark = [pytest.mark.extra("api"), pytest.mark.extra("lora"), pytest.mark.slow]

ANSWERS = {
    "to be": " or not to be",
    "the question": " is: whether",
    "'tis nobler": " in the mind",
    "slings and": " arrows of fortune",
    "take arms": " against a sea",
}
PROMPTS = [*ANSWERS, "the rub", "perchance", "to die"]  # no answer to the last three was taught
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
LM = {"model_type": "llama", "num_attention_heads": 2, "max_position_embeddings": 64, **SIZES}
ARMS = ["plain", "lora"]
FRESH = f"""
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
said = []
for prompt in json.load(sys.stdin):
    read = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    made = model.generate(**read, do_sample=False, max_new_tokens={LIMIT})
    new = made[0, read["input_ids"].shape[1]:]
    said.append(tokenizer.decode(new, skip_special_tokens=True))
print(json.dumps(said))
"""
"""Knows of transformers alone."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with two students of one beginning: all weights trained, and an adapter."""
    place = tmp_path_factory.mktemp("trained")
    rows = [{"prompt": p, "completion": c} for p, c in ANSWERS.items()]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    student = {"lm": {**LM, "initializer_range": 0.3}, "vocab_size": 300}
    told = {
        "method": {"name": "seqkd"},
        "student": student,
        "teacher": {"recorded": True},
        "data": {"train": "rows.jsonl", "test": "rows.jsonl"},
        "train": {"steps": 10, "batch": 5, "lr": 0.01},
        "eval": {"every": None, "metrics": ["likelihood"], "samples": 0},
        "run": {"threads": 1},
        "arms": {"plain": {}, "lora": {"student": {"lora": {"rank": 4}}}},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STILLROOM_CACHE", str(place / "cache"))
        yield run(make(told, folder=place), place / "run")


def shipped(done, arm: str) -> Path:
    return done.folder / "arms" / arm / "student"


def sampled(lm, tokenizer) -> list[str]:
    """What a network says by the project's own sampler, decoded."""
    ids = [tokenizer(prompt).input_ids for prompt in PROMPTS]
    rule = Sampling(temperature=0, max_new_tokens=LIMIT)
    said = sample(lm, ids, torch.arange(len(ids)), seed=0, sampling=rule)
    return [tokenizer.decode(answer, skip_special_tokens=True) for answer in said]


@pytest.fixture(scope="module")
def wanted(trained):
    """What each student says in the process that trained it."""
    tokenizer = AutoTokenizer.from_pretrained(shipped(trained, "plain"))
    students = {arm: trained.results[arm].student for arm in ARMS}
    said = {arm: sampled(lm, tokenizer) for arm, lm in students.items()}
    said["base"] = sampled(students["lora"].base(), tokenizer)
    return said


def exported(run_folder: Path, out: Path) -> Path:
    command = [sys.executable, "-m", "stillroom", "export", str(run_folder), "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return out


def test_the_students_differ_from_each_other_and_from_the_base(wanted):
    for one, other in [("plain", "lora"), ("plain", "base"), ("lora", "base")]:
        assert sum(a != b for a, b in zip(wanted[one], wanted[other], strict=True)) >= 3
    for said in wanted.values():
        assert len({*said}) >= 4
        assert all(answer.strip() for answer in said)  # collecting drops what says nothing


@pytest.mark.parametrize("arm", ARMS)
def test_a_fresh_process_says_the_same(trained, wanted, tmp_path, arm):
    run_folder = shipped(trained, arm).parent
    for folder in (shipped(trained, arm), exported(run_folder, tmp_path / "exported")):
        told = subprocess.run(
            [sys.executable, "-W", "error", "-c", FRESH, str(folder)],
            input=json.dumps(PROMPTS), capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert told.returncode == 0, told.stderr
        assert json.loads(told.stdout) == wanted[arm]


@pytest.mark.parametrize("arm", ARMS)
def test_transformers_serve_says_the_same(trained, wanted, tmp_path, arm):
    folder = exported(shipped(trained, arm).parent, tmp_path / "exported")
    with served(folder, tmp_path / "log") as url:
        said = collected(PROMPTS, folder, url, endpoint="completions", place=tmp_path)
    assert said == wanted[arm]
