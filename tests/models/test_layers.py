"""The list of a network's layers: names that taps take, shapes, and no hook that stays."""

import pytest
import torch
import worlds
from torch import nn

from stillroom.core import Batch
from stillroom.models.classes import Classifier
from stillroom.models.layers import layers
from stillroom.models.taps import tapped


def hooks(module):
    return [h for m in module.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]


class Twice(nn.Module):
    """Uses one layer twice and another never; says a pair."""

    def __init__(self):
        super().__init__()
        self.one, self.never = nn.Linear(4, 4), nn.Linear(4, 9)
        self.dropped = nn.Dropout(0.5)

    def forward(self, x):
        return self.dropped(self.one(self.one(x))), None


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.last = Twice(), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.inner(x)[0])


BATCH = Batch(x=torch.randn(2, 4), id=torch.arange(2))


def test_every_layer_has_its_kind_and_what_it_says():
    model = Classifier(Whole(), taps=("inner",)).train()
    told = {layer.name: (layer.kind, layer.shape) for layer in layers(model, BATCH)}
    assert told == {
        "inner": ("Twice", (2, 4)),
        "inner.one": ("Linear", (2, 4)),
        "inner.never": ("Linear", None),
        "inner.dropped": ("Dropout", (2, 4)),
        "last": told["last"],
        "scores": ("said by the last linear layer", (2, 3)),
    }
    assert not hooks(model)
    assert model.taps == ("inner",)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_names_are_those_that_taps_take_with_the_same_shapes():
    world = worlds.World(kind="classes", maps=True)
    model, batch = world.student(), world.data().batch([0, 1])
    told = {layer.name: layer.shape for layer in layers(model, batch)}
    assert {"last", "scores", "map"} < set(told)
    with tapped(model.network, list(told)) as seen:
        model.network(batch.x)
    assert {name: tuple(value.shape) for name, value in seen.items()} == told


def test_a_language_model_names_its_own():
    world = worlds.World(kind="text")
    model, batch = world.student(), world.data().batch([0, 1])
    told = {layer.name: layer for layer in layers(model, batch)}
    assert told["model.layers.0.mlp"].shape == (2, batch.ids.shape[1], 8)
    assert told["embedding"].shape == told["last"].shape == (len(batch.rows), 8)
    assert "map" not in told


def test_hooks_go_where_the_model_fails():
    model = Classifier(Whole(), taps=("inner",))
    with pytest.raises(RuntimeError, match="shapes"):
        layers(model, Batch(x=torch.randn(2, 7), id=torch.arange(2)))
    assert not hooks(model)
    assert model.taps == ("inner",)
