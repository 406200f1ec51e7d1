"""What stands behind a loopback server: a causal LM of transformers, or a function."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


@dataclass
class Reply:
    """Words, how they ended, and what a server counts.

    ``scores`` are log-probabilities over the vocabulary, [answer, V]; ``before`` those of the
    prompt's own tokens after the first, [prompt - 1, V]; ``ids`` and ``prompt_ids`` the tokens.
    """

    text: str
    finish: str
    prompt_ids: Sequence[int]
    ids: Sequence[int]
    scores: Tensor | None = None
    before: Tensor | None = None
    words: Callable[[int], str] = field(default=str)


class Speaker(Protocol):
    name: str

    def __call__(self, asked: Any, told: dict[str, Any]) -> Reply: ...


def limit_of(told: dict[str, Any]) -> int:
    return told.get("max_completion_tokens") or told.get("max_tokens") or 16


def cut(text: str, told: dict[str, Any]) -> tuple[str, bool]:
    """The text up to the first of the stop texts, and whether one came."""
    stops = told.get("stop") or []
    stops = [stops] if isinstance(stops, str) else stops
    places = [text.find(stop) for stop in stops if stop in text]
    return (text[: min(places)], True) if places else (text, False)


class Canned:
    """Says what a function says. A token is a word; a chat prompt costs 8 more."""

    def __init__(self, say: Callable[[str], str], name: str = "canned") -> None:
        self.say, self.name = say, name

    def __call__(self, asked: Any, told: dict[str, Any]) -> Reply:
        prompt = asked if isinstance(asked, str) else asked[-1]["content"]
        text, stopped = cut(self.say(prompt), told)
        words, most = text.split(" "), limit_of(told)
        finish = "stop" if stopped or len(words) <= most else "length"
        frame = 0 if isinstance(asked, str) else 8
        said = words[:most]
        return Reply(" ".join(said), finish, range(len(prompt.split()) + frame), range(len(said)))


class Model:
    """Any causal LM; greedy at temperature 0, as its own ``generate`` is."""

    def __init__(self, model: Any, tokenizer: Any, name: str = "model") -> None:
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name
        self._one = threading.Lock()  # the seed is shared by all threads

    def ids(self, asked: Any) -> list[int]:
        if isinstance(asked, str):
            return self.tokenizer(asked).input_ids
        if isinstance(asked[0], int):
            return asked
        told = self.tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        return self.tokenizer(told, add_special_tokens=False).input_ids

    @torch.no_grad()
    def __call__(self, asked: Any, told: dict[str, Any]) -> Reply:
        prompt, most = self.ids(asked), limit_of(told)
        heat = told.get("temperature", 1.0)
        how: dict[str, Any] = {"do_sample": heat > 0, "max_new_tokens": most}
        if heat > 0:
            how |= {"temperature": heat, "top_p": told.get("top_p", 1.0), "top_k": 0}
        with self._one:
            if told.get("seed") is not None:
                torch.manual_seed(told["seed"])
            ids = torch.tensor([prompt])
            made = self.model.generate(
                ids, attention_mask=torch.ones_like(ids), output_logits=True,
                return_dict_in_generate=True, **how,
            )  # fmt: skip
            before = None
            if told.get("prompt_logprobs") is not None:
                before = self.model(ids).logits[0, :-1].log_softmax(-1)
        new = made.sequences[0, len(prompt) :].tolist()
        ends = self.model.generation_config.eos_token_id
        ended = new[-1] in (ends if isinstance(ends, list) else [ends])
        text, stopped = cut(self.tokenizer.decode(new, skip_special_tokens=True), told)
        scores = torch.cat(made.logits).log_softmax(-1)
        finish = "stop" if ended or stopped else "length"
        return Reply(text, finish, prompt, new, scores, before, self.tokenizer.decode)


def _given(rows: Tensor | None) -> Tensor:
    assert rows is not None
    return rows


def _top(row: Any, k: int) -> list[tuple[int, float]]:
    best = row.topk(k)
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def chat_logprobs(reply: Reply, k: int) -> dict[str, Any]:
    def one(token: int, logp: float) -> dict[str, Any]:
        word = reply.words(token)
        return {"token": word, "logprob": logp, "bytes": list(word.encode())}

    rows = zip(reply.ids, _given(reply.scores), strict=True)
    return {
        "content": [
            {**one(t, float(r[t])), "top_logprobs": [one(*pair) for pair in _top(r, k)]}
            for t, r in rows
        ]
    }


def logprobs(reply: Reply, k: int) -> dict[str, Any]:
    rows = list(zip(reply.ids, _given(reply.scores), strict=True))
    return {
        "tokens": [reply.words(t) for t, _ in rows],
        "token_logprobs": [float(r[t]) for t, r in rows],
        "top_logprobs": [{reply.words(i): p for i, p in _top(r, k)} for _, r in rows],
    }


def prompt_logprobs(reply: Reply, k: int) -> list[Any]:
    """vLLM's shape: for each token of the prompt its own and the k likeliest, by id."""
    told: list[Any] = [None]
    for token, row in zip(reply.prompt_ids[1:], _given(reply.before), strict=True):
        rank = int((row > row[token]).sum()) + 1
        own = {token: {"logprob": float(row[token]), "rank": rank}}
        best = {i: {"logprob": p, "rank": n} for n, (i, p) in enumerate(_top(row, k), start=1)}
        found = {**best, **own}
        told.append({i: {**v, "decoded_token": reply.words(i)} for i, v in found.items()})
    return told


TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tiny(seed: int = 0) -> tuple[Any, Any]:
    """A small llama with fresh weights, and a tokenizer of ASCII's letters with a template."""
    letters = sorted(c for c in ByteLevel.alphabet() if c.isascii() or c in "ĠĊ")  # space, newline
    words = {"<end>": 0, "<pad>": 1, **{letter: i for i, letter in enumerate(letters, start=2)}}
    made = Tokenizer(BPE(vocab=words, merges=[]))
    made.pre_tokenizer, made.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<end>", pad_token="<pad>", chat_template=TEMPLATE
    )
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    ends = {"eos_token_id": 0, "pad_token_id": 1, "bos_token_id": None}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(words), num_attention_heads=2, max_position_embeddings=512,
            initializer_range=0.3, **sizes, **ends,
        )  # fmt: skip
        return LlamaForCausalLM(config).eval(), tokenizer
