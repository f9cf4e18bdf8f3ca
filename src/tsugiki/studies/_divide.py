"""A user's samples into training, inner hold-out and test: classes shared out alike, like pictures kept together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tsugiki.data import splits
from tsugiki.data.images import image_size
from tsugiki.data.schema import message_text
from tsugiki.errors import DataError
from tsugiki.types import ImageSource, Sample

LEAST = 8
"""Pictures without which there is nothing to train and to test on."""
FEW, FEW_OF_A_CLASS = 20, 5
"""Below these it is said what that means."""
HOLD_FROM = 10
"""Training pictures from which on some of them choose the step count."""
ALIKE = 0.5
"""Share of the samples in one group of like pictures above which the likeness is taken for that of a fixed camera."""

Kin = Mapping[int, int]
"""`id()` of a sample -> the number of its group: equal or nearly equal pictures have one."""
_PARTS = ("train", "hold", "test")


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Who learns and who is asked."""

    train: list[Sample]
    """All that is learned from, the inner hold-out included."""
    hold: tuple[int, ...]
    """Places in `train` of the inner hold-out, which chooses settings; () where there is too little."""
    test: list[Sample]
    notes: tuple[str, ...] = ()
    """What the user should know about the data, a sentence each."""

    @property
    def inner(self) -> list[Sample]:
        """`train` without the hold-out."""
        held = set(self.hold)
        return [s for i, s in enumerate(self.train) if i not in held]

    @property
    def held(self) -> list[Sample]:
        return [self.train[i] for i in self.hold]

    @cached_property
    def near(self) -> int | None:
        """Bits up to which pictures of this training are alike: `nearness` of `train`, also where `inner` learns."""
        return nearness(self.train)


def divide(samples: Sequence[Sample], *, test: float = 0.25, hold: float = 0.2, seed: int = 0) -> Parts:
    """Split samples; a split that the data names itself (folders train and test, a column split) is kept.

    Args:
        test: share of the samples that is asked at the end.
        hold: share of the training samples that chooses the step count and the yardsticks' settings.

    Raises:
        DataError: too few pictures, one class only, or equal pixels in two splits that the data names.
        ImageError: a picture can't be read.
    """
    refuse_too_little(samples)
    notes = about(samples)
    parts = _named(samples)
    if parts is None:
        shares = {"train": (1 - test) * (1 - hold), "hold": (1 - test) * hold, "test": test}
        parts = _dealt(samples, shares, seed, alike(samples, notes))
    elif not parts["hold"]:
        shares = {"train": 1 - hold, "hold": hold}
        parts |= _dealt(parts["train"], shares, seed, alike(parts["train"], []))
    if len(_pictures([*parts["train"], *parts["hold"]])) < HOLD_FROM:
        parts = {"train": [*parts["train"], *parts["hold"]], "hold": [], "test": parts["test"]}
    if not parts["test"]:
        raise DataError(
            "no class has pictures enough to be tested",
            expected="two or more different pictures of a class",
            fix="Add pictures that are not copies of each other.",
            where="data",
        )
    return _parts(samples, parts["hold"], parts["test"], [*notes, *_untested(samples, parts["test"])])


def whole(samples: Sequence[Sample], kin: Kin, *, hold: float = 0.2, seed: int = 0) -> Parts:
    """All samples to learn from and nobody to be asked; some of them choose the step count where there are enough."""
    held = _held(samples, kin, hold, seed)
    return _parts(samples, held, [], [])


def fold(samples: Sequence[Sample], k: int, kin: Kin, *, hold: float = 0.2, seed: int = 0) -> list[Parts]:
    """k divisions whose test parts hold every sample once: classes shared out alike, like pictures in one fold.

    A class that the other folds do not show is learned and not asked, with all that looks like it.

    Args:
        kin: what keeps together, see `alike`.
        hold: share of each division's training samples that chooses.

    Raises:
        DataError: fewer than 2 folds, or more than there are groups of like pictures.
    """
    groups = _groups(samples, kin)
    if not 2 <= k <= len(groups):
        raise DataError(
            f"{k} folds of {len(groups)} different pictures",
            expected=f"2 to {len(groups)} folds" if len(groups) > 1 else "2 different pictures or more",
            fix="Choose another number of folds, or add pictures that are not copies of each other.",
            where="folds",
        )
    dealt = splits.split(samples, {str(i): 1 / k for i in range(k)}, seed, stratum=class_of, groups=groups)
    found = []
    for asked in dealt.values():
        own = {id(s) for s in asked}
        known = {class_of(s) for s in samples if id(s) not in own}
        back = {kin[id(s)] for s in asked if class_of(s) not in known}
        test = [s for s in asked if kin[id(s)] not in back]
        own = {id(s) for s in test}
        train = [s for s in samples if id(s) not in own]
        found.append(_parts(train, _held(train, kin, hold, seed), test, []))
    return found


def about_folds(samples: Sequence[Sample], folds: Sequence[Parts]) -> list[str]:
    """What is told of them beside `about`."""
    notes = _untested(samples, [s for parts in folds for s in parts.test])
    if any(s.meta.get("split") for s in samples):
        notes.append("The data names a split of its own; with folds every picture is asked, so it is not used.")
    return notes


def alike(samples: Sequence[Sample], notes: list[str]) -> Kin:
    """The number of each sample's group of like pictures; `notes` gets a sentence where there are some.

    Raises:
        ImageError: a picture can't be read.
    """
    near = nearness(samples)
    groups = splits.sample_groups(samples, near)
    several = [group for group in groups if len(group) > 1]
    if near is None:
        notes.append(
            "Most pictures look nearly the same (a fixed camera?): only equal ones were kept in one part, so near "
            "duplicates may stand on both sides and the scores may be too good."
        )
    elif several:
        kept = sum(map(len, several))
        notes.append(f"{kept} samples in {len(several)} groups of equal or nearly equal pictures: kept together.")
    return {id(samples[i]): number for number, group in enumerate(groups) for i in group}


def class_of(sample: Sample) -> str:
    """What is shared out alike: the answer where there are options, a box's category, else the kind of question."""
    answer = sample.answer
    if sample.options and answer is not None:
        return message_text(answer)
    return str(sample.meta.get("category") or sample.task)


def _dealt(samples: Sequence[Sample], shares: Mapping[str, float], seed: int, kin: Kin) -> dict[str, list[Sample]]:
    """Parts by name; a class that no training sample has goes to the training, with all that looks like it."""
    found = splits.split(samples, shares, seed, stratum=class_of, groups=_groups(samples, kin))
    parts = {name: list(found[name]) for name in shares}
    for name in shares:
        known = {class_of(s) for s in parts["train"]}
        back = {kin[id(s)] for s in parts[name] if class_of(s) not in known}
        parts["train"] += [s for s in parts[name] if kin[id(s)] in back]
        parts[name] = [s for s in parts[name] if kin[id(s)] not in back]
    return parts


def _held(samples: Sequence[Sample], kin: Kin, hold: float, seed: int) -> list[Sample]:
    """Those that choose; none where there are too few pictures."""
    if len(_pictures(samples)) < HOLD_FROM or len(_groups(samples, kin)) < 2:
        return []
    return _dealt(samples, {"train": 1 - hold, "hold": hold}, seed, kin)["hold"]


def _parts(samples: Sequence[Sample], hold: Sequence[Sample], test: Sequence[Sample], notes: Sequence[str]) -> Parts:
    """Those that are not asked, in their order, with the places of the hold-out among them."""
    asked, held = {id(s) for s in test}, {id(s) for s in hold}
    train = [s for s in samples if id(s) not in asked]
    places = tuple(i for i, s in enumerate(train) if id(s) in held)
    return Parts(train=train, hold=places, test=list(test), notes=tuple(notes))


def _groups(samples: Sequence[Sample], kin: Kin) -> list[list[int]]:
    found: dict[int, list[int]] = {}
    for i, sample in enumerate(samples):
        found.setdefault(kin[id(sample)], []).append(i)
    return list(found.values())


def _untested(samples: Sequence[Sample], test: Sequence[Sample]) -> list[str]:
    missing = sorted({class_of(s) for s in samples if s.options} - {class_of(s) for s in test})
    if not missing:
        return []
    return [f"Never tested, because too few different pictures show it: {', '.join(missing[:10])}."]


def _named(samples: Sequence[Sample]) -> dict[str, list[Sample]] | None:
    """The parts that the data names; None where it does not name training and test."""
    if not all(s.meta.get("split") for s in samples):
        return None
    parts: dict[str, list[Sample]] = {name: [] for name in _PARTS}
    for name, content in splits.by_meta(samples).items():
        low = name.lower()
        parts["train" if low.startswith("train") else "test" if low.startswith("test") else "hold"] += content
    if not parts["test"]:
        parts["hold"], parts["test"] = [], parts["hold"]
    return parts if parts["train"] and parts["test"] else None


def refuse_too_little(samples: Sequence[Sample]) -> None:
    """Raises DataError where there is nothing to train and to test on."""
    pictures = _pictures(samples)
    if len(pictures) < LEAST:
        raise DataError(
            f"{len(pictures)} different picture{'s' * (len(pictures) != 1)}",
            expected=f"{LEAST} at the very least, {FEW} to 200 for a figure worth its name",
            fix="Add pictures.",
            where="data",
        )
    classes = {class_of(s) for s in samples if s.options}
    if len(classes) == 1 and all(s.options for s in samples):
        raise DataError(
            f"one class only, {classes.pop()!r}",
            expected="two or more classes to tell apart",
            fix="Add pictures of another class.",
            where="data",
        )


def about(samples: Sequence[Sample]) -> list[str]:
    """Few pictures, few of a class, mixed sizes."""
    notes = []
    pictures = _pictures(samples)
    if len(pictures) < FEW:
        notes.append(f"Only {len(pictures)} pictures: expect wide intervals. {FEW} to 200 are a fair start.")
    counts = Counter(class_of(s) for s in samples if s.options)
    few = [f"{name} {n}" for name, n in sorted(counts.items()) if n < FEW_OF_A_CLASS]
    if few:
        more = f" and {len(few) - 10} more" if len(few) > 10 else ""
        listed = ", ".join(few[:10]) + more
        notes.append(f"Few pictures of: {listed}. {FEW_OF_A_CLASS} or more of a class are needed to learn it.")
    sizes = sorted({image_size(source) for source in pictures}, key=lambda s: (s[0] * s[1], s))
    if len(sizes) > 1:
        (w, h), (wide, high) = sizes[0], sizes[-1]
        seen = "each is seen whole, in the middle of a square"
        notes.append(f"{len(sizes)} sizes of pictures, from {w}x{h} to {wide}x{high} pixels: {seen}.")
    return notes


def _pictures(samples: Sequence[Sample]) -> list[ImageSource]:
    """Different pictures, by path or object."""
    found: dict[object, ImageSource] = {}
    for sample in samples:
        for source in sample.images:
            found[source if isinstance(source, str | Path | bytes) else id(source)] = source
    return list(found.values())


def nearness(samples: Sequence[Sample]) -> int | None:
    """Bits up to which pictures are alike; None, equal pixels alone, where most would be or too few groups were left to
    share out: a fixed camera's."""
    groups = splits.sample_groups(samples, splits.THRESHOLD)
    largest = max(map(len, groups), default=0)
    return None if len(groups) < len(_PARTS) or largest > ALIKE * len(samples) else splits.THRESHOLD
