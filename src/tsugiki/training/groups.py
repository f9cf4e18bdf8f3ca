"""Tuning in context (MMICT, 2312.06363): the samples of a source with `demos` as groups, drawn when a batch needs them.

Shapes: n samples of a source, P positions of a tower's grid, V its width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tsugiki.data.boxes import BoxCodec
from tsugiki.data.demos import Groups, shown
from tsugiki.errors import RecipeError
from tsugiki.training import parts
from tsugiki.training._demos import Demos
from tsugiki.training.hardness import Hardness
from tsugiki.training.recipe import Stage
from tsugiki.types import Sample

if TYPE_CHECKING:
    from tsugiki.vision.cache import FeatureCache

PLAIN = "uni_modal"
"""What demonstrations are for a model without a hub."""
LOOKING = ("nearest", "diverse")
"""Samplers that need the pictures' features."""
_READ = 64  # pictures whose features are in memory at once


@dataclass(frozen=True)
class Draws:
    """A source's samples with demonstrations: `draws(i, epoch)` is sample i as it is shown in that epoch."""

    groups: Groups
    form: str
    """One of `DEMO_FORMS`."""
    codec: BoxCodec

    def __call__(self, index: int, epoch: int) -> Sample:
        """The sample itself, the same object, where no demonstration was drawn."""
        group = self.groups(index, epoch)
        return shown(group.query, group.demos, self.form, self.codec)

    def longest(self, length: Callable[[Sample], int]) -> Iterator[Sample]:
        """Of each task its longest sample behind the longest others, as many as can be drawn: what is too long for the
        LLM is found before the first step.

        Args:
            length: tokens of a sample.
        """
        samples = self.groups.samples
        lengths = np.array([length(sample) for sample in samples])
        queries: dict[str, int] = {}
        for i in np.argsort(-lengths, kind="stable"):
            queries.setdefault(samples[i].task, int(i))
        for query in queries.values():
            others = self.groups.others(query)
            demos = others[np.argsort(-lengths[others], kind="stable")][: self.groups.most]
            yield shown(samples[query], [samples[i] for i in demos], self.form, self.codec)


def check(model: Any, stage: Stage, samples: Mapping[str, Sequence[Sample]], *, where: str) -> None:
    """Whether the stage's demonstrations can be made, for this model and of these samples.

    Raises:
        RecipeError: a form that needs a hub, a sampler that needs a frozen tower, or a sample that has another number
            of pictures than one, or no answer at its end.
    """
    for name, source in stage.data.items():
        if source.demos is None:
            continue
        here = f"{where}.data.{name}.demos"
        if source.demos.form not in (None, PLAIN) and model.frontend.hub is None:
            raise RecipeError(
                f"form {source.demos.form!r} for a model without a hub",
                expected=f"{PLAIN}, pictures and their texts",
                fix="Leave the form out, or attach with `projector: hub`.",
                where=f"{here}.form",
            )
        if source.demos.sampler in LOOKING and not parts.frozen_tower(model):
            raise RecipeError(
                f"the sampler {source.demos.sampler!r} beside a tower that trains: what is near changes with it",
                expected="a frozen tower, or the sampler random, hard or balanced",
                fix="Use one of these.",
                where=f"{here}.sampler",
            )
        for sample in samples[name]:
            if len(sample.images) != 1 or sample.answer is None:
                last = "" if sample.answer is not None else " and no answer at its end"
                raise RecipeError(
                    f"sample {sample.id!r} has {len(sample.images)} pictures{last}",
                    expected="one picture and an answer in every sample of a source with demos",
                    fix="Give the others a source of their own.",
                    where=sample.where or here,
                )


def drawn(
    model: Any,
    stage: Stage,
    samples: Mapping[str, Sequence[Sample]],
    parents: Mapping[str, str],
    features: FeatureCache | None,
    *,
    seed: int,
) -> dict[str, Draws]:
    """Source -> its draws, of those with demonstrations.

    Args:
        samples: by source, after `feed.divided`.
        parents: source -> its name in the recipe.
        features: of the pictures; not needed for samplers that do not look at them.

    Raises:
        ImageError: a picture can't be read.
    """
    asked = {name: stage.data[parent].demos for name, parent in parents.items()}
    return {
        name: Draws(_groups(samples[name], demos, features, seed), form_of(model, demos), model.processor.codec)
        for name, demos in asked.items()
        if demos is not None
    }


def hardness(drawn: Mapping[str, Draws]) -> Hardness | None:
    """What the samplers `hard` among these go by; None where there is none."""
    seen = {name: d.groups.hardness for name, d in drawn.items() if d.groups.hardness is not None}
    return Hardness(seen) if seen else None


def form_of(model: Any, demos: Demos) -> str:
    """How demonstrations reach the LLM, one of `DEMO_FORMS`."""
    if model.frontend.hub is None:
        return PLAIN
    return demos.form or model.frontend.config.hub_settings().demos


def _groups(samples: Sequence[Sample], demos: Demos, features: FeatureCache | None, seed: int) -> Groups:
    looks = demos.most > 0 and demos.sampler in LOOKING
    vectors = _pooled(samples, features) if looks and features is not None else None
    options: dict[str, Any] = {"sampler": demos.sampler, "near": demos.near, "vectors": vectors, "seed": seed}
    if demos.sampler == "hard":
        options["hardness"] = np.full(len(samples), np.nan, np.float32)  # filled in while the stage trains
    return Groups(samples=samples, most=demos.most, **options)


def _pooled(samples: Sequence[Sample], features: FeatureCache) -> npt.NDArray[np.float32]:
    """What a sampler compares: the mean over the positions, [n, V]."""
    rows = [
        features.cells([sample.images[0] for sample in samples[start : start + _READ]]).float().mean(1).numpy()
        for start in range(0, len(samples), _READ)
    ]
    pooled: npt.NDArray[np.float32] = np.concatenate(rows)
    return pooled
