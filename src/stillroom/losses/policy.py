"""Policy-gradient parts: label log-probability, entropy, preference, returns, PPO clip, k3.

All unreduced: one value a row (or pair, or sample). Nothing is detached here: old and reference
log-probabilities and advantages come without gradient from where they are made.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from stillroom.core import Failure


def label_logp(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of the label of each row; with a minus sign, the cross-entropy.

    ``log p(y) = z_y - log sum_v exp(z_v)``

    ``logits`` [n, V], ``labels`` [n] in 0..V-1 -> [n], in nats. There is no ignored label: rows
    that do not count are left out by a mask. Where an example may have several labels at once,
    ``labels`` [n, V] of 0 and 1, it is that of all of them, each a yes or no of its own:
    ``sum_v log sigmoid(z_v if y_v else -z_v)``, with a minus sign the binary cross-entropy.
    """
    if labels.dim() == logits.dim():
        exact = logits.to(_dtype(logits))
        told = labels.to(exact.dtype)
        return (told * logsigmoid(exact) + (1 - told) * logsigmoid(-exact)).sum(-1)
    return _log_probs(logits).gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def nll(student: Tensor, teacher: object, labels: Tensor) -> Tensor:
    """Cross-entropy with the label of each row, as an objective of ``per_row``: no teacher is read.

    ``-log p(y)``; logits [n, V], anything, labels [n] -> [n], in nats.
    """
    return -label_logp(student, labels)


def entropy(logits: Tensor) -> Tensor:
    """Shannon entropy of each row's distribution, in nats: 0 (certain) to log V (uniform).

    ``H = -sum_v p(v) log p(v)``, with ``0 log 0 = 0`` for a logit of ``-inf``.

    ``logits`` [n, V] -> [n].
    """
    log_p = _log_probs(logits)
    return -(log_p.exp() * log_p.masked_fill(log_p.isneginf(), 0.0)).sum(-1)


def bradley_terry(winner: Tensor, loser: Tensor) -> Tensor:
    """Pairwise preference loss of a reward model or critic: the winner should score higher.

    ``-log sigmoid(w - l) = softplus(-(w - l))``

    Scores of the same shape -> that shape, in nats; log 2 where both score alike. Bradley and
    Terry 1952; as a discriminator's loss GAD (arXiv 2511.10643).
    """
    return -logsigmoid(winner - loser)


def group_advantage(reward: Tensor, n: int, *, eps: float = 1e-6) -> Tensor:
    """Group-relative advantage: the reward standardised among the samples of one prompt.

    ``A_i = (r_i - mean(r)) / (std(r) + eps)``

    ``reward`` [B * n], ``n`` consecutive samples a prompt -> [B * n]. The deviation is the
    sample's own (divided by n - 1). Where all rewards of a group are equal the advantage is
    exactly 0, not the rounding error of the mean. Source: GRPO (arXiv 2402.03300, section
    4.1.2), which leaves the divisor of the deviation open.

    Raises ``Failure`` where ``n < 2`` (one sample has no deviation) or groups are incomplete.
    """
    if n < 2:
        raise Failure(f"a group needs at least 2 samples to have a deviation, got n = {n}")
    if len(reward) % n:
        raise Failure(
            f"{len(reward)} rewards do not make whole groups of {n}; "
            "give the rewards of all samples of each prompt, side by side"
        )
    groups = reward.to(_dtype(reward)).reshape(-1, n)
    centred = groups - groups.mean(1, keepdim=True)
    advantage = centred / (groups.std(1, keepdim=True) + eps)
    equal = (groups == groups[:, :1]).all(1, keepdim=True)
    return advantage.masked_fill(equal, 0.0).reshape(reward.shape)


def later_returns(
    reward: Tensor, owner: Tensor, counts: Tensor, *, mean: bool = True, own: bool = False
) -> Tensor:
    """Return of each token: rewards of the tokens after it, summed or length-normalised.

    ``R_{t+1} = sum_{t' > t} r_t'``; ``mean`` divides by how many they are. 0 after the last one.

    ``reward`` [N], rows of one sequence side by side and in order, ``owner`` [N] the sequence of
    each, rising, ``counts`` [N] whether its reward counts -> [N]. ``own`` has the token's own
    reward among them, ``R_t``. Source: MiniLLM (arXiv 2306.08543), which divides by ``T - t - 1``
    where the sum has ``T - t`` tokens; that is 0 for the last but one.

    By hand, rewards 1, 2, 4: sums ``6, 4, 0``, means ``3, 4, 0``, with the own ``7/3, 3, 4``.
    """
    lengths = torch.bincount(owner)
    if not lengths.numel():
        return reward
    place = torch.arange(len(owner), device=owner.device) - (lengths.cumsum(0) - lengths)[owner]
    table = reward.new_zeros(2, len(lengths), int(lengths.max()))
    table[:, owner, place] = torch.stack(
        [reward.masked_fill(counts == 0, 0), (counts > 0).to(reward)]
    )
    after = table.flip(-1).cumsum(-1).flip(-1)
    total, count = after[:, owner, place] if own else pad(after, (0, 1))[:, owner, place + 1]
    return total / count.clamp_min(1) if mean else total


def clipped_surrogate(logp: Tensor, old: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """PPO's clipped policy loss: no gain from moving the ratio beyond 1 +- clip.

    ``rho = exp(logp - old)``, ``-min(rho A, clamp(rho, 1 - clip, 1 + clip) A)``

    Label log-probabilities now and when sampled, advantages: [n] each -> [n], to be minimised. At
    ``rho = 1`` its gradient is REINFORCE's. Source: PPO (arXiv 1707.06347, eq. 7), negated.
    """
    ratio = (logp - old).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def k3(logp: Tensor, reference: Tensor) -> Tensor:
    """KL penalty to a reference from samples of the policy: never negative, low variance.

    ``d = reference - logp``, ``k3 = exp(d) - d - 1``

    Label log-probabilities [n] of both networks, for tokens that the policy drew -> [n], in
    nats. Its mean over the policy's samples is ``KL(policy || reference)``. Source: Schulman,
    "Approximating KL divergence" (2020), as used in GRPO (arXiv 2402.03300, eq. 4). Its gradient
    is not an unbiased gradient of that KL, since the samples depend on the policy too.
    """
    gap = reference - logp
    return torch.expm1(gap) - gap


def _dtype(value: Tensor) -> torch.dtype:
    """At least float32."""
    return torch.promote_types(value.dtype, torch.float32)


def _log_probs(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1, dtype=_dtype(logits))
