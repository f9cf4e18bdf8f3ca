"""A user's samples into training, inner hold-out and test: classes shared out alike, like pictures kept together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
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


def divide(samples: Sequence[Sample], *, test: float = 0.25, hold: float = 0.2, seed: int = 0) -> Parts:
    """Split samples; a split that the data names itself (folders train and test, a column split) is kept.

    Args:
        test: share of the samples that is asked at the end.
        hold: share of the training samples that chooses the step count and the yardsticks' settings.

    Raises:
        DataError: too few pictures, one class only, or equal pixels in two splits that the data names.
        ImageError: a picture can't be read.
    """
    _refuse_too_little(samples)
    notes = _about(samples)
    parts = _named(samples)
    if parts is None:
        shares = {"train": (1 - test) * (1 - hold), "hold": (1 - test) * hold, "test": test}
        parts = _dealt(samples, shares, seed, notes)
    elif not parts["hold"]:
        parts |= _dealt(parts["train"], {"train": 1 - hold, "hold": hold}, seed, [])
    if len(_pictures([*parts["train"], *parts["hold"]])) < HOLD_FROM:
        parts = {"train": [*parts["train"], *parts["hold"]], "hold": [], "test": parts["test"]}
    if not parts["test"]:
        raise DataError(
            "no class has pictures enough to be tested",
            expected="two or more different pictures of a class",
            fix="Add pictures that are not copies of each other.",
            where="data",
        )
    missing = sorted({class_of(s) for s in samples if s.options} - {class_of(s) for s in parts["test"]})
    if missing:
        notes.append(f"Never tested, because too few different pictures show it: {', '.join(missing[:10])}.")
    held = {id(s) for s in parts["hold"]}
    learned = held | {id(s) for s in parts["train"]}
    train = [s for s in samples if id(s) in learned]
    hold_places = tuple(i for i, s in enumerate(train) if id(s) in held)
    return Parts(train=train, hold=hold_places, test=parts["test"], notes=tuple(notes))


def class_of(sample: Sample) -> str:
    """What is shared out alike: the answer where there are options, a box's category, else the kind of question."""
    answer = sample.answer
    if sample.options and answer is not None:
        return message_text(answer)
    return str(sample.meta.get("category") or sample.task)


def _dealt(
    samples: Sequence[Sample], shares: Mapping[str, float], seed: int, notes: list[str]
) -> dict[str, list[Sample]]:
    """Parts by name; a class that no training sample has goes to the training, with all that looks like it."""
    found = None
    with suppress(DataError):  # all pictures are one group
        found = splits.split(samples, shares, seed, stratum=class_of)
    if found is None or max(map(len, found.groups), default=0) > ALIKE * len(samples):
        found = splits.split(samples, shares, seed, near=None, stratum=class_of)
        notes.append(
            "Most pictures look nearly the same (a fixed camera?): only equal ones were kept in one part, so near "
            "duplicates may stand on both sides and the scores may be too good."
        )
    elif found.groups:
        kept = sum(map(len, found.groups))
        notes.append(f"{kept} samples in {len(found.groups)} groups of equal or nearly equal pictures: kept together.")
    group = {name: i for i, names in enumerate(found.groups) for name in names}
    parts = {name: list(found[name]) for name in shares}
    for name in shares:
        known = {class_of(s) for s in parts["train"]}
        back = {group.get(s.id, s.id) for s in parts[name] if class_of(s) not in known}
        parts["train"] += [s for s in parts[name] if group.get(s.id, s.id) in back]
        parts[name] = [s for s in parts[name] if group.get(s.id, s.id) not in back]
    return parts


def _named(samples: Sequence[Sample]) -> dict[str, list[Sample]] | None:
    """The parts that the data names; None where it does not name training and test."""
    if not all(s.meta.get("split") for s in samples):
        return None
    parts: dict[str, list[Sample]] = {"train": [], "hold": [], "test": []}
    for name, content in splits.by_meta(samples).items():
        low = name.lower()
        parts["train" if low.startswith("train") else "test" if low.startswith("test") else "hold"] += content
    if not parts["test"]:
        parts["hold"], parts["test"] = [], parts["hold"]
    return parts if parts["train"] and parts["test"] else None


def _refuse_too_little(samples: Sequence[Sample]) -> None:
    pictures = _pictures(samples)
    if len(pictures) < LEAST:
        raise DataError(
            f"{len(pictures)} different pictures",
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


def _about(samples: Sequence[Sample]) -> list[str]:
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
