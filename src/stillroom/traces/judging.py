"""A language model as judge of pairs of answers: both orders, ties, failures to parse, order bias.

Nobody is asked here: ``judge_prompts.questions`` makes prompts of pairs, whoever puts them to a
model, and ``judged`` makes judgements of the replies; ``replies`` reads them off a collection.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from stillroom.data.rows import Row
from stillroom.failures import Failure
from stillroom.teachers.cached import Cached
from stillroom.traces.judge_prompts import Kind, Pair
from stillroom.traces.judgements import Judgement, Judgements, concluded

MOST = 10.0
"""The best score; the worst is 1."""

_MARKUP = r"[\s*_#>`]*"
_TO = r"[\s*_:=]+"
_NAME = r"(A|B|C|tie)"
_NUMBER = r"([+-]?\d+(?:\.\d+)?)(?:\s*/\s*10)?"
_VERDICT = rf"(?:answer\s+|assistant\s+)?[\[(*_]*{_NAME}[\])*_.`\s]*$"
_SCORES = rf"(?:A[\s:=]+)?{_NUMBER}(?:\s*[,;]\s*|\s+and\s+|\s+)(?:B[\s:=]+)?{_NUMBER}[*_.`\s]*$"


def _patterns(label: str, value: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """A labelled line anywhere, and a first line that is the value alone."""
    flags = re.IGNORECASE | re.MULTILINE
    return re.compile(rf"^{_MARKUP}{label}{_TO}{value}", flags), re.compile(_MARKUP + value, flags)


_LINES = {
    "verdict": _patterns("(?:final )?verdict", _VERDICT),
    "scores": _patterns("scores?", _SCORES),
}
_BRACKETS = re.compile(rf"^.*\[\[{_NAME}\]\][.*_\s]*$", re.IGNORECASE | re.MULTILINE)


def replies(cached: Cached) -> list[str | None]:
    """What came of each prompt that a collection put: None where nothing did, so far.

    A reply that met its limit of tokens is told as empty, a failure to parse: what was cut may have
    changed what it said (``Scores: 7, 1`` of ``7, 10``). Refusals are told as they are.
    """
    found: list[str | None] = []
    for name in cached.keys:
        outcome = cached.outcomes.get(name)
        if outcome is None or not outcome.arrived:
            found.append(None)
        else:
            found.append("" if outcome.kind == "truncated" else outcome.text)
    return found


def judged(
    pairs: Sequence[Pair],
    answers: Sequence[str | None],
    kind: Kind = "verdict",
    *,
    single_order: bool = False,
) -> Judgements:
    """Judgements of pairs from the replies to ``questions``, in their order.

    An answer wins that wins in both orders. Where the orders disagree (also where one of them says
    tie) the pair is a tie, marked ``inconsistent``. With scores an order's winner has the higher
    score, and ``gap = mean over orders of s(a) - s(b)``, which is the ``d`` of Lion (arXiv
    2305.12870) where a is the teacher's; it is there for inconsistent pairs, too. Identical answers
    are a tie with gap 0. Swapping a and b of the input flips winner and gap exactly.

    Args:
        pairs: as given to ``questions``.
        answers: None where there was no reply, which is no failure to parse.
        kind: as that of the template.
        single_order: where the reply to one order has no verdict or did not come, the other order's
            stands alone. Without it such a pair has no verdict and no gap.

    Raises:
        Failure: there are more or fewer replies than questions.
    """
    wanted = 2 * sum(not pair.same for pair in pairs)
    if len(answers) != wanted:
        raise Failure(
            f"judged: {len(pairs)} pairs ask {wanted} questions, but there are {len(answers)} "
            "replies; give one for each that questions() made, None where none came"
        )
    waiting = iter(answers)
    found = []
    for pair in pairs:
        if pair.same:
            gap = 0.0 if kind == "scores" else None
            found.append(Judgement("tie", gap, asked=False))
            continue
        said = (next(waiting), next(waiting))
        marks = (parsed(said[0], kind), _swapped(parsed(said[1], kind)))
        missing = sum(reply is None for reply in said)
        found.append(concluded(marks, kind == "scores", missing, single_order=single_order))
    return Judgements(tuple(found), kind)


def parsed(reply: str | None, kind: Kind) -> float | None:
    r"""How much better a reply finds the answer shown first; None where it does not say.

    Read is the last line that is ``Verdict:`` with ``A``, ``B`` or ``tie`` (marked up or not) and
    no other word, which is 1, -1 or 0; or ``Scores:`` with two numbers from 1 to 10, which is their
    difference. Without such a line, the last that ends with ``[[A]]``, ``[[B]]`` or ``[[C]]`` (a
    tie), or a first line that is the name or the two numbers alone.

    >>> parsed("Both are good.\nVerdict: **B**", "verdict"), parsed("Scores: 7, 4.5", "scores")
    (-1.0, 2.5)
    >>> parsed("Verdict: A or B", "verdict"), parsed("Scores: 7, 11", "scores")
    (None, None)
    """
    text = reply or ""
    labelled, alone = _LINES[kind]
    found = [*labelled.finditer(text)]
    if not found and kind == "verdict":
        found = [*_BRACKETS.finditer(text)]
    last = found[-1] if found else alone.match(text)
    if last is None:
        return None
    if kind == "verdict":
        return {"a": 1.0, "b": -1.0}.get(last[1].lower(), 0.0)
    one, other = float(last[1]), float(last[2])
    return one - other if min(one, other) >= 1 and max(one, other) <= MOST else None


def _swapped(mark: float | None) -> float | None:
    return None if mark is None else 0.0 - mark  # no -0.0


def with_judgements(
    rows: Sequence[Row], judgements: Judgements, about: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Rows whose provenance tells the judgement: ``judged``, with ``about`` (teacher, template)."""
    return [
        {
            **row,
            "provenance": {
                **(row.get("provenance") or {}),
                "judged": {**about, "kind": judgements.kind, **one.told()},
            },
        }
        for row, one in zip(rows, judgements.each, strict=True)
    ]
