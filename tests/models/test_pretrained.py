"""Networks that others made, as classifiers: a tiny BERT, and timm's by a stand-in."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
)

from stillroom import api
from stillroom.config.build import build
from stillroom.config.recipe import make
from stillroom.core import Batch, Failure
from stillroom.data.vocabulary import of_words
from stillroom.models import classes, networks, pretrained

WORDS = ["dull", "grand", "film", "play", "a"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))


def bert(folder: Any, kind: Any = BertForSequenceClassification, labels: int = 3) -> Any:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS) + 2,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        pad_token_id=0,
        num_labels=labels,
    )
    model = kind(config)
    model.save_pretrained(folder)
    of_words(WORDS).save_pretrained(folder)
    return model.eval()


def recipe(folder: Any, student: Any, teacher: Any, **changes: Any) -> Any:
    rows = [
        {"text": "a " * (i % 3) + WORDS[i % 2] + " film", "kind": "np"[i % 2]} for i in range(24)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = {"name": "rows", "text": "text", "target": "kind", "tokenizer": str(folder / "bert")}
    told: dict[str, Any] = {
        "method": "kd",
        "student": student,
        "teacher": teacher,
        "data": {"train": "rows.jsonl", "hold_out": 4, "items": words},
        "train": {"steps": 3, "batch": 8, "lr": 0.01},
        "eval": {"every": None, "metrics": ["accuracy"], "samples": 0},
        "run": {"threads": 1},
    }
    return make({**told, **changes}, folder=folder)


def test_padding_changes_nothing_and_layers_are_read_by_name(tmp_path):
    model = bert(tmp_path)
    made = classes.load(tmp_path).eval()
    made.taps = ("model.bert.encoder.layer.0", "last", "map")
    x = torch.tensor([[2, 4, 6, 3], [5, 4, 0, 0]])
    said = made(Batch(x=x, id=torch.arange(2)))
    short = model(input_ids=x[1:, :2]).logits
    assert torch.allclose(said.logits[1], short[0], atol=1e-6)
    assert torch.allclose(said.logits[0], model(input_ids=x[:1]).logits[0], atol=1e-6)
    hidden = model(input_ids=x[:1], output_hidden_states=True).hidden_states
    assert torch.allclose(said.features["model.bert.encoder.layer.0"][0], hidden[1][0], atol=1e-6)
    assert torch.allclose(said.features["map"][0], hidden[2][0], atol=1e-6)
    assert said.features["last"].shape == (2, 8)
    assert torch.equal(said["head"].weight, made.network.model.classifier.weight)


def test_a_text_classifier_learns_and_is_shipped_as_transformers_loads_it(tmp_path):
    bert(tmp_path / "bert", labels=2)
    fine = {"trained": {"student": {"model": str(tmp_path / "bert")}, "steps": 3}}
    told = recipe(tmp_path, {"model": str(tmp_path / "bert")}, fine)
    done = api.run(told, tmp_path / "run")
    folder = tmp_path / "run" / "student"
    assert "pipeline_tag: text-classification" in (folder / "README.md").read_text()
    again = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids = AutoTokenizer.from_pretrained(folder)(["a dull film"], return_tensors="pt").input_ids
    assert ids.tolist() == [[6, 2, 4]]
    ours = done.student.eval()(Batch(x=ids, id=torch.arange(1))).logits
    assert torch.equal(again(input_ids=ids).logits, ours)
    start = BertForSequenceClassification.from_pretrained(tmp_path / "bert").eval()
    assert not torch.allclose(start(input_ids=ids).logits, ours, atol=1e-4)
    taught = recipe(tmp_path, {"model": str(folder)}, {"model": str(folder)})
    assert isinstance(build(taught).student.network, pretrained.Worded)


def test_a_model_without_a_head_or_with_another_gets_one_that_fits(tmp_path):
    bert(tmp_path / "bert", BertModel)
    bert(tmp_path / "five", labels=5)
    for name in ("bert", "five"):
        told = recipe(tmp_path, {"model": str(tmp_path / name)}, {"recorded": True}, method="seqkd")
        student = build(told).student
        assert student(Batch(x=torch.tensor([[2, 3]]), id=torch.arange(1))).logits.shape == (1, 2)
    assert not pretrained.known(str(tmp_path / "bert"))


def test_a_net_of_numbers_does_not_read_words(tmp_path):
    bert(tmp_path / "bert")
    net = {"net": {"kind": "mlp"}}
    with pytest.raises(Failure, match="these examples are token ids"):
        build(recipe(tmp_path, net, {"recorded": True}, method="seqkd"))


def test_padding_must_be_known(tmp_path):
    model = bert(tmp_path)
    model.config.pad_token_id = None
    with pytest.raises(Failure, match="its config has no pad_token_id"):
        pretrained.Worded(model)


class Stand(nn.Module):
    """What stands in for timm here: a linear layer that is told its ends."""

    def __init__(self, name: str, *, pretrained: bool, in_chans: int, num_classes: int) -> None:
        super().__init__()
        self.body, self.fc = nn.Conv2d(in_chans, 3, 1), nn.Linear(3, num_classes)
        self.asked = (name, pretrained)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(x).mean((2, 3)))


def test_a_network_of_timm_fits_the_data_and_is_loaded_without_its_download(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=Stand))
    shape = networks.Shape(inputs=(1, 8, 8), classes=10)
    made = classes.Classifier(
        networks.build(pretrained.Timm(model="resnet18", pretrained=True), shape)
    )
    assert made.network.asked == ("resnet18", True)
    made.save(tmp_path)
    again = classes.load(tmp_path)
    assert again.network.asked == ("resnet18", False)
    batch = Batch(x=torch.randn(2, 1, 8, 8), id=torch.arange(2))
    assert torch.equal(made(batch).logits, again(batch).logits)
    with pytest.raises(Failure, match="timm reads images"):
        networks.build(pretrained.Timm(model="resnet18"), networks.Shape(inputs=(4,), classes=2))


def test_without_timm_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(Failure, match=r"pip install 'stillroom\[timm\]'"):
        classes.load("timm:resnet18")  # type: ignore[arg-type]


@pytest.mark.extra("timm")
def test_timms_own():
    pytest.importorskip("timm", reason="timm, or the torchvision that it needs, is not there")
    shape = networks.Shape(inputs=(1, 32, 32), classes=4)
    made = classes.Classifier(networks.build(pretrained.Timm(model="resnet18"), shape)).eval()
    made.taps = ("last", "map")
    said = made(Batch(x=torch.randn(2, 1, 32, 32), id=torch.arange(2)))
    assert said.logits.shape == (2, 4)
    assert said.features["map"].dim() == 4
