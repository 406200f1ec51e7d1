"""The same questions to ``transformers serve``: plain text and chat, greedy, word for word."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from speakers import tiny

pytest.importorskip("httpx2", reason="the extra 'api' is not installed")
for module in ("fastapi", "uvicorn", "openai"):
    pytest.importorskip(module, reason="transformers[serving] is not installed")
pytestmark = [pytest.mark.extra("api"), pytest.mark.slow]

PROMPTS = ["to be", "or not to be, that is", "the question"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("served") / "model"
    model, tokenizer = tiny()
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def url(folder) -> Iterator[str]:
    command = shutil.which("transformers", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("the command 'transformers' is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (folder.parent / "log").open("w") as log, subprocess.Popen(
        [command, "serve", str(folder), "--host", "127.0.0.1", "--port", str(port),
         "--device", "cpu"],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=log, stderr=subprocess.STDOUT,
    ) as server:  # fmt: skip
        try:
            for _ in range(1200):
                with socket.socket() as there:
                    if there.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert server.poll() is None, (folder.parent / "log").read_text()
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.kill()


def generated(prompt: str, *, plain: bool) -> tuple[str, int]:
    model, tokenizer = tiny()
    told = prompt if plain else f"<user>{prompt}\n<assistant>"
    ids = torch.tensor([tokenizer(told, add_special_tokens=False).input_ids])
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6
    )
    new = made[0, ids.shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True), ids.shape[1]


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_it_answers_what_the_model_itself_generates(url, folder, tmp_path, endpoint):
    rows = "".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS)
    (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
    told = subprocess.run(
        [sys.executable, "-m", "stillroom", "collect", "rows.jsonl", "--store", "store",
         "--teacher", f"openai:{folder}", "--base-url", url, "--out", "out.jsonl",
         "--endpoint", endpoint, "--max-tokens", "6", "--temperature", "0", "--seed", "1",
         "--keep-truncated"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    wanted = [generated(prompt, plain=endpoint == "completions") for prompt in PROMPTS]
    assert [json.loads(line)["completion"] for line in lines] == [text for text, _ in wanted]
    ledger = json.loads((tmp_path / "out.jsonl.ledger.json").read_text(encoding="utf-8"))
    assert ledger["cost"]["prompt_tokens"] == sum(tokens for _, tokens in wanted)
