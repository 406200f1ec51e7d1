"""Classes in groups: what is drawn once, what by the seed, and how far apart things are."""

import torch

from stillroom.data.class_groups import ClassGroups


def test_groups_and_classes_stay_and_examples_are_drawn_by_the_seed():
    world = ClassGroups(groups=3, each=4, train=5, validation=2, test=3)
    one, again, other = (world.splits(seed) for seed in (0, 0, 1))
    assert {k: len(v) for k, v in one.items()} == {"train": 60, "validation": 24, "test": 36}
    assert {k: v.sha256 for k, v in one.items()} == {k: v.sha256 for k, v in again.items()}
    assert not {v.sha256 for v in one.values()} & {v.sha256 for v in other.values()}
    assert torch.equal(world.centres(), ClassGroups(groups=3, each=4, train=9).centres())
    assert not torch.equal(world.centres(), ClassGroups(groups=3, each=4, world=1).centres())
    assert one["train"].classes == 12
    assert one["train"].items[1].bincount().tolist() == [5] * 12
    alone = ClassGroups(groups=3, each=4, train=5, validation=0, test=0).splits(0)
    assert alone.keys() == {"train"}
    assert alone["train"].sha256 == one["train"].sha256


def test_examples_lie_around_their_class_and_classes_around_their_group():
    world = ClassGroups(groups=40, each=50, width=8, apart=3.0, within=0.5, train=10)
    x, labels = world.splits(3)["train"].items
    noise = x - world.centres()[labels]
    assert abs(float(noise.std()) - 1) < 0.01
    assert float(noise.mean().abs()) < 0.01
    centres = world.centres().unflatten(0, (40, 50))  # class c is of group c // 50
    assert abs(float(centres.std(1).mean()) - 0.5) < 0.02
    assert abs(float(centres.mean(1).std()) - 3) < 0.4
