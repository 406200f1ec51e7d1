"""The final answer of a trace: behind a marker, boxed, a number, a choice, code, by a pattern."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt

from stillroom.data.matching import plain
from stillroom.failures import Failure
from stillroom.traces.numbers import numbers

Way = Literal["rest", "number", "choice", "boxed", "hashes", "code", "pattern"]
LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True, kw_only=True)
class Extract:
    r"""How the final answer is found in a text.

    Where one of the phrases ``after`` occurs, what follows the last of them is searched, and the
    *first* answer there counts; else the whole text is, and its *last* answer counts. Models go on
    with an explanation behind the phrase, and come to the answer at the end without one.

    Args:
        way: ``rest``: what is searched, whole (its first line behind a phrase); ``number``: a
            number with its sign, currency, fraction, power and percent (``traces.numbers``);
            ``choice``: a letter as in ``(B)``, ``B)``, ``b.`` or ``B`` alone, or an option's text;
            ``boxed``: what stands in ``\boxed{}`` or ``\fbox{}``, braces inside included;
            ``hashes``: the line behind ``####``; ``code``: the last block fenced by three
            backticks, or all; ``pattern``: the first group of the last match (all of it without
            groups), ``plain``.
        after: phrases, in any case and with any white space.
        marked: a text with none of the phrases has no answer.
        pattern: a regular expression of the ``regex`` package; goes with ``way: pattern``.
        options: texts of the choices, in order of their letters; none: letters A to J alone.
        letters: whether choices have letters, or are known by their texts alone (yes, no).
        seconds: that a pattern may take, since some never end; then there is no answer.
    """

    way: Way = "rest"
    after: Sequence[str] = ()
    marked: bool = False
    pattern: str | None = None
    options: Sequence[str] = ()
    letters: bool = True
    seconds: Annotated[float, Gt(0)] = 1.0

    def __post_init__(self):
        if (self.way == "pattern") != (self.pattern is not None):
            raise Failure(f"verify.pattern goes with 'way: pattern', and the way is {self.way!r}")
        if self.marked and not self.after:
            raise Failure("verify.marked: name the phrases in verify.after")
        if not self.letters and not self.options:
            raise Failure("verify.letters: choices without letters need verify.options")

    def extract(self, text: str) -> str | None:
        """The answer as it is written, without white space around; None if there is none."""
        rest = self._rest(text)
        if rest is None and self.marked:
            return None
        if self.way == "pattern":
            assert self.pattern is not None
            return _matched(self.pattern, text if rest is None else rest, self.seconds)
        if self.way == "rest" and rest is not None:
            rest = rest.lstrip(" :*\n").partition("\n")[0]
        hits = self._hits(text if rest is None else rest)
        if not hits:
            return None
        return hits[-1 if rest is None or self.way == "code" else 0].strip() or None

    def _rest(self, text: str) -> str | None:
        ends = [
            hit.end()
            for phrase in self.after
            for hit in re.finditer(r"\s+".join(map(re.escape, phrase.split())), text, re.IGNORECASE)
        ]
        return text[max(ends) :] if ends else None

    def _hits(self, text: str) -> list[str]:
        if self.way == "choice":
            return choices(text, self.options, letters=self.letters)
        return _WAYS[self.way](text)


def choices(text: str, options: Sequence[str] = (), *, letters: bool = True) -> list[str]:
    """Choices named in a text, in order: letters (upper case) and texts of options (as given).

    A letter stands alone, in brackets, or before ``)``, ``.`` or ``:``; in lower case, and the
    words A and I, only in brackets, before ``)``, or where nothing else is said; A at the end too.
    """
    known = LETTERS[: len(options)] if options else LETTERS
    upper, both = f"[{known}]", f"[{known}{known.lower()}]"
    parts = []
    if letters and known:
        first = rf"(?<!.)\W*(?P<first>{both})(?:[).:]|\W*(?!.))"
        parts = [rf"(?<!\w)\(\s*(?P<round>{both})\s*\)", first]
        parts += [rf"(?<![\w'])(?P<shut>{both})\)"]
        parts += [rf"(?<![\w'])(?P<bare>(?![AI]\b){upper})(?![\w'])"]
        parts += [rf"(?<![\w'])(?P<last>(?!I){upper})(?=\W*\Z)"]
    if options:
        longest = sorted(options, key=len, reverse=True)
        either = "|".join(map(re.escape, longest))
        parts.append(rf"(?i:(?<!\w)(?P<text>{either})(?!\w))")  # of letters the case counts
    told = {option.casefold(): option for option in options}
    return [
        told[hit.group().casefold()] if hit.lastgroup == "text" else hit[hit.lastgroup].upper()
        for hit in re.finditer("|".join(parts), text, re.DOTALL)
        if hit.lastgroup
    ]


def boxed(text: str) -> list[str]:
    r"""What stands in each ``\boxed{}`` or ``\fbox{}``; a box that is never closed is none."""
    found, open_ = {}, []
    for mark in re.finditer(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", text):
        if mark.group() == "}":
            begin = open_.pop() if open_ else None
            if begin is not None:
                found[begin] = text[begin : mark.start()]
        elif mark.group().endswith("{") and mark.group() != "\\{":
            open_.append(mark.end() if mark.group() != "{" else None)
    return [found[begin] for begin in sorted(found)]


def blocks(text: str) -> list[str]:
    """Code fenced by three backticks; the whole text where there is none, or none is closed."""
    found = re.findall(r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```", text, re.DOTALL | re.MULTILINE)
    return found or [text]


def _matched(pattern: str, text: str, seconds: float) -> str | None:
    import regex  # as ``re``, with a bound on time

    try:
        hits = list(regex.finditer(pattern, text, timeout=seconds))
    except TimeoutError:
        return None
    except regex.error as error:
        raise Failure(f"verify.pattern: {pattern!r} is no regular expression: {error}") from error
    if not hits:
        return None
    return plain(hits[-1].group(1 if hits[-1].re.groups else 0) or "") or None


def _hashes(text: str) -> list[str]:
    return re.findall(r"####[ \t]*([^\n]*)", text)


_WAYS: dict[str, Callable[[str], list[str]]] = {
    "rest": lambda text: [text],
    "number": numbers,
    "boxed": boxed,
    "hashes": _hashes,
    "code": blocks,
}
