"""Views of examples: what each does, and that a draw is of the seed, the example and the pass."""

import pytest
import torch

from stillroom.core import Batch, Failure
from stillroom.data.items import ItemData
from stillroom.data.streams import Stream
from stillroom.data.views import Views

EVERY = {"shift": 2, "flip": True, "scale": 0.3, "noise": 0.1}


def images(count=10, shape=(2, 5, 6)):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(count, *shape, generator=draw, dtype=torch.float64)
    return ItemData((x, torch.arange(count) % 3))


def stream(data=None, *, size=4, seed=3, rank=0, world=1, **views):
    return Stream(data or images(), size, seed, rank=rank, world=world, views=Views(**views))


def drawn(count, *args, **told):
    made = stream(*args, **told)
    return [made.next() for _ in range(count)]


def pairs(data, batches):
    """Each view beside the example that it is of."""
    return [
        (seen, data.batch([i]).x[0])
        for batch in batches
        for seen, i in zip(batch.x, batch.id.tolist(), strict=True)
    ]


def moved(image, down, right):
    """The image moved, place by place; what comes in is 0."""
    made = torch.zeros_like(image)
    height, width = image.shape[1:]
    for i in range(height):
        for j in range(width):
            if 0 <= i - down < height and 0 <= j - right < width:
                made[:, i, j] = image[:, i - down, j - right]
    return made


def test_a_shift_moves_whole_places_and_meets_all_of_them():
    data, met = images(), set()
    for seen, image in pairs(data, drawn(40, data, shift=1)):
        moves = [(d, r) for d in range(-2, 3) for r in range(-2, 3)]
        (found,) = [way for way in moves if torch.equal(seen, moved(image, *way))]
        met.add(found)
    assert met == {(d, r) for d in (-1, 0, 1) for r in (-1, 0, 1)}


def test_a_signal_is_moved_along_its_length_alone():
    data = images(shape=(2, 7))
    for seen, signal in pairs(data, drawn(10, data, shift=2)):
        ways = range(-2, 3)
        assert any(torch.equal(seen, moved(signal[:, None], 0, r)[:, 0]) for r in ways)


def test_half_of_the_examples_are_mirrored():
    data = images()
    found = []
    for seen, image in pairs(data, drawn(50, data, flip=True)):
        found.append(torch.equal(seen, image.flip(-1)))
        assert found[-1] or torch.equal(seen, image)
    assert 70 < sum(found) < 130


def test_a_ramp_is_flatter_where_the_image_is_larger():
    """Pixel c of a ramp that is 0 at the centre becomes c / factor, but for the rim."""
    column = torch.arange(9.0, dtype=torch.float64) - 4
    data = ItemData((column.expand(6, 1, 9, 9).clone(), torch.zeros(6, dtype=torch.long)))
    factors = []
    for seen, _ in pairs(data, drawn(20, data, scale=0.25)):
        factors.append(1 / float(seen[0, 4, 5]))
        inner = seen[0, 2:7, 2:7]
        assert torch.allclose(inner, (column[2:7] / factors[-1]).expand(5, 5), atol=1e-12)
    assert 0.75 < min(factors) < 0.8
    assert 1.2 < max(factors) < 1.25


def test_noise_has_its_deviation_and_differs_in_every_pixel_and_pass():
    data = images(count=4, shape=(1, 30, 30))
    one, two = (batch.x - data.batch(batch.id.tolist()).x for batch in drawn(2, data, noise=0.5))
    assert float(one.std()) == pytest.approx(0.5, rel=0.05)
    assert float(one.mean()) == pytest.approx(0, abs=0.03)
    assert len(one.unique()) == one.numel()
    assert not set(one.flatten().tolist()) & set(two.flatten().tolist())


def test_mixup_mixes_each_with_the_one_before_by_one_number_a_step():
    data, parts = images(), []
    for batch in drawn(100, data, mixup=True):
        own = data.batch(batch.id.tolist()).x
        before = own.roll(1, 0)
        part = ((batch.x - before) * (own - before)).sum() / (own - before).square().sum()
        assert torch.allclose(batch.x, part * own + (1 - part) * before, atol=1e-12)
        parts.append(float(part))
    assert 0.5 <= min(parts) < 0.55
    assert 0.95 < max(parts) <= 1
    assert len(set(parts)) == 100


@pytest.mark.parametrize("views", [EVERY, {**EVERY, "mixup": True}])
@pytest.mark.parametrize("teacher", ["same", "own", "clean"])
def test_who_sees_what(views, teacher):
    data = images()
    for batch in drawn(3, data, **views, teacher=teacher):
        assert not torch.equal(batch.x, data.batch(batch.id.tolist()).x)
        if teacher == "same":
            assert "x_teacher" not in batch
        if teacher == "clean":
            assert torch.equal(batch.x_teacher, data.batch(batch.id.tolist()).x)
        if teacher == "own":
            assert batch.x_teacher.shape == batch.x.shape
            assert all(not torch.equal(*one) for one in zip(batch.x_teacher, batch.x, strict=True))
            assert not torch.equal(batch.x_teacher, data.batch(batch.id.tolist()).x)


def test_the_teachers_own_draws_leave_the_students_as_they_were():
    for one, two in zip(*(drawn(3, **EVERY, teacher=t) for t in ("same", "own")), strict=True):
        assert torch.equal(one.x, two.x)


def test_views_that_change_nothing_are_the_examples_bit_for_bit():
    data = images()
    for batch in drawn(3, data):
        told = data.batch(batch.id.tolist())
        assert set(batch) == set(told)
        assert all(torch.equal(batch[name], told[name]) for name in told)


def test_a_view_is_of_seed_example_and_pass_whatever_the_batch():
    def told(size, seed=3):
        seen = {}
        for batch in drawn(60 // size, size=size, seed=seed, **EVERY):
            for k, x in zip(batch.id.tolist(), batch.x, strict=True):
                seen.setdefault(k, []).append(x)
        return seen

    whole, single = told(12), told(1)
    assert all(torch.equal(*p) for k in whole for p in zip(whole[k], single[k], strict=True))
    first = whole[0]
    assert len(first) == 6
    assert all(not torch.equal(a, b) for i, a in enumerate(first) for b in first[:i])
    assert not torch.equal(first[0], told(12, seed=4)[0][0])


@pytest.mark.parametrize("mixup", [False, True])
@pytest.mark.parametrize("teacher", ["same", "own", "clean"])
@pytest.mark.parametrize("world", [2, 3])
def test_processes_see_what_one_sees(world, mixup, teacher):
    told = {**EVERY, "mixup": mixup, "teacher": teacher, "size": 6}
    alone = drawn(5, **told)
    shares = [drawn(5, rank=r, world=world, **told) for r in range(world)]
    for i, whole in enumerate(alone):
        for rank in range(world):
            mine = shares[rank][i]
            assert set(mine) == set(whole)
            for name in whole:
                assert torch.equal(mine[name], whole[name][rank::world])


def test_the_cursor_is_the_whole_state():
    told = {**EVERY, "mixup": True, "teacher": "own"}
    before = drawn(7, **told)
    other = stream(**told)
    other.cursor = 4 * 4
    for batch in before[4:]:
        again = other.next()
        assert torch.equal(batch.x, again.x)
        assert torch.equal(batch.x_teacher, again.x_teacher)


@pytest.mark.parametrize("move", [{"shift": 1}, {"flip": True}, {"scale": 0.1}])
def test_what_has_no_places_is_not_moved(move):
    data = images(shape=(4,))
    with pytest.raises(Failure, match=r"data\.views: shift, flip and scale .* \[4\]"):
        stream(data, **move)
    stream(data, noise=0.1, mixup=True).next()


def test_texts_and_whole_numbers_are_refused():
    class Texts:
        longest = 3

        def __len__(self):
            return 4

        def batch(self, indices):
            return Batch(ids=torch.zeros(len(indices), 3), id=torch.tensor(list(indices)))

    with pytest.raises(Failure, match="of inputs of floating point, and these are texts"):
        stream(Texts())
    with pytest.raises(Failure, match="these are int64 numbers"):
        stream(ItemData((torch.zeros(4, 1, 2, 2, dtype=torch.long), torch.zeros(4).long())))
