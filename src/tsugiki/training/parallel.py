"""How several processes share a stage: DDP around the model, or FSDP2 on a twin of it.

The twin's parameters lie in pieces over the processes. The model itself stays whole and as it was; after a stage it
gets what the twin has learned. Units are the LLM's layers, the grafts' blocks, the projector, and a tower that trains;
whatever else there is belongs to the root, which stays gathered through a forward. A tower that is frozen stays out:
its features come from the cache.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from tsugiki.grafts._context import KEYWORD, current
from tsugiki.training import parts
from tsugiki.training.processes import Processes

HIDDEN = object()


class Sharded(nn.Module):
    """Around a twin, so that the Trainer takes it for wrapped and lets it be."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, **inputs: Any) -> Any:
        return self.module(**inputs)


def wrap(model: nn.Module, here: Processes, parallel: str) -> nn.Module:
    """The model as the Trainer calls it; its gradients become the mean over all processes."""
    if parallel == "fsdp":
        # Every backward reduces, also where gradients are accumulated: a unit that does not run in the last batch of a
        # step (a text-only one) would never be reduced otherwise, and whole gradients would be kept.
        # A projector's output is a view; no graft writes into it.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view", category=UserWarning)
        return Sharded(model)
    known = inspect.signature(DistributedDataParallel).parameters
    buffers = (
        "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    )  # torch 2.13 renamed it
    options: dict[str, Any] = {
        buffers: False,  # none changes
        "init_sync": False,  # aligned already, without the frozen LLM
        "find_unused_parameters": True,  # a text-only batch leaves the front-end without gradients
    }
    return DistributedDataParallel(model, device_ids=[here.device] if here.device.type == "cuda" else None, **options)


def twin(model: Any, here: Processes) -> Any:
    """A sharded copy of a model, to train; it shares the model's memory until it is sharded."""
    memo: dict[int, Any] = {
        # A number can't be cut: it becomes a vector of one, which computes the same.
        id(p): nn.Parameter(p.detach().reshape(1) if p.dim() == 0 else p.detach(), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    copied = copy.deepcopy(model, memo)
    copied.numbers = frozenset(name for name, p in model.named_parameters() if p.dim() == 0)
    mesh = init_device_mesh(here.device.type, (here.world,))
    for unit in units(copied):
        # A unit's inputs are rebuilt to see their gradients, dataclasses included: a context would become another one,
        # and what a site leaves in its notes would be lost.
        unit.register_forward_pre_hook(_with_context, with_kwargs=True, prepend=True)
        fully_shard(unit, mesh=mesh)
        unit.register_forward_pre_hook(_without_context, with_kwargs=True, prepend=True)
    still = [t for t in copied.frontend.towers if not any(p.requires_grad for p in t.parameters())]
    out = {p for tower in still for p in tower.parameters()}
    fully_shard(copied, mesh=mesh, ignored_params=out)
    return copied


def _without_context(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    return args, {k: HIDDEN if k == KEYWORD else v for k, v in kwargs.items()}


def _with_context(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    return args, {k: current() if v is HIDDEN else v for k, v in kwargs.items()}


def units(model: Any) -> Iterator[nn.Module]:
    """Modules that are gathered only while they run; none holds another one's parameter."""
    tower = model.frontend.tower
    blocks = [block for graft in model.grafts for child in graft.children() for block in _blocks(child)]
    towers = [tower] if any(p.requires_grad for p in tower.parameters()) else []
    # A mix runs parts of the projector, not its forward: what is gathered by a forward would stay in pieces.
    projector = [model.frontend.projector] if model.frontend.mix is None else []
    found = [*model.decoder.layers, *blocks, *projector, *towers]
    owners = Counter(id(p) for module in found for p in module.parameters())
    for module in found:
        own = [id(p) for p in module.parameters()]
        if own and all(owners[i] == 1 for i in own):
            yield module


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules that run by themselves: a list of blocks does not, its blocks do."""
    if type(module).forward is not nn.Module.forward:
        yield module
    else:
        for child in module.children():
            yield from _blocks(child)


def full(tensor: Tensor) -> Tensor:
    """The whole tensor, in every process; all of them have to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(named: Mapping[str, Tensor], model: Any, here: Processes) -> dict[str, Tensor]:
    """Whole tensors on the CPU in the first process, which writes them; nothing in the others.

    Args:
        named: parameters by name, or their optimiser's tensors as `<parameter>/<state>`.
        model: that they are of, a twin or not.
    """
    numbers, found = getattr(model, "numbers", ()), {}
    for name, tensor in named.items():
        whole = full(tensor.detach())
        if here.first:
            found[name] = whole.cpu().reshape(()) if name.partition("/")[0] in numbers else whole.cpu()
    return found


def others_random(here: Processes) -> dict[str, Tensor]:
    """Torch's random states of all processes but the first: `rank1.cpu`, ..."""
    own = {"cpu": torch.get_rng_state()}
    if here.device.type == "cuda":
        own[f"cuda.{here.device.index}"] = torch.cuda.get_rng_state(here.device)
    each = here.collect(own)
    return {f"rank{i}.{key}": state for i, states in enumerate(each) if i for key, state in states.items()}


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor in the same pieces as a parameter of its size."""
    if isinstance(parameter, DTensor):
        value = value.to(parameter.device).reshape(parameter.shape)
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value


@torch.no_grad()
def put_back(trained: Any, model: Any, rates: Mapping[str, Any]) -> None:
    """Copy the named parts of a twin into the model that it was made from."""
    own = parts.trained_tensors(model, rates)
    for name, tensor in parts.trained_tensors(trained, rates).items():
        own[name].copy_(full(tensor.detach()).reshape(own[name].shape))
