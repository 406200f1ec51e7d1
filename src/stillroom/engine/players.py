"""Networks that learn, each with its own optimiser, learning rate and clipping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from stillroom.engine.parallel import Processes
from stillroom.engine.settings import Train
from stillroom.engine.sharding import moments_for, settle, weights_for, whole
from stillroom.schedules import rate_at


class Players:
    """All networks of a run by name; those with parameters that learn have an optimiser."""

    def __init__(
        self, networks: Mapping[str, nn.Module], train: Train, processes: Processes
    ) -> None:
        self.networks = dict(networks)
        self.train, self.processes = train, processes
        self.optimizers = {
            name: self._optimizer(network)
            for name, network in self.networks.items()
            if any(p.requires_grad for p in network.parameters())
        }
        train.check_names(sorted(self.optimizers))
        self.rates = {name: train.rates(name) for name in self.optimizers}

    def _optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        told = self.train.optimizer
        moving = [p for p in network.parameters() if p.requires_grad]
        if told.name == "sgd":
            return torch.optim.SGD(moving, momentum=told.momentum, weight_decay=told.weight_decay)
        return torch.optim.AdamW(
            moving, betas=told.betas, eps=told.eps, weight_decay=told.weight_decay, fused=True
        )

    def reset(self, name: str) -> None:
        """A fresh optimiser, as at the start of another training."""
        self.optimizers[name] = self._optimizer(self.networks[name])

    def gather_gradients(self, names: Sequence[str]) -> dict[str, float]:
        """Sums gradients over processes and clips them; returns each player's norm before."""
        norms = {}
        for name in names:
            settle(self.networks[name])
            parameters = [p for p in self.networks[name].parameters() if p.grad is not None]
            if not self.train.sharding:  # else the backward pass has summed them
                self.processes.reduce_gradients(parameters)
            limit = self.train.clip_of(name)
            norm = nn.utils.clip_grad_norm_(parameters, limit or float("inf"))
            norms[name] = float(whole(norm))
        return norms

    def step(self, names: Sequence[str], step: int, steps: int) -> dict[str, float]:
        """One optimiser step of the named players; drops everybody's gradients."""
        used = {}
        for name in names:
            optimizer = self.optimizers[name]
            used[name] = rate_at(self.rates[name], step, steps)
            for group in optimizer.param_groups:
                group["lr"] = used[name]
            optimizer.step()
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        return used

    def state(self) -> dict[str, Any]:
        """Whole states of networks and optimisers, on the main process; all must call it."""
        state = {
            "networks": {k: n.state_dict(keep_vars=True) for k, n in self.networks.items()},
            "optimizers": {k: o.state_dict() for k, o in self.optimizers.items()},
        }
        return whole(state, keep=self.processes.main)

    def restore(self, state: Mapping[str, Any]) -> None:
        for name, network in self.networks.items():
            network.load_state_dict(weights_for(network, state["networks"][name]))
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(moments_for(optimizer, state["optimizers"][name]))
