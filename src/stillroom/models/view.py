"""Training on a part of the vocabulary: fewer columns of the LM head, the same model shipped.

With a large vocabulary most of a step is the head, and most of the head are tokens that the
training text never uses. A narrowed model scores the tokens of a view alone, as if the others had
logits of ``-inf``, while ``narrowed`` is open; its head is frozen, so that the rows of the view can
be copied once and the rest does not go stale. Embeddings of the input are whole: a look-up is free.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.core import Failure
from stillroom.data.text import Renderer, TextData
from stillroom.models.heads import View, head_of
from stillroom.models.text import CausalLM


def fit(
    models: Sequence[CausalLM], data: Iterable[TextData], renderer: Renderer, *, size: int
) -> None:
    """Narrows models to one view: the tokens of prompts and completions, and what may end them.

    That is: the tokens of all examples of ``data``, the stop ids, the special tokens of the
    tokenizer, and the lowest others until there are ``size``, as far as all the models have them.

    Raises:
        Failure: the head of a model is not known, or has no row for a token of the text.
    """
    vocabulary = min(len(renderer.tokenizer), *(_rows(model) for model in models))
    special = (i for i in renderer.tokenizer.all_special_ids if i < vocabulary)
    found = {*renderer.stop_ids, *special}
    for example in itertools.chain.from_iterable(texts.examples for texts in data):
        further = (one.completion_ids for one in example.others.values())
        found.update(example.prompt_ids, example.completion_ids, *further)
    others = (i for i in range(vocabulary) if i not in found)
    fill = itertools.islice(others, max(0, size - len(found)))
    ids = torch.tensor(sorted([*found, *fill]))
    for model in models:
        narrow(model, ids)


def _rows(model: CausalLM) -> int:
    if not model.head_known:
        raise Failure(
            f"the head of {type(model.model).__name__} is not the matrix that its config tells of, "
            "so a view cannot leave rows out; use 'vocab: full'"
        )
    return len(head_of(model.model).weight)


def narrow(model: CausalLM, ids: Tensor) -> None:
    """Freezes the head, and what is tied to it, and lets ``narrowed`` reduce it to ``ids``.

    Args:
        model: which.
        ids: [n] tokens, rising.

    Raises:
        Failure: the head is not known, or has no row for one of the tokens.
    """
    if int(ids[-1]) >= (rows := _rows(model)):
        raise Failure(
            f"the text has the token {int(ids[-1])}, but the head of {type(model.model).__name__} "
            f"has {rows} rows: give the tokenizer that belongs to the model"
        )
    head: Any = model.model.get_output_embeddings()
    head.requires_grad_(False)
    model.view = View(ids)


@contextmanager
def narrowed(*networks: nn.Module) -> Iterator[None]:
    """Models within these score the tokens of their view alone while the block runs."""
    modules = (module for network in networks for module in network.modules())
    views = [m.view for m in modules if isinstance(m, CausalLM) and m.view is not None]
    before = [view.on for view in views]
    try:
        for view in views:
            view.on = True
        yield
    finally:
        for view, on in zip(views, before, strict=True):
            view.on = on


def tokens(model: CausalLM, columns: Tensor) -> Tensor:
    """The token ids of columns of a model's logits."""
    ids = model.head.ids if model.head_known else None
    return columns if ids is None else ids[columns]
