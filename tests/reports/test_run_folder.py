"""Reading a run folder: one arm or several, and what is said when it cannot be read."""

import json
import subprocess
import sys

import pytest

from stillroom.core import Failure
from stillroom.reports.folder import read_folder


def test_plain_run_is_one_arm_named_after_its_method(run_path):
    folder = read_folder(run_path)
    assert list(folder.arms) == ["gad"]
    assert folder.arms["gad"].path == folder.path
    assert folder.name == "copycat"


def test_arms_come_in_the_order_of_the_recipe(arms_path):
    folder = read_folder(arms_path)
    assert list(folder.arms) == ["seqkd", "gad", "gad-cold"]
    assert [arm.method for arm in folder.arms.values()] == ["seqkd", "gad", "gad"]


def test_no_run_folder(tmp_path):
    with pytest.raises(Failure, match=r"holds no recipe\.yaml; give the folder that a run wrote"):
        read_folder(tmp_path)


def test_one_arm_of_a_run_names_the_run(arms_path):
    with pytest.raises(Failure, match=f"one arm of a run: give {arms_path}$"):
        read_folder(arms_path / "arms" / "gad")


def test_unfinished_run_names_every_missing_file(arms_path):
    (arms_path / "table.json").unlink()
    (arms_path / "arms" / "gad" / "result.json").unlink()
    with pytest.raises(Failure, match=r"unfinished: it lacks table\.json, arms/gad/result\.json;"):
        read_folder(arms_path)


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("metrics.jsonl", '{"step": 1}\n{"step": 2, "lo', r"metrics\.jsonl line 2 is not JSON"),
        ("samples.jsonl", "[1]\n", r"samples\.jsonl line 1 must be a mapping, not list"),
        ("table.json", "{}", r"table\.json needs rows and columns"),
        ("recipe.yaml", "a: [", r"recipe\.yaml is not YAML"),
    ],
)
def test_broken_file_is_named(run_path, file, text, told):
    (run_path / file).write_text(text)
    with pytest.raises(Failure, match=told):
        read_folder(run_path)


def test_line_separators_inside_a_sample_do_not_cut_the_line(run_path):
    line = '{"step": 0, "prompt": "a\u2028b", "teacher": "t", "student": "s"}\n'
    (run_path / "samples.jsonl").write_text(line, encoding="utf-8")
    assert read_folder(run_path).arms["gad"].samples[0]["prompt"] == "a\u2028b"


def test_keys_in_an_address_are_never_read_out(run_path):
    file = run_path / "environment.json"
    file.write_text(json.dumps({"at": "https://u:pw@x/v1?n=1&api_key=abc&q=2", "b": "y?token=def"}))
    told = read_folder(run_path).environment
    assert told == {"at": "https://***@x/v1?n=1&api_key=***&q=2", "b": "y?token=***"}


def test_importing_and_reading_bring_no_torch(run_path):
    code = (
        "import sys\n"
        "from stillroom.reports import card, folder, html, pages, text\n"
        f"text.table_text(folder.read_folder({str(run_path)!r}))\n"
        "assert not {'torch', 'matplotlib'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
