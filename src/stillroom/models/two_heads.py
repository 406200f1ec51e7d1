"""A classifier with two heads on one trunk, whose probabilities are mixed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stillroom.core import Failure

MIXTURE = "head_mixture"
"""The buffer that holds a mixture's weight and temperature."""
WEIGHTS = [i / 20 for i in range(21)]
TEMPERATURES = [0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0]


class TwoHeads(nn.Module):
    """Two linear heads that read the same, and say the log of the mixture of their probabilities.

    ``log(a softmax(z_1) + (1 - a) softmax(z_2 / b))``, [B, C]; at a = 1 the first head alone. What
    each says stands in the layer ``heads``, [B, 2, C], before it is mixed; both are learned from
    there. a and b are a buffer, so they are saved with the weights.

    Args:
        first: the head that was there.
    """

    head_mixture: Tensor

    def __init__(self, first: nn.Linear) -> None:
        super().__init__()
        told = {"bias": first.bias is not None, "device": first.weight.device}
        second = nn.Linear(first.in_features, first.out_features, **told, dtype=first.weight.dtype)
        self.both = Both(first, second)
        # without a search: half of each, the second one sharpened (arXiv 2505.07675)
        self.register_buffer(MIXTURE, first.weight.new_tensor([0.5, 0.5]))

    def forward(self, h: Tensor) -> Tensor:
        a, b = self.head_mixture
        return mixed(self.both(h), a, b)


class Both(nn.Module):
    """[B, d] to what two linear heads say, [B, 2, C]."""

    def __init__(self, first: nn.Linear, second: nn.Linear) -> None:
        super().__init__()
        self.second, self.first = second, first  # the last linear layer is the one that was there

    def forward(self, h: Tensor) -> Tensor:
        return torch.stack([self.first(h), self.second(h)], -2)


def mixed(both: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    """``log(a softmax(z_1) + (1 - a) softmax(z_2 / b))`` of scores [B, 2, C]; [B, C].

    By hand: probabilities (1/2, 1/2) and (3/4, 1/4), a half of each.

    >>> import math
    >>> both = torch.tensor([[[0.0, 0.0], [math.log(3), 0.0]]])
    >>> [round(p, 4) for p in mixed(both, 0.5, 1.0).exp().flatten().tolist()]
    [0.625, 0.375]
    """
    a = torch.as_tensor(a, dtype=both.dtype, device=both.device)
    first = a.log() + both[..., 0, :].log_softmax(-1)
    second = (1 - a).log() + (both[..., 1, :] / b).log_softmax(-1)
    return torch.logaddexp(first, second)


def best_mixture(both: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """The weight a and temperature b of the mixture that is right most often, and how often it is.

    Scores [n, 2, C], labels [n]. Of those as good the one whose labels are likeliest; a from 0 to 1
    in steps of a twentieth, b among 0.5 and 4.
    """
    found = []
    for a in WEIGHTS:
        for b in TEMPERATURES:
            logp = mixed(both.double(), a, b)
            right = float((logp.argmax(-1) == labels).double().mean())
            found.append((right, float(logp.gather(-1, labels[:, None]).mean()), a, b))
    right, _, a, b = max(found)
    return a, b, right


def two_heads(network: nn.Module) -> TwoHeads | None:
    """The module of a network that mixes two heads, where it has one."""
    return next((m for m in network.modules() if isinstance(m, TwoHeads)), None)


def grown(network: nn.Module) -> TwoHeads:
    """Gives a network a second head beside its last linear layer, in place; once, however called.

    Raises:
        Failure: it has no ``nn.Linear``.
    """
    if (there := two_heads(network)) is not None:
        return there
    linear = [m for m in network.modules() if isinstance(m, nn.Linear)]
    if not linear or linear[-1] is network:
        raise Failure("a second head stands beside a last nn.Linear, and this network has none")
    made = TwoHeads(linear[-1])
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if child is linear[-1] and not isinstance(parent, Both):
                setattr(parent, name, made)
    return made


def held(state: Mapping[str, Tensor]) -> bool:
    """Whether a state is of a network with two heads."""
    return any(name.rpartition(".")[2] == MIXTURE for name in state)
