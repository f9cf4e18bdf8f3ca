"""Weighted mixture of sources: endless, seeded, continued exactly from its state; and batches of like length."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from tsugiki.errors import DataError, UnknownNameError
from tsugiki.types import Sample


class Mixture:
    """An endless stream of samples: a source is drawn by its weight, then its next sample is taken.

    Every source is gone through in a shuffled order of its own, and shuffled anew when it runs out. All draws follow
    from the seed and from counters, so the state is a few numbers and a stream continues exactly.

    A staged source is gone through by levels, `meta["level"]` of its samples, the lowest first: each level has as large
    a share of the `draws` as of the samples, and within its share it is shuffled, and shuffled anew when it runs out.
    So the budget, and how often a sample is drawn, are those of a shuffled source. After the last draw it stays at the
    highest level.

    Args:
        sources: name -> samples.
        weights: name -> weight, 0 or more, of any sum; a name that is left out has weight 0. Without weights, a source
            counts by its size.
        seed: of all draws.
        staged: names of the sources that are gone through by levels.
        draws: over all sources, among which the levels divide; needed where a source is staged.
        kinds: name -> what may stand in one batch with others of its kind, see `draw`.
        drawn: name -> (number of a sample, how often the source has been gone through) -> what is given in its place,
            such as the sample with demonstrations; the same for the same two numbers.

    Raises:
        DataError: no source, an empty source that is drawn, a weight that is negative, not finite, or 0 everywhere, or
            a staged source without `draws` or with a sample that has no level.
        UnknownNameError: a weight for a source that does not exist, or a staged or drawn one.
    """

    def __init__(
        self,
        sources: Mapping[str, Sequence[Sample]],
        weights: Mapping[str, float] | None = None,
        seed: int = 0,
        *,
        staged: Collection[str] = (),
        draws: int | None = None,
        kinds: Mapping[str, str] | None = None,
        drawn: Mapping[str, Callable[[int, int], Sample]] | None = None,
    ) -> None:
        self.sources, self.drawn = dict(sources), dict(drawn or {})
        for name in self.drawn:
            if name not in self.sources:
                raise UnknownNameError("data source", name, self.sources, where="drawn")
        self.weights = _weights(self.sources, weights)
        self.seed, self.kinds = seed, dict(kinds or {})
        self.length = _length(self.sources, staged, draws)
        # A pool is what is shuffled together: a source, or one level of a staged one; by numbers of the samples.
        self._pools = {name: [(name, list(range(len(content))))] for name, content in self.sources.items()}
        for name in staged:
            self._pools[name] = [(f"{name}/level {n}", of) for n, of in levels(self.sources[name]).items()]
        self._draws = 0
        self._taken = {pool: 0 for pools in self._pools.values() for pool, _ in pools}
        self._orders: dict[str, tuple[int, list[int]]] = {}

    def __iter__(self) -> Iterator[Sample]:
        return self

    def __next__(self) -> Sample:
        return self.draw()[1]

    def draw(self, like: str | None = None) -> tuple[str, Sample]:
        """The next source's name and its next sample; with `like`, from a source of that one's kind.

        A batch of one kind whose first sample is drawn freely leaves every source its share.
        """
        name, number, epoch = self.take(like)
        return name, self.given(name, number, epoch)

    def take(self, like: str | None = None) -> tuple[str, int, int]:
        """As `draw`: the source's name, the number of its sample, and how often the source has been gone through."""
        rng = random.Random(f"{self.seed}/draw/{self._draws}")
        names = [n for n in self.weights if like is None or self.kinds.get(n) == self.kinds.get(like)]
        name = rng.choices(names, [self.weights[n] for n in names])[0]
        pool, of = self._pool(name)
        epoch, at = divmod(self._taken[pool], len(of))
        self._draws += 1
        self._taken[pool] += 1
        return name, self._order(pool, of, epoch)[at], epoch

    def given(self, name: str, number: int, epoch: int) -> Sample:
        """What is given for a source's sample when the source has been gone through so often."""
        return self.drawn[name](number, epoch) if name in self.drawn else self.sources[name][number]

    @property
    def epochs(self) -> dict[str, float]:
        """How often each source has been gone through so far."""
        taken = {name: sum(self._taken[pool] for pool, _ in pools) for name, pools in self._pools.items()}
        return {name: n / max(len(self.sources[name]), 1) for name, n in taken.items()}

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
        self._taken = {pool: int(state["taken"][pool]) for pool in self._taken}

    def _identity(self) -> dict[str, Any]:
        sizes = {name: len(samples) for name, samples in self.sources.items()}
        content: dict[str, Any] = {"seed": self.seed, "sizes": sizes, "weights": dict(self.weights)}
        if self.length is not None:
            content["pools"] = {pool: len(of) for pools in self._pools.values() for pool, of in pools}
            content["draws"] = self.length
        if self.kinds:
            content["kinds"] = self.kinds
        return content

    def _pool(self, name: str) -> tuple[str, list[int]]:
        """The pool from which a source's next sample comes."""
        *before, last = self._pools[name]
        at = self._draws * len(self.sources[name]) // self.length if self.length else 0
        for pool, of in before:
            if at < len(of):
                return pool, of
            at -= len(of)
        return last

    def _order(self, pool: str, of: Sequence[int], epoch: int) -> list[int]:
        known = self._orders.get(pool)
        if known is None or known[0] != epoch:
            order = list(of)
            random.Random(f"{self.seed}/order/{pool}/{epoch}").shuffle(order)
            self._orders[pool] = known = (epoch, order)
        return known[1]


def tempered(weights: Mapping[str, float], temperature: float) -> dict[str, float]:
    """w ** (1 / T), of any sum: T = 1 leaves the shares as they are, a large T makes them equal.

    Args:
        temperature: T, above 0.
    """
    most = max(weights.values(), default=1.0) or 1.0
    return {name: (weight / most) ** (1 / temperature) for name, weight in weights.items()}


def levels(samples: Sequence[Sample]) -> dict[int, list[int]]:
    """The numbers of the samples of each level, ascending.

    Raises:
        DataError: a sample whose `meta["level"]` is no whole number.
    """
    found: dict[int, list[int]] = {}
    for i, sample in enumerate(samples):
        level = sample.meta.get("level")
        if not isinstance(level, int) or isinstance(level, bool):
            raise DataError(
                f"sample {sample.id!r} has {'no level' if level is None else f'the level {level!r}'}",
                expected='a whole number as meta["level"] in every sample of a staged source',
                fix="Add it, or use `order: shuffled`.",
                where=sample.where or "mixture",
            )
        found.setdefault(level, []).append(i)
    return {level: found[level] for level in sorted(found)}


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


def _length(sources: Mapping[str, Sequence[Sample]], staged: Collection[str], draws: int | None) -> int | None:
    for name in staged:
        if name not in sources:
            raise UnknownNameError("data source", name, sources, where="staged")
    if staged and (draws is None or draws < 0):
        raise DataError(
            f"{draws} draws for a source that is staged",
            expected="their number, 0 or more",
            fix="Give draws, or stage no source.",
            where="mixture",
        )
    return draws if staged else None


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
