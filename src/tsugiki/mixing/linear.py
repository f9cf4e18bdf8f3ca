"""Weighted average of grafts: theta = sum_i w_i theta_i, as SPHINX (arXiv:2311.07575) mixes real and synthetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tsugiki.errors import InputError
from tsugiki.mixing import _base


@_base.method(paper="arXiv:2311.07575")
def mix(folders: Sequence[str | Path], weights: Sequence[float], out: str | Path) -> Path:
    """Average two or more saved grafts of one base, and save the result as a graft.

    Sums are taken in fp32 (in fp64 for fp64 tensors) and stored in the dtype of the first graft.

    Args:
        folders: saved grafts, at least two.
        weights: one for each; their sum is 1. A negative one moves away from its graft.
        out: the new graft's folder.

    Returns:
        `out`.

    Raises:
        InputError: weights that do not fit or do not sum to 1, or grafts that differ; names the first difference.
        BaseMismatchError: grafts of different bases.
        StoreError: a folder is no saved graft, or the disk is full.
    """
    if len(weights) != len(folders):
        raise InputError(
            f"{len(weights)} weights for {len(folders)} grafts", expected="one for each", where="mix(weights)"
        )
    if not all(math.isfinite(w) for w in weights) or abs(math.fsum(weights) - 1.0) > 1e-6:
        raise InputError(
            f"weights {', '.join(f'{w:g}' for w in weights)}, which sum to {math.fsum(weights):g}",
            expected="a sum of 1",
            fix="Divide them by their sum.",
            where="mix(weights)",
        )
    grafts = _base.read(folders)
    tensors = {}
    for name in grafts[0].tensors:
        tensors[name] = average([graft.tensors[name] for graft in grafts], weights, name)
    record = {"method": "linear", "weights": [float(w) for w in weights]}
    return _base.write(out, grafts, tensors, record)


def average(tensors: Sequence[Tensor], weights: Sequence[float], name: str = "") -> Tensor:
    """sum_i w_i t_i of tensors of one shape, in the first one's dtype.

    Raises:
        InputError: whole numbers (a table of indices, say) that are not the same in all.
    """
    first = tensors[0]
    if not first.is_floating_point():
        if not all(torch.equal(first, other) for other in tensors[1:]):
            raise InputError(f"{name} holds whole numbers that differ", expected="the same in all grafts", where="mix")
        return first.clone()
    wide = torch.promote_types(first.dtype, torch.float32)
    # Without the terms of weight 0: weights (1, 0) give the first graft bit for bit, -0.0 and all.
    terms = [weight * tensor.to(wide) for tensor, weight in zip(tensors, weights, strict=True) if weight]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total.to(first.dtype)
