"""A teacher's reply as sub-questions with answers, as Socratic and decomposed rationales have."""

from __future__ import annotations

import re
from collections.abc import Sequence

Steps = Sequence[tuple[str, str]]
"""Sub-questions with their answers, in order."""
_LABEL = re.compile(
    r"[\s#>-]*(?:\d+[.)]\s*)?(?:\*\*)?"
    r"(?P<kind>(?:sub-?\s?)?q(?:uestion)?|(?:final\s)?a(?:nswer)?)"
    r"\s*\d*(?:\*\*)?\s*[:.)](?:\*\*)?(?P<text>.*)",
    re.IGNORECASE,
)


def steps_of(text: str) -> Steps:
    r"""Sub-questions and their answers in a teacher's reply; none where that is malformed.

    Lines are told by ``Q:`` or ``A:``, also numbered, in bold, or written out; others go on with
    what stands before. Answers that follow without a sub-question are left out.

    >>> steps_of("**Q1:** How many?\nA1: 2 + 3 = 5\n\nQ2: Twice?\nA2: 10\nFinal answer: 10")
    [('How many?', '2 + 3 = 5'), ('Twice?', '10')]
    """
    parts: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if label := _LABEL.fullmatch(line):
            kind = "q" if "q" in label["kind"].lower() else "a"
            parts.append((kind, [label["text"].strip()]))
        elif parts and line.strip():
            parts[-1][1].append(line.strip())
    kinds = "".join(kind for kind, _ in parts)
    if re.fullmatch("(qa)+a*", kinds) is None:
        return []
    texts = [" ".join(filter(None, told)) for _, told in parts][: 2 * kinds.count("q")]
    steps = list(zip(texts[0::2], texts[1::2], strict=True))
    return steps if all(q and s for q, s in steps) else []
