"""Features by place."""

import pytest
import torch

from stillroom.core import Failure
from stillroom.losses.maps import places, pooled


def test_places_of_a_map_are_its_cells_row_by_row():
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(places(x)[1, 2 * 5 + 3], x[1, :, 2, 3])
    assert torch.allclose(pooled(x), x.mean((2, 3)))


def test_tokens_stay_and_vectors_are_their_own_mean():
    tokens, vectors = torch.randn(2, 7, 3), torch.randn(2, 3)
    assert places(tokens) is tokens
    assert torch.allclose(pooled(tokens), tokens.mean(1))
    assert pooled(vectors) is vectors
    with pytest.raises(Failure, match=r"\[2, 3\] has no places"):
        places(vectors)
