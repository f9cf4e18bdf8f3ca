"""A stage's warm start: pictures and the words of their answers, from the stage's data to `vision.warm_start`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tsugiki.errors import RecipeError, UnknownNameError
from tsugiki.training.recipe import Stage, WarmStart
from tsugiki.training.sources import identity
from tsugiki.types import ImageSource, Sample, TextPart

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
        key = identity(sample.images[0])
        if said and (key in found or len(found) < settings.samples):
            texts = found.setdefault(key, (sample.images[0], []))[1]
            texts += [text for text in said if text not in texts]
    return [(source, " ".join(texts)) for source, texts in found.values()]


def warm(
    model: Any, stage: Stage, samples: Mapping[str, Sequence[Sample]], cache: FeatureCache | None
) -> dict[str, Any]:
    """Start the projector in closed form, without running the LLM; returns what it reports.

    Raises:
        RecipeError: no picture with words to go by, or a tower that trains.
    """
    from tsugiki.vision.warm_start import warm_start

    assert stage.warm_start is not None
    pairs = captions(samples, stage.warm_start)
    if not pairs or cache is None:
        found = "no picture with an answer in words" if cache is not None else "a tower that trains"
        raise RecipeError(
            found,
            expected="samples of one picture whose answers say what it shows, and a frozen tower",
            fix="Remove warm_start, or add such samples",
            where=f"stage {stage.name}: warm_start",
        )
    features = cache.get([source for source, _ in pairs])
    options = {"limit": stage.warm_start.samples, **stage.warm_start.options}
    texts = [text for _, text in pairs]
    report: dict[str, Any] = warm_start(
        model.frontend, features, texts, model.tokenizer, word_embeddings(model.language_model), **options
    )
    return report


@torch.no_grad()
def word_embeddings(llm: Any) -> Tensor:
    """The words as the LLM's first layer sees them [vocabulary, D]: some families scale them after the look-up."""
    embed = llm.get_input_embeddings()
    rows = torch.arange(embed.weight.shape[0], device=embed.weight.device)
    return torch.cat([embed(part).float().cpu() for part in rows.split(4096)])
