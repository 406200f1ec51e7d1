"""How well a model answers in the world of marked orders: exact and sampled numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from stillroom.core import Batch, Signals
from stillroom.data.marked_orders import (
    ALLOWED,
    FIRST_MARKER,
    LENGTH,
    MARKER_PLACES,
    PAD,
    STYLES,
    WORD_PLACES,
    MarkedOrders,
    encode,
)
from stillroom.data.text import collate
from stillroom.evaluation.suite import View
from stillroom.losses.per_row import per_row
from stillroom.losses.policy import label_logp
from stillroom.rollouts.sampling import sample

Tokens = list[int]
Pair = tuple[Tokens, Tokens]


COLUMNS = {
    "validity": ("probability of a right answer", "higher"),
    "modes": ("right answers in use, of 3", "higher"),
    "forward_kl": ("KL(teacher || student), nats an answer", "lower"),
    "reverse_kl": ("KL(student || teacher), nats an answer", "lower"),
    "content": ("samples with the prompt's words", "higher"),
    "style": ("samples of one style", "higher"),
    "length_gap": ("tokens more than the teacher's 8", None),
}


def measure(view: View) -> dict[str, float]:
    """The student's numbers on a split of the world (see ``measured``)."""

    def logp_of(pairs: list[Pair]) -> Tensor:
        device = next(view.student.parameters()).device
        batch = collate(pairs, torch.arange(len(pairs)), PAD).to(device)
        parts = [_answer_logp(view.student(part), part) for part in batch.split(view.budget)]
        return torch.cat(parts).cpu()

    def draw(prompts: list[Tokens]) -> list[Tokens]:
        plain = replace(view.sampling, temperature=1.0, top_p=1.0, top_k=None)
        ids = torch.arange(len(prompts))
        return sample(view.student, prompts, ids, seed=view.seed, sampling=plain)

    return measured(logp_of, draw, _rows(view), view.world)


def teacher(view: View) -> dict[str, float]:
    """The teacher's own numbers on the same prompts."""
    return of_teacher(_rows(view), view.world)


def _rows(view: View) -> list[dict[str, str]]:
    data: Any = view.data
    return [{"prompt": example.prompt} for example in data.examples]


def _answer_logp(said: Signals, batch: Batch) -> Tensor:
    """[B] log-probability of each whole answer."""
    rows = per_row(lambda student, _, labels: label_logp(student, labels), said, None, batch.labels)
    return rows.new_zeros(batch.size).index_add(0, batch.owner, rows)


def measured(
    logp_of: Callable[[list[Pair]], Tensor],
    sample: Callable[[list[Tokens]], list[Tokens]],
    rows: Sequence[Mapping[str, str]],
    world: MarkedOrders,
) -> dict[str, float]:
    """Validity, diversity and divergences of a model q on the prompts of ``rows``.

    ``logp_of`` gives ln q(completion | prompt) [n], summed over tokens with the end of text, for
    (prompt ids, completion ids); ``sample`` one completion at temperature 1 for each prompt.

    Exact, from the three valid answers y_k of each prompt, means over prompts:
    ``validity`` = sum_k q(y_k | x); ``modes`` = exp(entropy of q over the y_k), 1 to 3, nan if q
    gives them nothing; ``forward_kl`` = mean_k[-ln 3 - ln q(y_k | x)] in nats, from the unsmoothed
    teacher. From the samples: those of :func:`sampled`.
    """
    prompts = [encode(row["prompt"]) for row in rows]
    answers = [world.valid(prompt) for prompt in prompts]
    pairs = [(p, y) for p, three in zip(prompts, answers, strict=True) for y in three]
    logq = logp_of(pairs).double().view(len(prompts), -1)
    entropy = torch.special.entr(logq.softmax(1)).sum(1)
    exact = {
        "validity": logq.exp().sum(1).mean().item(),
        "modes": entropy.exp().mean().item(),
        "forward_kl": (-math.log(logq.shape[1]) - logq).mean().item(),
    }
    return exact | sampled(logp_of, prompts, sample(prompts), world)


def sampled(
    logp_of: Callable[[list[Pair]], Tensor],
    prompts: list[Tokens],
    samples: list[Tokens],
    world: MarkedOrders,
) -> dict[str, float]:
    """Numbers from one sample of each prompt, means over prompts.

    ``content``: share with all four words in place; ``style``: share whose three markers stand in
    place and are of one style, allowed or not; ``length_gap``: tokens, end of text included, less
    8; ``reverse_kl``: ln q(y | x) - ln p(y | x) in nats, with p the smoothed teacher.
    """
    pairs = list(zip(prompts, samples, strict=True))
    logp = torch.tensor([world.teacher_logp(*pair) for pair in pairs], dtype=torch.float64)
    right = [_words(y) == _words(world.valid(x)[0]) for x, y in pairs]
    return {
        "content": sum(right) / len(pairs),
        "style": sum(_one_style(y) for y in samples) / len(pairs),
        "length_gap": sum(map(len, samples)) / len(pairs) - LENGTH,
        "reverse_kl": (logp_of(pairs).double().cpu() - logp).mean().item(),
    }


def of_teacher(rows: Sequence[Mapping[str, str]], world: MarkedOrders) -> dict[str, float]:
    """The same numbers for the unsmoothed teacher: the row that a student is held against.

    Its ``reverse_kl`` is what smoothing costs, ``-8 ln(1 - eps + eps / V)``, and not zero.
    """

    def logp_of(pairs: list[Pair]) -> Tensor:
        logp = [-math.log(ALLOWED) if y in world.valid(x) else -math.inf for x, y in pairs]
        return torch.tensor(logp, dtype=torch.float64)

    # any of its answers will do: all three give the same numbers
    return measured(logp_of, lambda prompts: [world.valid(x)[0] for x in prompts], rows, world)


def _words(answer: Tokens) -> Tokens:
    return [answer[place] for place in WORD_PLACES if place < len(answer)]


def _one_style(answer: Tokens) -> bool:
    """Whether markers 0, 1 and 2 stand where they belong, all of one style."""
    places = [answer[place] for place in MARKER_PLACES if place < len(answer)]
    styles = {token - FIRST_MARKER - STYLES * j for j, token in enumerate(places)}
    return len(places) == len(MARKER_PLACES) and styles <= set(range(STYLES)) and len(styles) == 1
