"""Features of frozen towers on disk: one small file for each picture, tower, view and augmentation, before any mixing.

A file's name is the SHA-256 of content, tower fingerprint (weights, transform, input size), variant and view; it holds
fp16 [rows, V] with a checksum (`_entries.py`). So front-ends that share a tower share its files.
Shapes: n pictures, P patches, V tower width, E length of a mix's row (`packing.py`).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tsugiki import assets
from tsugiki.data.images import content_key, image_size, open_image
from tsugiki.errors import InputError, UnsupportedError
from tsugiki.types import ImageSource
from tsugiki.vision._entries import OVERHEAD, Entries
from tsugiki.vision._workers import ahead, each_done
from tsugiki.vision.frontend import FrontEnd
from tsugiki.vision.tower import Tower
from tsugiki.vision.views import Views


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


@dataclass(frozen=True)
class _Wanted:
    """A picture in one variant, and the keys of what each tower sees of it: (tower, view) -> key."""

    source: ImageSource
    variant: int
    keys: dict[tuple[int, int], str]


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
        self.frontend = source if isinstance(source, FrontEnd) else None
        self.towers = (source,) if isinstance(source, Tower) else source.towers
        self.views = Views() if isinstance(source, Tower) else source.views
        if not all(tower.frozen for tower in self.towers):
            raise UnsupportedError(
                "a cache for a tower that trains", expected="a frozen one", fix="Set train_tower to False."
            )
        if limit_bytes is not None and limit_bytes < 0 or variants < 0:
            raise InputError(f"limit_bytes={limit_bytes}, variants={variants}", expected="at least 0")
        self.folder = Path(folder) if folder is not None else assets.cache_dir() / "features"
        self.limit_bytes, self.variants = limit_bytes, variants
        self.entries = Entries(self.folder, limit_bytes)
        self._contents: dict[tuple[str, int, int], str] = {}

    @property
    def tower(self) -> Tower:
        """The first one."""
        return self.towers[0]

    def key(self, source: ImageSource, variant: int = 0) -> str:
        """Name of a picture's entry, of the first tower and the whole square: 64 hex digits."""
        return self._wanted([source], [variant])[0].keys[0, 0]

    def estimate(self, n: int) -> int:
        """Bytes on disk for n pictures without padding, with all their variants, before anything is encoded."""
        one = sum(2 * tower.rows * tower.width + OVERHEAD for tower in self.towers)
        return n * (1 + self.variants) * self.views.count * one

    def get(self, sources: Sequence[ImageSource], variant: int = 0) -> Tensor:
        """Features of pictures on the CPU, fp16 [n, P, V], of a mix [n, E]; those that are missing or damaged are
        encoded and stored.

        Raises:
            ImageError: a picture can't be read.
            StoreError: the folder can't be written.
            InputError: variant is not 0..variants.
        """
        if not 0 <= variant <= self.variants:
            raise InputError(
                f"variant={variant}", expected=f"0 to {self.variants}", fix="Make the cache with more variants."
            )
        wanted = self._wanted(sources, [variant] * len(sources))
        found = {key: self._read(key, tower) for one in wanted for (tower, _), key in one.keys.items()}
        missing = {one.keys[0, 0]: one for one in wanted if any(found[key] is None for key in one.keys.values())}
        there = {key for key, features in found.items() if features is not None}
        for part in _batches(list(missing.values()), self.tower.encode_batch):
            found |= self._encode([self._seen(one, there) for one in part])
        return self._stacked(wanted, found)

    def cells(self, sources: Sequence[ImageSource]) -> Tensor:
        """What is read cell by cell, fp16 [n, P, V]; see `FrontEnd.cells`."""
        features = self.get(sources)
        return features if self.frontend is None else self.frontend.cells(features)

    def __call__(self, source: ImageSource) -> Tensor:
        """Features of one picture, fp16 [P, V], of a mix [E]."""
        return self.get([source])[0]

    def fill(
        self,
        sources: Iterable[ImageSource],
        progress: Callable[[FillProgress], None] | None = None,
        *,
        workers: int = 0,
    ) -> int:
        """Encode and store what is missing, with all variants; interrupted, it goes on where it was.

        Args:
            sources: pictures; equal ones are encoded once.
            progress: called after every batch.
            workers: processes of one thread each that read and encode; 0 = this one. For towers on a CPU. Bit for bit
                like a live picture where that is encoded by one thread too, else to numeric noise.

        Returns:
            How many pictures were encoded, each variant counted as one.

        Raises:
            ImageError, StoreError: as `get`.
            UnsupportedError: workers for towers on a GPU, or on a system that can't fork.
        """
        pairs = [(source, k) for source in sources for k in range(1 + self.variants)]
        wanted = {w.keys[0, 0]: w for w in self._wanted([s for s, _ in pairs], [k for _, k in pairs])}
        missing = [one for one in wanted.values() if not all(self.entries.touch(k) for k in one.keys.values())]
        missing.sort(key=lambda one: one.variant)
        done, encoded, started = len(wanted) - len(missing), 0, time.perf_counter()
        parts = [
            part
            for variant in range(1 + self.variants)
            for part in _batches([one for one in missing if one.variant == variant], self.tower.encode_batch)
        ]
        for number in each_done(self._store, parts, workers, self.towers) if workers > 0 else self._stored(parts):
            encoded += number
            if progress is not None:
                speed = encoded / max(time.perf_counter() - started, 1e-9)
                left = (len(missing) - encoded) / speed
                progress(FillProgress(done + encoded, len(wanted), encoded, speed, left))
        if progress is not None and not missing:
            progress(FillProgress(done, done, 0, 0.0, 0.0))
        return encoded

    def size(self) -> int:
        """Bytes of all entries in the folder, of all towers."""
        return self.entries.size()

    def clear(self) -> None:
        """Delete all entries in the folder, of all towers."""
        self.entries.clear()

    def _wanted(self, sources: Sequence[ImageSource], variants: Sequence[int]) -> list[_Wanted]:
        fingerprints, found = [tower.fingerprint() for tower in self.towers], []
        for source, variant in zip(sources, variants, strict=True):
            content = self._content(source)
            seen = (True,) if self.views.count == 1 else self.views.seen(image_size(source))
            keys = {}
            for view in (view for view, there in enumerate(seen) if there):
                place = f" {self.views.name} {view}" if view else ""
                for tower, fingerprint in enumerate(fingerprints):
                    name = f"{content} {fingerprint} {variant}{place}"
                    keys[tower, view] = hashlib.sha256(name.encode()).hexdigest()
            found.append(_Wanted(source, variant, keys))
        return found

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

    def _read(self, key: str, tower: int) -> Tensor | None:
        return self.entries.read(key, (self.towers[tower].rows, self.towers[tower].width))

    def _store(self, part: Sequence[_Wanted]) -> int:
        """Encode what the folder lacks of some pictures; how many these are."""
        self._encode([self._missing(one) for one in part])
        return len(part)

    def _stored(self, parts: Sequence[Sequence[_Wanted]]) -> Iterator[int]:
        """`_store` of every part; pictures are decoded by threads while the tower runs."""
        for part, seen in ahead(self._missing, parts):
            self._encode(seen)
            yield len(part)

    def _missing(self, one: _Wanted) -> list[dict[str, Tensor]]:
        return self._seen(one, {key for key in one.keys.values() if self.entries.touch(key)})

    def _seen(self, one: _Wanted, there: set[str]) -> list[dict[str, Tensor]]:
        """What each tower sees of a picture and is not `there`: key -> pixels [3, S, S]."""
        image = open_image(one.source)
        found: list[dict[str, Tensor]] = []
        for number, tower in enumerate(self.towers):
            taken = there.union(*found)
            views = {v: k for (t, v), k in one.keys.items() if t == number and k not in taken}
            pixels = tower.transform.views(image, self.views, list(views), one.variant)
            found.append(dict(zip(views.values(), pixels, strict=True)))
        return found

    def _encode(self, part: Sequence[list[dict[str, Tensor]]]) -> dict[str, Tensor]:
        """Encode and store what the towers see of some pictures."""
        found: dict[str, Tensor] = {}
        for tower, seen in zip(self.towers, zip(*part, strict=True), strict=True):
            pixels = {key: one for pictures in seen for key, one in pictures.items() if key not in found}
            if pixels:
                found |= zip(pixels, tower.encode(torch.stack(list(pixels.values()))).cpu(), strict=True)
        for key, features in found.items():
            self.entries.write(key, features)
        return found

    def _stacked(self, wanted: Sequence[_Wanted], found: dict[str, Tensor | None]) -> Tensor:
        if self.frontend is None or self.frontend.mix is None:
            features = [_present(found[one.keys[0, 0]]) for one in wanted]
            shape = (0, self.tower.rows, self.tower.width)
            return torch.stack(features) if features else torch.zeros(shape, dtype=torch.float16)
        n = len(wanted)
        parts = [
            torch.zeros(n, self.views.count, tower.rows, tower.width, dtype=torch.float16) for tower in self.towers
        ]
        seen = torch.zeros(n, self.views.count, dtype=torch.bool)
        for row, one in enumerate(wanted):
            for (tower, view), key in one.keys.items():
                parts[tower][row, view], seen[row, view] = _present(found[key]), True
        return self.frontend.packing.pack(seen, parts)


def _batches(items: Sequence[_Wanted], size: int) -> list[Sequence[_Wanted]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _present(features: Tensor | None) -> Tensor:
    assert features is not None
    return features
