"""A safetensors file written as its tensors come: first the header, since shapes are known, then block after block.

Whoever writes holds one block of one tensor at a time. The caller writes into a folder that is renamed when it is whole
(`data.files.atomic_folder`), so a file that was cut off is never seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tsugiki import identity

ALIGNMENT = 8
"""Bytes: safetensors' own writer lets the data begin at a multiple of it."""


@dataclass(frozen=True)
class Entry:
    """One tensor to be written."""

    name: str
    dtype: str
    """As safetensors calls it, such as "BF16"."""
    like: Tensor
    """Of the dtype and shape that come; a mapped one, whose values are not read."""
    blocks: Callable[[], Iterable[Tensor]]
    """Flat pieces of the tensor, in order, in the dtype."""


def write(file: Path, entries: Sequence[Entry]) -> dict[str, str]:
    """Write the tensors in safetensors' order (wide dtypes first, then by name).

    Returns:
        The hash of each tensor, as `identity.hash_tensor`.

    Raises:
        OSError: the disk is full or can't be written.
    """
    ordered = sorted(entries, key=lambda entry: (-entry.like.element_size(), entry.name))
    hashes = {}
    # A thread hashes a block while the next one is made: that is most of the work of this function.
    with file.open("wb") as out, ThreadPoolExecutor(max_workers=1) as hasher:
        out.write(_header(ordered))
        for entry in ordered:
            own = identity.tensor_digest(entry.like.dtype, entry.like.shape)
            hashed = None
            for block in entry.blocks():
                raw = block.view(torch.uint8).numpy().data
                if hashed is not None:
                    hashed.result()
                hashed = hasher.submit(own.update, raw)
                out.write(raw)
            if hashed is not None:
                hashed.result()
            hashes[entry.name] = own.hexdigest()
    return hashes


def _header(entries: Sequence[Entry]) -> bytes:
    content: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        start, end = end, end + entry.like.numel() * entry.like.element_size()
        content[entry.name] = {"dtype": entry.dtype, "shape": list(entry.like.shape), "data_offsets": [start, end]}
    raw = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    raw += b" " * (-len(raw) % ALIGNMENT)
    return len(raw).to_bytes(8, "little") + raw
