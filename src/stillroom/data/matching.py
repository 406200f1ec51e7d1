"""Texts that count as equal, and the answer that a regular expression finds in one."""

from __future__ import annotations

import re
import unicodedata


def found(pattern: str, text: str) -> str | None:
    """The first group of a pattern's last match (all of it without groups), ``plain``."""
    hits = list(re.finditer(pattern, text))
    if not hits:
        return None
    return plain(hits[-1].group(1 if hits[-1].re.groups else 0) or "")


def plain(text: str) -> str:
    """What is compared: case, form and amount of white space do not count.

    Unicode NFKC, case-folded, white space to single blanks and none at the ends, no full stop at
    the end, no commas between thousands (``1,200.`` is ``1200``).
    """
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text.removesuffix("."))
