"""Trainable modules made like parts of a frozen LLM. D is the LLM's width."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tsugiki.decoder import DecoderSpec
from tsugiki.errors import UnsupportedError


def layer_like(decoder: DecoderSpec, source: int, index: int, *, copy: bool) -> nn.Module:
    """A new decoder layer of the LLM's class in fp32, trainable and without dropout, with its own place in a cache.

    Args:
        source: the LLM's layer whose kind it has (sliding or full attention, say), and whose weights with `copy`.
        index: its `layer_idx`.
        copy: else random, as the LLM's own class starts.

    Raises:
        UnsupportedError: the class can't be built by itself, or the source's weights can't be copied.
    """
    original: Any = decoder.layers[source]
    try:
        layer: nn.Module = type(original)(decoder.config, source)
    except Exception as error:
        raise UnsupportedError(
            f"a layer of {decoder.name} can't be built from its config ({error})",
            expected="a layer class that takes the config and an index",
            fix="Use a graft that inserts no layers: projector, cross_attention or wings.",
        ) from error
    layer.to(decoder.embed.weight.device)
    if copy:
        _take_over(layer, original, decoder.name)
    else:
        start: Any = decoder.llm._init_weights
        layer.apply(start)
    for module in layer.modules():
        if getattr(module, "layer_idx", None) is not None:
            module.layer_idx = index  # type: ignore[assignment]
    without_dropout(layer)
    return layer.float().requires_grad_(True)


def _take_over(layer: nn.Module, original: nn.Module, name: str) -> None:
    own, given = layer.state_dict(), original.state_dict()
    wrong = [k for k in {**own, **given} if k not in own or k not in given or own[k].shape != given[k].shape]
    wrong += [k for k in own if k in given and not given[k].is_floating_point() and own[k].is_floating_point()]
    if wrong:
        raise UnsupportedError(
            f"weights of {name} can't be copied into a new layer (first: {wrong[0]})",
            expected="a base in full or half precision, without adapters inside its layers",
            fix="Take init='random', or load the base without quantisation and merge its adapter first.",
        )
    with torch.no_grad():
        for key, tensor in own.items():
            tensor.copy_(given[key])


def without_dropout(module: nn.Module) -> None:
    """Set every dropout inside to 0: a graft's layers are trained without."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        for name, value in vars(part).items():
            if name.endswith("dropout") and isinstance(value, float):
                setattr(part, name, 0.0)


def copied(module: nn.Module) -> nn.Module:
    """A trainable copy in fp32, without the hooks and replaced methods of the original."""
    twin = copy.deepcopy(module)
    for part in twin.modules():
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
        part.__dict__.pop("forward", None)
    return twin.float().requires_grad_(True)


@torch.no_grad()
def silence(decoder: DecoderSpec, layers: Sequence[nn.Module]) -> None:
    """Set the last matrix of attention and of FFN to zero, so that each of `layers` passes its input through.

    Which these are is read from the order in which the modules of the LLM's first layer run.

    Raises:
        UnsupportedError: a layer adds something else to its input.
    """
    outputs = _outputs(decoder)
    for layer in layers:
        modules = dict(layer.named_modules())
        if any(name not in modules for name in outputs):  # its layers are of several kinds
            raise _no_identity(decoder)
        for name in outputs:
            for parameter in modules[name].parameters(recurse=False):
                parameter.zero_()
    if not outputs:
        raise _no_identity(decoder)


def _outputs(decoder: DecoderSpec) -> list[str]:
    """Names, within a layer, of the modules that give the output of its attention and of its FFN."""
    block = decoder.blocks[0]
    names = {id(m): n for n, m in block.layer.named_modules()}
    order: list[str] = []

    def note(module: nn.Module, *_: Any) -> None:
        order.append(names[id(module)])

    leaves = [m for m in block.layer.modules() if any(p.dim() >= 2 for p in m.parameters(recurse=False))]
    handles = [m.register_forward_hook(note) for m in leaves]
    try:
        decoder.probe()
    finally:
        for handle in handles:
            handle.remove()
    inside = f"{names[id(block.attention)]}."
    last = [[n for n in order if n.startswith(inside)], [n for n in order if not n.startswith(inside)]]
    found = [n[-1] for n in last if n]
    modules = dict(block.layer.named_modules())
    if len(found) != 2 or any(p.dim() > 2 for n in found for p in modules[n].parameters(recurse=False)):
        raise _no_identity(decoder)
    return found


def _no_identity(decoder: DecoderSpec) -> UnsupportedError:
    return UnsupportedError(
        f"a layer of {decoder.name} has no last matrix of attention and FFN that could be zero",
        expected="dense attention and FFN",
        fix="Take init='copy'.",
    )
