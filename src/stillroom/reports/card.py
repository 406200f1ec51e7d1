"""The model card that travels with a student: ``student/README.md``.

Says what the recipe and the run folder say, and that the rest is unknown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml

from stillroom.failures import Failure
from stillroom.reports import words
from stillroom.reports.folder import Arm, RunFolder, read_folder
from stillroom.reports.ledgers import lines
from stillroom.reports.results import DASH, LEGEND, number, results
from stillroom.reports.sections import cost

HUGGING = {"library_name": "transformers", "pipeline_tag": "text-generation"}
NO_TERMS = "the recipe states none: see that they allow training on its answers before you publish"


def write_card(path: Path | str, student_dir: Path | str, row: Mapping[str, Any]) -> Path:
    """Write the card of the student in ``student_dir``, and say where it is.

    Args:
        path: the finished run folder.
        student_dir: ``student/`` of the run, or of one of its arms.
        row: the method's row of the catalogue (``name``, ``paper``).

    Raises:
        Failure: the run has several arms and the student lies in none of them.
    """
    folder, student_dir = read_folder(path), Path(student_dir)
    card = student_dir / "README.md"
    card.write_text(render(folder, _arm(folder, student_dir), row), encoding="utf-8")
    return card


def render(folder: RunFolder, arm: Arm, row: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # Markdown: every value goes through the filter md
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["md"] = md
    recipe, paper = {**folder.recipe, **arm.recipe}, row["paper"]
    classifier = (arm.path / "student" / "network.json").is_file()
    hugging = (arm.path / "student" / "config.json").is_file() and not classifier
    told = front(recipe, row, hugging=hugging)
    if hugging and arm.ledger.get("form") == "classes":
        told["pipeline_tag"] = "text-classification"
    return environment.get_template("card.md.jinja").render(
        front=head(told),
        name=folder.name if len(folder.arms) == 1 else f"{folder.name}: {arm.name}",
        about=words.paragraphs(folder.recipe.get("about")),
        student=words.student(recipe.get("student")),
        teacher=words.teachers(recipe),
        terms=terms(recipe),
        method=row["name"],
        classifier=classifier,
        paper=paper,
        paper_name=(paper.get("title") or paper["authors"]) if paper else "",
        data=data_rows(recipe, arm.ledger),
        collected=collected(arm.ledger),
        ledger=lines(arm.ledger),
        sizes=words.data(recipe, arm.ledger),
        cost=cost(arm),
        results=results(folder.table),
        legend=LEGEND,
    )


def _arm(folder: RunFolder, student_dir: Path) -> Arm:
    inside = student_dir.resolve()
    for arm in folder.arms.values():
        if inside.is_relative_to(arm.path.resolve()) or len(folder.arms) == 1:
            return arm
    raise Failure(
        f"{student_dir} lies in none of the arms of {folder.path} ({', '.join(folder.arms)}): "
        "give the student/ folder of one of them"
    )


def md(text: Any) -> str:
    """Text that Markdown shows as it is, on one line, also inside a table."""
    line = " ".join(words.visible(text).split())
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", line)


def bare(model: str) -> str:
    """The card of a model that brings none: where it came from, and that the rest is unknown."""
    told = {**_of_hub({"model": model}), **HUGGING, "license": "unknown", "tags": ["stillroom"]}
    name = md(Path(model).name if Path(model).exists() else model)  # a path is nobody's business
    return (
        f"---\n{head(told)}---\n\n# {name}\n\nWritten from {name} by stillroom, which "
        "changed at most the type of the weights and the file format. The model brought no card: "
        "its licence, data, intended use and limits are unknown.\n"
    )


def head(told: Mapping[str, Any]) -> str:
    """The card's first lines, as YAML."""
    return yaml.safe_dump(dict(told), sort_keys=False, allow_unicode=True)


def front(
    recipe: Mapping[str, Any], row: Mapping[str, Any], *, hugging: bool = True
) -> dict[str, Any]:
    """What the hub reads: base model and data set where they are of the hub, licence, tags.

    Args:
        recipe: of the student.
        row: the method's row of the catalogue.
        hugging: whether it is a language model that transformers loads.
    """
    named = re.match(r"hf:([^/@:]+/[^/@:]+)", str((recipe.get("data") or {}).get("train")))
    return {
        **_of_hub(recipe.get("student")),
        **({"datasets": [named[1]]} if named else {}),
        **(HUGGING if hugging else {}),
        "license": "unknown",
        "tags": ["distillation", "stillroom", str(row["name"])],
    }


def _of_hub(spec: Any) -> dict[str, Any]:
    """``base_model`` where the student began as a model with a name on a hub."""
    if isinstance(spec, Mapping):
        cut = spec.get("cut")
        spec = cut.get("from") if cut else spec.get("model")
    is_hub = isinstance(spec, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", spec)
    return {"base_model": spec} if is_hub and not Path(str(spec)).exists() else {}


def terms(recipe: Mapping[str, Any]) -> str:
    """Terms of each teacher as the recipe says them."""
    several = recipe.get("teachers") or {"": recipe.get("teacher")}
    told = {
        name: spec["terms"] if isinstance(spec, Mapping) and spec.get("terms") else NO_TERMS
        for name, spec in several.items()
        if words.teacher(spec) != "none"
    }
    return "; ".join(f"{n}: {t}" if n else str(t) for n, t in told.items()) or "no teacher"


def data_rows(recipe: Mapping[str, Any], ledger: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """(file, rows, sha256, licence) of each data file; a dash for what neither tells."""
    licence = (recipe.get("data") or {}).get("licence") or DASH
    return [
        (str(f["file"]), number(f.get("rows")), f.get("sha256") or DASH, licence)
        for f in words.files(recipe, ledger)
    ]


def collected(ledger: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Of each file whose answers a teacher was asked for: what was written down about that."""
    return [(file, words.flat(told)) for file, told in (ledger.get("collected") or {}).items()]
