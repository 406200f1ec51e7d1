"""Speakers that lie about given tokens, each in one way; ``Model`` tells the truth."""

from __future__ import annotations

from typing import Any

import torch
from speakers import Model, Reply
from transformers import PreTrainedTokenizerFast


class Shifted(Model):
    """Each entry is about the token after, as from a loop that is off by one."""

    def __call__(self, asked: Any, told: dict[str, Any]) -> Reply:
        reply = super().__call__(asked, told)
        if reply.before is not None and len(reply.before):
            assert reply.scores is not None
            reply.before = torch.cat([reply.before[1:], reply.scores[:1]])
        return reply


class Late(Model):
    """Each entry is about the token before, of the first about itself."""

    def __call__(self, asked: Any, told: dict[str, Any]) -> Reply:
        reply = super().__call__(asked, told)
        if reply.before is not None:
            reply.before = torch.cat([reply.before[:1], reply.before[:-1]])
        return reply


class Renormalised(Model):
    """The K likeliest share all of the probability."""

    def __call__(self, asked: Any, told: dict[str, Any]) -> Reply:
        reply = super().__call__(asked, told)
        if reply.before is not None:
            best = reply.before.topk(told["prompt_logprobs"]).values
            reply.before = reply.before - best.logsumexp(-1, keepdim=True)
        return reply


class Heated(Model):
    """What is told is what was drawn from: at the temperature of the request."""

    def __call__(self, asked: Any, told: dict[str, Any]) -> Reply:
        reply = super().__call__(asked, told)
        if reply.before is not None and told.get("temperature"):
            reply.before = (reply.before / told["temperature"]).log_softmax(-1)
        return reply


class Cut(Model):
    """Likewise: the tokens that top_p leaves out have no probability."""

    def __call__(self, asked: Any, told: dict[str, Any]) -> Reply:
        reply = super().__call__(asked, told)
        if reply.before is not None and told.get("top_p", 1.0) < 1:
            values, order = reply.before.sort(-1, descending=True)
            out = values.exp().cumsum(-1) - values.exp() >= told["top_p"]
            whole = reply.before.masked_fill(out.scatter(-1, order, out), -9999.0)
            reply.before = whole.log_softmax(-1).clamp_min(-9999.0)
        return reply


class Few(Model):
    """Gives one token less than it is asked for."""

    def __call__(self, asked: Any, told: dict[str, Any]) -> Reply:
        if told.get("prompt_logprobs", 0) > 1:
            told["prompt_logprobs"] -= 1
        return super().__call__(asked, told)


class Deaf(Model):
    """Hears no temperature, and draws."""

    def __call__(self, asked: Any, told: dict[str, Any]) -> Reply:
        return super().__call__(asked, {**told, "temperature": 1.0})


class Contrary(Model):
    """At temperature 0 it writes what it calls unlikely, and always the same."""

    def __call__(self, asked: Any, told: dict[str, Any]) -> Reply:
        if told.get("temperature") != 0:
            return super().__call__(asked, told)
        return super().__call__(asked, {**told, "temperature": 5.0, "seed": 7})


class Beginning(Model):
    """Puts a token of its own before ids that were to be read as they are."""

    def ids(self, asked: Any) -> list[int]:
        return [0, *super().ids(asked)]


def other_words(tokenizer: Any) -> Any:
    """As many tokens, of which two have changed places."""
    return _swapped(tokenizer, "e", "o")


def _swapped(tokenizer: Any, a: str, b: str) -> Any:
    import json

    from tokenizers import Tokenizer

    told = json.loads(tokenizer.backend_tokenizer.to_str())
    words = told["model"]["vocab"]
    words[a], words[b] = words[b], words[a]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(told)),
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token,
        chat_template=tokenizer.chat_template,
    )
