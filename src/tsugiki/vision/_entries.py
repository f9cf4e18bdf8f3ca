"""Files of named fp16 tensors in a folder that several processes may share: written whole or not at all, damage found,
the least recently used ones gone first.

Files are written under another name and renamed; each has a checksum. The time of last use is the file's modification
time, set at every read: it survives a crash, needs no index, and orders the eviction.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
import zlib
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from tsugiki._leftovers import being_written, sweep
from tsugiki.data.files import disk_is_full
from tsugiki.errors import StoreError

SUFFIX = ".features"
OVERHEAD = 256  # bytes of a file beside the numbers: header and checksum
_KEEP = 0.9  # share of the limit that is left after an eviction: so that not every new file starts another


class Entries:
    """Tensors by key.

    Args:
        folder: made when the first one is written.
        limit_bytes: of the whole folder; None = no limit.
    """

    def __init__(self, folder: Path, limit_bytes: int | None) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self._used: int | None = None  # bytes of the folder at the last count, and what was written since

    def size(self) -> int:
        """Bytes of all entries."""
        return sum(size for _, size, _ in self._all())

    def clear(self) -> None:
        """Delete all entries."""
        for path, _, _ in self._all():
            path.unlink(missing_ok=True)
        self._used = None

    def path(self, key: str) -> Path:
        """Where an entry is, or would be."""
        return self.folder / key[:2] / f"{key}{SUFFIX}"

    def touch(self, key: str) -> bool:
        """Mark an entry as just used; False where there is none."""
        now = time.time_ns()
        try:
            os.utime(self.path(key), ns=(now, now))
        except OSError:
            return False
        return True

    def read(self, key: str, shape: tuple[int, ...]) -> Tensor | None:
        """The tensor, None where there is none of this shape."""
        path = self.path(key)
        try:
            raw = path.read_bytes()
        except OSError:
            return None
        checksum, body = raw[:4], raw[4:]
        try:
            if zlib.crc32(body).to_bytes(4, "big") != checksum:
                raise ValueError(key)
            features = load(body)["features"]
        except (SafetensorError, ValueError, KeyError):
            path.unlink(missing_ok=True)  # damaged: encoded again by the caller
            return None
        if features.shape != shape or features.dtype != torch.float16:
            return None
        self.touch(key)
        return features

    def write(self, key: str, features: Tensor) -> None:
        """Store a tensor.

        Raises:
            StoreError: the disk is full, or the folder can't be written.
        """
        body = save({"features": features.contiguous()})
        path = self.path(key)
        self._make_room(len(body) + 4)
        part = path.with_name(f"{uuid.uuid4().hex}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # No fsync: after a power cut a file may be cut short, and the checksum finds that.
            try:
                with part.open("xb") as file, being_written(part):
                    file.write(zlib.crc32(body).to_bytes(4, "big") + body)
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            raise self._error(error, len(body)) from error

    def _make_room(self, size: int) -> None:
        """Count what is written, and evict the least recently used entries before the folder would pass its limit."""
        if self.limit_bytes is None:
            return
        if self._used is None:
            self._used = self.size()
        if self._used + size > self.limit_bytes:
            # Counted anew: other processes write and evict too.
            entries = sorted(self._all(), key=lambda entry: entry[2])
            self._used = sum(entry[1] for entry in entries)
            for path, old, _ in entries:
                if self._used + size <= _KEEP * self.limit_bytes:
                    break
                path.unlink(missing_ok=True)
                self._used -= old
        self._used += size

    def _all(self) -> list[tuple[Path, int, int]]:
        """Path, bytes and time of last use of every entry. What killed writers left an hour ago is deleted."""
        found = []
        for path in self.folder.glob("??/*"):
            with suppress(OSError):  # another process may have deleted it
                stat = path.stat()
                if path.suffix == SUFFIX:
                    found.append((path, stat.st_size, stat.st_mtime_ns))
                elif path.suffix == ".part":
                    sweep([path], older=3600)
        return found

    def _error(self, error: OSError, size: int) -> StoreError:
        if disk_is_full(error):
            free = shutil.disk_usage(self.folder).free if self.folder.exists() else 0
            return StoreError(
                f"the disk is full ({free / 1e6:.0f} MB free)",
                expected=f"{size / 1e6:.2f} MB",
                fix="Free some space, choose another folder, or set a cache limit.",
                where=str(self.folder),
            )
        return StoreError(
            f"can't be written ({error.strerror or error})",
            expected="a folder that this user may write to",
            fix="Choose another folder, or set TSUGIKI_CACHE.",
            where=str(self.folder),
        )
