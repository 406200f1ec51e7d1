"""Exit branches: shapes, blocks by what a layer says, examples that do not mix."""

import pytest
import torch
from torch import Tensor, nn

from stillroom.core import Failure
from stillroom.nets.exits import Exit

SHAPES = {"map": (4, 6, 8, 8), "tokens": (4, 9, 6), "vector": (4, 6)}


def features(kind: str) -> Tensor:
    return torch.randn(
        SHAPES[kind], dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )


def branch(kind: str, blocks: int) -> Exit:
    torch.manual_seed(0)
    return Exit(features(kind), 3, blocks)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("blocks", [0, 2])
def test_an_example_does_not_depend_on_its_company(kind: str, blocks: int) -> None:
    made, given = branch(kind, blocks), features(kind)
    together = made(given)
    assert together.shape == (4, 3)
    assert together.dtype == torch.float64
    for i in range(4):
        torch.testing.assert_close(made(given[i : i + 1])[0], together[i])
    torch.testing.assert_close(made(given), together)  # it draws nothing
    other = given.clone()
    other[1] = other[1] ** 3
    moved = (made(other) - together).abs().sum(-1) > 1e-9
    assert moved.tolist() == [False, True, False, False]


def test_without_blocks_a_map_is_pooled_and_classified() -> None:
    made, given = branch("map", 0), features("map")
    by_hand = given.mean((2, 3)) @ made.head.weight.T + made.head.bias
    torch.testing.assert_close(made(given), by_hand)


def test_blocks_are_halvings_attention_or_layers() -> None:
    sizes = []
    made = branch("map", 3)
    for module in made.blocks:
        module.register_forward_hook(lambda _m, _a, out: sizes.append(tuple(out.shape[2:])))
    made(features("map"))
    assert sizes == [(4, 4), (2, 2), (1, 1)]

    def attentions(kind: str, blocks: int) -> int:
        return sum(isinstance(m, nn.MultiheadAttention) for m in branch(kind, blocks).modules())

    assert [attentions("tokens", n) for n in (0, 1, 3)] == [1, 1, 3]  # one at least
    assert attentions("map", 2) == 0
    linear = [m for m in branch("vector", 2).modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(6, 6), (6, 6), (6, 3)]


def test_weights_start_small_in_the_classifier_and_by_kaiming_in_convolutions() -> None:
    torch.manual_seed(0)
    made = Exit(torch.zeros(1, 256, 4, 4), 200, 1)
    assert made.head.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert made.head.bias.abs().sum() == 0
    deep, point = [m for m in made.modules() if isinstance(m, nn.Conv2d)]
    assert deep.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.05)
    assert point.weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.05)
    made = Exit(torch.zeros(1, 256), 200, 1)
    layer, head = [m for m in made.modules() if isinstance(m, nn.Linear)]
    assert layer.weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.05)
    assert head.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_features_of_half_precision_are_read_in_float32() -> None:
    made = Exit(features("vector").bfloat16(), 3, 1)
    assert made(features("vector").bfloat16()).dtype == torch.float32


def test_what_has_another_shape_is_refused() -> None:
    with pytest.raises(Failure, match="has no places"):
        Exit(torch.zeros(2, 3, 4, 5, 6), 3, 0)(torch.zeros(2, 3, 4, 5, 6))
