"""Splits without leaks: what shows nearly the same stays in one split; equal pixels across splits are an error."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tsugiki.data.looks import Look, look, look_ahead
from tsugiki.data.schema import message_text
from tsugiki.errors import DataError
from tsugiki.types import ImageSource, Sample

Array = NDArray[Any]

THRESHOLD = 4
"""Bits of 64 in which the hashes of near duplicates may differ."""
_APART = 24.0  # levels of 256 by which a cell of the 16 x 16 colour pictures may differ, brightness apart
_ALIKE = 0.9  # least correlation of the 32 x 32 grey pictures; photographs of one fabric have 0.2


@dataclass(frozen=True)
class Splits(Mapping[str, list[Sample]]):
    """Samples by the name of their split, and what kept together."""

    parts: Mapping[str, list[Sample]]
    groups: tuple[tuple[str, ...], ...]
    """Ids of samples that were kept together because of equal or nearly equal pictures; only groups of two or more."""

    def __getitem__(self, name: str) -> list[Sample]:
        return self.parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def sizes(self) -> dict[str, int]:
        return {name: len(samples) for name, samples in self.parts.items()}

    def __str__(self) -> str:
        sizes = ", ".join(f"{name} {size}" for name, size in self.sizes.items())
        kept = sum(map(len, self.groups))
        return f"{sizes}; {kept} samples in {len(self.groups)} groups of equal or nearly equal pictures"


def split(
    samples: Sequence[Sample],
    fractions: Mapping[str, float],
    seed: int = 0,
    *,
    near: int | None = THRESHOLD,
    stratum: Callable[[Sample], str] | None = None,
    groups: Sequence[Sequence[int]] | None = None,
) -> Splits:
    """Split samples so that every class is shared out alike and no picture is in two splits.

    Samples that share a picture, or have nearly equal ones, go to one split together.

    Args:
        fractions: name -> share; they add up to 1.
        seed: of the order in which groups are dealt.
        near: bits for `near_duplicate_groups`; None looks at equal pixels only.
        stratum: class of a sample; without it the answer's text where there are options, else the task.
        groups: indices of samples that keep together, every index in one, where they are known; None looks for them.

    Raises:
        DataError: fractions that do not add up to 1, or fewer groups than splits.
        ImageError: a picture can't be read.
    """
    if not fractions or min(fractions.values()) <= 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise DataError(
            f"fractions {dict(fractions)}",
            expected="positive numbers that add up to 1",
            fix="Correct them.",
            where="split",
        )
    stratum = stratum or _stratum
    kept = [list(group) for group in (sample_groups(samples, near) if groups is None else groups)]
    if len(kept) < len(fractions):
        raise DataError(
            f"{len(samples)} samples in {len(kept)} groups of like pictures, for {len(fractions)} splits",
            expected="at least one group a split",
            fix="Add pictures, ask for fewer splits, or use near=None where a fixed camera makes all alike.",
            where="split",
        )
    parts = _deal(kept, [stratum(s) for s in samples], fractions, seed)
    return Splits(
        {name: [samples[i] for i in sorted(members)] for name, members in parts.items()},
        tuple(tuple(samples[i].id for i in g) for g in kept if len(g) > 1),
    )


def by_meta(samples: Sequence[Sample], field: str = "split") -> dict[str, list[Sample]]:
    """Samples by a split that their file names (`meta[field]`), checked by `check_disjoint`.

    Raises:
        DataError: a sample without the field, or equal pixels in two splits.
    """
    parts: dict[str, list[Sample]] = {}
    for sample in samples:
        if not sample.meta.get(field):
            raise DataError(
                f"sample {sample.id!r} names no split", expected=f"meta {field!r}", fix="Fill it.", where=sample.where
            )
        parts.setdefault(str(sample.meta[field]), []).append(sample)
    check_disjoint(parts)
    return parts


def check_disjoint(parts: Mapping[str, Sequence[Sample]]) -> None:
    """Check that no picture is in two splits, whatever its file's name or format.

    Raises:
        DataError: equal pixels, naming both files.
        ImageError: a picture can't be read.
    """
    seen: dict[str, tuple[str, str]] = {}
    looks: dict[Any, Look] = {}
    look_ahead(source for samples in parts.values() for sample in samples for source in sample.images)
    for name, samples in parts.items():
        for sample in samples:
            for source in sample.images:
                key = _looked(source, looks).key
                other, shown = seen.setdefault(key, (name, _shown(source)))
                if other != name:
                    raise DataError(
                        f"{_shown(source)} in split {name!r} has the same pixels as {shown} in split {other!r}",
                        expected="no picture in two splits",
                        fix="Remove one of them, or split again with tsugiki.data.splits.split.",
                        where=sample.where,
                    )


def near_duplicate_groups(sources: Sequence[ImageSource], threshold: int = THRESHOLD) -> list[list[int]]:
    """Indices of pictures that show nearly the same (resized, recompressed, brighter), every index in one group.

    Two pictures are near duplicates if their difference hashes (8 x 8 brighter-than-the-right-neighbour bits) differ in
    at most `threshold` bits, no cell of their 16 x 16 colour pictures differs clearly, and their 32 x 32 grey pictures
    correlate; groups are what such pairs connect. Sorted by the first member. Pictures of a fixed camera may be alike
    by nature.

    Raises:
        ImageError: a picture can't be read.
    """
    look_ahead(sources)
    return _alike([look(source) for source in sources], threshold)


def _alike(looks: Sequence[Look], threshold: int) -> list[list[int]]:
    joined = _Union(len(looks))
    if looks:
        prints = _Prints(looks)
        for bucket in _buckets(prints.bits, threshold):
            for k, i in enumerate(bucket[:-1]):
                for j in prints.near(int(i), bucket[k + 1 :], threshold):
                    joined.join(int(i), int(j))
    return joined.groups()


class _Prints:
    """Small forms of n pictures: bits [n, 64], cells [n, 768], grey [n, 1024]; see `Look`."""

    def __init__(self, looks: Sequence[Look]) -> None:
        self.bits, self.cells, self.grey = (
            np.stack([getattr(one, name) for one in looks]) for name in ("bits", "cells", "grey")
        )

    def near(self, i: int, others: Array, threshold: int) -> Array:
        """Those of `others` that are near duplicates of `i`."""
        others = others[(self.bits[others] != self.bits[i]).sum(1) <= threshold]
        others = others[np.abs(self.cells[others] - self.cells[i]).max(1, initial=0) <= _APART]
        flat = not self.grey[i].any()
        alike = ~self.grey[others].any(1) if flat else self.grey[others] @ self.grey[i] >= _ALIKE
        return others[alike]


def _buckets(bits: Array, threshold: int) -> Iterator[Array]:
    """Pictures that agree in one of threshold + 1 bands of bits: every pair within the threshold is in some bucket."""
    for band in np.array_split(np.arange(bits.shape[1]), threshold + 1):
        buckets: dict[bytes, list[int]] = defaultdict(list)
        for i, row in enumerate(bits[:, band]):
            buckets[row.tobytes()].append(i)
        yield from (np.array(members) for members in buckets.values() if len(members) > 1)


def sample_groups(samples: Sequence[Sample], near: int | None) -> list[list[int]]:
    """Indices of samples that show the same picture or, with `near` bits, nearly the same; every index in one group."""
    looks: list[Look] = []
    owners: list[list[int]] = []
    known: dict[str, int] = {}
    seen: dict[Any, Look] = {}
    look_ahead(source for sample in samples for source in sample.images)
    for i, sample in enumerate(samples):
        for source in sample.images:
            one = _looked(source, seen)
            if one.key not in known:
                known[one.key] = len(looks)
                looks.append(one)
                owners.append([])
            owners[known[one.key]].append(i)
    joined = _Union(len(samples))
    for group in _alike(looks, near) if near is not None else [[k] for k in range(len(looks))]:
        members = [i for k in group for i in owners[k]]
        for i in members[1:]:
            joined.join(members[0], i)
    return joined.groups()


def _deal(
    groups: list[list[int]], strata: Sequence[str], fractions: Mapping[str, float], seed: int
) -> dict[str, list[int]]:
    """Give every group to the split that lacks its classes most; large groups first, the rest in random order."""
    order = list(groups)
    random.Random(f"{seed}/split").shuffle(order)
    order.sort(key=len, reverse=True)
    total = Counter(strata)
    have = {name: Counter[str]() for name in fractions}
    parts: dict[str, list[int]] = {name: [] for name in fractions}
    for at, group in enumerate(order):
        classes = Counter(strata[i] for i in group)
        empty = [name for name in fractions if not parts[name]]
        # The last groups are kept for splits that would stay empty.
        names = empty if len(empty) >= len(order) - at else list(fractions)

        def lack(name: str, classes: Counter[str] = classes) -> tuple[float, float]:
            wanted = fractions[name]
            by_class = sum(n * (wanted * total[c] - have[name][c]) / wanted for c, n in classes.items())
            return by_class, wanted * len(strata) - len(parts[name])

        best = max(names, key=lack)
        parts[best] += group
        have[best].update(classes)
    return parts


def _stratum(sample: Sample) -> str:
    answer = sample.answer
    return message_text(answer) if sample.options and answer is not None else sample.task


def _looked(source: ImageSource, seen: dict[Any, Look]) -> Look:
    handle = id(source) if isinstance(source, Image.Image) else source
    if handle not in seen:
        seen[handle] = look(source)
    return seen[handle]


def _shown(source: ImageSource) -> str:
    return "an open picture" if isinstance(source, (bytes, Image.Image)) else str(source)


class _Union:
    """Connected components."""

    def __init__(self, size: int) -> None:
        self.parent = list(range(size))

    def find(self, i: int) -> int:
        while self.parent[i] != i:
            self.parent[i] = self.parent[self.parent[i]]
            i = self.parent[i]
        return i

    def join(self, i: int, j: int) -> None:
        a, b = sorted((self.find(i), self.find(j)))
        self.parent[b] = a

    def groups(self) -> list[list[int]]:
        found: dict[int, list[int]] = {}
        for i in range(len(self.parent)):
            found.setdefault(self.find(i), []).append(i)
        return list(found.values())
