"""One step: micro-batches in lockstep, one optimiser step for each update they yield."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from stillroom.core import Batch, Failure, Term, Update
from stillroom.engine.run import Run
from stillroom.engine.sharding import settle


class NotFinite(Failure):
    """A loss or gradient became NaN or infinite; nothing was updated with it."""


def iterate(run: Run, batch: Batch) -> dict[str, float]:
    """Takes one step of the run's method and returns its numbers."""
    with torch.no_grad(), run.autocast():
        batch = run.method.prepare(run, batch)
    micros = _micro_batches(run, batch)
    threads = [run.method.updates(run, micro) for micro in micros]
    means = _Means(run, batch)
    log: dict[str, float] = {}
    for moment in _lockstep(run, threads):
        players: tuple[str, ...] = ()
        sums: dict[str, Tensor] = {}
        for micro, update in zip(micros, moment, strict=True):
            if players not in ((), update.players):
                raise RuntimeError(f"micro-batches disagree: {players} and {update.players}")
            players = update.players
            loss = torch.zeros((), device=run.processes.device)
            for term in _terms(update):
                share = means.share(term, micro)
                loss = loss + term.weight * share
                name = f"loss/{'+'.join(players)}/{term.name}"
                sums[name] = sums.get(name, torch.zeros(())) + share.detach().cpu().double()
            loss.backward()
        norms = run.all.gather_gradients(players)
        _check_norms(run, norms, batch)
        log |= {f"lr/{k}": v for k, v in run.all.step(players, run.step, run.steps).items()}
        log |= {f"grad_norm/{k}": v for k, v in norms.items()}
        log |= {k: float(run.processes.total(v.to(run.processes.device))) for k, v in sums.items()}
    for network in run.players.values():
        settle(network)
    with torch.no_grad():
        run.method.after(run, batch)
    run.tokens["trained"] += batch.cost
    return {**log, **run.logged()}


class _Means:
    """Sums over named masks, counted once a step over all micro-batches and processes."""

    def __init__(self, run: Run, batch: Batch) -> None:
        self.run, self.batch = run, batch
        self.counts: dict[str, Tensor] = {}

    def share(self, term: Term, micro: Batch) -> Tensor:
        """This micro-batch's part of the mean of a term."""
        mask, value = micro.find(term.over), term.value
        if self.run.method.needs.whole and self.run.processes.world > 1:
            value = value[self.run.processes.rank * len(mask) :][: len(mask)]
        if value.shape != mask.shape:
            raise RuntimeError(
                f"term {term.name!r} has shape {tuple(value.shape)}, "
                f"its mask {term.over!r} {tuple(mask.shape)}"
            )
        if not torch.isfinite(value.detach()[mask > 0]).all():
            bad = ~torch.isfinite(value.detach()) & (mask > 0)
            raise self._not_finite(term, micro, bad)
        total = (torch.where(mask > 0, value, 0) * mask).sum()  # float32 or better: masks are
        return total / self._count(term.over).to(total)

    def _count(self, over: str) -> Tensor:
        if over not in self.counts:
            count = self.run.processes.total(self.batch.find(over).sum())
            self.counts[over] = count.clamp_min(torch.finfo(count.dtype).tiny)
        return self.counts[over]

    def _not_finite(self, term: Term, micro: Batch, bad: Tensor) -> NotFinite:
        holder = micro.find(term.over.rpartition(".")[0]) if "." in term.over else micro
        owner = holder.owner if len(bad) == len(holder.owner) else torch.arange(holder.size)
        ids = sorted(set(holder.id.cpu()[owner.cpu()[bad.cpu()]].tolist()))
        return NotFinite(
            f"step {self.run.step + 1}: the term {term.name!r} is not finite for the samples with "
            f"ids {ids}; nothing was updated. Look at these rows, or lower train.lr or train.clip"
        )


def _check_norms(run: Run, norms: dict[str, float], batch: Batch) -> None:
    for player, norm in norms.items():
        if not math.isfinite(norm):
            raise NotFinite(
                f"step {run.step + 1}: the gradient of {player!r} is not finite for the samples "
                f"with ids {sorted(batch.id.tolist())}; nothing was updated. Lower train.lr or "
                "train.clip"
            )


def _micro_batches(run: Run, batch: Batch) -> list[Batch]:
    budget = run.train.tokens_per_micro
    if not run.method.needs.whole:
        return run.parts(batch)
    if batch.cost > budget:
        raise Failure(
            f"{type(run.method).__name__} compares the samples of a batch, so the batch is never "
            f"split: it has {batch.cost} tokens or items but train.tokens_per_micro is {budget}"
        )
    return [batch]


def _terms(update: Update) -> Sequence[Term]:
    return (update.terms,) if isinstance(update.terms, Term) else update.terms


def _lockstep(run: Run, threads: list[Iterator[Update]]) -> Iterator[Iterator[Update]]:
    """The k-th update of every micro-batch, lazily, for k = 0, 1, ...: one graph at a time."""

    def advance(thread: Iterator[Update]) -> Any:
        with run.autocast():
            return next(thread, None)

    while (first := advance(threads[0])) is not None:

        def moment(first: Update = first) -> Iterator[Update]:
            yield first
            for thread in threads[1:]:
                if (update := advance(thread)) is None:
                    raise RuntimeError("micro-batches must yield the same number of updates")
                yield update

        yield moment()
    if any(advance(thread) is not None for thread in threads[1:]):
        raise RuntimeError("micro-batches must yield the same number of updates")
