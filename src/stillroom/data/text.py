"""Rows of text to token batches: the only place that tokenises, renders and selects rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from stillroom.core import Batch, Failure
from stillroom.data import further
from stillroom.data.rows import Row
from stillroom.data.turns import Span, answer, earlier, question


@dataclass(frozen=True)
class Example:
    """One prompt and its answer, as text and as tokens; ``completion`` ends with a stop id.

    One that was cut has none. ``earlier`` are the parts of the prompt that count as well, ``asked``
    is the prompt as the row has it: a text, or messages. ``others`` are the same prompt with
    further answers, by their column (``cot``, ``rejected``), ``route`` the place of its teacher
    among several, ``weight`` how much it counts, ``gold`` the bare gold answer.
    """

    prompt: str
    answer: str
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    earlier: tuple[Span, ...] = ()
    asked: str | Sequence[Row] = ""
    others: Mapping[str, Example] = field(default_factory=dict)
    route: int | None = None
    weight: float | None = None
    gold: str | None = None


class Renderer:
    """Turns rows into prompt and completion tokens; serves data, rollouts and evaluation alike.

    A row holds ``prompt`` and ``completion`` (plain strings, never wrapped in a template) or
    ``messages`` (rendered by the tokenizer's chat template); ``forms.shaped`` makes them of others.

    The last turn must be the assistant's and is the completion, up to its last stop id. With
    ``train_on="all"`` every earlier assistant turn counts too (``turns.earlier``); the tokens of a
    row are the same in both cases. A turn is what the template writes of it, ``tool_calls``
    included; one with neither these nor content is refused where it would be learned from, and so
    is one that nothing comes before. Assistant turns may follow each other. Turns of system, user
    and tool are context alone.

    Args:
        tokenizer: a fast tokenizer of ``transformers``.
        stop_ids: the first is appended to plain completions; all of them end an answer.
        train_on: ``all`` asks of the template that it renders a conversation as the beginning of
            any longer one, which is checked for each row.
    """

    def __init__(
        self, tokenizer: Any, stop_ids: Sequence[int], train_on: Literal["last", "all"] = "last"
    ) -> None:
        if not stop_ids:
            raise Failure("the model names no stop token: set eos_token_id in generation_config")
        self.tokenizer = tokenizer
        self.stop_ids = tuple(stop_ids)
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop_ids[0]
        self.train_on = train_on

    def example(self, row: Row, where: str = "row", *, texts: Iterable[str] = ()) -> Example:
        """The row as tokens; ``texts`` are columns of further answers to tell as well.

        Raises Failure, naming ``where``, when a column is missing or nothing is supervised.
        """
        told = {name: further.with_answer(row, name, where) for name in sorted(texts)}
        return replace(
            self._answered(row, where),
            others={name: self._answered(one, where) for name, one in told.items()},
            weight=further.weight(row, where),
            gold=further.gold(row, where),
        )

    def _answered(self, row: Row, where: str) -> Example:
        if "messages" in row:
            return self._chat(row["messages"], where)
        prompt, prompt_ids = self.asked(row, where)
        said = row.get("completion")
        if not isinstance(said, str):
            raise Failure(
                f"{where}: expected a text in 'completion' (or a list in 'messages'), "
                f"got columns {sorted(row)}; data.columns makes them from others"
            )
        if not said:
            raise Failure(f"{where}: the completion is empty, so no token is supervised")
        completion = self._ids(said)
        if completion[-1:] != [self.stop_ids[0]]:  # some files spell the end of text out
            completion = [*completion, self.stop_ids[0]]
        return Example(prompt, said, tuple(prompt_ids), tuple(completion), asked=prompt)

    def asked(self, row: Row, where: str = "row") -> tuple[str, list[int]]:
        """The question of a row, as the text and tokens that an answer goes on from."""
        said = question(row, where)
        plain = isinstance(said, str)
        said = said if plain else self.rendered(said, where, asks=True)
        ids = self.encode(said) if plain else self._ids(said)
        if not ids:
            raise Failure(f"{where}: the prompt has no token; write something or add a BOS")
        return said, ids

    def cut(self, example: Example, tokens: int) -> Example:
        """The example with at most so many tokens of each answer; an end beyond them is lost."""
        if example.others:
            told = {name: self.cut(one, tokens) for name, one in example.others.items()}
            example = replace(example, others=told)
        kept = example.completion_ids[:tokens]
        if len(kept) == len(example.completion_ids):
            return example
        return replace(example, answer=self.decode(kept), completion_ids=kept)

    def pieces(self, text: str, most: int) -> list[Example]:
        """A plain text with its end, parted into pieces of ``most`` tokens at most.

        Each piece is told from its first token on, which no row can tell; a piece of one token is
        left out.
        """
        ids = [*self.encode(text), self.stop_ids[0]]
        parts = (ids[i : i + most] for i in range(0, len(ids), most))
        return [Example("", text, (p[0],), tuple(p[1:])) for p in parts if len(p) > 1]

    def encode(self, prompt: str) -> list[int]:
        """A plain prompt as tokens, with the BOS that the tokenizer asks for."""
        bos: int | None = self.tokenizer.bos_token_id
        adds = self.tokenizer("").input_ids[:1] == [bos]
        return [bos, *self._ids(prompt)] if bos is not None and adds else self._ids(prompt)

    def decode(self, ids: Iterable[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def rendered(self, messages: Sequence[Row], where: str, *, asks: bool = False) -> str:
        """Messages by the chat template; ``asks`` adds what an answer goes on from."""
        if self.tokenizer.chat_template is None:
            raise Failure(f"{where}: the tokenizer has no chat template; use prompt/completion")
        try:
            render = self.tokenizer.apply_chat_template
            return render(messages, tokenize=False, add_generation_prompt=asks)
        except Exception as error:  # templates refuse what they were not made for in many ways
            raise Failure(f"{where}: the chat template refuses the messages: {error}") from error

    def _chat(self, messages: Any, where: str) -> Example:
        said = answer(messages, where)
        told, prompt = self.asked({"messages": messages}, where)
        whole = self.rendered(messages, where)
        if not whole.startswith(told):
            raise Failure(
                f"{where}: the chat template changes earlier turns; use prompt/completion"
            )
        ids = self._ids(whole)
        same = ids[: len(prompt)] == prompt  # else a token is merged from header and answer
        completion = ids[len(prompt) :] if same else self._ids(whole[len(told) :])
        ends = [i for i, token in enumerate(completion) if token in self.stop_ids]
        completion = completion[: ends[-1] + 1] if ends else [*completion, self.stop_ids[0]]
        every = self.train_on == "all"
        spans = tuple(earlier(self, messages[:-1], told, where)) if every else ()
        said = said or self.decode(completion)
        return Example(told, said, (*prompt,), (*completion,), spans, asked=messages[:-1])


class TextData:
    """Examples by index; the index is the sample id."""

    def __init__(self, examples: Sequence[Example], pad_id: int) -> None:
        self.examples = examples
        self.pad_id = pad_id
        self._weighs = any(e.weight is not None for e in examples)

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt and of the longest answer together."""
        sides = ((len(e.prompt_ids), len(e.completion_ids)) for e in self.examples)
        return sum(map(max, zip(*sides, strict=True)))

    def batch(self, indices: Sequence[int]) -> Batch:
        """The examples at these indices; further answers that all have are nested batches.

        ``weight`` [B] is there where any example of the data has one; 1 of those without.
        """
        picked = [self.examples[i] for i in indices]
        pairs = [(e.prompt_ids, e.completion_ids) for e in picked]
        earlier = [e.earlier for e in picked]
        made = collate(pairs, torch.tensor(list(indices)), self.pad_id, earlier=earlier)
        if route := [e.route for e in picked if e.route is not None]:
            made = made.add(route=torch.tensor(route))
        if self._weighs:
            weights = [1.0 if e.weight is None else e.weight for e in picked]
            made = made.add(weight=torch.tensor(weights))
        for name in sorted(set.intersection(*(set(e.others) for e in picked))) if picked else ():
            pairs = [
                (one.prompt_ids, one.completion_ids) for one in (e.others[name] for e in picked)
            ]
            made = made.add(**{name: collate(pairs, made.id, self.pad_id)})
        return made


def collate(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    id: Tensor,
    pad_id: int,
    *,
    side: str = "right",
    earlier: Sequence[Sequence[Span]] | None = None,
) -> Batch:
    """Prompts with completions as one padded batch; every completion token is a row's label.

    The last token is fed too, so that a critic can read at ``last``. ``prompt`` [B] holds where a
    rollout starts. ``earlier`` are the parts of each prompt whose tokens are labels as well.
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
        first = i * length + start - 1  # the row that would tell the first token
        for span in [*(earlier[i] if earlier else ()), (len(prompt), len(tokens))]:
            rows.extend(range(*(first + place for place in span)))
            labels.extend(tokens[slice(*span)])
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


def completions_of(batch: Batch) -> list[list[int]]:
    """The tokens after the prompt of each example of a batch, padding left out."""
    starts = (batch.real.int().argmax(1) + batch.prompt).tolist()
    return [
        row[start : last + 1]
        for row, start, last in zip(batch.ids.tolist(), starts, batch.last.tolist(), strict=True)
    ]


def prompts_of(batch: Batch) -> list[list[int]]:
    """The prompt tokens of each example of a batch, padding left out."""
    starts = batch.real.int().argmax(1).tolist()
    lengths = batch.prompt.tolist()
    ids = batch.ids.tolist()
    return [row[s : s + n] for row, s, n in zip(ids, starts, lengths, strict=True)]
