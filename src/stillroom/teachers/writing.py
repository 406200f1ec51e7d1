"""A language model in this process that writes answers: the local counterpart of a server."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

from stillroom.data.text import Renderer
from stillroom.failures import Failure
from stillroom.models import text
from stillroom.models.sources import resolved
from stillroom.models.text import CausalLM
from stillroom.rollouts.sampling import Sampling, sample
from stillroom.store.prices import FREE, Price
from stillroom.store.requests import Identity, Outcome, Request, Tokens, digest, key
from stillroom.teachers.asking import Ask, Rest
from stillroom.teachers.replies import judged

LENGTH = 512
"""Tokens of an answer at most, where nothing is told."""


class Writer:
    """Answers questions in batches. A sample is a function of the seed and of the question alone.

    A plain prompt is tokenised as it is; messages go through the chat template of the tokenizer.

    Args:
        model: the network.
        tokenizer: its own.
        name: for people, and to find its answers in a store again.
        weights: what tells its weights from others of the same name.
    """

    lanes = 1

    def __init__(
        self, model: CausalLM, tokenizer: Any, name: str, weights: str, size: int = 16
    ) -> None:
        self.model, self.size = model, size
        self.renderer = Renderer(tokenizer, model.stop_ids)
        self.identity: Identity = {
            "kind": "local",
            "model": name,
            "weights": weights,
            "dtype": str(model.model.dtype).removeprefix("torch."),
            **words(tokenizer),
        }

    def price(self) -> Price:
        return FREE

    def rendered(self, request: Request) -> dict[str, Any]:
        """The token ids of the question, and how words are drawn."""
        messages = request.messages
        row = {"messages": messages} if messages else {"prompt": request.said}
        how = request.decoding
        told = {**vars(how), "stop": list(how.stop), "max_tokens": how.max_tokens or LENGTH}
        return {"ids": self.renderer.asked(row)[1], **told}

    def most(self, request: Request) -> Tokens:
        told = self.rendered(request)
        return Tokens(len(told["ids"]), told["max_tokens"])

    async def __aenter__(self) -> Writer:
        return self

    async def __aexit__(self, *error: object) -> None:
        return None

    def patient(self, ask: Ask, rest: Rest) -> Ask:
        """``ask`` itself: what fails here would fail again."""
        return ask

    async def ask(self, requests: Sequence[Request]) -> list[Outcome]:
        """Answers to questions that share their decoding."""
        await asyncio.sleep(0)  # so that an interruption is heard between batches
        bounds = [self.most(request) for request in requests]
        fits = [self.model.context is None or b.total <= self.model.context for b in bounds]
        written = iter(self._written([r for r, fit in zip(requests, fits, strict=True) if fit]))
        return [
            next(written) if fit else Outcome("rejected", why=self._too_long(b), tokens=Tokens())
            for b, fit in zip(bounds, fits, strict=True)
        ]

    def _too_long(self, most: Tokens) -> str:
        return (
            f"{most.prompt} tokens of prompt and {most.answer} of answer exceed the model's "
            f"context of {self.model.context}"
        )

    def _written(self, requests: Sequence[Request]) -> list[Outcome]:
        if not requests:
            return []
        told = [self.rendered(request) for request in requests]
        names = [key(self.identity, t, r.copy) for t, r in zip(told, requests, strict=True)]
        how = requests[0].decoding
        answers = sample(
            self.model,
            [t["ids"] for t in told],
            torch.tensor([int(name[:15], 16) for name in names]),
            seed=how.seed or 0,
            sampling=Sampling(
                temperature=1.0 if how.temperature is None else how.temperature,
                top_p=how.top_p or 1.0,
                max_new_tokens=told[0]["max_tokens"],
            ),
        )
        return [
            self._outcome(ids, Tokens(len(t["ids"]), len(ids)), how.stop)
            for ids, t in zip(answers, told, strict=True)
        ]

    def _outcome(self, ids: Sequence[int], tokens: Tokens, stop: Sequence[str]) -> Outcome:
        text, ended = self.renderer.decode(ids), ids[-1] in self.model.stop_ids
        if found := [place for word in stop if (place := text.find(word)) >= 0]:
            text, ended = text[: min(found)], True
        return judged(text, "stop" if ended else "length", None, tokens)


def words(tokenizer: Any) -> dict[str, str]:
    """What tells a tokenizer and its chat template from others."""
    return {
        "tokenizer": digest(tokenizer.backend_tokenizer.to_str()),
        "template": digest(tokenizer.chat_template),
    }


def weights_of(name: str, **told: Any) -> tuple[str, str]:
    """The name that a model is shown by, and what tells its weights from others of that name.

    Of a folder the hash of its files; else the hub's commit. ``told`` goes to ``from_pretrained``.
    """
    place = resolved(name)
    folder = Path(place)
    if folder.is_dir():
        return (folder.resolve().name if name == place else name), _digest(folder)
    return name, str(AutoConfig.from_pretrained(place, **told)._commit_hash)


def writer(name: str, **options: Any) -> Writer:
    """A model that answers, by hub name, folder, GGUF file or ``package:NAME``.

    Its weights are told from others by the hub's commit, or by the hash of a folder's files.

    Args:
        name: which.
        options: of ``from_pretrained``, as ``models.text.load`` takes them.

    Raises:
        Failure: model or tokenizer cannot be loaded.
    """
    place = resolved(name)
    model = text.load(place, **options)
    told = {k: options[k] for k in ("revision", "trust_remote_code") if options.get(k)}
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **told)
    except (OSError, ValueError) as error:
        raise Failure(f"cannot load the tokenizer of {name!r}: {error}") from error
    return Writer(model, tokenizer, *weights_of(name, **told))


def _digest(folder: Path) -> str:
    """The hash of the weights and settings in a folder."""
    told = {}
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        with file.open("rb") as stream:
            told[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    for file in sorted(folder.glob("*config.json")):
        if file.name != "tokenizer_config.json":  # the tokenizer has a hash of its own
            told[file.name] = file.read_text(encoding="utf-8")
    return digest(told)
