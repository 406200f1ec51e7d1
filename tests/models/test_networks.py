"""Small classifiers by name."""

from __future__ import annotations

import pytest
import torch

from stillroom.core import Batch, Failure
from stillroom.models.classes import Classifier
from stillroom.models.networks import CNN, MLP, Queries, Shape, ViT, build, rebuilt
from stillroom.models.pieces import Summed

IMAGE = Shape(inputs=(1, 8, 8), classes=5)
SIGNAL = Shape(inputs=(1, 40), classes=3)
KINDS = [
    MLP(widths=[7, 6], dropout=0.1),
    MLP(widths=[], subclasses=3),
    CNN(channels=[4, 6, 8], pool=2),
    CNN(channels=[5], norm=False, head_bias=False, subclasses=2),
    ViT(width=8, depth=2, heads=2, subclasses=4),
    Queries(channels=[4], width=6, heads=2),
]


@pytest.mark.parametrize("spec", KINDS, ids=str)
@pytest.mark.parametrize("shape", [IMAGE, SIGNAL], ids=["image", "signal"])
def test_each_fits_its_data_and_is_made_again_from_what_it_tells(spec, shape):
    torch.manual_seed(0)
    network = build(spec, shape).eval()
    x = torch.randn(6, *shape.inputs)
    assert network(x).shape == (6, shape.classes)
    again = rebuilt(network.told).eval()
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(x), network(x))


@pytest.mark.parametrize("spec", [KINDS[0], KINDS[2], KINDS[4]], ids=["mlp", "cnn", "vit"])
def test_a_method_may_run_only_some_parts(spec):
    network = build(spec, IMAGE).eval()
    x = torch.randn(2, 1, 8, 8)
    half = network.run(network.stem(x), stop=1)
    assert torch.equal(network.tail(network.run(half, start=1)), network(x))
    said = Classifier(network, ["parts.0"])(Batch(x=x, id=torch.arange(2)))
    assert torch.equal(said.features["parts.0"], half)


def test_the_map_is_what_pooling_reads():
    x = Batch(x=torch.randn(2, 1, 8, 8), id=torch.arange(2))
    said = Classifier(build(CNN(channels=[4, 6]), IMAGE), ["map", "last"])(x)
    assert said.features["map"].shape == (2, 6, 4, 4)
    assert torch.allclose(said.features["map"].mean((2, 3)), said.features["last"])
    said = Classifier(build(ViT(width=8, heads=2), IMAGE), ["map", "last"])(x)
    assert said.features["map"].shape == (2, 16, 8)
    assert torch.allclose(said.features["map"].mean(1), said.features["last"])


def test_subclasses_add_up_their_probabilities():
    scores = torch.tensor([[0.1, 0.3, 0.2, 0.4], [0.25, 0.25, 0.5, 0.0]]).log()
    assert torch.allclose(Summed(2)(scores).exp(), torch.tensor([[0.4, 0.6], [0.5, 0.5]]))


def test_an_image_is_asked_for_where_one_is_read():
    with pytest.raises(Failure, match=r"cnn: reads images .* take kind: mlp"):
        build(CNN(), Shape(inputs=(4,), classes=2))


def test_queries_give_an_embedding_and_a_score_for_each_label():
    torch.manual_seed(0)
    network = build(Queries(channels=[4, 6], width=8, heads=2), IMAGE).eval()
    x = torch.randn(3, 1, 8, 8)
    said = Classifier(network, ["last", "parts.1"])(Batch(x=x, id=torch.arange(3)))
    embeddings, head = said.features["last"], said.head
    assert embeddings.shape == (3, 5, 8)
    wanted = torch.stack([embeddings[:, c] @ head.weight[c] + head.bias[c] for c in range(5)], 1)
    torch.testing.assert_close(said.logits, wanted)
    assert "tail.0.queries" not in dict(network.named_parameters())
    # attention by hand, a label and a place at a time
    decoder, maps = network.tail[0], said.features["parts.1"]
    places = decoder.place(maps).relu().flatten(2).transpose(1, 2)
    keys, values = decoder.read(places).split(8, dim=-1)
    asked = decoder.first(decoder.queries)
    q = decoder.ask(asked)
    for n in range(3):
        for c in range(5):
            seen = []
            for part in (slice(0, 4), slice(4, 8)):
                scores = torch.stack([q[c, part] @ k[part] / 2 for k in keys[n]])
                shares = (scores - scores.max()).exp()
                shares = shares / shares.sum()
                seen.append(sum(w * v[part] for w, v in zip(shares, values[n], strict=True)))
            told = decoder.second(asked[c] + decoder.write(torch.cat(seen)))
            told = decoder.third(told + decoder.down(decoder.up(told).relu()))
            torch.testing.assert_close(embeddings[n, c], told, rtol=1e-4, atol=1e-5)
    with pytest.raises(Failure, match="width 6 must be a multiple of heads 4"):
        build(Queries(width=6), IMAGE)
