"""Arithmetic questions with four answers: sums, differences, products and short word problems, made with a seed.

The wrong answers are what slips make: one off, ten off, or the next entry of the times table. They are positive, differ
from each other, and are as often below the right one as above, so that "the middle number" is no way to answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from tsugiki.errors import DataError
from tsugiki.evals.text_items import OPTIONS, Choice

MOST = 1_000
"""Questions of a run: there are 679 products."""

_NAMES = ("Ann", "Ben", "Emi", "Ken", "Lea", "Tom", "Yui", "Zoe")
_THINGS = ("apples", "books", "coins", "keys", "pens", "stamps")


def arithmetic(n: int, *, seed: int = 0) -> list[Choice]:
    """`n` questions, the kinds in turn; the first k of a longer run are the run of k.

    Raises:
        DataError: more than `MOST`.
    """
    if n > MOST:
        raise DataError(f"{n} arithmetic questions", expected=f"{MOST} at most, so that all differ", where="arithmetic")
    rng = random.Random(f"arithmetic {seed}")
    items: list[Choice] = []
    known: set[str] = set()
    while len(items) < n:
        context, right, slips = _KINDS[len(items) % len(_KINDS)](rng)
        if context in known:  # drawn again
            continue
        known.add(context)
        options = [right, *rng.sample([s for s in slips if s > 0 and s != right], OPTIONS - 1)]
        rng.shuffle(options)
        items.append(Choice(f"arithmetic-{len(items)}", context, tuple(map(str, options)), options.index(right)))
    return items


Drawn = tuple[str, int, list[int]]
"""Question, right answer, wrong answers to choose from."""


def _sum(rng: random.Random) -> Drawn:
    a, b = rng.randint(11, 89), rng.randint(11, 89)
    return _asked(f"{a} + {b}"), a + b, _off(a + b)


def _difference(rng: random.Random) -> Drawn:
    a, b = rng.randint(11, 89), rng.randint(11, 89)
    return _asked(f"{a + b} - {a}"), b, _off(b)


def _product(rng: random.Random) -> Drawn:
    a, b = rng.randint(3, 99), rng.randint(3, 9)
    slips = {a * (b - 1), a * (b + 1), (a - 1) * b, (a + 1) * b, a * b - 1, a * b + 1}
    return _asked(f"{a} × {b}"), a * b, sorted(slips)


def _story(rng: random.Random) -> Drawn:
    giver, taker = rng.sample(_NAMES, 2)
    thing = rng.choice(_THINGS)
    there, given = rng.randint(8, 30), rng.randint(2, 7)
    text = f"{giver} has {there} {thing} and gives {given} of them to {taker}. How many {thing} does {giver} have left?"
    return f"Question: {text}\nAnswer:", there - given, _off(there - given)


_KINDS: tuple[Callable[[random.Random], Drawn], ...] = (_sum, _difference, _product, _story)


def _asked(term: str) -> str:
    return f"Question: What is {term}?\nAnswer:"


def _off(right: int) -> list[int]:
    return [right + d for d in (-10, -2, -1, 1, 2, 10)]
