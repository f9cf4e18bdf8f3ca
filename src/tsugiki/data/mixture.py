"""Weighted mixture of sources: endless, seeded, continued exactly from its state; and batches of like length."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tsugiki.errors import DataError, UnknownNameError
from tsugiki.types import Sample


class Mixture:
    """An endless stream of samples: a source is drawn by its weight, then its next sample is taken.

    Every source is gone through in a shuffled order of its own, and shuffled anew when it runs out. All draws follow
    from the seed and from counters, so the state is a few numbers and a stream continues exactly.

    Args:
        sources: name -> samples.
        weights: name -> weight, 0 or more, of any sum; a name that is left out has weight 0. Without weights, a source
            counts by its size.
        seed: of all draws.

    Raises:
        DataError: no source, an empty source that is drawn, or a weight that is negative, not finite, or 0 everywhere.
        UnknownNameError: a weight for a source that does not exist.
    """

    def __init__(
        self, sources: Mapping[str, Sequence[Sample]], weights: Mapping[str, float] | None = None, seed: int = 0
    ) -> None:
        self.sources = dict(sources)
        self.weights = _weights(self.sources, weights)
        self.seed = seed
        self._draws = 0
        self._taken = dict.fromkeys(self.sources, 0)
        self._orders: dict[str, tuple[int, list[int]]] = {}

    def __iter__(self) -> Iterator[Sample]:
        return self

    def __next__(self) -> Sample:
        return self.draw()[1]

    def draw(self) -> tuple[str, Sample]:
        """The next source's name and its next sample."""
        rng = random.Random(f"{self.seed}/draw/{self._draws}")
        name = rng.choices(list(self.weights), list(self.weights.values()))[0]
        epoch, at = divmod(self._taken[name], len(self.sources[name]))
        self._draws += 1
        self._taken[name] += 1
        return name, self.sources[name][self._order(name, epoch)[at]]

    @property
    def epochs(self) -> dict[str, float]:
        """How often each source has been gone through so far."""
        return {name: taken / max(len(self.sources[name]), 1) for name, taken in self._taken.items()}

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is, and what it is of, as JSON values."""
        return {"draws": self._draws, "taken": dict(self._taken), "of": self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the draw at which `state` was made.

        Raises:
            DataError: the state belongs to other sources, weights or another seed.
        """
        if state.get("of") != self._identity():
            raise DataError(
                f"a state of {state.get('of')}",
                expected=f"one of {self._identity()}",
                fix="Resume with the same data, weights and seed, or start anew.",
                where="mixture state",
            )
        self._draws = int(state["draws"])
        self._taken = {name: int(state["taken"][name]) for name in self.sources}

    def _identity(self) -> dict[str, Any]:
        sizes = {name: len(samples) for name, samples in self.sources.items()}
        return {"seed": self.seed, "sizes": sizes, "weights": dict(self.weights)}

    def _order(self, name: str, epoch: int) -> list[int]:
        known = self._orders.get(name)
        if known is None or known[0] != epoch:
            order = list(range(len(self.sources[name])))
            random.Random(f"{self.seed}/order/{name}/{epoch}").shuffle(order)
            self._orders[name] = known = (epoch, order)
        return known[1]


def length_groups(lengths: Sequence[int], batch_size: int, *, seed: int, window: int = 16) -> list[list[int]]:
    """Shuffled batches of samples of like length: less padding, and the order of lengths stays random.

    Samples are shuffled, sorted inside windows of `window` batches, and the batches shuffled.

    Args:
        lengths: tokens of every sample.
        batch_size: the last batch may be smaller.
        seed: of both shuffles; put the epoch's number into it.

    Returns:
        Indices of the samples of every batch; each sample is in one batch.
    """
    rng = random.Random(f"{seed}/length")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    span = batch_size * window
    batches = []
    for start in range(0, len(order), span):
        part = sorted(order[start : start + span], key=lambda i: -lengths[i])
        batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    rng.shuffle(batches)
    return batches


def _weights(sources: Mapping[str, Sequence[Sample]], weights: Mapping[str, float] | None) -> dict[str, float]:
    if weights is None:
        weights = {name: len(samples) for name, samples in sources.items()}
    for name, weight in weights.items():
        if name not in sources:
            raise UnknownNameError("data source", name, sources, where="mixture weights")
        if not (math.isfinite(weight) and weight >= 0):
            raise DataError(
                f"weight {weight} of source {name!r}", expected="0 or more", fix="Correct it.", where="mixture weights"
            )
        if weight > 0 and not sources[name]:
            raise DataError(
                f"source {name!r} has no sample",
                expected="at least one",
                fix="Fill it or leave it out.",
                where="mixture",
            )
    drawn = {name: float(weights[name]) for name in sources if weights.get(name, 0) > 0}
    if not drawn:
        raise DataError(
            "no source with a weight above 0", expected="at least one", fix="Give sources and weights.", where="mixture"
        )
    return drawn
