"""Made-up worlds of real digits: strewn over a canvas, and beside a patch."""

import pytest
import torch

from stillroom.core import Failure
from stillroom.data.digits import apart, images
from stillroom.data.glyphs import Glyphs
from stillroom.data.shortcut import Shortcut

pytest.importorskip("sklearn")


def test_a_canvas_has_the_digits_that_its_labels_say():
    splits = Glyphs(train=40, validation=0, test=10, most=1).splits(3)
    assert set(splits) == {"train", "test"}
    x, y = images()
    mine, test = apart(len(y))
    for name, own in (("train", mine), ("test", test)):
        batch = splits[name].batch(range(len(splits[name])))
        assert batch.x.shape[1:] == (1, 16, 16)
        assert torch.equal(batch.labels.sum(1), torch.ones(len(batch.id), dtype=torch.long))
        for canvas, there in zip(batch.x[:, 0], batch.labels, strict=True):
            same = x[own, 0][y[own] == there.argmax()]
            windows = canvas.unfold(0, 8, 1).unfold(1, 8, 1).reshape(-1, 8, 8)
            rest = canvas.sum() - windows.sum((1, 2))
            inside = windows[rest.abs() < 1e-4]  # where all of the digit is
            assert any((same == w).all((1, 2)).any() for w in inside)


def test_as_many_digits_as_were_told_and_the_first_more_often():
    made = Glyphs(train=2000, validation=3, test=0, most=3, tail=8.0).splits(0)["train"]
    assert made.classes == 8
    labels = made.batch(range(2000)).labels
    counts = labels.sum(1).bincount(minlength=5)
    assert counts[[0, 4]].tolist() == [0, 0]
    assert (counts[1:4] / 2000 - 1 / 3).abs().max() < 0.05
    often = labels.sum(0)
    assert often[0] > 3 * often[7] > 0
    plain = Glyphs(train=2000).splits(0)["train"].batch(range(2000)).labels.sum(0)
    assert plain.max() < 1.3 * plain.min()


def test_a_patch_tells_the_class_as_often_as_was_said():
    splits = Shortcut(train=1000, validation=200, test=500, share=0.9, shifted=0.1).splits(5)
    x, y = images()
    for name, share in (("train", 0.9), ("validation", 0.1), ("test", 0.1)):
        batch = splits[name].batch(range(len(splits[name])))
        left, right = batch.x[:, 0, :, :8], batch.x[:, 0, :, 8:]
        cells = torch.nn.functional.avg_pool2d(right[:, None], 2).flatten(1)
        assert torch.equal(cells.sum(1), torch.ones(len(batch.id)))
        told = (cells.argmax(1) == batch.labels).double().mean()
        assert abs(told - share) < 0.05
        for one, label in zip(left[:10], batch.labels, strict=False):
            assert ((x[:, 0] == one).all((1, 2)) & (y == label)).any()
    again = Shortcut(train=1000, validation=200, share=0.9).splits(5)
    assert again["train"].sha256 == splits["train"].sha256
    assert Shortcut(train=990).splits(6)["train"].sha256 != splits["train"].sha256


@pytest.mark.parametrize("world", [Glyphs(), Shortcut()])
def test_nobody_who_trains_sees_the_digits_of_the_test(world):
    x, y = images()
    mine, test = apart(len(y))
    assert len(set(mine.tolist()) & set(test.tolist())) == 0
    splits = world.splits(1)
    kept = {tuple(image.flatten().tolist()) for image in x[test, 0]}
    if isinstance(world, Shortcut):
        seen = splits["train"].batch(range(600)).x[:, 0, :, :8]
        assert not any(tuple(image.flatten().tolist()) in kept for image in seen)


def test_too_many_examples_are_refused():
    with pytest.raises(Failure, match="and there are 1297"):
        Shortcut(train=1200, validation=100).splits(0)
