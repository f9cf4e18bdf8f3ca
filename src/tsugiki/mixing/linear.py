"""Weighted average of models: theta = sum_i w_i theta_i, as SPHINX (arXiv:2311.07575) mixes real and synthetic."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from tsugiki.errors import InputError
from tsugiki.mixing import _base, _parents, _result
from tsugiki.mixing._parents import Parent
from tsugiki.mixing._weights import Parts, Rules, place
from tsugiki.mixing._writer import Entry

BLOCK = 2**18
"""Numbers that are mixed at once: they stay in the processor's cache, and memory does not grow with the models."""


@_base.method(paper="arXiv:2311.07575")
def mix(
    folders: Sequence[str | Path],
    weights: Sequence[float],
    out: str | Path,
    *,
    parts: Parts | None = None,
    base: str | Path | None = None,
    normalise: bool = False,
    extrapolate: bool = False,
) -> Path:
    """Average two or more models of one base, and save the result as one of their kind.

    Sums are taken in fp32 (in fp64 for fp64 tensors), block by block from the mapped files into the new ones, and
    stored in the dtype of the first parent that is not the base. Where one parent has all the weight its bytes are
    copied, and so are tensors that are the same in all parents.

    Args:
        folders: saved grafts, or exports, or plain causal LMs in transformers' form, at least two. "base" is the base
            of grafts whose LLM was trained: it has the LLM's tensors only, and elsewhere the others' weights are
            divided by their sum.
        weights: one for each; their sum is 1.
        out: the new folder. It holds a graft, an export where all are exports, or an LLM.
        parts: other weights for parts, see `mixing._weights`; of two parents the first one's weight is enough.
        base: where "base" is, if not where the grafts say.
        normalise: divide weights by their sum.
        extrapolate: weights may leave [0, 1]; a negative one moves away from its parent.

    Returns:
        `out`.

    Raises:
        InputError: weights that do not fit, or parents that differ; names the first difference.
        UnknownNameError: a pattern of `parts` that matches no tensor.
        BaseMismatchError: parents of different bases.
        StoreError: a folder is no model, or the disk is full. Nothing is half-written.
    """
    rules = Rules.of(weights, parts, parents=len(folders), normalise=normalise, extrapolate=extrapolate)
    parents = _parents.read(folders, base)
    own = next(parent for parent in parents if not parent.is_base)
    rules = rules.named([str(g["name"]) for g in own.settings.get("grafts") or ()], own.checkpoint)
    record = {
        "method": "linear",
        "weights": list(rules.weights),
        "parts": {pattern: list(values) for pattern, values in rules.parts},
    }
    return _result.write(out, parents, partial(_entry, parents, rules), record)


def average(tensors: Sequence[Tensor], weights: Sequence[float], name: str = "") -> Tensor:
    """sum_i w_i t_i of tensors of one shape, in the first one's dtype.

    Raises:
        InputError: whole numbers (a table of indices, say) that are not the same in all.
    """
    first = tensors[0]
    if not first.is_floating_point():
        if not all(torch.equal(first, other) for other in tensors[1:]):
            raise InputError(f"{name} holds whole numbers that differ", expected="the same in all parents", where="mix")
        return first.clone()
    wide = torch.promote_types(first.dtype, torch.float32)
    # Without the terms of weight 0: an infinity of a parent that is left out must not become nan.
    terms = [(tensor.to(wide), weight) for tensor, weight in zip(tensors, weights, strict=True) if weight]
    total = terms[0][0] * terms[0][1]
    for term, weight in terms[1:]:
        total += term * weight
    return total.to(first.dtype)


def _entry(parents: Sequence[Parent], rules: Rules, name: str, part: str) -> Entry:
    """How one tensor is mixed.

    Args:
        part: "checkpoint", or "base" for the LLM of exports.
    """
    files = [parent.checkpoint if parent.is_base else getattr(parent, part) for parent in parents]
    there = [i for i, file in enumerate(files) if name in file]
    weights = _shared([rules.at(name)[i] for i in there], len(there) < len(parents), name)
    kept = [(files[i], weight) for i, weight in zip(there, weights, strict=True) if weight]
    first = files[next(i for i in there if not parents[i].is_base)]
    shown = name.removeprefix(first.prefix)
    if len(kept) == 1 and kept[0][1] == 1.0:
        only = kept[0][0]
        tensor = only.tensor(name)
        return Entry(shown, only.dtype(name), tensor, partial(_pieces, tensor))
    like = first.tensor(name)
    tensors = [file.tensor(name) for file, _ in kept]
    blocks = partial(_mixed, tensors, [weight for _, weight in kept], like.dtype, name)
    return Entry(shown, first.dtype(name), like, blocks)


def _shared(weights: Sequence[float], base_lacks_it: bool, name: str) -> Sequence[float]:
    """Weights of those that have the tensor: without the base's, the others' are divided by their sum."""
    if not base_lacks_it:
        return weights
    if len(weights) == 1:
        return (1.0,)
    total = math.fsum(weights)
    if total <= 0:
        raise InputError(
            f"the base has all the weight, and it has no {place(name)}",
            expected="weight for another parent there",
            fix=f"Give {place(name).partition('.')[0]} weights of its own: parts=, --part.",
            where="mix(weights)",
        )
    return [weight / total for weight in weights]


def _mixed(tensors: Sequence[Tensor], weights: Sequence[float], dtype: torch.dtype, name: str) -> Iterator[Tensor]:
    if tensors[0].dtype == dtype and _alike(tensors):
        yield from _pieces(tensors[0])
        return
    wide = torch.promote_types(dtype, torch.float32)
    for blocks in zip(*(_pieces(tensor) for tensor in tensors), strict=True):
        floats = [block.to(wide) if block.is_floating_point() else block for block in blocks]
        yield average(floats, weights, name).to(dtype)


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """Flat blocks of a tensor, views where it is contiguous, as mapped ones are."""
    flat = tensor.reshape(-1)
    for start in range(0, flat.numel(), BLOCK):
        yield flat[start : start + BLOCK]


def _alike(tensors: Sequence[Tensor]) -> bool:
    """Are all the same bit for bit? Ends at the first block that is not."""
    first = tensors[0]
    if any(tensor.dtype != first.dtype for tensor in tensors[1:]):
        return False
    for blocks in zip(*(_pieces(tensor) for tensor in tensors), strict=True):
        raw = [block.view(torch.uint8) for block in blocks]
        if not all(torch.equal(raw[0], other) for other in raw[1:]):
            return False
    return True
