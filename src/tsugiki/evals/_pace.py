"""How far a long check is, and about how long the rest takes, in short lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Tell = Callable[[str], None]
T = TypeVar("T")

EVERY = 10.0
"""Seconds between lines, as of training where no terminal shows a bar."""


def counted(items: Sequence[T], what: str, tell: Tell) -> Iterator[T]:
    """The items in order; after each, `tell` hears how many are done and how long the others take at that pace."""
    started = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        left = (time.monotonic() - started) / done * (len(items) - done)
        tell(f"{what}: {done} of {len(items)}, about {left:.0f} s left")


def paced(tell: Tell) -> Tell:
    """Passes a line on where the last one, or the beginning, is `EVERY` seconds ago; others are dropped."""
    last = time.monotonic()

    def told(line: str) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= EVERY:
            last = now
            tell(line)

    return told
