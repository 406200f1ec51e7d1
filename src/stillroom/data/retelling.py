"""The same prompts and answers in another tokenizer: sequences told again, and where they meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from stillroom.core import Batch, Failure
from stillroom.data.common import Common, common
from stillroom.data.rows import Row
from stillroom.data.spans import ends
from stillroom.data.spelling import Words, same_words, spelled
from stillroom.data.text import Renderer, TextData, collate, completions_of, prompts_of
from stillroom.losses.alignment import meeting

PAIRS = ("bytes", "index", "within")
GREETING: list[Row] = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hello"},
]
"""A conversation that shows which token ends an answer."""


@dataclass(frozen=True)
class Retold:
    """Sequences of a batch in another tokenizer.

    ``pairs`` by name: for each row of the batch [N] the row of the other that it goes with, -1
    without one. ``bytes``: both say what comes after the same bytes. ``index``: both say the t-th
    token of the answer. ``within``: the student is within the token that the other says there, and
    ``nodes`` [N] tells which of its tokens have begun so (``Pieces.after``).
    """

    batch: Batch
    pairs: dict[str, Tensor]
    nodes: Tensor


class Retelling:
    """Tells sequences of one tokenizer in another: alignment of teacher and student by bytes.

    A prompt is rendered anew, by the other tokenizer's own chat template where it is messages. An
    answer is the text that its tokens stand for, up to the first byte that is no text (a sample may
    end within a character). Where the other does not give back that text (its normalizer changed
    it), rows meet up to there alone; they do at the very beginning only where both write the same
    space before an answer, or none. Where both have the same tokens, an answer keeps its own.

    Args:
        own: of the batches that come.
        other: of those that they become.
        sets: data in which every prompt is found.
    """

    def __init__(self, own: Renderer, other: Renderer, sets: Sequence[TextData]) -> None:
        self.own, self.other = own, other
        self.words: tuple[Words, Words] = (spelled(own.tokenizer), spelled(other.tokenizer))
        self.same = same_words(own.tokenizer, other.tokenizer) is None
        self._asked = {e.prompt_ids: e.asked for data in sets for e in data.examples}
        self._prompts: dict[tuple[int, ...], list[int]] = {}

    @cached_property
    def common(self) -> Common:
        """Classes in which the scores of both can be compared."""
        own, other = self.own, self.other
        return common(own.tokenizer, other.tokenizer, (own.stop_ids, other.stop_ids))

    def __call__(self, batch: Batch) -> Retold:
        """Raises Failure where a prompt is none of the data's."""
        pairs, columns, start = [], {name: [] for name in (*PAIRS, "nodes")}, 0
        counts = batch.owner.bincount(minlength=batch.size).tolist()
        answers = completions_of(batch)
        for prompt, answer, count in zip(prompts_of(batch), answers, counts, strict=True):
            told, places = self._answer(answer, chat=self._chat(tuple(prompt)))
            pairs.append((self._prompt(tuple(prompt)), told))
            before = torch.full((count - len(answer),), -1)  # rows of the prompt
            for name, found in places.items():
                at = found if name == "nodes" else found.where(found < 0, found + start)
                columns[name] += [before, at]
            start += len(told)
        other = collate(pairs, batch.id.cpu(), self.other.pad_id)
        device = batch.ids.device
        joined = {name: torch.cat(parts).to(device) for name, parts in columns.items()}
        nodes = joined.pop("nodes")
        return Retold(other.to(device), joined, nodes)

    def _chat(self, prompt: tuple[int, ...]) -> bool:
        if prompt not in self._asked:
            said = self.own.decode(prompt)
            raise Failure(f"a prompt is none of the data's and cannot be told again: {said!r}")
        return not isinstance(self._asked[prompt], str)

    def _prompt(self, prompt: tuple[int, ...]) -> list[int]:
        if prompt not in self._prompts:
            asked = self._asked[prompt]
            row: Row = {"prompt": asked} if isinstance(asked, str) else {"messages": asked}
            self._prompts[prompt] = self.other.asked(row)[1]
        return self._prompts[prompt]

    def _answer(self, ids: list[int], *, chat: bool) -> tuple[list[int], dict[str, Tensor]]:
        """An answer's tokens in the other tokenizer; for each of ``ids`` where it meets them."""
        ended = ids[-1] in self.own.stop_ids
        body = ids[:-1] if ended else ids
        mine, stops = ends(self.words[0], body, self.own.decode(body))
        text = _text(mine)
        # a sample may be spelled as no text would be, and one tokenizer keeps it so
        told = body if self.same else self.other.tokenizer(text, add_special_tokens=False).input_ids
        theirs, their_stops = ends(self.words[1], told, text)
        alike = _alike(mine, theirs)
        starts = [torch.tensor([0, *x])[: len(x) + ended] for x in (stops, their_stops)]
        places, others = meeting(*(x[x <= alike] for x in starts))
        if self._spaced(0, body, mine) != self._spaced(1, told, theirs):
            later = starts[0][places] > 0
            places, others = places[later], others[later]
        if ended:
            told = [*told, ids[-1] if self.same else self._end if chat else self.other.stop_ids[0]]
        found = {name: torch.full((len(ids),), -1) for name in (*PAIRS, "nodes")}
        found["bytes"][places] = others
        least = min(len(ids), len(told))
        found["index"][:least] = torch.arange(least)
        self._within(ids, told, found)
        return told, found

    def _within(self, ids: list[int], told: list[int], found: dict[str, Tensor]) -> None:
        """Fills ``within`` and ``nodes``: places within a token that the other says at once."""
        met, since = -1, 0
        for place, other in enumerate(found["bytes"].tolist()):
            if other >= 0:
                met, since = other, place
            elif met >= 0:
                begun = tuple(ids[since:place])
                node = self.common.pieces.after(begun, told[met])
                if node >= 0:
                    found["within"][place], found["nodes"][place] = met, node

    def _spaced(self, side: int, ids: Sequence[int], said: bytes) -> bool:
        """Whether the first of these tokens says a space that is not in the text."""
        return sum(len(self.words[side][i] or b"") for i in ids) > len(said)

    @cached_property
    def _end(self) -> int:
        """The token that the other's chat template ends an answer with."""
        return self.other.example({"messages": GREETING}).completion_ids[-1]


def _alike(a: bytes, b: bytes) -> int:
    """How many bytes both begin with."""
    pairs = zip(a, b, strict=False)
    return next((k for k, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def _text(said: bytes) -> str:
    """Bytes as text, up to the first that is none."""
    try:
        return said.decode()
    except UnicodeDecodeError as error:
        return said[: error.start].decode()
