"""ROUGE and BLEU of sampled answers against the reference text, by torchmetrics."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import ModuleType

from stillroom.evaluation.suite import View
from stillroom.extras import extra

COLUMNS = {
    "rouge_1": ("words shared with the teacher's answer, F1", "higher"),
    "rouge_2": ("word pairs shared with the teacher's answer, F1", "higher"),
    "rouge_l": ("longest common run of words, with gaps, F1", "higher"),
    "bleu": ("1- to 4-grams found in the teacher's answer", "higher"),
}
_ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}


def ready(_view: View) -> None:
    """Raises Failure where torchmetrics is missing, before any answer is sampled."""
    _metrics()


def measure(view: View) -> dict[str, float]:
    """ROUGE-1, -2 and -L, means over answers, and BLEU of all answers together; all in [0, 1]."""
    own, told = zip(*view.texts(), strict=True)
    return overlap(own, told)


def overlap(own: Sequence[str], told: Sequence[str]) -> dict[str, float]:
    """The four numbers of texts against one reference each.

    ROUGE (Lin, 2004) is ``F1 = 2PR / (P + R)`` of shared 1-grams, 2-grams, or of the longest common
    subsequence of words; no stemmer. Words are runs of letters and digits, lower case. The usual
    script keeps a to z and 0 to 9 alone, which is the same for English and nothing for most others.

    BLEU (Papineni et al., 2002) is ``min(1, exp(1 - r / c)) (p1 p2 p3 p4)^(1/4)`` with counts
    summed over all answers, and 0 where one of them is 0 (no smoothing). Tokens are SacreBLEU's
    ``13a``. Others print it times 100.
    """
    text = _metrics()
    own, told = list(own), list(told)  # of a tuple torchmetrics makes one text, without a word
    keys = tuple(_ROUGE.values())
    rouge = text.rouge_score(own, told, rouge_keys=keys, normalizer=_words)
    bleu = text.sacre_bleu_score(own, [[reference] for reference in told], tokenize="13a")
    scores = {name: float(rouge[f"{key}_fmeasure"]) for name, key in _ROUGE.items()}
    return {**scores, "bleu": float(bleu)}


def _words(text: str) -> str:
    return re.sub(r"[\W_]+", " ", text.lower())


def _metrics() -> ModuleType:
    return extra("torchmetrics.functional.text", "eval", why="ROUGE and BLEU")
