"""Plain text beside the rows: the stream ``corpus``, every token of which counts."""

from __future__ import annotations

from typing import Any

from stillroom.config.recipe import Recipe, find_data
from stillroom.config.values import within
from stillroom.core import Failure
from stillroom.data.rows import read_rows
from stillroom.data.text import Renderer, TextData


def corpus(
    recipe: Recipe, renderer: Renderer, context: int | None, ledger: dict[str, Any]
) -> dict[str, TextData]:
    """The stream by its name where the method reads it, else nothing; tells ``ledger`` the file.

    Raises:
        Failure: there is no such file, or a row of it has no text.
    """
    told = recipe.data
    if told.corpus is None or "corpus" not in recipe.method.streams():
        return {}
    file = find_data(told.corpus, recipe.folder, "data.corpus")
    most = min(told.corpus_tokens, context or told.corpus_tokens)
    with within("data.corpus"):
        read, found = read_rows(file), []
        for where, row in read:
            if not isinstance(text := row.get("text"), str):
                raise Failure(f"{where}: expected a text in 'text', got columns {sorted(row)}")
            found += renderer.pieces(text, most)
        if not found:
            raise Failure(f"{file}: no text of two tokens or more")
    ledger["corpus"] = {"file": told.corpus, "sha256": read.sha256, "pieces": len(found)}
    return {"corpus": TextData(found, renderer.pad_id)}
