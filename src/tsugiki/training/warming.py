"""A stage's warm start: pictures, the words of their answers and their boxes, from the stage's data to
`vision.warm_start` and `vision.place_fit`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tsugiki.data.boxes import PaddedSquare
from tsugiki.data.images import image_size, source_key
from tsugiki.errors import RecipeError, UnknownNameError
from tsugiki.training.recipe import Stage, WarmStart
from tsugiki.types import Box, BoxPart, ImageSource, Sample, TextPart

if TYPE_CHECKING:
    from tsugiki.vision.cache import FeatureCache

OWN = ("frontend", "features", "texts", "tokenizer", "word_embeddings")


def check(stage: Stage, *, where: str) -> None:
    """Whether the stage's warm start, if it has one, can be run.

    Raises:
        UnknownNameError: an option that the warm start does not have.
    """
    from tsugiki.vision.warm_start import warm_start

    known = [name for name in inspect.signature(warm_start).parameters if name not in OWN]
    for name in stage.warm_start.options if stage.warm_start is not None else ():
        if name not in known:
            raise UnknownNameError("warm-start option", name, known, where=f"{where}.warm_start.options")


def check_places(model: Any, stages: Sequence[Stage], *, where: str) -> None:
    """Whether the front-end's places, if it has any, can tell something by the last of these stages.

    Raises:
        RecipeError: nothing has fitted them, and no warm start will.
    """
    places = getattr(model.frontend, "places", None)
    if places is not None and not places.fitted and all(stage.warm_start is None for stage in stages):
        raise RecipeError(
            "the front-end has places that were never fitted, and there is no warm start",
            expected="a warm start, which fits them from the boxes of the data",
            fix="Add `warm_start: true`, or attach with places=0",
            where=f"{where}.warm_start",
        )


def captions(samples: Mapping[str, Sequence[Sample]], settings: WarmStart) -> list[tuple[ImageSource, str]]:
    """The first pictures that stand alone in their sample, each with what is said about it.

    That is the caption in the sample's `meta`, else all answers to questions about the picture, joined.
    """
    found: dict[Any, tuple[ImageSource, list[str]]] = {}
    for sample in (s for content in samples.values() for s in content if len(s.images) == 1):
        caption = sample.meta.get(settings.caption)
        if isinstance(caption, str) and caption.strip():
            said = [caption.strip()]
        elif sample.task not in settings.exclude:
            answers = [part for m in sample.messages if m.role == "assistant" for part in m.parts]
            said = [part.text.strip() for part in answers if isinstance(part, TextPart) and part.text.strip()]
        else:
            continue
        key = source_key(sample.images[0])
        if said and (key in found or len(found) < settings.samples):
            texts = found.setdefault(key, (sample.images[0], []))[1]
            texts += [text for text in said if text not in texts]
    return [(source, " ".join(texts)) for source, texts in found.values()]


def places(samples: Mapping[str, Sequence[Sample]], settings: WarmStart) -> list[tuple[ImageSource, list[Box]]]:
    """The first pictures that stand alone in their sample and have boxes, each with all boxes that are told of it.

    Those are the ones in the sample's `meta`, else all boxes of its messages.
    """
    found: dict[Any, tuple[ImageSource, list[Box]]] = {}
    for sample in (s for content in samples.values() for s in content if len(s.images) == 1):
        boxes = _listed(sample.meta.get(settings.objects))
        boxes = boxes or [part.box for m in sample.messages for part in m.parts if isinstance(part, BoxPart)]
        key = source_key(sample.images[0])
        if boxes and (key in found or len(found) < settings.samples):
            known = found.setdefault(key, (sample.images[0], []))[1]
            known += [box for box in boxes if box not in known]
    return list(found.values())


def _listed(things: Any) -> list[Box]:
    """The boxes of a list of objects; what has another form is nobody's list of objects."""
    boxes = [thing.get("box") for thing in things if isinstance(thing, dict)] if isinstance(things, list) else []
    numbers = [b for b in boxes if isinstance(b, list) and len(b) == 4 and all(isinstance(v, int | float) for v in b)]
    return [Box(*map(float, b)) for b in numbers]


def warm(
    model: Any, stage: Stage, samples: Mapping[str, Sequence[Sample]], cache: FeatureCache | None
) -> dict[str, Any]:
    """Start the projector, and fit the front-end's places, in closed form, without running the LLM; returns what they
    report.

    Raises:
        RecipeError: no picture with words to go by (for places: with boxes), or a tower that trains.
    """
    from tsugiki.vision.warm_start import warm_start

    assert stage.warm_start is not None
    pairs, report = captions(samples, stage.warm_start), dict[str, Any](matched=False)
    if cache is None or (not pairs and model.frontend.places is None):
        found = "no picture with an answer in words" if cache is not None else "a tower that trains"
        raise RecipeError(
            found,
            expected="samples of one picture whose answers say what it shows, and a frozen tower",
            fix="Remove warm_start, or add such samples",
            where=f"stage {stage.name}: warm_start",
        )
    if pairs:
        features = cache.get([source for source, _ in pairs])
        options = {"limit": stage.warm_start.samples, **stage.warm_start.options}
        texts = [text for _, text in pairs]
        report = warm_start(
            model.frontend, features, texts, model.tokenizer, word_embeddings(model.language_model), **options
        )
    if model.frontend.places is not None:
        report["places"] = _fit_places(model, stage, samples, cache)
    return report


def told(report: Mapping[str, Any]) -> str:
    """What `warm` reports, in a line for people; the numbers are in `result.json`."""
    parts = []
    if report["matched"]:
        parts.append(f"the projector starts from {report['pictures']} pictures and {report['words']} words")
    elif "pictures" in report and report.get("norm", 1.0) is None:
        parts.append("the projector stays as it is")
    elif "pictures" in report:
        parts.append(f"only the size of the visual tokens is set ({report.get('reason', 'as asked for')})")
    if "places" in report:
        parts.append("places are fitted")
    took = f", in {report['seconds']:.0f} s" if "seconds" in report else ""
    return f"warm start: {' and '.join(parts)}{took}"


def _fit_places(
    model: Any, stage: Stage, samples: Mapping[str, Sequence[Sample]], cache: FeatureCache
) -> dict[str, Any]:
    from tsugiki.vision.place_fit import fit
    from tsugiki.vision.places import as_tensor

    assert stage.warm_start is not None
    told = places(samples, stage.warm_start)
    if len(told) < 2:
        raise RecipeError(
            f"{len(told)} pictures with boxes, and a front-end with places",
            expected="at least 2, to learn from where things are",
            fix="Add samples with boxes, or attach with places=0",
            where=f"stage {stage.name}: warm_start",
        )
    relative = []
    for source, boxes in told:
        square = PaddedSquare(*image_size(source))
        relative.append(as_tensor([(b.x1, b.y1, b.x2, b.y2) for b in map(square.to_square, boxes)]))
    report: dict[str, Any] = fit(model.frontend.places, cache.cells([source for source, _ in told]), relative)
    return report


@torch.no_grad()
def word_embeddings(llm: Any) -> Tensor:
    """The words as the LLM's first layer sees them [vocabulary, D]: some families scale them after the look-up."""
    embed = llm.get_input_embeddings()
    rows = torch.arange(embed.weight.shape[0], device=embed.weight.device)
    return torch.cat([embed(part).float().cpu() for part in rows.split(4096)])
