"""Sequences of different lengths read by a language model without padding (packing).

Several sequences stand end to end in one row, their position ids begin again at 0 with each, and
there is no attention mask: models of ``transformers`` then make a mask by which no token sees
another sequence (a mask of ours would not know of sliding windows), or tell a kernel for sequences
of various lengths. Batches stay padded; how they are laid out is a matter of the model alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stillroom.core import Batch, Failure
from stillroom.data.text import collate
from stillroom.models.heads import close, mode

LONGEST_WINDOW = 512
"""Tokens of a sliding window that the probe still crosses: it should not take long."""


class Padded:
    """Each sequence in a row of its own, padding masked.

    ``inputs`` is what a model of ``transformers`` is called with.
    """

    def __init__(self, batch: Batch) -> None:
        self.real, self.rows = batch.real, batch.rows
        self.inputs: dict[str, Any] = {
            "input_ids": batch.ids,
            "attention_mask": batch.real.long(),
            "position_ids": batch.positions,
            "use_cache": False,
        }

    def at_rows(self, values: Tensor) -> Tensor:
        """[N, d] at the supervised rows of the batch, of what the model said of ``inputs``."""
        return values.flatten(0, 1)[self.rows]

    def everywhere(self, values: Tensor) -> Tensor:
        """[B, L, d] at every position of the batch, of what the model said of ``inputs``."""
        return values


class Packed(Padded):
    """Several sequences in a row as wide as the longest: R <= B rows, little or no padding.

    Where attention computes all W^2 pairs of a row and masks most (eager, sdpa), rows so narrow
    cost no more than padded ones in any part; one row of all T tokens would cost T^2 there. It pays
    as far as lengths are uneven: with all alike, R = B.
    """

    one_row = False

    def __init__(self, batch: Batch) -> None:
        super().__init__(batch)
        lengths = self.real.sum(1).tolist()
        width = max(1, sum(lengths) if self.one_row else max(lengths, default=0))
        starts, self.shape = placed(lengths, width)
        places = torch.tensor(starts, device=self.real.device)[:, None] + self.real.cumsum(1) - 1
        self.slots = places.masked_fill(~self.real, 0)
        self.inputs = {
            "input_ids": self._laid(batch.ids),
            "position_ids": self._laid(batch.positions),
            "use_cache": False,
        }

    def _laid(self, values: Tensor) -> Tensor:
        """[B, L] to [R, W]. What stays free is 0, at position 0: sequences of one token each."""
        laid = values.new_zeros(self.shape)
        laid.view(-1)[self.slots[self.real]] = values[self.real]
        return laid

    def at_rows(self, values: Tensor) -> Tensor:
        return values.flatten(0, 1)[self.slots.flatten()[self.rows]]

    def everywhere(self, values: Tensor) -> Tensor:
        """The same; 0 where the batch is padding."""
        return values.flatten(0, 1)[self.slots].masked_fill(~self.real[..., None], 0)


class OneRow(Packed):
    """All sequences in one row: for kernels that compute what a row's sequences need alone.

    Flash attention of ``transformers`` tells sequences apart in batches of one row only.
    """

    one_row = True


def placed(lengths: Sequence[int], width: int) -> tuple[list[int], tuple[int, int]]:
    """The flat slot where each sequence starts, and the shape (R, W) of the rows.

    Best fit, longest first: each goes to the fullest row that has room, and stands left of those
    before it.
    """
    starts, room = [0] * len(lengths), []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fits = [row for row, free in enumerate(room) if free >= lengths[i]]
        if not fits:
            room.append(width)
        row = min(fits, key=lambda row: room[row], default=len(room) - 1)
        room[row] -= lengths[i]
        starts[i] = row * width + room[row]
    return starts, (len(room), width)


@torch.no_grad()
def pack(network: Any, said: Callable[[Batch], Tensor], model: PreTrainedModel) -> None:
    """Sets a network's ``layout`` to the first packed one that changes nothing it says.

    Three sequences, two in a row, are read packed and each alone, in eval mode: the values must
    agree to 1e-4 of the largest (3e-2 in half precision), and must not move in two of them when a
    token of the third changes. They are longer than the sliding windows of up to
    ``LONGEST_WINDOW`` tokens; that wider windows are kept is not probed.

    Args:
        network: has a ``layout``.
        said: [N, d] what it says at the rows of a batch.
        model: that it is, or that is in it.

    Raises:
        Failure: sequences in one row are not told apart.
    """
    config: Any = model.config
    texts = _texts(config.get_text_config())
    changed = [*texts[:-1], [texts[-1][0] + 1, *texts[-1][1:]]]

    def read(*given: list[int]) -> Tensor:
        pairs = [(text[:1], text[1:]) for text in given]
        return said(collate(pairs, torch.arange(len(given)), 0).to(model.device))

    with mode(network, training=False):
        network.layout = Padded
        alone = [read(text) for text in texts]
        kept = len(alone[0]) + len(alone[1])
        for layout in (Packed, OneRow):
            network.layout = layout
            together, other = read(*texts), read(*changed)
            if close(together, torch.cat(alone)) and close(other[:kept], together[:kept]):
                return
        network.layout = Padded
    raise Failure(
        f"train.packing: {config.model_type} with {config._attn_implementation!r} attention does "
        "not tell sequences in one row apart by their position ids; leave packing out. Known to "
        "work: models of transformers without recurrent layers, with the attention 'sdpa' or "
        "'eager', or flash attention"
    )


def _texts(config: Any) -> list[list[int]]:
    """Three texts; two of them fit a row together, and the longer of these crosses the window."""
    names = ("sliding_window", "attention_chunk_size", "window")
    windows = [w for w in (getattr(config, name, None) for name in names) if w]
    long = max([8, *(w + 5 for w in windows if w <= LONGEST_WINDOW)])
    long = min(long, getattr(config, "max_position_embeddings", None) or long)
    ids = [1 + i % (config.vocab_size - 2) for i in range(2 * long)]
    return [ids[:long], ids[long + 3 :], ids[long : long + 3]]
