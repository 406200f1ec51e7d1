"""``report.html``: one self-contained page about a run, without script or outside resources.

Shows the files of the run folder and nothing else. Sample texts are untrusted: every value is
escaped, and control characters are made visible.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from stillroom.failures import Failure
from stillroom.reports import logs, plots, words
from stillroom.reports.folder import RunFolder, read_folder
from stillroom.reports.ledgers import lines
from stillroom.reports.results import LEGEND, results
from stillroom.reports.sections import samples, time_rows

SHOWN_SAMPLES = 12


def write_report(path: Path | str) -> Path:
    """Write ``report.html`` into a finished run folder, and say where it is."""
    folder = read_folder(path)
    page = folder.path / "report.html"
    page.write_text(render(folder), encoding="utf-8")
    return page


def render(folder: RunFolder, template: str = "report.html.jinja", **more: Any) -> str:
    """The page as text; ``more`` goes to a template that extends the report's."""
    drawn, missing = _curves(folder)
    return page(
        template,
        name=folder.name,
        sentence=sentence(folder),
        about=words.paragraphs(folder.recipe.get("about")),
        results=results(folder.table),
        legend=LEGEND,
        arms=[(name, *_stroke(i)) for i, name in enumerate(folder.arms)],
        curves=drawn,
        missing=missing,
        glossary=_glossary(folder, drawn),
        samples=samples(folder)[:SHOWN_SAMPLES],
        sample_count=len(samples(folder)),
        ledgers=[(name, told) for name, arm in folder.arms.items() if (told := lines(arm.ledger))],
        time=time_rows(folder),
        recipe=folder.recipe_text,
        environment=words.flat(folder.environment),
        **more,
    )


def page(template: str, **told: Any) -> str:
    """A template of this room, filled; every value is escaped and made visible."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda v: v if isinstance(v, Markup | jinja2.Undefined) else words.visible(v),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**told)


def sentence(folder: RunFolder) -> str:
    """What learned from what, how, on which data, by the last arm; methods of all arms."""
    arms = list(folder.arms.values())
    recipe = {**folder.recipe, **arms[-1].recipe}
    told = {
        "Student": words.student(recipe.get("student")),
        "Teacher": words.teachers(recipe),
        "Method": " / ".join(dict.fromkeys(arm.method for arm in arms)),
        "Data": words.data(recipe, arms[-1].ledger),
    }
    return " ".join(f"{noun}: {says}." for noun, says in told.items())


def _curves(folder: RunFolder) -> tuple[plots.Curves | None, str]:
    try:
        return plots.curves(folder), ""
    except Failure as absent:
        return None, str(absent)


def _stroke(i: int) -> tuple[str, str]:
    """Colour variable and dashes of the i-th arm, as its curves have them."""
    dash = plots.STYLES[i % len(plots.STYLES)][1]
    return f"--arm-{i % len(plots.LINES)}", " ".join(str(2 * length) for length in dash)


def _glossary(folder: RunFolder, drawn: plots.Curves | None) -> list[tuple[str, str, bool]]:
    """(log name, what it means, whether it is drawn)."""
    shown = {p.name for p in (*drawn.validation, *drawn.training)} if drawn else set()
    names = plots.log_names(folder)
    told = [n for n in names if n.startswith("validation/")] + logs.training_names(names)
    return [(n, logs.meaning(n, folder.table["columns"]).says, n in shown) for n in told]
