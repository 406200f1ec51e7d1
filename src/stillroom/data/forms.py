"""Forms of rows: Alpaca, ShareGPT and columns of any name, made prompt and completion or messages.

What comes out is all that a ``Renderer`` reads: ``prompt`` and ``completion`` (texts), or
``messages`` (turns with ``role`` and ``content``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jinja2 import StrictUndefined, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from stillroom.data.further import ANSWERS, GOLD, WEIGHT
from stillroom.data.rows import Row
from stillroom.failures import Failure

FORMS = {
    "prompt": ("prompt", "completion"),
    "messages": ("messages",),
    "alpaca": ("instruction", "output"),
    "sharegpt": ("conversations",),
}
"""Columns that each form is known by; the first is the question, enough where no answer is."""
ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
"""Roles of ``messages`` by what ShareGPT files write in ``from``."""
_TEXTS = ("prompt", "completion")


def shaped(
    named: Iterable[tuple[str, Row]],
    form: str | None = None,
    templates: Mapping[str, str] | None = None,
    texts: Iterable[str] = (),
) -> tuple[str, list[tuple[str, Row]]]:
    """The form of rows, and each row with its place as ``prompt`` and ``completion`` or messages.

    ``alpaca``: the prompt is ``instruction``, a blank line and ``input``, or ``instruction`` alone
    where ``input`` is empty; the completion is ``output``. The well-known sentences around them
    are one project's wording, and are not added: ``templates`` make another prompt.
    ``sharegpt``: turns of ``from`` and ``value``; roles as in ``ROLES``. ``messages``: keys of a
    turn that are null are left out, except ``content`` (a table gives every turn all keys).
    A missing answer is no error here: a teacher may be asked for it. Further answers (``cot``,
    ``rejected``), ``weight`` and ``gold`` stay beside any form.

    Args:
        named: rows with their places, as iterating ``Rows`` gives them.
        form: a key of ``FORMS``; None tells it by the first row (``form_of``).
        templates: Jinja that makes ``prompt``, ``completion``, a further answer or ``gold`` from a
            row's columns, before all.
        texts: further answers that are kept, beside those that always are.

    Raises:
        Failure: no form or several fit, or a row does not fit; its place is named.
    """
    answers = {*ANSWERS, *texts}
    fill, pairs = columns(templates or {}, answers), list(named)
    if not pairs:
        return form or "prompt", []
    made = {*(templates or ())} & {*_TEXTS}
    form = form or form_of(pairs[0][1], made, pairs[0][0])
    if made and form in ("messages", "sharegpt"):
        raise Failure(
            f"data.columns makes prompt and completion, and data.form is {form}: drop one"
        )
    shape = _SHAPES[form]
    found = []
    for where, row in pairs:
        if not (told := {**shape(row, where), **fill(row, where)}):
            raise Failure(f"{where}: expected rows of form {form}, got columns {sorted(row)}")
        beside = {name: row[name] for name in (*answers, WEIGHT, GOLD) if name in row}
        found.append((where, {**beside, **told}))
    return form, found


def form_of(names: Iterable[str], templates: Iterable[str] = (), where: str = "row") -> str:
    """The form that columns tell.

    A row that ``templates`` make both texts of is ``prompt``. Else all of a form's columns
    (``FORMS``) must be there, and where no form has that, its first, the question. Templates hide
    ``messages`` and ``conversations``, which they replace.

    Raises:
        Failure: no form or several fit.
    """
    made = set(templates)
    if made.issuperset(_TEXTS):
        return "prompt"
    held = {*names, *made} - ({"messages", "conversations"} if made else set())
    for count in (2, 1):
        fits = [form for form, wanted in FORMS.items() if held.issuperset(wanted[:count])]
        if len(fits) > 1:
            raise Failure(
                f"{where}: the columns {sorted(held)} fit more than one form: set data.form to "
                f"{' or '.join(fits)}"
            )
        if fits:
            return fits[0]
    known = "; ".join(f"{form}: {', '.join(wanted)}" for form, wanted in FORMS.items())
    raise Failure(
        f"{where}: the columns {sorted(held)} fit no form ({known}); data.columns makes prompt and "
        "completion from others"
    )


def columns(
    templates: Mapping[str, str], answers: Iterable[str] = tuple(ANSWERS)
) -> Callable[..., dict[str, str]]:
    """``fill(row, where="row")``: the texts that Jinja templates make from a row's columns.

    Prompt, completion, gold, and further answers.

    Raises:
        Failure: a template is malformed, makes no text that is read, or cannot be filled from the
            row at ``where``.
    """
    jinja = ImmutableSandboxedEnvironment(keep_trailing_newline=True, undefined=StrictUndefined)
    known = (*_TEXTS, *sorted(answers), GOLD)
    if unread := sorted(set(templates) - set(known)):
        raise Failure(f"data.columns: {unread} would be read by nothing; make {', '.join(known)}")
    try:
        made = {name: jinja.from_string(text) for name, text in templates.items()}
        used = [meta.find_undeclared_variables(jinja.parse(text)) for text in templates.values()]
    except TemplateError as error:
        raise Failure(f"data.columns: {error}") from error
    needed = set().union(*used)

    def fill(row: Row, where: str = "row") -> dict[str, str]:
        told = {name: row[name] for name in needed if name in row}  # others are not decoded
        try:
            return {name: template.render(told) for name, template in made.items()}
        except Exception as error:  # a template may raise anything that Python code may
            raise Failure(f"{where}: data.columns: {error}; the row has {sorted(row)}") from error

    return fill


def _prompt(row: Row, where: str) -> dict[str, Any]:
    return {name: row[name] for name in _TEXTS if name in row}


def _messages(row: Row, where: str) -> dict[str, Any]:
    turns = _list(row, "messages", where)
    return {"messages": [_told(t) if isinstance(t, Mapping) else t for t in turns]}


def _told(turn: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in turn.items() if v is not None or k == "content"}


def _alpaca(row: Row, where: str) -> dict[str, Any]:
    parts = [row.get("instruction"), row.get("input") or ""]
    if not all(isinstance(part, str) for part in parts):
        raise Failure(
            f"{where}: expected a text in 'instruction', and a text or nothing in 'input'; "
            f"got columns {sorted(row)}"
        )
    answer = {"completion": row["output"]} if "output" in row else {}
    return {"prompt": "\n\n".join(filter(None, parts)), **answer}


def _sharegpt(row: Row, where: str) -> dict[str, Any]:
    messages = []
    for i, turn in enumerate(_list(row, "conversations", where)):
        place = f"{where}: conversations, turn {i}"
        if not isinstance(turn, Mapping) or not isinstance(turn.get("value"), str):
            raise Failure(f"{place}: expected 'from' and a text in 'value', got {turn!r:.200}")
        if turn.get("from") not in ROLES:
            raise Failure(
                f"{place}: from {turn.get('from')!r} is no role; known: {', '.join(ROLES)}"
            )
        messages.append({"role": ROLES[turn["from"]], "content": turn["value"]})
    return {"messages": messages}


def _list(row: Row, column: str, where: str) -> Sequence[Any]:
    if not isinstance(turns := row.get(column), list):
        got = type(turns).__name__ if column in row else f"columns {sorted(row)}"
        raise Failure(f"{where}: {column} must be a list of turns, got {got}")
    return turns


_SHAPES: dict[str, Callable[[Row, str], dict[str, Any]]] = {
    "prompt": _prompt,
    "messages": _messages,
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
}
