"""Decontamination: training rows that hold a text of an evaluation set, rewritten or not.

Word n-grams against an inverted index, no embeddings on purpose: the same answer on every machine,
a reason that can be read, 10^5 rows in seconds. A paraphrase in other words is not found.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le

from stillroom.data.rows import Row
from stillroom.failures import Failure
from stillroom.traces.texts import Dropped, Kept, noted, text_of
from stillroom.traces.words import grams, words

GENRE = 10
"""Texts that may share an n-gram before it can count as a phrase of the genre."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """When a text counts as one of the evaluation set.

    ``score = |R & E| / min(|R|, |E|)`` of the word n-grams R of the row and E of the evaluation
    text. ``words`` takes case, punctuation and number words away; a set knows no order, so moved
    sentences cost the few n-grams at their edges; the smaller set in the denominator lets a
    sentence be missing, or more text stand around; each swapped name costs ``n`` n-grams.

    Args:
        threshold: of the score, from which on a row is dropped. The default gave one false alarm
            in each half of 1,000 grade-school problems (SVAMP) held against GSM8K's test
            questions. Another kind of text needs its own: try rows that are known to be clean, and
            read what is dropped.
        n: words of an n-gram.
        least: n-grams that must be shared; the same text, normalised, is found at any length.
        common: share of the evaluation texts from which on an n-gram, if more than ``GENRE`` texts
            have it, counts nowhere: "how many more" is the genre, not the question.
    """

    threshold: Annotated[float, Gt(0), Le(1)] = 0.28
    n: Annotated[int, Ge(1)] = 3
    least: Annotated[int, Ge(1)] = 3
    common: Annotated[float, Gt(0), Le(1)] = 0.02

    def __post_init__(self) -> None:
        shares = {"threshold": self.threshold, "common": self.common}
        for name, value in shares.items():
            if not 0 < value <= 1:
                raise Failure(f"{name} is a share above 0 and up to 1, got {value}")
        for name, value in {"n": self.n, "least": self.least}.items():
            if value < 1:
                raise Failure(f"{name} is at least 1, got {value}")


@dataclass(frozen=True)
class Match:
    """The evaluation text that a text is most like: its place in the set, and the score."""

    place: int
    score: float


class Detector:
    """An inverted index of an evaluation set's word n-grams.

    Args:
        texts: of the evaluation set.
        rule: n-grams and bounds.

    Raises:
        Failure: there are no texts.
    """

    def __init__(self, texts: Sequence[str], rule: Rule | None = None) -> None:
        if not texts:
            raise Failure("an evaluation set without texts finds nothing: give some")
        self.rule = rule or Rule()
        told = [words(text) for text in texts]
        self._same = {" ".join(said): i for i, said in reversed([*enumerate(told)])}
        sets = [grams(said, self.rule.n) for said in told]
        held = Counter(gram for found in sets for gram in found)
        most = max(GENRE, self.rule.common * len(texts))
        self._genre = {gram for gram, count in held.items() if count > most}
        self._where: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for i, found in enumerate(sets):
            for gram in sorted(found - self._genre):
                self._where[gram].append(i)
        self._sizes = [len(found - self._genre) for found in sets]

    def match(self, text: str) -> Match | None:
        """The most alike text, the first of equals; None where nothing that counts is shared."""
        told = words(text)
        if (same := self._same.get(" ".join(told))) is not None and told:
            return Match(same, 1.0)
        found = grams(told, self.rule.n) - self._genre
        shared: Counter[int] = Counter()
        for gram in found:
            shared.update(self._where.get(gram, ()))
        scores = (
            (count / min(len(found), self._sizes[i]), -i)
            for i, count in shared.items()
            if count >= self.rule.least
        )
        score, place = max(scores, default=(0.0, 0))
        return Match(-place, score) if score else None


def decontaminated(
    rows: Sequence[Row],
    against: Mapping[str, Sequence[str]],
    rule: Rule | None = None,
    column: str = "prompt",
) -> Kept:
    """Rows without those whose text is in an evaluation set, by name of the set.

    What stays is noted in ``provenance``: the sets that it was held against, and its score.

    Args:
        rows: training rows.
        against: texts of evaluation sets by name.
        rule: what counts as the same text.
        column: the text of a row that is looked at (``text_of``).

    Raises:
        Failure: a row lacks the text, or a set is empty.
    """
    rule, kept, dropped = rule or Rule(), [], []
    detectors = {name: Detector(texts, rule) for name, texts in against.items()}
    for place, row in enumerate(rows):
        text = text_of(row, column, f"row {place}")
        found = {name: hit for name, d in detectors.items() if (hit := d.match(text))}
        name = max(found, key=lambda name: found[name].score, default="")
        score = found[name].score if found else 0.0
        if score >= rule.threshold:
            like = against[name][found[name].place]
            why = f"{score:.2f} of its {rule.n}-grams: {name}, text {found[name].place}: {like}"
            dropped.append(Dropped(place, row, name, why))
            continue
        step = {"by": "decontamination", "column": column, "against": [*against]}
        kept.append(noted(row, {**step, "score": round(score, 4), "threshold": rule.threshold}))
    return Kept(kept, dropped)
