"""A trained pairwise scorer: Bradley-Terry on features of an answer, fitted to preferences."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import logsigmoid

from stillroom.failures import Failure
from stillroom.nets.pooled import fit
from stillroom.store.requests import digest
from stillroom.traces.judge_prompts import Pair
from stillroom.traces.judgements import Winner
from stillroom.traces.readers import Reader, Texts

Ties = Literal["half", "drop"]
GRID = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
"""Strengths of the penalty that ``tuned`` tries."""
WEIGHTS, ABOUT = "scorer.safetensors", "scorer.json"
_SIGNS = {"a": 1, "b": -1, "tie": 0}


@dataclass(frozen=True)
class Scorer:
    """Scores of answers whose differences are log-odds of a preference.

    ``score(y) = w^T (f(x, y) - c)``, ``P(a over b) = sigmoid(score(a) - score(b))``

    It has no term for the place of an answer: swapping a pair flips its gap exactly.

    Args:
        reader: f, frozen.
        weight: w [d].
        centre: c [d], which moves all scores alike.
    """

    reader: Reader
    weight: Tensor
    centre: Tensor

    def score(self, texts: Texts) -> Tensor:
        """[n] scores of answers to questions."""
        return (self.reader(texts) - self.centre) @ self.weight

    def gaps(self, pairs: Sequence[Pair]) -> Tensor:
        """[n] scores of a minus those of b."""
        a, b = read(pairs, self.reader)
        return (a - b) @ self.weight

    def save(self, folder: Path) -> None:
        """Writes ``scorer.safetensors`` (weights) and ``scorer.json`` (what the reader is)."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"weight": self.weight, "centre": self.centre}, folder / WEIGHTS)
        told = {"reader": dict(self.reader.identity)}
        (folder / ABOUT).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def load(folder: Path, reader: Reader) -> Scorer:
    """The scorer that ``save`` wrote, for the same reader.

    Raises:
        Failure: there is none, or it was fitted to what another reader reads.
    """
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        kept = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise Failure(f"{folder}: there is no scorer that can be read: {error}") from error
    if about["reader"] != (own := json.loads(json.dumps(dict(reader.identity)))):
        raise Failure(f"{folder}: the scorer reads {about['reader']}, got a reader of {own}")
    return Scorer(reader, kept["weight"], kept["centre"])


def read(pairs: Sequence[Pair], reader: Reader) -> tuple[Tensor, Tensor]:
    """Features [n, d] of the answers a and of the answers b."""
    a, b = reader([(p.said, p.a) for p in pairs]), reader([(p.said, p.b) for p in pairs])
    return a, b


def learn(
    pairs: Sequence[Pair],
    winners: Sequence[Winner | None],
    reader: Reader,
    l2: float | None = None,
    ties: Ties = "half",
) -> Scorer:
    """Fits a scorer to which answer of each pair is preferred.

    Args:
        pairs: questions with two answers.
        winners: of each; a pair with None (no verdict) is left out.
        reader: what the scorer reads.
        l2: strength of the ridge (``fitted``); None tunes it by cross-validation (``tuned``).
        ties: ``half`` counts a tie as half a pair won by each; ``drop`` leaves ties out.

    Raises:
        Failure: pairs and winners differ in number, or no pair is left.
    """
    if len(pairs) != len(winners):
        raise Failure(f"learn: there are {len(pairs)} pairs, but {len(winners)} winners")
    told = [(p, _SIGNS[w]) for p, w in zip(pairs, winners, strict=True) if w is not None]
    told = [(p, sign) for p, sign in told if sign or ties == "half"]
    if not any(sign for _, sign in told):
        raise Failure("learn: no pair has a winner, so there is nothing to learn from")
    kept = [pair for pair, _ in told]
    a, b = read(kept, reader)
    signs = torch.tensor([sign for _, sign in told])
    if l2 is None:
        l2 = tuned(a, b, signs, [digest(pair.said) for pair in kept])
    return Scorer(reader, *fitted(a, b, signs, l2))


def fitted(a: Tensor, b: Tensor, signs: Tensor, l2: float) -> tuple[Tensor, Tensor]:
    """Ridge Bradley-Terry on pairs of features: weights [d] and centre [d].

    Minimises ``-sum_i log sigmoid(s_i v^T (z(a_i) - z(b_i))) + l2 / 2 |v|^2``, z the standardised
    features, s_i = 1 where a is preferred and -1 where b is; a tie (0) is half of each
    (``nets.pooled.fit``).

    Args:
        a: [n, d] features, float64.
        b: likewise.
        signs: [n].
        l2: strength of the penalty, against a sum over pairs.
    """
    # a whole pair is told twice and a tie once each way, at twice the penalty: weights 1 and 1/2
    first, second = signs >= 0, signs <= 0
    wins = [a[signs > 0], b[signs < 0], a[first], b[second]]
    loses = [b[signs > 0], a[signs < 0], b[first], a[second]]
    return fit(torch.cat(wins), torch.cat(loses), 2 * l2)


def misfit(gaps: Tensor, signs: Tensor) -> Tensor:
    """[n] nats that a pair's preference is unexpected by; a tie is half of each."""
    wins = (signs + 1) / 2
    return -(wins * logsigmoid(gaps) + (1 - wins) * logsigmoid(-gaps))


def right(gaps: Tensor, signs: Tensor) -> Tensor:
    """[n] 1 where the preferred answer has the higher score, half where both have the same."""
    return (torch.sign(gaps) * signs + 1) / 2


def parted(names: Sequence[str], folds: int, seed: int) -> Tensor:
    """[n] which fold each pair is in; pairs of one question are in one, and folds of one size.

    Raises:
        Failure: there are fewer questions than folds, or fewer than two folds.
    """
    distinct = sorted(set(names))
    if not 2 <= folds <= len(distinct):
        raise Failure(f"folds: {folds} of {len(distinct)} questions; give 2 or more, and as few")
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(seed)).tolist()
    place = {distinct[at]: i % folds for i, at in enumerate(order)}
    return torch.tensor([place[name] for name in names])


def tuned(
    a: Tensor, b: Tensor, signs: Tensor, names: Sequence[str], folds: int = 5, seed: int = 0
) -> float:
    """The penalty of ``GRID`` with the least mean ``misfit`` in cross-validation; ties the largest.

    For fewer than 20 questions, which tell nothing of it, the middle of the grid.
    """
    if len(set(names)) < 20:
        return GRID[len(GRID) // 2]
    fold = parted(names, folds, seed)

    def cost(l2: float) -> float:
        total = 0.0
        for k in range(folds):
            out = fold == k
            weight, _ = fitted(a[~out], b[~out], signs[~out], l2)
            total += float(misfit((a[out] - b[out]) @ weight, signs[out]).sum())
        return total

    return min(reversed(GRID), key=cost)
