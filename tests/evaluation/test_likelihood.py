"""Likelihood in units that compare models with different tokenizers."""

import math

import pytest
import torch
from torch import nn

from stillroom.core import Signals
from stillroom.data.text import Example, TextData
from stillroom.evaluation.likelihood import measure
from stillroom.evaluation.suite import View

WORDS = {2: "a", 3: "é", 4: "lamb"}


class Spelling:
    """Ids to words; 0 and 1 (padding, end) are no text."""

    pad_id = 0

    def decode(self, ids):
        return "".join(WORDS.get(i, "") for i in ids)


class Uniform(nn.Module):
    """Every one of 8 tokens is as likely."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, batch):
        return Signals(logits=torch.zeros(len(batch.rows), 8))


def view(**more) -> View:
    examples = [Example("", "", (2,), (3, 4, 1)), Example("", "", (4, 4), (2, 1))]
    return View(players={"student": Uniform()}, data=TextData(examples, 0), **more)


@pytest.mark.parametrize("budget", [1, 16384])
def test_bits_a_byte_are_all_bits_over_all_bytes_of_the_answers(budget):
    told = measure(view(renderer=Spelling(), budget=budget))
    # five tokens of 3 bits, ends included; "é" and "lamb" are 2 + 4 bytes, "a" is one
    assert told["bits_per_byte"] == pytest.approx(5 * 3 / 7)
    assert told["nll"] == pytest.approx(math.log(8))
    assert told["perplexity"] == pytest.approx(8)


def test_a_made_up_world_and_data_without_text_have_no_bytes():
    assert "bits_per_byte" not in measure(view(renderer=Spelling(), world=object()))
    assert "bits_per_byte" not in measure(view())
