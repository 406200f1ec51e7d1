"""Recipe sections, log names and durations in words; optional packages."""

import sys

import pytest

from stillroom.config.teachers import KINDS
from stillroom.core import Failure
from stillroom.extras import extra
from stillroom.reports import words
from stillroom.reports.logs import meaning, training_names


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.42, "3.4 s"), (59.99, "1 min 00 s"), (1234.5, "20 min 34 s"), (7500, "2 h 05 min")],
)
def test_duration(seconds, text):
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (None, "none"),
        ({"recorded": True, "model": None}, "recorded answers"),
        ({"model": "hub/big", "dtype": "bfloat16"}, "hub/big"),
        ({"api": "gpt-5", "base_url": "https://x"}, "gpt-5 through its API"),
        ({"recorded": False, "model": None}, "none"),
        ({"base": True}, "the student's base model, its adapter off"),
        ({"adapter": "tuned"}, "the adapter tuned on the student's base model"),
        ({"world": True, "average": None}, "the made-up world itself"),
        ({"average": 0.99, "world": False}, "the student's own moving average (decay 0.99)"),
    ],
)
def test_teacher(spec, text):
    assert words.teacher(spec) == text


@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_of_teacher_that_a_recipe_names_is_told_as_none(kind):
    told = {"trained": {"student": {"model": "small"}}, "average": 0.9}.get(kind, "it")
    assert words.teacher({kind: told}) != "none"


def test_several_teachers_keep_their_names():
    assert (
        words.teachers({"teachers": {"base": "a/b", "tuned": {"model": "c/d"}}})
        == "base: a/b; tuned: c/d"
    )


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"model": "org/small", "lm": None}, "org/small"),
        (
            {"lm": {"model_type": "gpt2", "n_layer": 2, "n_embd": 64}},
            "a new gpt2 (n_layer 2, n_embd 64)",
        ),
        (
            {"cut": {"from": "org/big", "layers": [0, 5, 9]}, "heal": 300},
            "org/big cut to 3 layers, healed for 300 steps",
        ),
        (
            {
                "cut": {"from": "org/big", "layers": "search", "keep": 9},
                "heal": {"steps": 60},
                "vocab": "view",
            },
            "org/big cut to 9 layers that a search chose, healed for 60 steps, learned on the part "
            "of its vocabulary that occurs, with a frozen head",
        ),
        (
            {"model": "org/small", "lora": {"rank": 8}, "vocab": "full"},
            "org/small, learned by LoRA adapters of rank 8, merged into the weights",
        ),
        (None, "not named"),
    ],
)
def test_student(spec, text):
    assert words.student(spec) == text


def test_own_logs_come_before_those_of_every_method():
    names = ["step", "lr/student", "loss/student/kd", "time/train", "validation/nll", "gad/reward"]
    assert training_names(names) == ["gad/reward", "loss/student/kd", "lr/student"]


def test_label_of_the_table_names_the_axis_of_its_metric():
    columns = {"nll": {"label": "bits"}}
    assert meaning("validation/nll", columns).axis == "bits"
    assert meaning("validation/nll", columns).says == "bits, on validation data"
    assert meaning("validation/nll").axis == "nll"
    assert meaning("loss/nll", columns).axis == "loss"
    assert meaning("mine/odd").says.startswith("logged by mine itself")
    assert meaning("a/b/c/d").axis == "a/b/c/d"


def test_missing_extra_names_its_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(
        Failure, match=r"matplotlib .*the curves.*pip install 'stillroom\[report\]'"
    ):
        extra("matplotlib", "report", why="the curves")


def test_present_extra_is_the_module():
    assert extra("json.decoder", "report", why="this test") is sys.modules["json.decoder"]


def test_a_small_classifier_is_told_by_its_kind_and_sizes():
    told = {"dtype": "float32", "draw": 0, "near": 0.0, "vocab": "full"}
    net = {"kind": "mlp", "widths": [24, 8]}
    assert words.student({**told, "net": net}) == "a new mlp (widths (24, 8))"
    assert words.student({**told, "net": {"kind": "vit"}, "near": 0.25}) == (
        "a new vit, moved by 0.25 of the way towards the teacher's weights"
    )
    trained = {"trained": {"student": {**told, "net": net}}}
    assert words.teacher(trained) == "a new mlp (widths (24, 8)), trained first"
