"""Rounding, dashes and best marks, and the same table in a terminal."""

import io
import json
import math

import pytest
from rich.console import Console

from stillroom.reports.folder import read_folder
from stillroom.reports.results import DASH, numbers, results
from stillroom.reports.text import table_text


def table(values, better, kinds=None):
    kinds = kinds or ["method"] * len(values)
    rows = [
        {"name": f"row{i}", "kind": kind, "values": {"x": value}}
        for i, (value, kind) in enumerate(zip(values, kinds, strict=True))
    ]
    return {"rows": rows, "columns": {"x": {"label": "", "better": better}}}


def best(*args):
    return [row.cells[0].best for row in results(table(*args)).rows]


def test_lower_and_higher_mark_opposite_ends():
    assert best([3.0, 1.0, 2.0], "lower") == [False, True, False]
    assert best([3.0, 1.0, 2.0], "higher") == [True, False, False]
    assert best([3.0, 1.0, 2.0], None) == [False, False, False]


def test_teacher_is_not_ranked():
    assert best([2.0, 3.0, 0.5], "lower", ["start", "method", "teacher"]) == [True, False, False]


def test_equal_texts_share_the_mark():
    assert best([1.00001, 1.00002, 1.5], "lower") == [True, True, False]


def test_teacher_of_the_same_text_is_not_marked():
    assert best([1.0, 2.0, 1.0], "lower", ["start", "method", "teacher"]) == [True, False, False]


def test_one_value_alone_is_not_the_best():
    assert best([1.0, None], "lower") == [False, False]


def test_values_that_are_not_finite_never_win():
    assert best([-math.inf, math.nan, 4.0, 5.0], "lower") == [False, False, True, False]


def test_absent_value_and_column_that_only_a_row_names():
    told = results({"rows": [{"name": "a", "values": {"y": 2}}], "columns": {"x": {}}})
    assert [c.name for c in told.columns] == ["x", "y"]
    assert [c.text for c in told.rows[0].cells] == [DASH, "2"]


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([64, 41], ["64", "41"]),
        ([3.4412, 2.0, None], ["3.441", "2.000", DASH]),
        ([7.73, 199.04, 20000.0], ["7.7", "199.0", "20,000.0"]),
        ([0.00012345, 0.0], ["0.0001", "0.0000"]),
        ([math.nan, 1.0], ["nan", "1"]),
        ([1e15, 2.0], ["1e+15", "2"]),
    ],
)
def test_one_rounding_for_a_column(values, texts):
    assert numbers(values) == texts


def test_terminal_table_shows_marks_dashes_and_notes(run_path):
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table_text(read_folder(run_path)))
    told = console.export_text()
    assert "nll ↓" in told
    assert "rouge_l ↑" in told
    assert "*2.017" in told
    assert "—" in told
    assert "Table on 100 test prompts, greedy text." in told


def test_terminal_table_takes_names_as_plain_text(run_path):
    file = run_path / "table.json"
    file.write_text(file.read_text().replace('"name": "seqkd"', '"name": "[red]x[/] \\u001b[2J"'))
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table_text(read_folder(run_path)))
    assert r"[red]x[/] \x1b[2J" in console.export_text()


@pytest.mark.parametrize("width", [30, 60, 200])
def test_models_without_room_go_below_and_no_number_is_folded(run_path, width):
    file = run_path / "table.json"
    rows = [{"name": f"model-with-a-name-{i}", "values": {"nll": 1e6 + i}} for i in range(9)]
    file.write_text(json.dumps({"rows": rows, "columns": {"nll": {}}}))
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table_text(read_folder(run_path)))
    told = console.export_text()
    found = [word for line in told.splitlines() for word in line.split() if "," in word]
    assert found == [f"1,000,00{i}" for i in range(9)]
    assert max(map(len, told.splitlines())) <= width


def test_long_names_fold_before_a_long_number_does(run_path):
    file = run_path / "table.json"
    values = [123_456_789_012, 1, 1, 1]
    rows = [{"name": "a" if v > 1 else "name " * 6, "values": {"nll": v}} for v in values]
    file.write_text(json.dumps({"rows": rows, "columns": {"nll": {}}}))
    console = Console(width=56, record=True, file=io.StringIO())
    console.print(table_text(read_folder(run_path)))
    assert "123,456,789,012" in console.export_text()


def test_many_metrics_stand_below_each_other_and_nothing_is_cut(run_path):
    names = [f"metric_number_{i}" for i in range(9)]
    file = run_path / "table.json"
    rows = [{"name": "start", "values": dict.fromkeys(names, 12.5)}]
    file.write_text(json.dumps({"rows": rows, "columns": {name: {} for name in names}}))
    console = Console(width=60, record=True, file=io.StringIO())
    console.print(table_text(read_folder(run_path)))
    told = console.export_text()
    assert all(any(n in line and "12.50" in line for line in told.splitlines()) for n in names)
