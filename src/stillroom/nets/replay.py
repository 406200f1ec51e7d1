"""Replay buffer: sequences that were written in earlier steps, to be learned from again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from stillroom.core import Bag, Batch, Run

PADDING = 0
"""Any token will do: what stands at a padded position counts for nothing."""


class ReplayBuffer(nn.Module):
    """The last ``capacity`` sequences, prompt and answer, first in, first out.

    Which entries it holds, where, and which one an example reads do not depend on how many
    processes there are. All state is buffers of fixed shape. A bound of ``staleness`` steps makes
    entries that were written longer ago count as absent.

    Args:
        capacity: sequences that are kept.
        longest: tokens of a sequence at most (``Setup.longest``).
        make: ``data.text.collate``; token pairs, sample ids and a padding token to a batch.
    """

    ids: Tensor
    prompt: Tensor
    length: Tensor
    id: Tensor
    route: Tensor
    step: Tensor
    seen: Tensor

    def __init__(self, capacity: int, longest: int, make: Callable[..., Batch]) -> None:
        super().__init__()
        self.make = make
        self.register_buffer("ids", torch.zeros(capacity, longest, dtype=torch.int32))
        for name in ("prompt", "length", "id", "route", "step"):
            self.register_buffer(name, torch.zeros(capacity, dtype=torch.long))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    @property
    def capacity(self) -> int:
        return len(self.ids)

    def places(self, run: Run, staleness: int | None = None) -> Tensor:
        """[n] which entries were written at most so many steps ago; None: all that are held."""
        held = torch.arange(self.capacity, device=self.ids.device) < self.seen
        if staleness is not None:
            held &= run.step - self.step <= staleness
        return held.nonzero().squeeze(1)

    @torch.no_grad()
    def write(self, run: Run, batch: Batch) -> None:
        """Takes in the sequences of all processes, by sample id; the oldest give way."""
        new = run.gather(self._entries(batch))
        order = new.id.argsort(stable=True)[-self.capacity :]
        count = len(new.id)
        at = (self.seen + torch.arange(count, device=order.device))[-len(order) :] % self.capacity
        for name, values in new.items():
            getattr(self, name)[at] = values[order]
        self.step[at] = run.step
        self.seen += count

    @torch.no_grad()
    def read(self, run: Run, batch: Batch, staleness: int | None = None) -> Batch:
        """An entry for each example of a batch, picked evenly by the step and its sample id.

        Draws are independent, so two examples may read the same entry. Sample ids of what is read
        are those of its prompts. There must be an entry (``places``).
        """
        held = self.places(run, staleness)
        # a step's own decisions take the first number
        draws = torch.tensor([run.uniform(1 + i) for i in batch.id.tolist()], dtype=torch.float64)
        at = held[(draws * len(held)).long().clamp_max(len(held) - 1).to(held.device)]
        told = zip(*(t[at].tolist() for t in (self.ids, self.prompt, self.length)), strict=True)
        pairs = [(ids[:start], ids[start:end]) for ids, start, end in told]
        made = self.make(pairs, self.id[at], PADDING)
        return (made.add(route=self.route[at]) if "route" in batch else made).to(held.device)

    def _entries(self, batch: Batch) -> Bag:
        """Sequences from their first token on, whichever side their padding is."""
        longest, length = self.ids.shape[1], batch.real.sum(1)
        if int(length.max()) > longest:
            raise RuntimeError(
                f"a sequence has {int(length.max())} tokens, there is room for {longest}"
            )
        place = torch.arange(longest, device=length.device)
        column = (batch.real.int().argmax(1)[:, None] + place).clamp_max(batch.ids.shape[1] - 1)
        ids = batch.ids.gather(1, column).masked_fill(place >= length[:, None], 0)
        told = {"ids": ids.int(), "prompt": batch.prompt, "length": length, "id": batch.id}
        return Bag(told, route=batch.get("route", torch.zeros_like(batch.id)))
