"""``show layers`` of a recipe, of a saved classifier and of a language model."""

import json
import sys

import pytest
import worlds
import yaml

from stillroom.cli import main
from stillroom.models import networks
from stillroom.models.classes import Classifier


@pytest.fixture
def say(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))

    def said(*words):
        monkeypatch.setattr(sys, "argv", ["stillroom", "show", "layers", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        out = capsys.readouterr()
        return code, out.out, out.err

    return said


def test_a_recipe_tells_of_student_and_teacher_and_trains_neither(say, tmp_path):
    pytest.importorskip("sklearn")
    told = {
        "method": "kd",
        "student": {"net": {"kind": "mlp", "widths": [6]}},
        "teacher": {"trained": {"student": {"net": {"kind": "cnn", "channels": [3]}}, "steps": 9}},
        "data": {"items": {"name": "digits", "train": 10, "validation": 0, "test": 5}},
        "train": {"steps": 1, "batch": 2, "lr": 0.1},
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(told))
    code, out, _ = say("r.yaml", "--json")
    assert code == 0
    found = json.loads(out)
    assert set(found) == {"student", "teacher"}
    assert {"name": "parts.0", "kind": "Sequential", "shape": [2, 6]} in found["student"]
    shapes = {one["name"]: one["shape"] for one in found["teacher"]}
    assert shapes["map"] == [2, 3, 4, 4]
    assert not (tmp_path / "cache").exists()
    code, out, _ = say("r.yaml")
    assert code == 0
    assert "[B, 3, 4, 4]" in out


def test_a_saved_classifier(say, tmp_path):
    spec = networks.CNN(channels=[2, 5])
    made = networks.build(spec, networks.Shape(inputs=(1, 6, 6), classes=4))
    Classifier(made).save(tmp_path / "net")
    code, out, _ = say("net", "--json")
    assert code == 0
    assert {one["name"]: one["shape"] for one in json.loads(out)["net"]}["last"] == [2, 5]


def test_a_language_model(say, tmp_path):
    worlds.World(kind="text").student().save(tmp_path / "lm")
    code, out, _ = say("lm")
    assert code == 0
    assert "model.layers.0.self_attn.q_proj" in out
    assert "embedding" in out


@pytest.mark.parametrize("words", [(), ("a", "b"), ("absent.yaml",), ("a", "--mass")])
def test_what_it_cannot_show_is_told(say, words):
    code, out, err = say(*words)
    assert code != 0
    assert "show" in err or "recipe" in err
    assert not out
