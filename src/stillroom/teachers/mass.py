"""How much probability a model puts on tokens that another tokenizer has too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stillroom.core import Failure
from stillroom.data.rows import Row
from stillroom.data.spans import first_words
from stillroom.data.spelling import shared, spelled
from stillroom.data.text import Renderer, TextData
from stillroom.losses.per_row import per_row
from stillroom.models.heads import mode


def mass(
    network: Any, tokenizer: Any, other: Any, rows: Sequence[tuple[str, Row]]
) -> tuple[float, float]:
    """Coverage in probability mass of a language model, by what another tokenizer can say.

    ``1/N * sum_n sum_{i in S} p(i | n)`` over the N supervised tokens of rows, as ``Renderer``
    renders them by default. S is first the tokens that the other has too (``spelling.shared``),
    then those whose bytes it can write in one token where a text begins (``spans.first_words``).
    Special tokens, the end of an answer among them, are in neither.

    Args:
        network: a ``CausalLM``.
        tokenizer: its own.
        other: another one.
        rows: with their places, of the forms that ``Renderer`` reads.

    Raises:
        Failure: a row has no answer, or is longer than the network's context.
    """
    renderer = Renderer(tokenizer, network.stop_ids)
    data = TextData([renderer.example(row, where) for where, row in rows], renderer.pad_id)
    for (where, _), example in zip(rows, data.examples, strict=True):
        tokens = len(example.prompt_ids) + len(example.completion_ids)
        if network.context is not None and tokens > network.context:
            raise Failure(
                f"{where}: {tokens} tokens are more than the context of {network.context}; leave "
                "the row out"
            )
    sets = _sets(tokenizer, other)

    def on_sets(student: Tensor, _teacher: Any, _labels: Any) -> Tensor:
        width = min(student.shape[-1], len(sets))  # a head may be padded
        return student.softmax(-1)[:, :width] @ sets[:width].to(student)

    device = next(network.parameters()).device
    with torch.no_grad(), mode(network, training=False):
        said = [
            per_row(on_sets, network(data.batch([i]).to(device)), None, None)
            for i in range(len(data))
        ]
    common, beginning = torch.cat(said).mean(0).tolist()
    return common, beginning


def _sets(tokenizer: Any, other: Any) -> Tensor:
    """[V, 2]: 1 where a token is in the first or second set, else 0."""
    own, theirs = spelled(tokenizer), spelled(other)
    firsts = first_words(other, theirs)
    sets = torch.zeros(len(own), 2)
    sets[shared(own, theirs)[0], 0] = 1
    sets[:, 1] = torch.tensor([float(word is not None and word in firsts) for word in own])
    return sets
