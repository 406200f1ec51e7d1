"""The pooled critic: its features by hand, its fit by other means, its memory."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from stillroom.core import Failure
from stillroom.data.text import collate
from stillroom.models import text
from stillroom.models.cut import Early, cut
from stillroom.nets.pooled import MeanState, Pooled, fit

PAIRS = [([3, 4], [5, 6, 1]), ([7], [1]), ([8, 9, 2], [4, 1])]
WIDTH = 3


class Steps(nn.Module):
    """A trunk whose state at a place is the token there, its position, and a constant."""

    width = WIDTH

    def states(self, batch):
        return torch.stack([batch.ids, batch.positions, torch.ones_like(batch.ids)], -1).float()


def two_clouds(n=40, width=WIDTH, seed=0, apart=0.8):
    """Pairs from two Gaussians of unequal spread, in which both sides of a pair are related."""
    draw = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, width, generator=draw, dtype=torch.float64)
    spread = torch.linspace(0.3, 4.0, width, dtype=torch.float64)
    sides = [
        (shared + torch.randn(n, width, generator=draw, dtype=torch.float64) + shift) * spread + 2
        for shift in (apart, 0.0)
    ]
    return sides[0], sides[1]


def learned(pairs, replay=64, l2=2.0):
    critic = Pooled(Steps(), replay=replay, l2=l2)
    critic.learn(*pairs)
    return critic


# ---- what is read


@pytest.mark.parametrize("side", ["left", "right"])
def test_features_are_means_over_the_tokens_of_the_answer(side):
    read = MeanState(Steps())(collate(PAIRS, torch.arange(3), 9, side=side))
    assert read.dtype == torch.float64
    assert read.tolist() == [[4.0, 3.0, 1.0], [1.0, 1.0, 1.0], [2.5, 3.5, 1.0]]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad", [0, 5])
def test_more_padding_leaves_features_alone(side, pad):
    reader = MeanState(lm().body())
    alone = torch.cat([reader(collate([p], torch.arange(1), pad)) for p in PAIRS])
    more = [*PAIRS, ([3] * 20, [4, 1])]
    together = reader(collate(more, torch.arange(4), pad, side=side))
    torch.testing.assert_close(together[:3], alone, rtol=1e-10, atol=1e-10)
    assert alone.std(0).min() > 1e-3


def test_what_stands_at_padding_is_not_read():
    batch = collate(PAIRS, torch.arange(3), 0)
    reader = MeanState(Steps())
    noisy = batch.add(ids=torch.where(batch.real, batch.ids, 77))
    assert torch.equal(reader(batch), reader(noisy))


def lm(layers=3):
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
    sizes |= {"num_hidden_layers": layers, "max_position_embeddings": 64}
    return text.build("windowed", 11, 1, 0, **sizes).double()


def test_first_layers_alone_are_read_with_the_last_norm_behind_them():
    model, batch = lm(), collate(PAIRS, torch.arange(3), 0)
    inner = {}
    hook = model.model.model.layers[1].register_forward_hook(lambda _m, _i, o: inner.update(o=o))
    whole = model.states(batch)
    hook.remove()
    wanted = model.model.model.norm(inner["o"])
    early = Early(model, 2).states(batch)
    assert torch.equal(early, wanted)
    short = cut(model.model, [0, 1]).base_model
    said = short(input_ids=batch.ids, attention_mask=batch.real.long())
    torch.testing.assert_close(said.last_hidden_state[batch.real], early[batch.real])
    assert not torch.allclose(early, whole)
    assert torch.equal(Early(model, None).states(batch), whole)
    assert len(model.model.model.layers) == 3
    with pytest.raises(Failure, match="the model has 3, so its first 4"):
        Early(model, 4)


def test_the_trunk_is_frozen():
    critic = Pooled(Early(lm(), 2), replay=4, l2=1.0)
    assert not any(p.requires_grad for p in critic.parameters())
    assert not any(module.training for module in critic.reader.body.modules())


# ---- the fit


def test_the_fit_is_the_minimum_that_scipy_finds():
    optimize = pytest.importorskip("scipy.optimize")
    theirs, own = two_clouds()
    weight, centre = fit(theirs, own, l2=2.0)
    t, s = theirs.numpy(), own.numpy()
    texts = np.concatenate([t, s])
    mean, deviation = texts.mean(0), texts.std(0)
    apart = (t - s) / deviation

    def loss(v):
        return np.logaddexp(0, -apart @ v).sum() + v @ v

    best = optimize.minimize(loss, np.ones(WIDTH), method="Nelder-Mead", tol=1e-13)
    np.testing.assert_allclose(weight.numpy() * deviation, best.x, rtol=1e-5)
    np.testing.assert_allclose(centre.numpy(), mean)
    assert abs(best.x).min() > 0.05


def test_the_fit_of_many_features_has_no_slope_left():
    theirs, own = two_clouds(n=256, width=640, apart=0.3)
    weight, _ = fit(theirs, own, l2=10.0)
    scale = torch.cat([theirs, own]).std(0, correction=0)
    apart, v = (theirs - own) / scale, weight * scale
    slope = -(apart * torch.sigmoid(-(apart @ v))[:, None]).sum(0) + 10 * v
    assert slope.abs().max() < 1e-6
    assert v.abs().max() > 1e-2


def test_one_feature_by_hand():
    # alike pairs, one apart in a feature of deviation 1/2: minimise n softplus(-2v) + l2/2 v^2
    theirs, own = torch.ones(6, 1).double(), torch.zeros(6, 1).double()
    weight, centre = fit(theirs, own, l2=3.0)
    v = float(weight) / 2
    assert 6 * 2 / (1 + math.exp(2 * v)) == pytest.approx(3 * v, rel=1e-9)
    assert centre.tolist() == [0.5]


def test_a_constant_and_a_scale_change_no_difference():
    theirs, own = two_clouds()
    new = two_clouds(seed=1)[0]
    factor = torch.tensor([10.0, 0.1, 3.0]).double()
    plain, moved = learned((theirs, own)), learned((theirs * factor - 70, own * factor - 70))
    one, other = plain.score(new), moved.score(new * factor - 70)
    torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-8)
    assert one.std() > 0.1


def test_a_feature_that_says_nothing_gets_no_weight():
    theirs, own = (torch.cat([x, torch.full((40, 1), 0.1)], 1) for x in two_clouds())
    weight, _ = fit(theirs, own, l2=1.0)
    assert weight[3] == 0
    assert weight.isfinite().all()


def test_the_order_of_the_pairs_does_not_matter():
    theirs, own = two_clouds()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(
        fit(theirs[order], own[order], 1.0)[0], fit(theirs, own, 1.0)[0], rtol=1e-6, atol=1e-9
    )


def test_swapping_the_sides_turns_the_critic_round():
    theirs, own = two_clouds()
    torch.testing.assert_close(fit(own, theirs, 1.0)[0], -fit(theirs, own, 1.0)[0])


def test_pairs_that_are_alike_teach_nothing():
    theirs, _ = two_clouds()
    critic = learned((theirs, theirs))
    assert critic.weight.abs().max() == 0
    assert critic.score(theirs).tolist() == [0.0] * 40


def test_it_tells_what_it_has_not_seen():
    critic = learned(two_clouds(n=200), replay=200)
    theirs, own = two_clouds(n=200, seed=9)
    assert (critic.score(theirs) > critic.score(own)).double().mean() > 0.75
    assert critic(collate(PAIRS, torch.arange(3), 0)).shape == (3,)


# ---- the memory


def test_before_the_first_pair_all_scores_are_zero():
    critic = Pooled(Steps(), replay=4, l2=1.0)
    assert critic(collate(PAIRS, torch.arange(3), 0)).tolist() == [0.0] * 3


@pytest.mark.parametrize("sizes", [[3, 3, 3, 3], [7, 4], [5, 5, 2], [23]])
def test_the_last_pairs_are_kept(sizes):
    theirs, own = two_clouds(n=sum(sizes))
    critic = Pooled(Steps(), replay=10, l2=1.0)
    shapes = {name: value.shape for name, value in critic.state_dict().items()}
    for a, b in zip(theirs.split(sizes), own.split(sizes), strict=True):
        critic.learn(a, b)
        assert {name: value.shape for name, value in critic.state_dict().items()} == shapes
    rows = {tuple(row) for row in torch.cat([critic.theirs, critic.own], 1).tolist()}
    assert rows == {tuple(row) for row in torch.cat([theirs, own], 1)[-10:].tolist()}
    wanted, centre = fit(theirs[-10:], own[-10:], 1.0)
    torch.testing.assert_close(critic.weight, wanted, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(critic.centre, centre)
    assert int(critic.seen) == sum(sizes)


def test_a_half_filled_memory_is_fitted_to_what_is_there():
    theirs, own = two_clouds(n=6)
    critic = learned((theirs, own), replay=50, l2=1.0)
    assert torch.equal(critic.weight, fit(theirs, own, 1.0)[0])


def test_taken_up_again_it_goes_on_bit_for_bit():
    theirs, own = two_clouds(n=30)
    whole = Pooled(Steps(), replay=12, l2=1.0)
    for i in range(0, 30, 5):
        if i == 15:
            again = Pooled(Steps(), replay=12, l2=1.0)
            again.load_state_dict(copy.deepcopy(whole.state_dict()))
        whole.learn(theirs[i : i + 5], own[i : i + 5])
    for i in range(15, 30, 5):
        again.learn(theirs[i : i + 5], own[i : i + 5])
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_it_learns_where_no_gradient_is_kept():
    with torch.no_grad():
        critic = learned(two_clouds())
    assert critic.weight.abs().min() > 0
    assert not critic.weight.requires_grad
