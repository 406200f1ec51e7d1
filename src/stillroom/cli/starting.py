"""``stillroom init``: three questions, and a recipe that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stillroom.cli.common import OPENAI, quiet
from stillroom.failures import Failure

TEACHER = (
    "Teacher: 'recorded' (its answers stand in the data), openai:MODEL[@URL] (a server that "
    "answers in text), topk:MODEL@URL (one that tells log-probabilities of given tokens), or a "
    "model that runs here, by name or folder"
)
DATA = "Data: a file of rows with prompt and completion, or messages"
STUDENT = "Student: a model by name or folder, or 'tiny' (a new one, to try things out)"
TOPK = "topk:"
HEAD = """\
# Written by `stillroom init`. {why}
#   stillroom check {file} --show-tokens     builds everything, takes no step
#   stillroom run {file}                     trains all arms, beside each other in one table
"""
TINY = {
    "lm": {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
           "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 1024},
    "tokenizer": "from-data",
}  # fmt: skip


def init(
    file: Annotated[Path, typer.Argument(help="The recipe to write.")] = Path("recipe.yaml"),
    teacher: Annotated[str, typer.Option(prompt=TEACHER, help=TEACHER)] = "recorded",
    data: Annotated[str, typer.Option(prompt=DATA, help=DATA)] = "data.jsonl",
    student: Annotated[str, typer.Option(prompt=STUDENT, help=STUDENT)] = "tiny",
    force: Annotated[bool, typer.Option("--force", help="Write over a file.")] = False,
) -> None:
    """Ask for teacher, data and student, and write a recipe of the methods that fit."""
    quiet()
    if file.exists() and not force:
        raise Failure(f"{file} exists: name another file, or give --force")
    import yaml

    from stillroom.config.recipe import read

    why, told = begun(teacher.strip(), data.strip(), student.strip(), file.parent)
    body = yaml.safe_dump(told, sort_keys=False, allow_unicode=True, width=100)
    file.write_text(HEAD.format(why=why, file=file) + body, encoding="utf-8")
    read(str(file))  # what it says is what a recipe may say
    typer.echo(f"{file} is written; next: stillroom check {file} --show-tokens")


def begun(teacher: str, data: str, student: str, folder: Path) -> tuple[str, dict[str, Any]]:
    """Why these methods, and the recipe.

    Raises:
        Failure: there is no such data, or its rows have no form that is known.
    """
    why, access, arms = _access(teacher)
    rate = 3.0e-3 if student == "tiny" else 1.0e-5
    method = list(arms)[-1]
    told = {
        "method": {"name": method, **(arms[method] or {})},
        "student": TINY if student == "tiny" else {"model": student},
        "teacher": access,
        "data": _data(data, folder, answers="api" in access and "signals" not in access),
        "train": {"steps": 300, "batch": 16, "lr": rate},
        "eval": {"every": 50, "metrics": ["likelihood", "generation"], "select": "nll"},
        "sampling": {"max_new_tokens": 128},
        "arms": {
            name: None if name == method else {"method": {"name": name, **(fields or {})}}
            for name, fields in arms.items()
        },
    }
    if "hold_out" not in told["data"]:
        told["eval"] = {"every": None, "samples": 0}
    return why, told


def _access(teacher: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Why, the section ``teacher``, and the arms, of which the last is the recipe's own method."""
    soft = {"temperature": 1.0}
    if teacher == "recorded":
        why = "The teacher's text alone: imitation, and a critic that tells it from the student's."
        return why, {"recorded": True}, {"seqkd": None, "gad": None}
    kind = next((kind for kind in (OPENAI, TOPK) if teacher.startswith(kind)), None)
    if kind is None:
        why = "Open weights: the text, the teacher's distributions on it, and on the student's own."
        return why, {"model": teacher}, {"seqkd": None, "kd": soft, "gkd": None}
    model, _, url = teacher.removeprefix(kind).partition("@")
    served: dict[str, Any] = {"api": f"{OPENAI}{model}", **({"base_url": url} if url else {})}
    if kind == OPENAI:
        why = "A server that answers in text: kept in the store, never asked for twice."
        asked = {"store": "answers", "budget_usd": 5.0, "sampling": {"max_tokens": 256}}
        return why, {**served, **asked}, {"seqkd": None, "gad": None}
    if not url:
        raise Failure(f"teacher: {teacher} needs its address, as topk:MODEL@http://host:8000/v1")
    why = "A server's likeliest tokens; 'stillroom check FILE --live' tests what it says first."
    scored = {"signals": "topk:20", "tokenizer": model}
    return why, {**served, **scored}, {"seqkd": None, "kd": soft, "gkd": None}


def _data(name: str, folder: Path, *, answers: bool) -> dict[str, Any]:
    """The section ``data``; a tenth of the rows is held out twice, where there are enough."""
    from stillroom.config.recipe import find_data
    from stillroom.data.forms import form_of
    from stillroom.data.rows import read_rows

    rows = read_rows(find_data(name, folder, "data"), "train")
    where, first = next(iter(rows))
    form = form_of(first, (), where)
    if form == "prompt" and "completion" not in first and not answers:
        raise Failure(f"{where}: there is no 'completion', and this teacher does not write any")
    held = min(100, len(rows) // 10)
    return {"train": name, "form": form, **({"hold_out": held} if held else {})}
