"""Method pages generated from classes."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval, Le, MinLen

from stillroom import catalogue
from stillroom.core import Method, Needs
from stillroom.reports import pages
from stillroom.reports.fields import ranges, read_docstring, type_name


@dataclass(frozen=True, kw_only=True)
class Toy(Method):
    """Match softened probabilities.

    ``T^2 * KL(teacher / T || student / T)``, summed over List<Row> (section 2).

    Differs from the paper: no labels.

    Args:
        temperature: T. More shows
            small probabilities.
        share: part of the steps: the first ones.

    Notes:
        Needs equal vocabularies.
    """

    needs = Needs(teacher={"logits"})
    temperature: Annotated[float, Gt(0)] = 4.0
    share: Annotated[float, Ge(0), Le(1)] | None = None
    mode: Literal["a", "b"] = "a"
    taps: Annotated[tuple[str, ...], MinLen(1)] = field(default_factory=lambda: ("last",))
    steps: int


ROW = {
    "name": "toy",
    "kind": "method",
    "family": "logits",
    "modality": "any",
    "verdict": "held",
    "summary": "Match softened probabilities.",
    "needs": {
        "teacher": ["logits"],
        "student": ["logits"],
        "rollouts": False,
        "fresh": True,
        "whole": False,
        "planned": False,
        "texts": [],
        "teachers": ["teacher"],
        "metrics": [],
        "streams": ["train"],
    },
    "paper": {
        "id": "1503.02531",
        "authors": "Hinton et al., 2015",
        "title": "Distilling",
        "url": "https://arxiv.org/abs/1503.02531",
    },
}


def test_page_shows_fields_with_type_range_default_and_description():
    lines = pages.method_page(ROW, Toy).splitlines()
    for line in (
        "| `temperature` | `float` | > 0 | `4.0` | T. More shows small probabilities. |",
        r"| `share` | `float \| None` | >= 0, <= 1 | `None` | part of the steps: the first ones. |",
        r"| `mode` | `'a' \| 'b'` |  | `'a'` |  |",
        "| `taps` | `tuple[str, ...]` | length >= 1 | `('last',)` |  |",
        "| `steps` | `int` |  | required |  |",
    ):
        assert line in lines, line


def test_page_shows_docstring_needs_paper_and_verdict():
    page = pages.method_page(ROW, Toy)
    assert page.startswith("# toy\n\nMatch softened probabilities.\n")
    assert "``T^2 * KL(teacher / T || student / T)``, summed over List&lt;Row>" in page
    assert "Differs from the paper: no labels." in page
    assert "**Notes**\n\nNeeds equal vocabularies." in page
    assert "Args" not in page
    assert "- of the teacher: `logits` (scores of every token or class, for given inputs)" in page
    assert "- a live teacher: it asks about sequences that the data do not hold" in page
    assert "- whole batches" not in page
    assert "*Distilling* ([1503.02531](https://arxiv.org/abs/1503.02531))" in page
    assert "Verdict: **held**." in page


def test_interval_is_read_as_its_bounds():
    assert list(ranges(Annotated[float, Interval(gt=0, le=1)])) == ["> 0", "<= 1"]
    assert type_name(dict[str, Annotated[int, Gt(0)]]) == "dict[str, int]"


def test_docstring_without_args():
    assert read_docstring("One line.") == ("One line.", "", {})


def test_index_groups_by_the_most_demanding_signal():
    def row(name, *teacher):
        return {**ROW, "name": name, "needs": {**ROW["needs"], "teacher": list(teacher)}}

    text = pages.index(
        [row("a", "logits"), row("b"), row("c", "features", "text"), row("d", "text")]
    )
    places = [
        text.index(part)
        for part in (
            "## No teacher",
            "[b](b.md)",
            "## The teacher gives `text`",
            "[d](d.md)",
            "## The teacher gives `logits`",
            "[a](a.md)",
            "## The teacher gives `features`",
            "[c](c.md)",
        )
    ]
    assert places == sorted(places)


def test_a_diagnostic_says_what_it_reads_and_stands_apart_in_the_index():
    needs = {**ROW["needs"], "metrics": ["kl", "nll"]}
    study = {**ROW, "name": "study", "kind": "diagnostic", "needs": needs}
    page = pages.method_page(study, Toy)
    assert "- numbers that they recorded: `kl`, `nll`" in page
    assert "- of the teacher of the runs: `logits` (scores of" in page
    assert "streams of data" not in page
    methods, _, studies = pages.index([ROW, study]).partition("## What explains runs")
    assert "[toy](toy.md)" in methods
    assert "[study](study.md)" not in methods
    assert "[study](study.md)" in studies
    assert "What explains runs" not in pages.index([ROW])


def test_a_pipeline_says_what_it_asks_and_stands_apart_in_the_index():
    needs = {**ROW["needs"], "teacher": ["text"]}
    system = {**ROW, "name": "system", "kind": "pipeline", "needs": needs}
    page = pages.method_page(system, Toy)
    assert "- of the teacher: `text` (answers as text)" in page
    assert "- a teacher that answers: it is asked new questions" in page
    assert "- of the student:" not in page
    recorded = {**system, "needs": {**needs, "fresh": False}}
    assert "it is asked new questions" not in pages.method_page(recorded, Toy)
    methods, _, systems = pages.index([ROW, system]).partition("## Systems of several trainings")
    assert "[toy](toy.md)" in methods
    assert "[system](system.md)" not in methods
    assert "[system](system.md)" in systems
    assert "Systems of several" not in pages.index([ROW])


def test_pages_are_written_for_every_row(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "rows", lambda: [ROW, {**ROW, "name": "other", "paper": None}])
    monkeypatch.setattr(catalogue, "load", lambda name: Toy)
    written = pages.write_pages(tmp_path / "methods")
    assert [file.name for file in written] == ["toy.md", "other.md", "README.md"]
    assert "Paper:" not in written[1].read_text()
    assert "[other](other.md)" in written[2].read_text()
