"""Names, rows and classes without a registry, and what importing and listing must not load."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import stillroom
from stillroom import catalogue
from stillroom.core import Failure, Method
from stillroom.reports.pages import write_pages

PACKAGE = Path(stillroom.__file__).parent
PAGES = Path(__file__).parent.parent / "docs" / "methods"
HEAVY = ("torch", "numpy", "transformers", "pydantic")
LOADED = "; import sys, json; print(json.dumps(sorted(sys.modules)))"


def loaded(code: str) -> set[str]:
    """Top names of all modules that a fresh interpreter holds after some code."""
    told = subprocess.run(
        [sys.executable, "-c", code + LOADED], capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in json.loads(told.stdout.splitlines()[-1])}


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not loaded("import stillroom") & set(HEAVY)


def test_listing_loads_no_torch() -> None:
    listing = "from stillroom.cli import main; import sys; sys.argv[1:] = ['list', '--json']"
    code = f"import contextlib\n{listing}\nwith contextlib.suppress(SystemExit): main()\nimport sys"
    found = loaded(code)
    assert "typer" in found
    assert not found & (set(HEAVY) - {"pydantic"})  # which typer itself may use


def test_a_public_name_is_imported_on_first_use_and_an_unknown_one_is_not_there() -> None:
    assert stillroom.names is catalogue.names
    for name in stillroom.__all__:
        assert getattr(stillroom, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        stillroom.distil  # noqa: B018


@pytest.mark.parametrize("room", catalogue.ROOMS)
def test_names_of_a_room_are_the_files_of_its_folder(room: str) -> None:
    files = (f.stem for f in (PACKAGE / room).iterdir() if f.suffix == ".py" and f.stem[0] != "_")
    assert list(catalogue.names(room)) == sorted(files)


def test_names_are_those_of_all_rooms() -> None:
    rooms = [catalogue.names(room) for room in catalogue.ROOMS]
    assert catalogue.names() == {k: v for room in rooms for k, v in room.items()}
    assert list(catalogue.names()) == sorted(catalogue.names())
    assert {"gad", "gkd", "kd", "ps_kd", "rkd", "seqkd"} <= set(catalogue.names("methods"))
    assert catalogue.names()["gad"] == "stillroom.methods.gad"
    assert catalogue.names()["domain_draft"] == "stillroom.diagnostics.domain_draft"


@pytest.mark.parametrize(("name", "room"), [("kd", "diagnostics"), ("domain_draft", "methods")])
def test_a_name_of_another_room_is_not_loaded(name: str, room: str) -> None:
    assert catalogue.load(name).__module__ == catalogue.names()[name]
    with pytest.raises(Failure, match=f"'{name}' is a .*; it takes a {catalogue.ROOMS[room]} here"):
        catalogue.load(name, room)


def test_a_row_tells_what_the_file_says() -> None:
    row = catalogue.row("seqkd")
    assert {k: v for k, v in row.items() if k not in ("needs", "paper")} == {
        "name": "seqkd",
        "kind": "method",
        "family": "sequence",
        "modality": "text",
        "verdict": "untested",
        "summary": "Learn the teacher's written answers by cross-entropy (supervised fine-tuning "
        "on them).",
    }
    assert row["paper"]["url"] == "https://arxiv.org/abs/1606.07947"
    assert row["needs"]["teacher"] == ["text"]
    assert row["needs"]["streams"] == ["train"]
    assert [r["name"] for r in catalogue.rows()] == list(catalogue.names())


@pytest.mark.parametrize("ask", [catalogue.row, catalogue.load])
def test_an_unknown_name_is_answered_with_the_nearest(ask: Callable[[str], object]) -> None:
    with pytest.raises(Failure, match=r"there is no 'seqdk'; did you mean 'seqkd'\?"):
        ask("seqdk")


@pytest.mark.parametrize(("word", "hint"), [("seqdk", "; did you mean 'seqkd'?"), ("zzzz", "")])
def test_the_nearest_word_is_offered_where_one_is_near(word: str, hint: str) -> None:
    assert catalogue.nearest(word, ["gad", "kd", "seqkd"]) == hint


def test_a_class_of_ones_own_is_loaded_by_its_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "of_my_own"
    package.mkdir()
    head = "from stillroom.core import Method\nfrom stillroom.methods.kd import KD\n"
    (package / "one.py").write_text(f"{head}class Mine(Method): ...\n")
    (package / "none.py").write_text(head)
    (package / "two.py").write_text(f"{head}class A(Method): ...\nclass B(Method): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    mine = catalogue.load("of_my_own.one")
    assert issubclass(mine, Method)
    assert mine.__name__ == "Mine"
    study = "from stillroom.core import Diagnostic\nclass Study(Diagnostic): ...\n"
    (package / "study.py").write_text(study)
    assert catalogue.load("of_my_own.study", "diagnostics").__name__ == "Study"
    for module, count in (("none", 0), ("two", 2), ("study", 0)):
        refusal = rf"of_my_own\.{module} must define exactly one Method, found {count}"
        with pytest.raises(Failure, match=refusal):
            catalogue.load(f"of_my_own.{module}")
    with pytest.raises(ModuleNotFoundError):
        catalogue.load("of_my_own.absent")


@pytest.mark.parametrize(
    ("given", "follow"),
    [
        ({"hidden"}, {"hidden", "logits", "topk", "sampled", "sparse", "logprobs"}),
        ({"topk", "text"}, {"topk", "sparse", "text"}),
        (set(), set()),
    ],
)
def test_a_signal_brings_what_follows_from_it(given: set[str], follow: set[str]) -> None:
    assert catalogue.closure(given) == follow


def test_what_fits_a_teacher() -> None:
    text = catalogue.fitting({"text"})
    assert {"gad", "seqkd", "ps_kd"} <= set(text)
    assert not {"kd", "gkd", "rkd"} & set(text)
    scores = catalogue.closure({"logits", "text"})
    assert {"kd", "gkd"} <= set(catalogue.fitting(scores))
    assert "gkd" not in catalogue.fitting(scores, fresh=False)


def test_the_pages_of_methods_are_those_that_the_classes_give(tmp_path: Path) -> None:
    made = {file.name: file.read_text(encoding="utf-8") for file in write_pages(tmp_path)}
    kept = {file.name: file.read_text(encoding="utf-8") for file in PAGES.glob("*.md")}
    assert sorted(kept) == sorted(made), "run `make docs`"
    for name, text in made.items():
        assert kept[name] == text, f"docs/methods/{name} is stale: run `make docs`"
