"""What a stage reads: tower outputs of all its pictures, made once, and its samples as a stream of batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tsugiki.data.images import source_key
from tsugiki.errors import ImageError
from tsugiki.training import groups, parts
from tsugiki.training.processes import Processes
from tsugiki.training.recipe import Stage
from tsugiki.training.report import Display
from tsugiki.training.stream import GROUP, Encoder, Stream
from tsugiki.types import ImageSource, Sample

if TYPE_CHECKING:
    from tsugiki.vision.cache import FeatureCache


def encode(
    model: Any,
    stage: Stage,
    samples: Mapping[str, list[Sample]],
    cache: FeatureCache | None,
    limit: int | None,
    display: Display,
) -> FeatureCache | None:
    """Tower outputs of all pictures of a stage, once; None where the tower trains.

    Args:
        cache: the caller's own, used where it has the stage's variants.
        limit: bytes of the default one.
        display: told how far it is.

    Raises:
        ImageError: a picture can't be read, with the place of its sample.
    """
    if not parts.frozen_tower(model):
        return None
    from tsugiki.vision.cache import FeatureCache

    pictures: list[ImageSource] = [image for content in samples.values() for s in content for image in s.images]
    if cache is None or cache.variants < stage.variants:
        cache = FeatureCache(model.frontend, limit_bytes=limit, variants=stage.variants)
    if pictures:
        different = len({source_key(p) for p in pictures})
        try:
            cache.fill(pictures, display.encoding(different, cache.estimate(different)))
        except ImageError as error:
            raise _placed(error, chain.from_iterable(samples.values())) from error
    return cache


def stream(
    model: Any,
    stage: Stage,
    samples: Mapping[str, list[Sample]],
    features: FeatureCache | None,
    *,
    seed: int,
    here: Processes,
) -> Stream:
    """A stage's batches, or this process's share of each; the order is the same for any number of processes.

    Raises:
        PromptError: a sample that can't be encoded.
    """
    from tsugiki.data.mixture import Mixture, tempered

    # In training a row takes the branch that its sample asks for, whatever a gate would say.
    options = {"labels": True, "padding_side": "right", "question": False}
    if stage.max_length is not None:
        options["max_length"] = stage.max_length
    encoder = Encoder(model.processor.collator(features, **options), ahead=GROUP * stage.batch_size)
    for sample in islice(chain.from_iterable(samples.values()), encoder.remember):
        encoder.item(sample)  # what can't be encoded is found now, not after an hour
    parents, given = {name: name for name in samples}, samples
    if stage.by_kind:
        parents, samples = divided(samples)
    drawn = groups.drawn(model, stage, samples, parents, features, seed=seed)
    for draws in drawn.values():
        for group in draws.longest(encoder.length):
            encoder.item(group)
    sizes = {name: len(content) for name, content in given.items()}
    asked = {name: sizes[name] if (w := stage.data[name].weight) == "size" else w for name in given}
    shares = tempered(asked, stage.temperature) if stage.temperature != 1 else asked
    weights = {name: shares[parent] * len(samples[name]) / sizes[parent] for name, parent in parents.items()}
    kinds = {name: "pictures" if samples[name][0].images else "text" for name in samples} if stage.by_kind else None
    staged = [name for name, parent in parents.items() if stage.data[parent].order == "staged"]
    return Stream(
        Mixture(samples, weights, seed=seed, staged=staged, draws=stage.draws, kinds=kinds, drawn=drawn),
        homogeneous=stage.by_kind,
        batch_size=stage.batch_size,
        collate=encoder,
        length=encoder.length if stage.length_grouping else None,
        seed=seed,
        variants=stage.variants if features is not None else 0,
        share=here.share,
        stand_in=blank(model, features) if here.several else None,
        hardness=groups.hardness(drawn),
    )


def divided(samples: Mapping[str, list[Sample]]) -> tuple[dict[str, str], dict[str, list[Sample]]]:
    """Sources of one kind each: of a source with text and pictures, two. The parents' names, and the samples."""
    parents, out = {}, {}
    for name, content in samples.items():
        kinds = {"text": [s for s in content if not s.images], "pictures": [s for s in content if s.images]}
        kinds = {kind: found for kind, found in kinds.items() if found}
        for kind, found in kinds.items():
            own = name if len(kinds) == 1 else f"{name}, {kind}"
            parents[own], out[own] = name, found
    return parents, out


def blank(model: Any, features: Any) -> dict[str, Tensor]:
    """One picture of zeros, as the model's forward takes it: cached features, or pixels where the tower trains."""
    encoded = features is not None
    return {"vision_features" if encoded else "pixel_values": model.frontend.blank(encoded=encoded)}


def _placed(error: ImageError, samples: Iterable[Sample]) -> ImageError:
    """The same error with the line of the sample whose picture it is."""
    for sample in samples:
        if sample.where and any(isinstance(i, str | Path) and Path(i).name in str(error) for i in sample.images):
            return ImageError(error.found, expected=error.expected, fix=error.fix, where=sample.where)
    return error
