"""Requests for the contract test, laid out by hand so that nothing of the data room is needed.

A row is a list of pieces: a number n = n text tokens, "i" = one picture.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tsugiki.testing import tiny_images
from tsugiki.types import IMAGE, PAD, TAG, TEXT

Row = list[int | str]


def request(
    model: Any, rows: list[Row], *, side: str = "right", seed: int = 0, first_image: int = 0
) -> dict[str, Tensor]:
    """Inputs of `rows`; the same row has the same tokens and pictures in any batch."""
    kind_of_image = IMAGE if model.splices else TAG
    encoded, pixels = [], []
    for number, row in enumerate(rows):
        generator = torch.Generator().manual_seed(seed + 100 * number if len(rows) > 1 else seed)
        ids: list[int] = []
        kinds: list[int] = []
        images: list[int] = []
        for piece in row:
            if piece == "i":
                count = model.tokens_per_image
                ids += [model.placeholder_id] * count
                kinds += [kind_of_image] * count
                images += [len(pixels)] * count
                picture = tiny_images(first_image + len(pixels) + 1, seed=7)[-1]
                pixels.append(model.frontend.transform(picture))
            else:
                ids += torch.randint(3, 250, (int(piece),), generator=generator).tolist()
                kinds += [TEXT] * int(piece)
                images += [-1] * int(piece)
        encoded.append((ids, kinds, images))
    return pack(encoded, pixels, side)


def pack(encoded: list[tuple[list[int], list[int], list[int]]], pixels: list[Tensor], side: str) -> dict[str, Tensor]:
    longest = max(len(ids) for ids, _, _ in encoded)

    def padded(column: int, filler: int) -> Tensor:
        rows = []
        for row in encoded:
            gap = [filler] * (longest - len(row[0]))
            rows.append(row[column] + gap if side == "right" else gap + row[column])
        return torch.tensor(rows)

    mask = []
    for ids, _, _ in encoded:
        gap = [0] * (longest - len(ids))
        mask.append([1] * len(ids) + gap if side == "right" else gap + [1] * len(ids))
    out = {"input_ids": padded(0, 0), "attention_mask": torch.tensor(mask)}
    if pixels:
        out |= {"token_kind": padded(1, PAD), "image_index": padded(2, -1), "pixel_values": torch.stack(pixels)}
    return out


def alone(batch: dict[str, Tensor], row: int, side: str) -> tuple[dict[str, Tensor], slice]:
    """One row of a batch as a request of its own, without padding; and where it stood."""
    length = int(batch["attention_mask"][row].sum())
    where = slice(0, length) if side == "right" else slice(batch["input_ids"].shape[1] - length, None)
    out = {k: batch[k][row : row + 1, where].clone() for k in ("input_ids", "attention_mask")}
    if "token_kind" in batch:
        out |= {k: batch[k][row : row + 1, where].clone() for k in ("token_kind", "image_index")}
        used = sorted(set(out["image_index"].flatten().tolist()) - {-1})
        for new, old in enumerate(used):
            out["image_index"][out["image_index"] == old] = new
        if used:
            out["pixel_values"] = batch["pixel_values"][used]
        else:
            del out["token_kind"], out["image_index"]
    return out, where


def in_parts(model: Any, inputs: dict[str, Tensor], cuts: tuple[int, ...], **options: Any) -> Tensor:
    """Logits of a request whose positions are read in parts, each from one cut to the next, through one cache."""
    visual, cache, logits = model.frontend(pixel_values=inputs["pixel_values"]), None, []
    for start, end in pairwise((0, *cuts, inputs["input_ids"].shape[1])):
        piece = {k: inputs[k][:, start:end] for k in ("input_ids", "token_kind", "image_index")}
        mask = inputs["attention_mask"][:, :end]
        with torch.no_grad():
            out = model(**piece, attention_mask=mask, visual=visual, cache=cache, use_cache=True, **options)
        cache = out.cache
        logits.append(out.logits)
    return torch.cat(logits, 1)


def wake(model: Any, seed: int = 1) -> None:
    """Move every weight of the graft and the projector off its start, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in (model.grafts, model.frontend.projector):
            for p in part.parameters():
                noise = torch.randn(p.shape, generator=generator, dtype=torch.float32)
                p.add_(0.3 * noise.to(p.dtype))
