"""The vectors of a bank in memory and in its index file, and the search.

The index file holds what is in the entries already, in one piece with a checksum: where it is missing, damaged or of
another bank, the entries are read instead and it is written again. The search is one product of NumPy:
`benchmarks/bank.py` measures FAISS beside it, which is slower on two cores. Shapes: n entries, d width.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from tsugiki.data.files import atomic_write
from tsugiki.errors import InputError, StoreError

logger = logging.getLogger("tsugiki")

FILE = "index.safetensors"
TAIL = 1000
"""Entries that are not in the index file before it is written again; a tenth of it where that is more."""

Read = Callable[[str, Sequence[Any]], list[Any]]


def unit(vector: npt.NDArray[Any], width: int, *, where: str = "bank") -> npt.NDArray[np.float32]:
    """A vector [d] of length 1.

    Raises:
        InputError: another width, zero or not finite.
    """
    flat = np.asarray(vector, np.float64)
    length = float(np.linalg.norm(flat)) if flat.shape == (width,) else 0.0
    if not np.isfinite(length) or length == 0.0:
        found = f"a feature vector of shape {list(flat.shape)}" if flat.shape != (width,) else f"of length {length}"
        raise InputError(found, expected=f"[{width}], finite and not zero", fix="Use the bank's tower.", where=where)
    return (flat / length).astype(np.float32)


class Vectors:
    """Unit vectors float32 [n, d] of all entries in order of their ids, their labels, and which are in use."""

    def __init__(self, width: int) -> None:
        self.width = width
        self._room = np.zeros((0, width), np.float32)  # grows by doubling; rows beyond n are free
        self.ids = np.zeros(0, np.int64)  # [n]
        self._codes: dict[str, int] = {}  # numbers of labels
        self._labels = np.zeros(0, np.int32)  # [n]
        self.used = np.zeros(0, bool)  # [n]
        self._filed = 0  # of the n, how many the index file holds

    @property
    def in_use(self) -> int:
        return int(self.used.sum())

    @property
    def rows(self) -> npt.NDArray[np.float32]:
        return self._room[: len(self.ids)]

    def nearest(
        self, query: npt.NDArray[np.float32], k: int, labels: Sequence[str] | None = None
    ) -> list[tuple[int, float]]:
        """Ids and cosines of the k nearest in use, nearest first, the smaller id of equals."""
        scores = self.rows @ query  # [n]
        allowed = self.used if labels is None else self.used & self._have(labels)
        scores[~allowed] = -np.inf
        k = min(k, int(allowed.sum()))
        if not k:
            return []
        bound = np.partition(scores, -k)[-k]
        at = np.flatnonzero(scores >= bound)
        at = at[np.argsort(-scores[at], kind="stable")][:k]
        return [(int(self.ids[i]), float(scores[i])) for i in at]

    def _have(self, labels: Sequence[str]) -> npt.NDArray[np.bool_]:
        return np.isin(self._labels, [self._codes[label] for label in labels if label in self._codes])

    def load(self, folder: Path, bank: str, read: Read) -> None:
        """Take what the index file holds, if it is whole and of this bank."""
        path = folder / FILE
        if not path.exists():
            return
        try:
            ids, rows = _unpacked(path, bank, self.width)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s: damaged or of another bank (%s); it is made again from the entries.", path, error)
            return
        known = read("SELECT id, label FROM entries WHERE id <= ? ORDER BY id", (int(ids[-1]) if len(ids) else -1,))
        if [row[0] for row in known] != ids.tolist():
            logger.warning("%s: other entries than the bank's; it is made again from them.", path)
            return
        self._append(ids, [row[1] for row in known], rows)
        self._filed = len(ids)

    def update(self, read: Read) -> None:
        """Read entries that are new, and which are withdrawn."""
        last = int(self.ids[-1]) if len(self.ids) else -1
        new = read("SELECT id, label, vector FROM entries WHERE id > ? ORDER BY id", (last,))
        if new:
            rows = np.frombuffer(b"".join(row[2] for row in new), np.float16).reshape(len(new), self.width)
            self._append(np.array([row[0] for row in new], np.int64), [row[1] for row in new], rows)
        gone = [row[0] for row in read("SELECT id FROM entries WHERE withdrawn IS NOT NULL", ())]
        self.used = ~np.isin(self.ids, gone)

    def save(self, folder: Path, bank: str) -> None:
        """Write the index file where it lacks many entries. A bank that can't be written is searched all the same."""
        if len(self.ids) - self._filed < max(TAIL, self._filed // 10) and (self._filed or not len(self.ids)):
            return
        rows = self.rows.astype(np.float16)
        tensors: dict[str, npt.NDArray[Any]] = {"ids": self.ids, "rows": rows}
        try:
            atomic_write(folder / FILE, save(tensors, {"bank": bank, "check": _check(self.ids, rows)}))
        except StoreError as error:
            logger.warning("%s: %s", folder / FILE, error)
        self._filed = len(self.ids)

    def _append(self, ids: npt.NDArray[np.int64], labels: Sequence[str], rows: npt.NDArray[np.float16]) -> None:
        n, total = len(self.ids), len(self.ids) + len(ids)
        if total > len(self._room):
            room = np.zeros((max(total, 2 * n), self.width), np.float32)
            room[:n] = self.rows
            self._room = room
        self._room[n:total] = rows
        self.ids = np.concatenate([self.ids, ids])
        codes = [self._codes.setdefault(label, len(self._codes)) for label in labels]
        self._labels = np.concatenate([self._labels, np.array(codes, np.int32)])
        self.used = np.concatenate([self.used, np.ones(len(ids), bool)])


def _unpacked(path: Path, bank: str, width: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float16]]:
    with safe_open(path, "numpy") as file:
        facts, ids, rows = file.metadata() or {}, file.get_tensor("ids"), file.get_tensor("rows")
    if facts["bank"] != bank:
        raise ValueError("another bank")
    if rows.shape != (len(ids), width) or facts["check"] != _check(ids, rows):
        raise ValueError("wrong checksum")
    return ids, rows


def _check(ids: npt.NDArray[np.int64], rows: npt.NDArray[np.float16]) -> str:
    return f"{zlib.crc32(rows.data, zlib.crc32(ids.data)):08x}"
