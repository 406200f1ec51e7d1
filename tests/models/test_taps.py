"""Features by layer name, and classifiers that say them."""

import pytest
import torch
from torch import nn

from stillroom.core import Batch, Failure
from stillroom.models.classes import Classifier
from stillroom.models.taps import tapped


def network():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(3, 5), nn.ReLU())
    return nn.Sequential(nn.Flatten(), inner, nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))


def hooks(module):
    return [h for m in module.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]


def test_layers_are_read_by_name_while_the_block_runs():
    net, x = network(), torch.randn(6, 3)
    with tapped(net, ["last", "1", "1.0"]) as seen:
        net(x)
    first = x @ net[1][0].weight.T + net[1][0].bias
    assert set(seen) == {"last", "1", "1.0"}
    torch.testing.assert_close(seen["1.0"], first)
    torch.testing.assert_close(seen["1"], first.relu())
    torch.testing.assert_close(seen["last"], torch.tanh(net[2](first.relu())))
    assert not hooks(net)
    before = seen["last"]
    net(torch.randn(6, 3))
    assert seen["last"] is before


def test_hooks_go_when_the_block_fails():
    net = network()
    with pytest.raises(RuntimeError, match="shapes"), tapped(net, ["last", "1"]):
        net(torch.randn(6, 7))
    assert not hooks(net)


def test_an_unknown_layer_is_named_with_the_nearest():
    net = network()
    with (
        pytest.raises(Failure, match=r"no layer '1\.00'; did you mean '1\.0'\?.*layers: \['0'"),
        tapped(net, ["1", "1.00"]),
    ):
        pass
    assert not hooks(net)


def test_last_needs_a_linear_layer():
    with (
        pytest.raises(Failure, match=r"no nn\.Linear, so 'last' names nothing"),
        tapped(nn.Sequential(nn.ReLU()), ["last"]),
    ):
        pass


def test_a_classifier_says_logits_its_head_and_features_in_their_own_shape():
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(8, 3))
    batch = Batch(x=torch.randn(5, 1, 3, 3), id=torch.arange(5))
    assert set(Classifier(net)(batch)) == {"logits", "head"}
    said = Classifier(net, ["0", "last"])(batch)
    assert torch.equal(said.logits, net(batch.x))
    assert torch.equal(said.features["0"], net[0](batch.x))
    assert torch.equal(said.features["last"], said.features["0"].flatten(1))
    assert torch.equal(said.head.logits(said.features["last"]), said.logits)
    said.features["0"].sum().backward()
    assert net[0].weight.grad is not None


def test_a_classifier_is_saved_and_loaded(tmp_path):
    net = network()
    Classifier(net).save(tmp_path / "student")
    other = Classifier(network())
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    other.load(tmp_path / "student")
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
