"""Samples, encoded once, to an endless stream of batches whose order follows from the seed and continues exactly."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from torch import Tensor
from torch.utils.data import IterableDataset

from tsugiki.data.collate import Collator, Item
from tsugiki.data.mixture import Mixture, length_groups
from tsugiki.data.packing import Pack
from tsugiki.training.hardness import Hardness, Row
from tsugiki.types import DemoPart, Sample

GROUP = 16
"""Batches among which samples are sorted by length."""

_Drawn = tuple[Row, Sample]


class Encoder:
    """Samples to the model's inputs; what a sample's tokens are is remembered for the next time that it is drawn.

    Args:
        remember: how many samples.
        ahead: how many with demonstrations: such a group does not come again, but its length is asked for before it is
            put into a batch.
    """

    def __init__(self, collator: Collator, *, remember: int = 50_000, ahead: int = 1_024) -> None:
        self.collator, self.remember, self.ahead = collator, remember, ahead
        self._items: dict[int, tuple[Sample, Item]] = {}
        self._groups: dict[int, tuple[Sample, Item]] = {}

    def item(self, sample: Sample) -> Item:
        """A sample's tokens.

        Raises:
            PromptError: too long, an unknown role.
        """
        group = not isinstance(sample, Pack) and any(isinstance(p, DemoPart) for m in sample.messages for p in m.parts)
        items, most = (self._groups, self.ahead) if group else (self._items, self.remember)
        known = items.get(id(sample))
        if known is not None and known[0] is sample:
            return known[1]
        item = Item(sample.encoded) if isinstance(sample, Pack) else self.collator.item(sample)
        if len(items) >= most:
            del items[next(iter(items))]
        items[id(sample)] = (sample, item)
        return item

    def length(self, sample: Sample) -> int:
        """Tokens of a sample, visual ones included."""
        return len(self.item(sample).encoded)

    def __call__(
        self, samples: Sequence[Sample], variant: int = 0, stand_in: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The keyword arguments of the model's forward, with labels, and what a loss reads beside them (`FOR_LOSSES`);
        pictures in one of the cache's variants.

        Args:
            stand_in: pictures that no row refers to, where no row has one and the front-end has to run nevertheless.
        """
        collator, cache = self.collator, cast(Any, self.collator.features)
        if variant and cache is not None:
            collator = replace(collator, features=lambda source: cache.get([source], variant)[0])
        if stand_in is not None:
            collator = replace(collator, kinds=True)
        batch = collator([self.item(sample) for sample in samples])
        return batch.inputs() | batch.for_losses() | dict(stand_in or {})


class Stream(IterableDataset[Any]):
    """Batches without end, the same for the same seed, and continued exactly from `state_dict`.

    With `length`, samples are drawn `GROUP` batches at a time and put into batches of like length, in random order.

    Args:
        mixture: where samples come from.
        collate: samples, and with variants the number of one, to the model's inputs.
        length: tokens of a sample, or None for no grouping.
        variants: K; batches take the variants 0..K in turn.
        homogeneous: a batch's samples are of sources of one of the mixture's kinds.
        share: which rows of each batch to give, where several processes divide it; None = all.
        stand_in: for a share without a picture of a batch that has one: all processes have to run the same modules.
        hardness: what the mixture draws demonstrations by: it is told when to show what, and of which rows a batch is.
    """

    def __init__(
        self,
        mixture: Mixture,
        *,
        batch_size: int,
        collate: Callable[..., Any],
        length: Callable[[Sample], int] | None,
        seed: int,
        variants: int = 0,
        homogeneous: bool = False,
        share: slice | None = None,
        stand_in: Mapping[str, Tensor] | None = None,
        hardness: Hardness | None = None,
    ) -> None:
        self.mixture, self.batch_size, self.collate, self.length, self.seed = mixture, batch_size, collate, length, seed
        self.variants, self.share, self.stand_in = variants, share, stand_in
        self.homogeneous, self.hardness = homogeneous, hardness
        self._groups = 0  # drawn so far
        self._taken = 0  # batches taken of the present one
        self._before: dict[str, Any] = mixture.state_dict()  # the mixture before the present group was drawn
        self._batches: list[list[_Drawn]] = []

    def __iter__(self) -> Iterator[Any]:
        while True:
            if self._taken == len(self._batches):
                self._draw()
            batch = self._batches[self._taken]
            self._taken += 1
            own = batch if self.share is None else batch[self.share]
            rows = [sample for _, sample in own]
            if self.hardness is not None:
                self.hardness.expect([row for row, _ in own])
            options: dict[str, Any] = {}
            if self.variants:  # by the batch's number, so that a continued run takes the same ones
                options["variant"] = (self._groups * GROUP + self._taken) % (1 + self.variants)
            if any(s.images for _, s in batch) and not any(s.images for s in rows):
                options["stand_in"] = self.stand_in
            yield self.collate(rows, **options)

    def _draw(self) -> None:
        self._before = self.mixture.state_dict()
        if self.hardness is not None:
            self.hardness.show()
        drawn = [self._batch() for _ in range(GROUP if self.length else 1)]
        if self.length:
            together: dict[str, list[_Drawn]] = {}
            for kind, batch in drawn:
                together.setdefault(kind, []).extend(batch)
            drawn = self._by_length(together, self.length)
        self._batches = [batch for _, batch in drawn]
        self._groups += 1
        self._taken = 0

    def _batch(self) -> tuple[str, list[_Drawn]]:
        """Samples of one batch, and their kind where batches have one."""
        first = self._next()
        name = first[0][0]
        like = name if self.homogeneous else None
        rest = [self._next(like) for _ in range(self.batch_size - 1)]
        return self.mixture.kinds.get(name, "") if self.homogeneous else "", [first, *rest]

    def _next(self, like: str | None = None) -> _Drawn:
        name, number, epoch = self.mixture.take(like)
        return (name, number), self.mixture.given(name, number, epoch)

    def _by_length(
        self, together: Mapping[str, list[_Drawn]], length: Callable[[Sample], int]
    ) -> list[tuple[str, list[_Drawn]]]:
        """Batches of like length within each kind, in random order."""
        seed, out = self.seed * 1_000_003 + self._groups, []
        for kind, samples in together.items():
            groups = length_groups([length(s) for _, s in samples], self.batch_size, seed=seed, window=GROUP)
            out += [(kind, [samples[i] for i in group]) for group in groups]
        if len(together) > 1:
            random.Random(f"{seed}/kinds").shuffle(out)
        return out

    def state_dict(self) -> dict[str, Any]:
        """JSON values."""
        state = {"mixture": self._before, "groups": self._groups, "taken": self._taken}
        return state if self.hardness is None else {**state, "hardness": self.hardness.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the last batch that was taken when `state` was made."""
        self.mixture.load_state_dict(dict(state["mixture"]))
        self._groups = state["groups"] - 1
        if self._groups < 0:
            self._groups = 0
            return
        if self.hardness is not None:  # the present group is drawn again by what was known then
            self.hardness.load(state["hardness"]["seen"])
        self._draw()
        if self.hardness is not None:
            self.hardness.load(state["hardness"]["latest"])
        self._taken = state["taken"]
