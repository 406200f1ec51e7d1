import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stillroom.core import Failure
from stillroom.losses.policy import (
    bradley_terry,
    clipped_surrogate,
    entropy,
    group_advantage,
    k3,
    label_logp,
    later_returns,
)

seeds = st.integers(0, 2**31)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(logits: Tensor) -> list[float]:
    weights = [math.exp(z) for z in logits.tolist()]
    return [w / sum(weights) for w in weights]


# ---- label_logp, entropy


def test_label_logp_is_the_log_of_the_labels_probability():
    logits, labels = noise(4, 6), torch.tensor([5, 0, 2, 2])
    wanted = [math.log(softmax(row)[y]) for row, y in zip(logits, labels.tolist(), strict=True)]
    found = label_logp(logits, labels)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))


def test_label_logp_gradient_is_one_hot_minus_probability():
    logits, labels = noise(4, 6).requires_grad_(), torch.tensor([5, 0, 2, 2])
    (gradient,) = torch.autograd.grad(label_logp(logits, labels).sum(), logits)
    one_hot = torch.eye(6, dtype=torch.float64)[labels]
    probabilities = torch.tensor([softmax(row) for row in logits], dtype=torch.float64)
    torch.testing.assert_close(gradient, one_hot - probabilities)


def test_entropy_is_the_sum_over_tokens():
    logits = noise(4, 6)
    wanted = [-sum(p * math.log(p) for p in softmax(row)) for row in logits]
    torch.testing.assert_close(entropy(logits), torch.tensor(wanted, dtype=torch.float64))


def test_entropy_is_log_v_if_uniform_and_zero_if_certain():
    logits = torch.tensor([[3.0] * 5, [1e4, 0, 0, 0, -1e4]])
    torch.testing.assert_close(entropy(logits), torch.tensor([math.log(5), 0.0]))


@pytest.mark.parametrize("of", [entropy, lambda z: label_logp(z, torch.tensor([0, 1]))])
def test_a_token_that_is_ruled_out_is_as_if_absent(of):
    logits = noise(2, 4)
    logits[:, 3] = -math.inf
    inputs = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(of(inputs).sum(), inputs)
    torch.testing.assert_close(of(logits), of(logits[:, :3]))
    assert gradient.isfinite().all()
    assert not gradient[:, 3].any()


@pytest.mark.parametrize("of", [entropy, lambda z: label_logp(z, torch.arange(3))])
def test_half_precision_is_computed_in_float32(of):
    logits = (noise(3, 500) * 3).bfloat16()
    assert of(logits).dtype == torch.float32
    torch.testing.assert_close(of(logits).double(), of(logits.double()), atol=1e-5, rtol=1e-5)


# ---- bradley_terry


def test_bradley_terry_is_log_two_at_equal_scores():
    scores = noise(5)
    wanted = torch.full((5,), math.log(2), dtype=torch.float64)
    torch.testing.assert_close(bradley_terry(scores, scores), wanted)


def test_bradley_terry_wants_the_winner_above_the_loser():
    # odds 3 : 1 for the winner
    value = bradley_terry(torch.tensor([math.log(3), 0.0]), torch.tensor([0.0, math.log(3)]))
    torch.testing.assert_close(value, torch.tensor([-math.log(0.75), -math.log(0.25)]))


def test_bradley_terry_keeps_the_shape_and_stays_finite():
    far = torch.tensor([[1e4, -1e4, 0.0]])
    torch.testing.assert_close(bradley_terry(far, -far), torch.tensor([[0, 2e4, math.log(2)]]))


# ---- group_advantage


def test_group_advantage_by_hand():
    # means 2 and 5, deviations sqrt(((1)^2 + 0 + 1) / 2) = 1 and 3
    reward = torch.tensor([1.0, 2, 3, 2, 8, 5], dtype=torch.float64)
    wanted = torch.tensor([-1.0, 0, 1, -1, 1, 0], dtype=torch.float64)
    torch.testing.assert_close(group_advantage(reward, 3, eps=0), wanted)
    torch.testing.assert_close(group_advantage(reward, 3), wanted, atol=1e-5, rtol=0)


def test_eps_stands_beside_the_deviation():
    reward = torch.tensor([1.0, 2, 3])
    torch.testing.assert_close(group_advantage(reward, 3, eps=1.0), (reward - 2) / 2)


@given(seed=seeds, shift=st.floats(-100, 100), scale=st.floats(0.1, 10))
def test_group_advantage_ignores_shift_and_positive_scale(seed, shift, scale):
    reward = noise(12, seed=seed)
    wanted = group_advantage(reward, 4, eps=0)
    torch.testing.assert_close(group_advantage(reward * scale + shift, 4, eps=0), wanted)


def test_equal_rewards_have_exactly_no_advantage():
    # the float32 mean of six times 0.3 is not 0.3: rounding, divided by eps, would teach something
    reward = torch.tensor([0.3] * 6 + [0.0] * 5 + [1.0], requires_grad=True)
    assert (reward[:6] != reward[:6].mean()).all()
    advantage = group_advantage(reward, 6)
    assert advantage[:6].tolist() == [0] * 6
    (gradient,) = torch.autograd.grad(advantage[11], reward)
    assert gradient.isfinite().all()
    assert not gradient[:6].any()


def test_whole_numbers_are_rewards_too():
    wanted = torch.tensor([-1.0, 1.0]) * math.sqrt(0.5)
    torch.testing.assert_close(group_advantage(torch.tensor([0, 1]), 2, eps=0), wanted)


@pytest.mark.parametrize(("rewards", "n", "message"), [(4, 1, "n = 1"), (5, 2, "5 rewards")])
def test_groups_that_cannot_be_are_refused(rewards, n, message):
    with pytest.raises(Failure, match=message):
        group_advantage(torch.zeros(rewards), n)


# ---- returns, of later tokens


def test_returns_by_hand():
    reward = torch.tensor([1.0, 2, 4, 8, 3, 5])
    owner, all_count = torch.tensor([0, 0, 0, 1, 3, 3]), torch.ones(6)  # 2 has no token
    for told, wanted in (
        ({}, [3, 4, 0, 0, 5, 0]),
        ({"mean": False}, [6, 4, 0, 0, 5, 0]),
        ({"own": True}, [7 / 3, 3, 4, 8, 4, 5]),
        ({"own": True, "mean": False}, [7, 6, 4, 8, 8, 5]),
    ):
        found = later_returns(reward, owner, all_count, **told)
        torch.testing.assert_close(found, torch.tensor(wanted, dtype=reward.dtype))
    without = torch.tensor([1.0, 0, 1, 1, 1, 0.5])  # whether they count, not how much
    found = later_returns(reward, owner, without)
    torch.testing.assert_close(found, torch.tensor([4.0, 4, 0, 0, 5, 0]))


@given(seed=seeds, lengths=st.lists(st.integers(0, 4), max_size=5))
def test_returns_are_of_the_later_tokens_of_their_own_sequence(seed, lengths):
    owner = [i for i, length in enumerate(lengths) for _ in range(length)]
    reward, counts = noise(len(owner), seed=seed), noise(len(owner), seed=seed + 1) > -0.5
    found = later_returns(reward, torch.tensor(owner, dtype=torch.long), counts)
    for row, mine in enumerate(owner):
        later = [j for j in range(row + 1, len(owner)) if owner[j] == mine and counts[j]]
        wanted = sum(reward[j].item() for j in later) / max(1, len(later))
        assert found[row].item() == pytest.approx(wanted)


# ---- clipped_surrogate


def test_clipped_surrogate_by_hand():
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1, 0.9], dtype=torch.float64)
    advantage = torch.tensor([2.0, -2, 2, -2, 2, -2], dtype=torch.float64)
    # the gain is capped at 1.2 and 0.8; what makes things worse is not
    wanted = torch.tensor([-2.4, 3.0, -1.0, 1.6, -2.2, 1.8], dtype=torch.float64)
    old = noise(6)
    value = clipped_surrogate(old + ratio.log(), old, advantage, 0.2)
    torch.testing.assert_close(value, wanted)


def test_no_gradient_where_the_clip_binds():
    logp = torch.tensor([1.5, 1.5, 0.5, 0.5]).log().requires_grad_()
    advantage = torch.tensor([2.0, -2, 2, -2])
    value = clipped_surrogate(logp, torch.zeros(4), advantage, 0.2).sum()
    (gradient,) = torch.autograd.grad(value, logp)
    torch.testing.assert_close(gradient, torch.tensor([0.0, 3.0, -1.0, 0.0]))


@given(seed=seeds, clip=st.floats(0.01, 0.5))
def test_at_ratio_one_the_gradient_is_reinforce(seed, clip):
    logits, labels = noise(5, 7, seed=seed).requires_grad_(), torch.tensor([0, 6, 3, 3, 1])
    advantage = noise(5, seed=seed + 1)
    logp = label_logp(logits, labels)
    surrogate = clipped_surrogate(logp, logp.detach(), advantage, clip).sum()
    (found,) = torch.autograd.grad(surrogate, logits)
    one_hot = torch.eye(7, dtype=torch.float64)[labels]
    # REINFORCE: -A grad log p = -A (one hot - p)
    wanted = -advantage[:, None] * (one_hot - logits.detach().softmax(-1))
    torch.testing.assert_close(found, wanted)


# ---- k3


def test_k3_by_hand():
    # reference twice as likely: 2 - ln 2 - 1; half as likely: 1/2 + ln 2 - 1
    logp, reference = torch.zeros(3), torch.tensor([2.0, 0.5, 1.0]).log()
    torch.testing.assert_close(k3(logp, reference), torch.tensor([0.306853, 0.193147, 0.0]))


def test_k3_keeps_small_gaps():
    # exp(d) - d - 1 is d^2 / 2 there, and rounding alone would give 0 or 1e-7 in float32
    gap = torch.tensor([1e-3, -1e-3])
    torch.testing.assert_close(k3(torch.zeros(2), gap), torch.full((2,), 5e-7), rtol=1e-3, atol=0)


@given(seed=seeds)
def test_k3_is_never_negative_and_its_mean_over_the_policy_is_the_kl(seed):
    policy, reference = noise(2, 6, seed=seed).log_softmax(-1)
    value = k3(policy, reference)
    assert (value >= 0).all()
    q, r = policy.exp().tolist(), reference.exp().tolist()
    mean = sum(p * v for p, v in zip(q, value.tolist(), strict=True))
    assert mean == pytest.approx(sum(a * math.log(a / b) for a, b in zip(q, r, strict=True)))
