"""Networks in shares: FSDP2 (``fully_shard``), for those whose training fits no single device.

Each process holds a share of every weight, gradient and moment. A layer's weights are gathered
when it speaks and dropped when it has spoken; those outside of the layers (embedding, last norm,
head) stay gathered, so that the ``Head`` in signals is whole, until the optimiser's step. So all
processes call a network equally often, in the same order.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from stillroom.core import Failure, Signals, Teacher
from stillroom.engine.parallel import Processes
from stillroom.models.adapters import AdaptedLM
from stillroom.models.text import CausalLM
from stillroom.teachers.local import Local
from stillroom.teachers.routed import each


def check_shardable(players: Mapping[str, nn.Module], teachers: Mapping[str, Teacher]) -> None:
    """Whether players and the teachers in this process can be sharded.

    Raises:
        Failure: torch is too old, or a network is an adapter on a shared base, has a weight
            without an axis, or one in common with another.
    """
    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        lack = "its FSDP cannot add gradients up without NCCL; torch 2.13 can"
        raise Failure(f"train.sharding needs a later torch than {torch.__version__}: {lack}")
    owners: dict[int, str] = {}
    for name, network in [*players.items(), *((k, t.network) for k, t in _live(teachers))]:
        if any(isinstance(module, AdaptedLM) for module in network.modules()):
            raise Failure(
                f"train.sharding: {name!r} is an adapter on a base that others share, which is not "
                "cut into shares; leave train.sharding out: what adapters need beside it is small"
            )
        for path, parameter in network.named_parameters():
            if not parameter.dim():
                one = f"{path} of {name!r} is a single number"
                raise Failure(f"train.sharding: {one}; give it the shape [1]")
            if (other := owners.setdefault(id(parameter), name)) != name:
                raise Failure(
                    f"train.sharding: {name!r} and {other!r} have {path} in common, which is not "
                    "cut for both; leave train.sharding out, or, if it is the head of a view, "
                    "train on the full vocabulary (student.vocab: full)"
                )


def _live(teachers: Mapping[str, Teacher]) -> list[tuple[str, Local]]:
    return [(name, teacher) for name, teacher in each(teachers) if isinstance(teacher, Local)]


class Sharding:
    """Networks of one run in shares over all processes.

    The gradients of all processes are added up, not averaged: the engine has divided already.

    Args:
        bf16: layers are gathered and compute in bfloat16, what passes from one to the next (under
            autocast alone: float32) included; shares, what is outside of the layers, and sums of
            gradients stay in float32.
    """

    def __init__(self, processes: Processes, *, bf16: bool) -> None:
        self.processes = processes
        self.mesh = init_device_mesh(processes.device.type, (processes.world,))
        # not by autocast: the copies that it keeps would get gradients after a layer's are summed
        low = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        self.policy = low if bf16 else MixedPrecisionPolicy()
        self.pairs: list[tuple[nn.Module, nn.Module]] = []
        self.teachers: list[tuple[Local, nn.Module]] = []

    def shard_all(
        self, players: Mapping[str, nn.Module], teachers: Mapping[str, Teacher]
    ) -> dict[str, nn.Module]:
        """The players in shares; the teachers in this process speak through theirs."""
        for _, teacher in _live(teachers):
            self.teachers.append((teacher, teacher.network))
            teacher.network = self.shard(teacher.network)
        return {name: self.shard(network) for name, network in players.items()}

    def shard(self, network: nn.Module) -> nn.Module:
        """A network in shares; the one given is empty until ``restore``."""
        own = list(network.parameters())
        if not own:
            return network
        made = copy.deepcopy(network, {id(p): p for p in own})
        made.register_forward_hook(_without_head)
        for layer in _layers(made):
            fully_shard(layer, mesh=self.mesh, mp_policy=self.policy)
        root = fully_shard(made, mesh=self.mesh, reshard_after_forward=False)
        root.set_reshard_after_backward(False, recurse=False)
        made.register_forward_hook(_with_head)
        for module in made.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)  # the other way is NCCL's alone
            if isinstance(module, CausalLM):
                module.anywhere = self.processes.anywhere
        for door in getattr(network, "doors", ()):
            register_fsdp_forward_method(made, door)
        for parameter in own:
            parameter.data = parameter.data.new_empty(0)
        self.pairs.append((network, made))
        return made

    def restore(self) -> None:
        """The networks that were given are whole again, on every process, as they are now."""
        for given, made in self.pairs:
            state = whole(made.state_dict(keep_vars=True))
            for name, parameter in given.named_parameters():
                parameter.data = state[name].to(parameter.device)
            given.load_state_dict(state)
        for teacher, network in self.teachers:
            teacher.network = network


def settle(network: nn.Module) -> None:
    """Drops what is still gathered: before the optimiser writes to the shares."""
    if isinstance(network, FSDPModule):
        network.reshard()


@torch.no_grad()
def whole(tree: Any, *, keep: bool = True) -> Any:
    """A state with its sharded tensors gathered in host memory; all processes must call it.

    One that stands at several places (tied weights) is gathered once. A process that does not
    ``keep`` them gets empty ones.
    """
    known: dict[int, Tensor] = {}

    def gathered(node: Any) -> Any:
        if isinstance(node, DTensor):
            if id(node) not in known:
                full = node.full_tensor()
                known[id(node)] = full.cpu() if keep else full.new_empty(0)
            return known[id(node)]
        if isinstance(node, Mapping):
            return {name: gathered(value) for name, value in node.items()}
        return [gathered(value) for value in node] if isinstance(node, list) else node

    return gathered(tree)


def weights_for(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A whole state as ``network.load_state_dict`` takes it: this process's shares."""
    own = network.state_dict(keep_vars=True)
    return {name: _share(value, own.get(name)) for name, value in state.items()}


def moments_for(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """The same for ``optimizer.load_state_dict``."""
    moving = [p for group in optimizer.param_groups for p in group["params"]]
    shares = {
        i: {k: _share(v, moving[i]) for k, v in values.items()}
        for i, values in state["state"].items()
    }
    return {**state, "state": shares}


def _share(value: Any, like: Any) -> Any:
    """This process's share of ``value``, cut as ``like`` is; what has another shape is not."""
    if not isinstance(like, DTensor) or getattr(value, "shape", None) != like.shape:
        return value
    here = value.to(like.device)
    return distribute_tensor(here, like.device_mesh, like.placements, src_data_rank=None)


def _layers(network: nn.Module) -> Iterator[nn.Module]:
    """The entries of lists of modules, such as the layers of a trunk; not lists within them."""
    for child in network.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _layers(child)


def _without_head(_module: nn.Module, _args: Any, said: Any) -> Any:
    """FSDP hangs a hook on every tensor that a network gives; on a weight they would pile up."""
    if isinstance(said, Signals):
        return Signals({name: value for name, value in said.items() if name != "head"})
    return said


def _with_head(module: Any, _args: Any, said: Any) -> None:
    if isinstance(said, Signals) and "hidden" in said:
        said["head"] = module.head
