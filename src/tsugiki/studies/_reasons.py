"""Why a picture was chosen for a label, in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tsugiki.studies import _ranking
from tsugiki.studies._ranking import Floats

CLOSE = 0.5
"""A lead of the first option over the second from which on the two are not called close."""
NEAR, RARE, APART = "near the decision", "rare or severe", "disagreement"
"""The figures by which pictures are ranked; the last one only where a probe can be fitted."""


@dataclass(frozen=True, kw_only=True)
class Reasons:
    """What every picture's reasons are read from. Shapes: m pictures, c options."""

    options: tuple[str, ...]
    p: Floats
    """The graft's probabilities [m, c]."""
    q: Floats | None
    """The probe's [m, c]."""
    counts: Mapping[str, int]
    """Labels of each option."""
    severe: frozenset[str]
    ranks: Mapping[str, Floats]
    """By figure, [m]."""
    n: int
    """Of a ranking the first n are told."""

    def __call__(self, i: int, others: int) -> tuple[str, ...]:
        """A phrase for each ranking that has picture `i` among the first n, else for its best one; none for a ranking
        that tells it from no other: the probe says the same as the model, or all classes weigh the same.

        Args:
            others: pictures like it that were not chosen.
        """
        speaks = {NEAR: True, RARE: len(set(self._weights())) > 1, APART: self._differ(i)}
        own = {name: ranks[i] for name, ranks in self.ranks.items() if speaks[name]}
        told = [name for name in own if own[name] <= self.n] or [min(own, key=own.__getitem__)]
        say = {NEAR: self._near, RARE: self._rare, APART: self._apart}
        tail = [f"stands for {others} more that look{'s' if others == 1 else ''} similar"] if others else []
        return (*(say[name](i) for name in told), *tail)

    def best(self, rows: Floats, i: int) -> str:
        """The likeliest option of a row."""
        return self.options[int(rows[i].argmax())]

    def named(self, row: Floats) -> dict[str, float]:
        """Probability by option, rounded to 4 digits."""
        return dict(zip(self.options, row.round(4).tolist(), strict=True))

    def _near(self, i: int) -> str:
        first, second = np.argsort(-self.p[i], kind="stable")[:2]
        one, two = (f"{self.p[i, k]:.2f}" for k in (first, second))
        close = self.p[i, first] - self.p[i, second] < CLOSE
        how = "close between" if close else "among the least sure here, between"
        return f"{how} {self.options[first]!r} and {self.options[second]!r}: {one} to {two}"

    def _rare(self, i: int) -> str:
        k = int((self.p[i] * self._weights()).argmax())
        name = self.options[k]
        known = self.counts.get(name, 0)
        labels = f"{known or 'no'} label{'' if known == 1 else 's'} so far"
        return f"may be {self._of(self.p, i, k)}: {'a severe class, ' if name in self.severe else ''}{labels}"

    def _apart(self, i: int) -> str:
        assert self.q is not None
        mine, theirs = self._of(self.p, i, self.p[i].argmax()), self._of(self.q, i, self.q[i].argmax())
        return f"model says {mine}, linear probe says {theirs}"

    def _weights(self) -> Floats:
        return _ranking.class_weights(self.counts, self.options, self.severe)

    def _differ(self, i: int) -> bool:
        """Whether model and probe choose different options."""
        return self.q is not None and bool(self.p[i].argmax() != self.q[i].argmax())

    def _of(self, rows: Floats, i: int, k: np.intp | int) -> str:
        return f"{self.options[k]!r} ({rows[i, k]:.2f})"
