"""Rows of text to token batches: the only place that tokenises, renders and selects rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stillroom.core import Batch, Failure
from stillroom.data.rows import Row, columns


@dataclass(frozen=True)
class Example:
    """One prompt and its answer, as text and as tokens; ``completion`` ends with a stop id."""

    prompt: str
    answer: str
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]


class Renderer:
    """Turns rows into prompt and completion tokens; serves data, rollouts and evaluation alike.

    A row holds ``prompt`` and ``completion`` (plain strings, never wrapped in a template) or
    ``messages`` (rendered by the tokenizer's chat template; the last assistant turn is the
    completion). ``templates`` may make either column from others: Jinja over the row.

    Args:
        tokenizer: a fast tokenizer of ``transformers``.
        stop_ids: the first is appended to plain completions; all of them end an answer.
        templates: ``{"prompt": "{{ instruction }}", "completion": "{{ response }}"}``.
    """

    def __init__(
        self, tokenizer: Any, stop_ids: Sequence[int], templates: Mapping[str, str] | None = None
    ) -> None:
        if not stop_ids:
            raise Failure("the model names no stop token: set eos_token_id in generation_config")
        self.tokenizer = tokenizer
        self.stop_ids = tuple(stop_ids)
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop_ids[0]
        self.columns = columns(templates or {})

    def example(self, row: Row, where: str = "row") -> Example:
        """Raises Failure, naming ``where``, when a column is missing or nothing is supervised."""
        row = self.columns(row, where)
        if "messages" in row:
            return self._chat(row["messages"], where)
        for column in ("prompt", "completion"):
            if not isinstance(row.get(column), str):
                raise Failure(
                    f"{where}: expected a text in {column!r} (or a list in 'messages'), "
                    f"got columns {sorted(row)}; data.columns makes them from others"
                )
        if not row["completion"]:
            raise Failure(f"{where}: the completion is empty, so no token is supervised")
        prompt = self.encode(row["prompt"])
        if not prompt:
            raise Failure(f"{where}: the prompt has no token; write something or add a BOS")
        completion = self._ids(row["completion"])
        if completion[-1:] != [self.stop_ids[0]]:  # some files spell the end of text out
            completion = [*completion, self.stop_ids[0]]
        return Example(row["prompt"], row["completion"], tuple(prompt), tuple(completion))

    def encode(self, prompt: str) -> list[int]:
        """A plain prompt as tokens, with the BOS that the tokenizer asks for."""
        bos: int | None = self.tokenizer.bos_token_id
        adds = self.tokenizer("").input_ids[:1] == [bos]
        return [bos, *self._ids(prompt)] if bos is not None and adds else self._ids(prompt)

    def decode(self, ids: Iterable[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def _chat(self, messages: Any, where: str) -> Example:
        answer = _last_answer(messages)
        if answer is None:
            raise Failure(f"{where}: messages must be a list whose last turn is the assistant's")
        if not answer:
            raise Failure(f"{where}: the last answer is empty, so no token is supervised")
        if self.tokenizer.chat_template is None:
            raise Failure(f"{where}: the tokenizer has no chat template; use prompt/completion")
        render = self.tokenizer.apply_chat_template
        try:
            told = render(messages[:-1], tokenize=False, add_generation_prompt=True)
            whole = render(messages, tokenize=False)
        except Exception as error:  # templates refuse what they were not made for in many ways
            raise Failure(f"{where}: the chat template refuses the messages: {error}") from error
        if not whole.startswith(told):
            raise Failure(
                f"{where}: the chat template changes earlier turns; use prompt/completion"
            )
        prompt, completion = self._ids(told), self._ids(whole[len(told) :])
        ends = [i for i, token in enumerate(completion) if token in self.stop_ids]
        completion = completion[: ends[-1] + 1] if ends else [*completion, self.stop_ids[0]]
        return Example(told, answer, tuple(prompt), tuple(completion))


def _last_answer(messages: Any) -> str | None:
    """What the assistant says in the last turn; None where messages are no such list."""
    turns = isinstance(messages, list) and messages and all(isinstance(m, dict) for m in messages)
    if not turns or messages[-1].get("role") != "assistant":
        return None
    answer = messages[-1].get("content")
    return answer if isinstance(answer, str) else None


class TextData:
    """Examples by index; the index is the sample id."""

    def __init__(self, examples: Sequence[Example], pad_id: int) -> None:
        self.examples = examples
        self.pad_id = pad_id

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, indices: Sequence[int]) -> Batch:
        picked = [self.examples[i] for i in indices]
        pairs = [(e.prompt_ids, e.completion_ids) for e in picked]
        return collate(pairs, torch.tensor(list(indices)), self.pad_id)


def collate(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    id: Tensor,
    pad_id: int,
    *,
    side: str = "right",
) -> Batch:
    """Prompts with completions as one padded batch; every completion token is a row's label.

    The last token is fed too, so that a critic can read at ``last``. ``prompt`` [B] holds the
    lengths of the prompts.
    """
    lengths = [len(p) + len(c) for p, c in pairs]
    length = max(lengths, default=0)
    starts = [length - n if side == "left" else 0 for n in lengths]
    ids = torch.full((len(pairs), length), pad_id)
    real = torch.zeros(len(pairs), length, dtype=torch.bool)
    rows: list[int] = []
    labels: list[int] = []
    for i, ((prompt, completion), start) in enumerate(zip(pairs, starts, strict=True)):
        tokens = [*prompt, *completion]
        ids[i, start : start + len(tokens)] = torch.tensor(tokens)
        real[i, start : start + len(tokens)] = True
        first = i * length + start + len(prompt) - 1
        rows.extend(range(first, first + len(completion)))
        labels.extend(completion)
    return Batch.text(
        ids=ids,
        positions=(real.long().cumsum(1) - 1).clamp_min(0),
        real=real,
        last=torch.tensor([s + n - 1 for s, n in zip(starts, lengths, strict=True)]),
        id=id,
        prompt=torch.tensor([len(p) for p, _ in pairs]),
        rows=torch.tensor(rows, dtype=torch.long),
        labels=torch.tensor(labels, dtype=torch.long),
        mask=torch.ones(len(rows)),
        examples=torch.ones(len(pairs)),
    )


def prompts_of(batch: Batch) -> list[list[int]]:
    """The prompt tokens of each example of a batch, padding left out."""
    starts = batch.real.int().argmax(1).tolist()
    lengths = batch.prompt.tolist()
    ids = batch.ids.tolist()
    return [row[s : s + n] for row, s, n in zip(ids, starts, lengths, strict=True)]
