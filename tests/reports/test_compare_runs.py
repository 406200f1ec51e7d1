"""Runs beside each other: one table, one page, what differs, and what is not comparable."""

import io
import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import yaml
from rich.console import Console

from stillroom.core import Failure
from stillroom.reports.compare import compared, differences_text, spoken, write_page
from stillroom.reports.results import results
from stillroom.reports.text import TextTable

CSP = "default-src 'none'; style-src 'unsafe-inline'"


def edited(file, change):
    told = json.loads(file.read_text())
    change(told)
    file.write_text(json.dumps(told))


@pytest.fixture
def made(run_path, tmp_path):
    """Makes a run of one arm: its test data's hash, its nll, and changes of its recipe."""

    def make(folder_name: str, digest: str | None, nll: float, **recipe) -> str:
        folder = shutil.copytree(run_path, tmp_path / folder_name)
        told = {**yaml.safe_load((folder / "recipe.yaml").read_text()), **recipe}
        (folder / "recipe.yaml").write_text(yaml.safe_dump(told))
        rows = [
            {"name": "start", "kind": "start", "values": {"nll": 3.5}},
            {"name": "gad", "kind": "method", "values": {"nll": nll}},
            {"name": "teacher", "kind": "teacher", "values": {"nll": 1.5}},
        ]
        edited(folder / "table.json", lambda table: table.update(rows=rows, notes=["One seed."]))
        if digest:
            edited(folder / "result.json", lambda r: r["data"].update(sha256={"test": digest}))
        return str(folder)

    return make


def cells(told) -> dict[str, tuple[str, bool]]:
    shown = results(told.folder.table)
    column = [c.name for c in shown.columns].index("nll")
    return {row.name: (row.cells[column].text, row.cells[column].best) for row in shown.rows}


def test_runs_on_the_same_test_data_share_one_ranking_and_what_is_the_same_stands_once(made):
    told = compared([made("a", "11", 2.5), made("b", "11", 2.25)])
    assert cells(told) == {
        "start": ("3.500", False),
        "a": ("2.500", False),
        "b": ("2.250", True),
        "teacher": ("1.500", False),
    }
    assert len(told.folder.table["rows"]) == 4
    assert told.folder.table["notes"] == ["a: One seed.", "b: One seed."]


def test_runs_on_other_test_data_are_said_so_and_not_ranked_against_each_other(made):
    told = compared([made("a", "11" * 32, 2.5), made("b", "11" * 32, 2.25), made("c", "22", 0.5)])
    found = cells(told)
    assert [found[name] for name in ("a", "b", "c")] == [
        ("2.500", False),
        ("2.250", True),
        ("0.500", True),  # against its own start alone
    ]
    assert {"start", "teacher"}.isdisjoint(found)
    assert found["a/teacher"] == found["c/teacher"] == ("1.500", False)
    assert told.folder.table["notes"][:3] == [
        "Test data differ: numbers on different data are not ranked against each other.",
        "Data A (100 rows, sha256 111111111111): a, b.",
        "Data B (100 rows, sha256 22): c.",
    ]
    table = printed(TextTable("x", spoken(told)))
    assert "data A" in table
    assert "data B" in table


def test_data_without_a_hash_are_the_same_as_no_others(made):
    told = compared([made("a", None, 2.5), made("b", None, 2.25)])
    assert [cells(told)[name][1] for name in ("a", "b")] == [True, True]  # each against its start
    assert "Data A (100 rows, no hash told): a." in told.folder.table["notes"]


def test_only_what_differs_is_told_of_the_recipes_the_data_and_the_machines(made, tmp_path):
    train = {"steps": 600, "batch": 32, "lr": {"student": 1e-4, "critic": 1e-5}}
    paths = [made("a", "11", 2.5), made("b", "11", 2.25, train=train, name="other")]
    edited(tmp_path / "b" / "environment.json", lambda told: told.update(threads=4))
    edited(tmp_path / "b" / "result.json", lambda r: r["data"]["files"][0].update(sha256="cd"))
    told = dict(compared(paths).differences)
    assert told == {
        "train.lr.student": ["1e-05", "0.0001"],
        "environment.threads": ["2", "4"],
        "sha256 of prompts.jsonl": ["ab" * 32, "cd"],
    }


def test_arms_are_named_after_their_run_and_cost_what_they_cost(made, arms_path):
    edited(arms_path / "arms" / "gad" / "result.json", lambda r: r.update(cpu_seconds=7.5))
    told = compared([made("a", "11", 2.5), arms_path])
    assert list(told.folder.arms) == ["a", "bakeoff/seqkd", "bakeoff/gad", "bakeoff/gad-cold"]
    values = {row["name"]: row["values"] for row in spoken(told)["rows"]}
    assert values["bakeoff/gad"] | {"cpu_seconds": 7.5, "steps": 600} == values["bakeoff/gad"]
    assert values["a"]["tokens"] == 1_234_567 + 210_000
    assert "tokens" not in values["a/start"]
    assert dict(told.differences)["method.name"] == ["gad", "seqkd", "gad", "gad"]


def test_two_folders_of_one_name_are_told_apart_by_their_paths(made, tmp_path):
    (tmp_path / "x").mkdir()
    one, other = made("a", "11", 2.5), made("x/a", "11", 2.25)
    assert list(compared([one, other]).folder.arms) == [one, other]


def printed(table) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_terminal_shows_names_and_values_as_plain_text(made):
    told = compared([made("a", "11", 2.5), made("b", "11", 2.5, train={"note": "[red]\x1b[2J"})])
    assert r"[red]\x1b[2J" in printed(differences_text(told))
    assert "steps" in printed(TextTable("a, b", spoken(told)))


class Page(HTMLParser):
    """Attributes and all text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.words.append(data.strip())


@pytest.fixture
def page(made, arms_path, tmp_path) -> str:
    told = compared([made("a", "11", 2.5, about="<b>x</b>"), arms_path])
    return write_page(told, tmp_path / "out.html").read_text(encoding="utf-8")


def test_page_runs_nothing_asks_for_nothing_and_tells_no_secret(page):
    read = Page(page)
    assert not read.tags & {"script", "img", "link", "iframe", "object", "embed", "b"}
    assert ("content", CSP) in read.attributes
    assert not any(name.startswith("on") for name, _ in read.attributes)
    assert all(v.startswith("#") for name, v in read.attributes if name.endswith(("href", "src")))
    assert "hunter2" not in page


def test_page_shows_all_arms_on_the_same_curves_and_what_differs(page):
    read = Page(page)
    assert {"Results", "What differs", "Curves", "Time and cost", "Samples"} <= set(read.words)
    assert "Recipe and environment" not in read.words
    assert "method.name" in read.words
    nll = page.index('aria-label="validation/nll by step"')
    drawing = page[nll : page.index("</svg>", nll)]
    assert all(f"var(--arm-{i})" in drawing for i in range(4))
    assert read.words.count("data A") == 3  # start, the run, teacher


def test_runs_that_tell_the_same_have_no_table_of_differences(made, tmp_path):
    told = compared([made("a", "11", 2.5), made("b", "11", 2.25)])
    text = write_page(told, tmp_path / "out.html").read_text(encoding="utf-8")
    assert "Nothing: the recipes, data and machines tell the same." in text


def test_unfinished_run_and_a_folder_given_twice(made, tmp_path):
    one, other = made("a", "11", 2.5), made("b", "11", 2.25)
    (tmp_path / "b" / "result.json").unlink()
    with pytest.raises(Failure, match=r"b is unfinished: it lacks result\.json"):
        compared([one, other])
    with pytest.raises(Failure, match="given twice"):
        compared([one, f"{one}/../a"])
    with pytest.raises(Failure, match="no run folder"):
        compared([one, tmp_path])


def test_comparing_brings_no_torch(made):
    code = (
        "import sys\n"
        "from stillroom.reports.compare import compared\n"
        f"compared([{made('a', '11', 2.5)!r}])\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
