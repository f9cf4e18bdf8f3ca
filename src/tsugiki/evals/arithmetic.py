"""Arithmetic questions with four answers: sums, differences and products after three solved ones, made with a seed.

The wrong answers are what slips make: one, two or ten off, or the neighbours in the times table.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from tsugiki.errors import DataError
from tsugiki.evals.text_items import OPTIONS, Choice

SOLVED = "24 + 5 = 29\n47 - 6 = 41\n3 × 6 = 18\n"
"""Without them small models do not take the form for a question."""
MOST = 240
"""Questions of a run: there are 88 products, of which the solved one is left out."""

Drawn = tuple[str, int, list[int]]
"""Term, right answer, wrong answers to choose from."""


def arithmetic(n: int, *, seed: int = 0) -> list[Choice]:
    """`n` different questions, the kinds in turn; the first k of a longer run are the run of k.

    Raises:
        DataError: more than `MOST`.
    """
    if n > MOST:
        raise DataError(f"{n} arithmetic questions", expected=f"{MOST} at most, so that all differ", where="arithmetic")
    rng = random.Random(f"arithmetic {seed}")
    items: list[Choice] = []
    known: set[str] = set()
    while len(items) < n:
        term, right, slips = _KINDS[len(items) % len(_KINDS)](rng)
        if term in known or f"{term} = " in SOLVED:  # drawn again
            continue
        known.add(term)
        options = [right, *rng.sample(sorted({s for s in slips if s > 0 and s != right}), OPTIONS - 1)]
        rng.shuffle(options)
        context = f"{SOLVED}{term} ="
        items.append(Choice(f"arithmetic-{len(items)}", context, tuple(map(str, options)), options.index(right)))
    return items


def _sum(rng: random.Random) -> Drawn:
    a, b = rng.randint(11, 89), rng.randint(2, 9)
    return f"{a} + {b}", a + b, _off(a + b)


def _difference(rng: random.Random) -> Drawn:
    a, b = rng.randint(11, 89), rng.randint(2, 9)
    return f"{a + b} - {b}", a, _off(a)


def _product(rng: random.Random) -> Drawn:
    a, b = rng.randint(2, 12), rng.randint(2, 9)
    return f"{a} × {b}", a * b, [a * (b - 1), a * (b + 1), (a - 1) * b, (a + 1) * b, a * b - 1, a * b + 1]


_KINDS: tuple[Callable[[random.Random], Drawn], ...] = (_sum, _difference, _product)


def _off(right: int) -> list[int]:
    return [right + d for d in (-10, -2, -1, 1, 2, 10)]
