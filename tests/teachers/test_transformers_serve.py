"""The same questions to ``transformers serve``: plain text and chat, greedy, word for word."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from serving import LIMIT, collected, served
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
    with served(folder, folder.parent / "log") as address:
        yield address


def generated(prompt: str, *, plain: bool) -> tuple[str, int]:
    model, tokenizer = tiny()
    told = prompt if plain else f"<user>{prompt}\n<assistant>"
    ids = torch.tensor([tokenizer(told, add_special_tokens=False).input_ids])
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=LIMIT
    )
    new = made[0, ids.shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True), ids.shape[1]


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_it_answers_what_the_model_itself_generates(url, folder, tmp_path, endpoint):
    said = collected(PROMPTS, folder, url, endpoint=endpoint, place=tmp_path)
    wanted = [generated(prompt, plain=endpoint == "completions") for prompt in PROMPTS]
    assert said == [text for text, _ in wanted]
    ledger = json.loads((tmp_path / "out.jsonl.ledger.json").read_text(encoding="utf-8"))
    assert ledger["cost"]["prompt_tokens"] == sum(tokens for _, tokens in wanted)
