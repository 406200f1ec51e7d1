"""``transformers serve`` with a folder behind it, and what ``stillroom collect`` hears from it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

LIMIT = 6
"""Tokens of an answer at most."""


@contextmanager
def served(folder: Path, log: Path) -> Iterator[str]:
    """The address at which ``transformers serve`` answers for a model's folder."""
    command = shutil.which("transformers", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("the command 'transformers' is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("w") as said, subprocess.Popen(
        [command, "serve", str(folder), "--host", "127.0.0.1", "--port", str(port),
         "--device", "cpu"],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=said, stderr=subprocess.STDOUT,
    ) as server:  # fmt: skip
        try:
            for _ in range(1200):
                with socket.socket() as there:
                    if there.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert server.poll() is None, log.read_text()
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.kill()


def collected(
    prompts: Sequence[str], model: Path, url: str, *, endpoint: str, place: Path
) -> list[str]:
    """Greedy answers by ``stillroom collect``; ``place`` gets ``out.jsonl`` and its ledger."""
    rows = "".join(json.dumps({"prompt": p}) + "\n" for p in prompts)
    (place / "rows.jsonl").write_text(rows, encoding="utf-8")
    told = subprocess.run(
        [sys.executable, "-m", "stillroom", "collect", "rows.jsonl", "--store", "store",
         "--teacher", f"openai:{model}", "--base-url", url, "--out", "out.jsonl",
         "--endpoint", endpoint, "--max-tokens", str(LIMIT), "--temperature", "0", "--seed", "1",
         "--keep-truncated"],
        cwd=place, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    lines = (place / "out.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["completion"] for line in lines]
