"""The model card: what the recipe says, and that the rest is unknown."""

import json

import pytest
import yaml

from stillroom.core import Failure
from stillroom.reports.card import NO_TERMS, bare, data_rows, front, md, terms, write_card

ROW = {
    "name": "gad",
    "paper": {
        "id": "2511.10643",
        "authors": "Ye et al., 2025",
        "title": "Black-Box On-Policy",
        "url": "https://arxiv.org/abs/2511.10643",
    },
}


def test_card_says_base_teacher_terms_data_method_cost_and_results(run_path):
    text = write_card(run_path, run_path / "student", ROW).read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "license": "unknown",
        "tags": ["distillation", "stillroom", "gad"],
    }
    for line in (
        "| base student | a new gpt2 (n\\_layer 2) |",
        "| teacher | big-model through its API |",
        r"| terms of the teacher | research \| only |",
        "| method | gad: [Black-Box On-Policy](https://arxiv.org/abs/2511.10643) |",
        f"| prompts.jsonl | 4,096 | {'ab' * 32} | CC-BY-4.0 |",
        "| time | 13 min 30 s |",
        "| tokens, generated | 210,000 |",
        "| gad | 2.190 | **0.2885** | 38.75 | — |",
    ):
        assert line in body.splitlines(), line
    assert "Not evaluated beyond the table above" in body
    assert "hunter2" not in text


def test_card_lies_with_the_student(arms_path):
    student = arms_path / "arms" / "gad-cold" / "student"
    assert write_card(arms_path, student, ROW) == student / "README.md"
    assert "# bakeoff: gad-cold" in (student / "README.md").read_text(encoding="utf-8")


def test_student_of_no_arm(arms_path, tmp_path):
    with pytest.raises(Failure, match=r"none of the arms .*\(seqkd, gad, gad-cold\)"):
        write_card(arms_path, tmp_path, ROW)


def test_method_without_a_paper(run_path):
    text = write_card(run_path, run_path / "student", {"name": "own", "paper": None}).read_text()
    assert "| method | own |" in text


def test_terms_are_the_recipes_or_said_to_be_absent():
    assert terms({"teacher": {"model": "x"}}) == NO_TERMS
    assert (
        terms({"teachers": {"a": {"model": "x", "terms": "MIT"}, "b": "hub"}})
        == f"a: MIT; b: {NO_TERMS}"
    )
    assert terms({}) == "no teacher"


def test_files_come_from_the_run_or_else_from_the_recipe():
    recipe = {"data": {"train": "a.jsonl", "validation": "b.jsonl", "test": None}}
    assert data_rows(recipe, {}) == [("a.jsonl", *"———"), ("b.jsonl", *"———")]
    counted = {"files": [{"file": "a.jsonl", "rows": 1200, "sha256": "11"}]}
    assert data_rows(recipe, counted) == [("a.jsonl", "1,200", "11", "—")]
    assert data_rows({"data": {"world": {"name": "orders"}}}, {}) == [
        ("made-up world orders", *"———")
    ]


def test_head_says_what_the_hub_reads_of_a_language_model(run_path):
    (run_path / "student" / "config.json").write_text("{}")
    text = write_card(run_path, run_path / "student", ROW).read_text(encoding="utf-8")
    told = yaml.safe_load(text.split("---\n")[1])
    assert told["library_name"] == "transformers"
    assert told["pipeline_tag"] == "text-generation"
    recipe = {"student": {"model": "org/small"}, "data": {"train": "hf:org/set/sub@1:train[:9]"}}
    assert front(recipe, ROW)["datasets"] == ["org/set"]


def test_card_tells_how_answers_were_collected(run_path):
    file = run_path / "result.json"
    told = json.loads(file.read_text())
    name = told["data"]["files"][0]["file"]
    told["data"]["collected"] = {name: {"dropped": {"refusal": 2}, "at": "https://a:pw@x/v1"}}
    file.write_text(json.dumps(told))
    text = write_card(run_path, run_path / "student", ROW).read_text(encoding="utf-8")
    assert "How the answers in prompts.jsonl were collected:" in text
    assert "| dropped.refusal | 2 |" in text.splitlines()
    assert "https://\\*\\*\\*@x/v1" in text


def test_card_of_a_model_without_a_run():
    _, told, body = bare("org/small").split("---\n")
    assert yaml.safe_load(told)["base_model"] == "org/small"
    assert yaml.safe_load(told)["license"] == "unknown"
    assert "intended use and limits are unknown" in body
    assert "base_model" not in bare("package:x")


def test_base_model_is_named_when_it_is_a_name_on_a_hub():
    row = {"name": "kd"}
    for spec in ("org/small", {"model": "org/small"}, {"cut": {"from": "org/small"}}):
        assert front({"student": spec}, row)["base_model"] == "org/small"
    for spec in (None, {"model": "/data/small"}, {"model": None, "lm": {"n_layer": 2}}):
        assert "base_model" not in front({"student": spec}, row)


def test_markdown_in_values_is_shown_not_obeyed(run_path):
    assert md("<b>|*x*\n[y](z)") == r"\<b\>\|\*x\* \[y\](z)"
    file = run_path / "table.json"
    table = json.loads(file.read_text())
    table["rows"][0]["name"] = "a|b"
    file.write_text(json.dumps(table))
    text = write_card(run_path, run_path / "student", ROW).read_text(encoding="utf-8")
    assert r"| a\|b | 3.441 |" in text
