"""The plain text path against a server that is not ours: ``transformers serve``."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from speakers import tiny

pytest.importorskip("httpx2", reason="the extra 'api' is not installed")
pytest.importorskip("uvicorn", reason="transformers[serving] is not installed")
pytest.importorskip("fastapi", reason="transformers[serving] is not installed")
pytestmark = [pytest.mark.extra("api"), pytest.mark.slow]

PROMPTS = ["to be or not", "all that glitters", "once upon a time"]
LIMIT, SECONDS = 12, 180
COMMAND = shutil.which("transformers", path=str(Path(sys.executable).parent)) or ""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def up(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/models", timeout=2) as told:
            return told.status == 200
    except OSError:
        return False


@contextmanager
def serving(model: Path, log: Path):
    """The address of a server of this folder; skips, with its words, where it cannot start."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1"
    told = [COMMAND, "serve", str(model), "--host", "127.0.0.1", "--port", str(port)]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as words:
        process = subprocess.Popen(
            [*told, "--device", "cpu"], env=env, stdout=words, stderr=subprocess.STDOUT
        )
    try:
        until = time.monotonic() + SECONDS
        while not up(url):
            if process.poll() is not None or time.monotonic() > until:
                pytest.skip(f"transformers serve did not start: {log.read_text()[-300:]}")
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("served")
    for part in tiny():
        part.save_pretrained(place / "model")
    rows = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS)
    (place / "rows.jsonl").write_text(rows)
    return place


@pytest.fixture(scope="module")
def url(folder):
    if not COMMAND:
        pytest.skip("the command 'transformers' is not beside this Python")
    with serving(folder / "model", folder / "log") as found:
        yield found


def greedy(folder: Path, prompt: str, *, chat: bool) -> tuple[str, int, int]:
    """What the model itself writes, and the tokens of prompt and answer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    if chat:
        turn = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    made = model.generate(ids, max_new_tokens=LIMIT, do_sample=False)[0, ids.shape[1] :]
    return tokenizer.decode(made, skip_special_tokens=True), ids.shape[1], len(made)


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_greedy_answers_and_their_tokens_are_the_models_own(folder, url, endpoint, tmp_path):
    out = tmp_path / "out.jsonl"
    told = [
        "collect", str(folder / "rows.jsonl"), "--teacher", f"openai:{folder / 'model'}",
        "--base-url", url, "--store", str(tmp_path / "store"), "--out", str(out),
        "--endpoint", endpoint, "--temperature", "0", "--max-tokens", str(LIMIT),
        "--budget-tokens", "9000", "--concurrency", "1", "--keep-truncated",
    ]  # fmt: skip
    ran = subprocess.run(
        [sys.executable, "-m", "stillroom", *told], capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    own = [greedy(folder, prompt, chat=endpoint == "chat") for prompt in PROMPTS]
    assert [row["completion"] for row in rows] == [text for text, _, _ in own]
    cost = json.loads(Path(f"{out}.ledger.json").read_text(encoding="utf-8"))["cost"]
    assert cost["prompt_tokens"] == sum(prompt for _, prompt, _ in own)
    assert cost["answer_tokens"] == sum(answer for _, _, answer in own)
