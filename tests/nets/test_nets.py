"""Small modules that methods lend to the engine: the scalar head and the table of samples."""

import copy

import pytest
import torch
from torch import nn

from stillroom.data.text import collate
from stillroom.models import text
from stillroom.nets.average import Averages
from stillroom.nets.bank import Bank
from stillroom.nets.scorer import Scorer

PAIRS = [([3, 4], [5, 6, 1]), ([7], [1]), ([8, 9, 2], [4, 1])]


class Steps(nn.Module):
    """A trunk whose state at a place is the token there and its place."""

    width = 2

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def states(self, batch):
        places = torch.arange(batch.ids.shape[1]).expand_as(batch.ids)
        return torch.stack([batch.ids, places], -1).double()


def score(batch):
    scorer = Scorer(Steps())
    with torch.no_grad():
        scorer.head.weight.copy_(torch.tensor([[10.0, 0.0]]))
        scorer.head.bias.fill_(0.5)
    return scorer(batch)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_score_is_read_at_the_last_real_token(side):
    batch = collate(PAIRS, torch.arange(3), 9, side=side)
    assert score(batch).tolist() == [10.5, 10.5, 10.5]  # the end, token 1
    cut = [(prompt, completion[:-1]) for prompt, completion in PAIRS if len(completion) > 1]
    assert score(collate(cut, torch.arange(2), 9, side=side)).tolist() == [60.5, 40.5]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad", [0, 5])
def test_more_padding_leaves_scores_alone(side, pad):
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    lm = text.build("llama", 11, 1, 0, **sizes, intermediate_size=16, max_position_embeddings=64)
    scorer = Scorer(lm.body())
    alone = torch.cat([scorer(collate([p], torch.arange(1), pad)) for p in PAIRS])
    more = [*PAIRS, ([3] * 20, [4, 1])]
    together = scorer(collate(more, torch.arange(4), pad, side=side))
    torch.testing.assert_close(together[:3], alone, rtol=1e-4, atol=1e-6)
    assert alone.unique().numel() == 3


def test_the_head_starts_small_in_the_dtype_of_the_trunk():
    torch.manual_seed(0)
    body = Steps()
    body.width = 4000
    scorer = Scorer(body)
    assert scorer.head.weight.dtype == torch.float64
    assert scorer.head.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert scorer.head.bias.tolist() == [0.0]


def test_a_bank_gives_the_default_until_a_sample_was_written():
    bank, default = Bank(5, 2), torch.full((3, 2), 7.0)
    assert torch.equal(bank.read(torch.tensor([4, 0, 4]), default), default)
    bank.write(torch.tensor([4, 1]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert bank.read(torch.tensor([1, 0, 4]), default).tolist() == [[3, 4], [7, 7], [1, 2]]
    assert bank.written.tolist() == [False, True, False, False, True]
    assert bank.values[[0, 2, 3]].abs().sum() == 0


def test_a_bank_is_saved_whole_and_learns_nothing():
    bank = Bank(3, dtype=torch.float64)
    bank.write(torch.tensor([2]), torch.tensor([1.5], requires_grad=True))
    assert not list(bank.parameters())
    assert not bank.values.requires_grad
    other = Bank(3, dtype=torch.float64)
    other.load_state_dict(copy.deepcopy(bank.state_dict()))
    assert other.read(torch.arange(3), torch.zeros(3).double()).tolist() == [0.0, 0.0, 1.5]


def test_averages_are_weighted_means_without_the_bias_of_their_start():
    watch, seen = Averages(2, decay=0.75), [(1.0, 0.0), (0.0, 4.0), (1.0, 1.0)]
    found = [watch(torch.tensor(x)).tolist() for x in seen]
    assert found[0] == [1.0, 0.0]
    weights = [0.75**2, 0.75, 1.0]
    wanted = [
        sum(w * x[k] for w, x in zip(weights, seen, strict=True)) / sum(weights) for k in (0, 1)
    ]
    assert found[2] == pytest.approx(wanted)
    assert int(watch.steps) == 3
