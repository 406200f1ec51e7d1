"""The commands as a person or a program sees them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stillroom import catalogue
from stillroom.cli import main
from stillroom.config.recipe import PACKAGED
from stillroom.data.marked_orders import VOCABULARY
from stillroom.outcomes import VERDICTS

NEEDS = {
    "teacher",
    "student",
    "rollouts",
    "fresh",
    "whole",
    "planned",
    "texts",
    "streams",
    "several",
    "many_labels",
}
NEEDS |= {"teachers", "metrics"}
HEAVY = {"torch", "numpy", "transformers", "yaml"}


@pytest.fixture
def say(monkeypatch, capsys, tmp_path):
    """Gives words to the command line, which must end well; returns what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")

    def told(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["stillroom", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        return capsys.readouterr().out

    return told


def test_list_as_json_has_the_shape_that_programs_read(say):
    rows = json.loads(say("list", "--json"))
    assert {row["name"] for row in rows} == set(catalogue.names())
    for row in rows:
        assert {"name", "kind", "family", "modality", "needs", "paper", "verdict"} <= set(row)
        assert set(row["needs"]) == NEEDS
        assert row["kind"] in catalogue.ROOMS.values()
        assert row["paper"] is None or {"id", "authors", "title", "url"} == set(row["paper"])
        counts = {part.partition(" ")[2] for part in row["verdict"].split(", ")}
        assert row["verdict"] == "untested" or counts <= set(VERDICTS)


ARMS = list(yaml.safe_load((PACKAGED / "quickstart.yaml").read_text())["arms"])
FILTERS = {
    ("--teacher", "text"): {"gad", "seqkd", "ps_kd"},
    ("--teacher", "logits"): {"kd", "gkd", "ps_kd"},
    ("--teacher", "hidden"): {"kd", "gkd", "ps_kd"},
    ("--family", "adversarial"): {"gad"},
    ("--modality", "image"): {"kd", "rkd", "ps_kd"},
    ("--teacher", "text", "--modality", "image"): {"ps_kd"},
}


@pytest.mark.parametrize("words", FILTERS)
def test_list_shows_what_fits(say, words):
    rows = json.loads(say("list", "--json", *words))
    ours = {"gad", "gkd", "kd", "ps_kd", "rkd", "seqkd"}
    assert {row["name"] for row in rows} & ours == FILTERS[words]
    shown = say("list", *words)
    assert {line.split()[0] for line in shown.splitlines()[1:]} == {row["name"] for row in rows}


def test_list_as_a_table_says_what_is_needed(say):
    head, *lines = say("list").splitlines()
    assert head.split() == ["name", "kind", "family", "modality", "needs", "paper", "verdict"]
    (gad,) = (line for line in lines if line.startswith("gad "))
    assert "text rollouts" in gad
    assert "2511.10643" in gad


LISTS = """
import sys
sys.argv = ["stillroom", "list"]
from stillroom.cli import main
try:
    main()
except SystemExit as ended:
    assert not ended.code
print([name for name in {heavy} if name in sys.modules])
"""


def test_list_starts_at_once_because_it_imports_little():
    asked = [sys.executable, "-c", LISTS.format(heavy=sorted(HEAVY))]
    told = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()
    assert told[-1] == "[]"
    assert len(told) >= 2 + len(catalogue.names())


def test_show_as_json_tells_fields_with_their_ranges(say):
    told = json.loads(say("show", "kd", "--json"))
    assert told["name"] == "kd"
    fields = {field["name"]: field for field in told["fields"]}
    assert set(fields) == {"temperature", "label_weight"}
    assert fields["temperature"]["default"] == 2.0
    assert fields["temperature"]["range"] == "> 0"


def test_show_prints_formula_and_paper(say):
    told = say("show", "gad")
    assert "softplus" in told
    assert "2511.10643" in told
    assert "group" in told


def test_check_prints_tokens_with_their_rows_and_labels(say):
    told = say("check", "quickstart", "--show-tokens", "--tiny")
    assert "Everything fits; no step was taken." in told
    for arm in ARMS:
        assert f"{arm}:" in told
    lines = told.splitlines()
    first = lines.index("sample 0") + 1
    # five tokens of prompt, of which the last says the first label, then eight of answer
    tokens = [line.split() for line in lines[first : first + 13]]
    assert [int(row[0]) for row in tokens] == list(range(13))
    assert tokens[4][1] == "':'"
    assert [len(row) for row in tokens] == [2] * 4 + [5] * 8 + [2]
    labels = [row[3] for row in tokens[4:12]]
    assert labels == [row[1] for row in tokens[5:13]]
    assert labels[-1] == "'<eos>'"
    assert [row[4] for row in tokens[4:12]] == [f"({VOCABULARY.index(x[1:-1])})" for x in labels]


def test_check_takes_no_step_and_writes_nothing(say, tmp_path):
    say("check", "quickstart", "--tiny")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_run_report_and_run_again(say, tmp_path):
    told = say("run", "quickstart", "--tiny", "--out", "out")
    for word in ("start", "seqkd", "gad", "teacher", "validity", "report: out/report.html"):
        assert word in told
    folder = tmp_path / "out"
    table = json.loads((folder / "table.json").read_text())
    assert {"start", *ARMS, "teacher"} == {row["name"] for row in table["rows"]}
    for arm in ARMS:
        assert (folder / "arms" / arm / "student" / "model.safetensors").exists()
        assert "stillroom" in (folder / "arms" / arm / "student" / "README.md").read_text()
    page = (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    reported = say("report", "out")
    assert "validity" in reported
    assert (folder / "report.html").read_text() == page
    before = files(folder)
    assert "out holds this run already, finished." in say(
        "run", "quickstart", "--tiny", "--out", "out"
    )
    changed = {name for name, text in files(folder).items() if before.get(name) != text}
    assert {Path(name).name for name in changed} <= {"environment.json"}


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.mark.slow
def test_out_is_named_after_the_recipe(say, tmp_path):
    (tmp_path / "small.yaml").write_text(
        "method: seqkd\n"
        "student: {lm: {model_type: windowed}}\n"
        "teacher: {recorded: true}\n"
        "data: {world: {name: marked_orders, prompts: 64}}\n"
        "train: {steps: 3}\n"
        "sampling: {max_new_tokens: 9}\n"
        "tiny: {train: {steps: 1}}\n"
    )
    assert "report: runs/small/report.html" in say("run", "small.yaml")
    assert "report: runs/small-tiny/report.html" in say("run", "small.yaml", "--tiny")
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_a_command_of_its_own_is_installed():
    told = subprocess.run(
        [sys.executable, "-m", "stillroom", "--help"], capture_output=True, text=True, check=False
    )
    assert "Distil any teacher" in told.stdout, told.stderr
