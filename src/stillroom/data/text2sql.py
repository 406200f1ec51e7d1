"""Questions with SQL, in files of the text2sql-data collection, as prompt and completion.

Such a file is a list of queries, each with all questions that ask for it: ``sql`` (equivalent
ones, of which the first counts) and ``sentences`` with ``text``, ``variables`` (names that stand
for values in text and query alike) and ``question-split``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from stillroom.data.rows import Row
from stillroom.failures import Failure

FORM = "text2sql"
SPLITS = {"train": "train", "validation": "dev", "test": "test"}
"""What a split is called in the files."""


def questions(named: Iterable[tuple[str, Row]], split: str) -> list[tuple[str, Row]]:
    """A row for each question of a split, with its place: the text and its query, filled in.

    Raises:
        Failure: a row has another form, or no question belongs to the split.
    """
    found, others, wanted = [], set(), SPLITS[split]
    for where, row in named:
        try:
            query = row["sql"][0]
            for i, told in enumerate(row["sentences"]):
                if told["question-split"] == wanted:
                    texts = (_filled(text, told["variables"]) for text in (told["text"], query))
                    made = dict(zip(("prompt", "completion"), texts, strict=True))
                    found.append((f"{where}, sentence {i}", made))
                else:
                    others.add(str(told["question-split"]))
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise Failure(
                f"{where}: expected a query of text2sql-data, with 'sql' and 'sentences' of 'text',"
                f" 'variables' and 'question-split'; got columns {sorted(row)} ({error!r})"
            ) from error
    if not found:
        raise Failure(f"no question is of the split {wanted!r}; the file has {sorted(others)}")
    return found


def _filled(text: str, values: Mapping[str, Any]) -> str:
    """Names replaced by values at once, longer names first: one may begin as another."""
    names = "|".join(re.escape(name) for name in sorted(values, key=len, reverse=True))
    return re.sub(names, lambda name: str(values[name[0]]), text) if names else text
