"""Features of frozen towers on disk: one small file for each picture, tower and augmentation.

A file's name is the SHA-256 of content, tower fingerprint (weights, transform, input size) and variant; it holds
fp16 [P, V] with a checksum. Files are written under another name and renamed, so several processes may share a
folder; what is damaged is encoded again. The time of last use is the file's modification time, set at every read: it
survives a crash, needs no index, and orders the eviction. Shapes: n pictures, P patches, V tower width.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from tsugiki import assets
from tsugiki.data.files import disk_is_full
from tsugiki.data.images import content_key, open_image
from tsugiki.errors import InputError, StoreError, UnsupportedError
from tsugiki.types import ImageSource
from tsugiki.vision.frontend import FrontEnd
from tsugiki.vision.tower import Tower

_SUFFIX = ".features"
_OVERHEAD = 256  # bytes of a file beside the numbers: header and checksum
_KEEP = 0.9  # share of the limit that is left after an eviction: so that not every new file starts another


@dataclass(frozen=True)
class FillProgress:
    """How far `fill` is."""

    done: int
    """Pictures that are in the cache now."""
    total: int
    encoded: int
    """Of `done`: how many had to be encoded in this call."""
    images_per_second: float
    """Of the encoding so far; 0 where nothing was encoded."""
    seconds_left: float
    """If all that is left has to be encoded at this speed."""


class FeatureCache:
    """Tower outputs by picture: `cache.get(sources)` reads what is there and encodes the rest, bit for bit like a
    live picture.

    Args:
        source: a front-end or a tower, frozen.
        folder: may be shared by towers, runs and processes; None = `features` in Tsugiki's cache folder.
        limit_bytes: of the whole folder; the least recently used files go first. None = no limit.
        variants: K fixed augmentations beside the plain view; variant k in 1..K has a file of its own.

    Raises:
        UnsupportedError: the tower trains.
    """

    def __init__(
        self,
        source: FrontEnd | Tower,
        folder: str | Path | None = None,
        limit_bytes: int | None = None,
        variants: int = 0,
    ) -> None:
        self.tower = source.tower if isinstance(source, FrontEnd) else source
        if not self.tower.frozen:
            raise UnsupportedError(
                "a cache for a tower that trains", expected="a frozen one", fix="Set train_tower to False."
            )
        if limit_bytes is not None and limit_bytes < 0 or variants < 0:
            raise InputError(f"limit_bytes={limit_bytes}, variants={variants}", expected="at least 0")
        self.folder = Path(folder) if folder is not None else assets.cache_dir() / "features"
        self.limit_bytes, self.variants = limit_bytes, variants
        self._contents: dict[tuple[str, int, int], str] = {}
        self._used: int | None = None  # bytes of the folder at the last count, and what was written since

    def key(self, source: ImageSource, variant: int = 0) -> str:
        """Name of a picture's entry: 64 hex digits."""
        return self._keys([source], [variant])[0]

    def estimate(self, n: int) -> int:
        """Bytes on disk for n pictures with all their variants, before anything is encoded."""
        return n * (1 + self.variants) * self._entry_bytes

    def get(self, sources: Sequence[ImageSource], variant: int = 0) -> Tensor:
        """Features of pictures, fp16 [n, P, V] on the CPU; those that are missing or damaged are encoded and stored.

        Raises:
            ImageError: a picture can't be read.
            StoreError: the folder can't be written.
            InputError: variant is not 0..variants.
        """
        if not 0 <= variant <= self.variants:
            raise InputError(
                f"variant={variant}", expected=f"0 to {self.variants}", fix="Make the cache with more variants."
            )
        keys = self._keys(sources, [variant])
        found = {key: self._read(key) for key in dict.fromkeys(keys)}
        missing = {k: s for k, s in zip(keys, sources, strict=True) if found[k] is None}
        batch = self.tower.encode_batch
        for start in range(0, len(missing), batch):
            part = list(missing.items())[start : start + batch]
            found.update(zip((k for k, _ in part), self._encode([s for _, s in part], variant), strict=True))
            for key, _ in part:
                self._write(key, found[key])
        if not keys:
            return torch.zeros(0, self.tower.patches, self.tower.width, dtype=torch.float16)
        return torch.stack([_present(found[key]) for key in keys])

    def __call__(self, source: ImageSource) -> Tensor:
        """Features of one picture, fp16 [P, V]."""
        return self.get([source])[0]

    def fill(
        self,
        sources: Iterable[ImageSource],
        progress: Callable[[FillProgress], None] | None = None,
    ) -> int:
        """Encode and store what is missing, with all variants; interrupted, it goes on where it was.

        Args:
            sources: pictures; equal ones are encoded once.
            progress: called after every batch.

        Returns:
            How many views were encoded.

        Raises:
            ImageError, StoreError: as `get`.
        """
        views = [(source, k) for source in sources for k in range(1 + self.variants)]
        names = self._keys([source for source, _ in views], [k for _, k in views])
        wanted = dict(zip(names, views, strict=True))
        missing = [key for key in wanted if not self._touch(key)]
        done, encoded, started = len(wanted) - len(missing), 0, time.perf_counter()
        for variant in range(1 + self.variants):
            keys = [key for key in missing if wanted[key][1] == variant]
            for start in range(0, len(keys), self.tower.encode_batch):
                part = keys[start : start + self.tower.encode_batch]
                for key, features in zip(part, self._encode([wanted[k][0] for k in part], variant), strict=True):
                    self._write(key, features)
                encoded += len(part)
                if progress is not None:
                    speed = encoded / max(time.perf_counter() - started, 1e-9)
                    left = (len(missing) - encoded) / speed
                    progress(FillProgress(done + encoded, len(wanted), encoded, speed, left))
        if progress is not None and not missing:
            progress(FillProgress(done, done, 0, 0.0, 0.0))
        return encoded

    def size(self) -> int:
        """Bytes of all entries in the folder, of all towers."""
        return sum(size for _, size, _ in self._entries())

    def clear(self) -> None:
        """Delete all entries in the folder, of all towers."""
        for path, _, _ in self._entries():
            path.unlink(missing_ok=True)
        self._used = None

    @property
    def _entry_bytes(self) -> int:
        return 2 * self.tower.patches * self.tower.width + _OVERHEAD

    def _keys(self, sources: Sequence[ImageSource], variants: Sequence[int]) -> list[str]:
        if len(variants) == 1:
            variants = [variants[0]] * len(sources)
        fingerprint = self.tower.fingerprint()
        names = (f"{self._content(s)} {fingerprint} {k}" for s, k in zip(sources, variants, strict=True))
        return [hashlib.sha256(name.encode()).hexdigest() for name in names]

    def _content(self, source: ImageSource) -> str:
        if not isinstance(source, (str, Path)):
            return content_key(source)
        try:
            stat = Path(source).stat()
        except OSError:
            return content_key(source)  # says what is wrong
        # A file is hashed once for each of its states: epochs after the first cost a stat.
        state = (str(source), stat.st_size, stat.st_mtime_ns)
        if state not in self._contents:
            self._contents[state] = content_key(source)
        return self._contents[state]

    def _encode(self, sources: Sequence[ImageSource], variant: int) -> Tensor:
        pixels = [self.tower.transform(open_image(source), variant) for source in sources]
        return self.tower.encode(torch.stack(pixels)).cpu()

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}{_SUFFIX}"

    def _touch(self, key: str) -> bool:
        """Mark an entry as just used; False where there is none."""
        now = time.time_ns()
        try:
            os.utime(self._path(key), ns=(now, now))
        except OSError:
            return False
        return True

    def _read(self, key: str) -> Tensor | None:
        path = self._path(key)
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
        if features.shape != (self.tower.patches, self.tower.width) or features.dtype != torch.float16:
            return None
        self._touch(key)
        return features

    def _write(self, key: str, features: Tensor | None) -> None:
        body = save({"features": _present(features).contiguous()})
        path = self._path(key)
        self._make_room(len(body) + 4)
        part = path.with_name(f"{uuid.uuid4().hex}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # No fsync: after a power cut a file may be cut short, and the checksum finds that.
            try:
                with part.open("xb") as file:
                    file.write(zlib.crc32(body).to_bytes(4, "big") + body)
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            raise self._store_error(error) from error

    def _make_room(self, size: int) -> None:
        """Count what is written, and evict the least recently used entries before the folder would pass its limit."""
        if self.limit_bytes is None:
            return
        if self._used is None:
            self._used = self.size()
        if self._used + size > self.limit_bytes:
            # Counted anew: other processes write and evict too.
            entries = sorted(self._entries(), key=lambda entry: entry[2])
            self._used = sum(entry[1] for entry in entries)
            for path, old, _ in entries:
                if self._used + size <= _KEEP * self.limit_bytes:
                    break
                path.unlink(missing_ok=True)
                self._used -= old
        self._used += size

    def _entries(self) -> list[tuple[Path, int, int]]:
        """Path, bytes and time of last use of every entry. What killed writers left an hour ago is deleted."""
        found = []
        for path in self.folder.glob("??/*"):
            with suppress(OSError):  # another process may have deleted it
                stat = path.stat()
                if path.suffix == _SUFFIX:
                    found.append((path, stat.st_size, stat.st_mtime_ns))
                elif path.suffix == ".part" and time.time() - stat.st_mtime > 3600:
                    path.unlink()
        return found

    def _store_error(self, error: OSError) -> StoreError:
        if disk_is_full(error):
            free = shutil.disk_usage(self.folder).free if self.folder.exists() else 0
            return StoreError(
                f"the disk is full ({free / 1e6:.0f} MB free)",
                expected=f"{self._entry_bytes / 1e6:.2f} MB for each picture",
                fix="Free some space, choose another folder, or set a cache limit.",
                where=str(self.folder),
            )
        return StoreError(
            f"can't be written ({error.strerror or error})",
            expected="a folder that this user may write to",
            fix="Choose another folder, or set TSUGIKI_CACHE.",
            where=str(self.folder),
        )


def _present(features: Tensor | None) -> Tensor:
    assert features is not None
    return features
