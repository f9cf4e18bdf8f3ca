"""The reader of `places.py` in closed form, from pictures with boxes, without running the LLM.

Two ridge regressions on the neighbourhoods of cells: score = 1 at cells in the middle of a thing and 0 elsewhere (two
such cells for each of the first), and the edges of the thing, relative to the cell's centre, at the first alone. The
features are cut to their main components first, and the result is put back, so that one convolution is left.
Shapes: n pictures, P = h * w cells, V tower width, C components, R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tsugiki.errors import InputError
from tsugiki.vision.places import TAPS, Places, overlaps
from tsugiki.vision.ridge import ridge

COMPONENTS = 128
MIDDLE = 0.5
"""The share of a box's sides, around its centre, in which cells are its middle; the nearest cell always is."""
_SAMPLE = 256  # pictures that the components are taken from
_CHUNK = 64  # pictures; bounds the memory for neighbourhoods
_HOLD_OUT = 10  # every 10th picture tells the strengths, and how many of its things are found


@torch.no_grad()
def fit(places: Places, features: Tensor, boxes: Sequence[Tensor], *, seed: int = 0) -> dict[str, Any]:
    """Set the reader.

    Args:
        places: changed in place.
        features: of a frozen tower, [n, P, V].
        boxes: of each picture, [k, 4], xyxy in [0, 1] of the padded square; all things that are on it, since what has
            no box counts as background.
        seed: of the background cells.

    Returns:
        things, and of held-out pictures: found (share of their things that one of the K boxes overlaps by half or
        more), r2_edges, r2_score.

    Raises:
        InputError: fewer than 2 pictures, another number of boxes than pictures, or no box at all.
    """
    things = sum(len(b) for b in boxes)
    if len(features) != len(boxes) or len(boxes) < 2 or not things:
        raise InputError(
            f"{len(features)} pictures, {len(boxes)} of them with {things} boxes",
            expected="at least 2 pictures, and boxes",
            fix="Give pictures with boxes, or set places to 0.",
            where="places",
        )
    features = features.cpu()
    centre, basis = components(features[:: max(1, len(features) // _SAMPLE)])
    middle, edges = targets(boxes, places.middles.cpu())  # [n, P], [n, P, 4]
    held = torch.zeros(len(boxes), dtype=torch.bool)
    if len(boxes) >= 3 * _HOLD_OUT:
        held[_HOLD_OUT - 1 :: _HOLD_OUT] = True
        held &= middle.any(dim=1)
    used = middle | background(middle, seed)
    inputs = torch.cat(
        [
            neighbourhoods((part.float() - centre) @ basis, places.grid)[use]
            for part, use in zip(features.split(_CHUNK), used.split(_CHUNK), strict=True)
        ]
    )  # [R, C * TAPS * TAPS]
    picture = used.nonzero()[:, 0]
    report: dict[str, Any] = {"things": things}
    is_middle, apart = middle[used], held[picture]
    for name, rows, wanted, outputs in (
        ("score", torch.ones_like(apart), is_middle[:, None].float(), slice(0, 1)),
        ("edges", is_middle, edges[used], slice(1, 5)),
    ):
        own, other = rows & ~apart, rows & apart
        told = (inputs[other], wanted[other]) if other.any() else None
        solution = ridge(inputs[own], wanted[own], told)
        report[f"r2_{name}"] = solution.r2
        _set(places, solution, basis, outputs)
        if told is not None:
            report.setdefault("_", []).append((solution.strength, rows, wanted, outputs))
    places.centre.copy_(centre)
    again = report.pop("_", [])
    if again:
        report["found"] = found(places, features[held], [b for b, h in zip(boxes, held.tolist(), strict=True) if h])
    for strength, rows, wanted, outputs in again:  # all pictures, now that they have told the strengths
        _set(places, ridge(inputs[rows], wanted[rows], strengths=[strength]), basis, outputs)
    return report


def _set(places: Places, solution: Any, basis: Tensor, outputs: slice) -> None:
    matrix = solution.matrix.reshape(basis.shape[1], TAPS * TAPS, -1)  # unfold puts the taps of a channel together
    places.weight[..., outputs].copy_(torch.einsum("vc,cto->tvo", basis, matrix))
    places.bias[outputs].copy_(solution.target_mean - solution.input_mean @ solution.matrix)


def components(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [V] and the main directions [V, C] of the cells of features [n, P, V]."""
    cells = features.flatten(0, 1).float()
    centre = cells.mean(dim=0)
    x = (cells - centre).double()
    vectors = torch.linalg.eigh(x.T @ x).eigenvectors  # by rising eigenvalue
    return centre, vectors[:, -COMPONENTS:].float()


def neighbourhoods(cells: Tensor, grid: tuple[int, int]) -> Tensor:
    """Every cell with its neighbours, [n, P, C] -> [n, P, C * TAPS * TAPS]; beyond the map there are zeros."""
    maps = cells.transpose(1, 2).unflatten(2, grid)
    return F.unfold(maps, TAPS, padding=TAPS // 2).transpose(1, 2)


def targets(boxes: Sequence[Tensor], middles: Tensor) -> tuple[Tensor, Tensor]:
    """Which cells are in the middle of a thing, bool [n, P], and its edges relative to the cell there, [n, P, 4].

    Args:
        middles: centres of the cells, xy, [P, 2].
    """
    middle = torch.zeros(len(boxes), len(middles), dtype=torch.bool)
    edges = torch.zeros(len(boxes), len(middles), 4)
    for i, things in enumerate(boxes):
        for box in things:
            centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
            inside = ((middles - centre).abs() < MIDDLE * half).all(dim=1)
            inside[(middles - centre).norm(dim=1).argmin()] = True
            middle[i] |= inside
            edges[i, inside] = box - middles[inside].repeat(1, 2)
    return middle, edges


def background(middle: Tensor, seed: int) -> Tensor:
    """Twice as many other cells as there are middles, drawn at random, bool [n, P]."""
    rest = (~middle).flatten().nonzero()[:, 0]
    drawn = torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))[: 2 * int(middle.sum())]
    chosen = torch.zeros_like(middle).flatten()
    chosen[rest[drawn]] = True
    return chosen.view_as(middle)


def found(places: Places, features: Tensor, boxes: Sequence[Tensor]) -> float:
    """Share of all things that one of the K boxes overlaps by half or more."""
    proposals = torch.cat([places.find(part.to(places.weight.device))[1].cpu() for part in features.split(_CHUNK)])
    hits = [overlaps(b[:, None], p[None]).amax(dim=1) >= 0.5 for b, p in zip(boxes, proposals, strict=True)]
    return float(torch.cat(hits).float().mean())
