"""What known pictures show, for questions that are made from samples of scenes instead of new pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tsugiki.data.images import source_key
from tsugiki.errors import DataError
from tsugiki.synth.phrases import LANGUAGES
from tsugiki.synth.phrases.base import Phrases
from tsugiki.synth.pictograms import COLOURS
from tsugiki.types import ImageSource, Sample


@dataclass(frozen=True, slots=True)
class Shown:
    """One picture; `objects` as `scenes.generate` writes them to `meta`."""

    image: ImageSource
    phrases: Phrases
    objects: tuple[Mapping[str, Any], ...]
    meta: Mapping[str, Any]

    def name(self, thing: Mapping[str, Any]) -> str:
        """In the language of the picture's questions."""
        return str(thing["ja" if self.phrases.language == "ja" else "name"])

    @staticmethod
    def hue(thing: Mapping[str, Any]) -> str | None:
        """The colour, if sentences name it."""
        return thing["colour"] if thing.get("colour") in COLOURS else None


def pictures(samples: Iterable[Sample]) -> list[Shown]:
    """Every picture and language once, in the order of the samples.

    Raises:
        DataError: no sample says what its picture shows.
    """
    found: dict[tuple[object, str], Shown] = {}
    for sample in samples:
        objects, language = sample.meta.get("objects"), str(sample.meta.get("language"))
        if sample.images and objects and language in LANGUAGES:
            image = sample.images[0]
            meta = {k: sample.meta[k] for k in ("language", "split", "background") if k in sample.meta}
            shown = Shown(image, LANGUAGES[language], tuple(objects), meta)
            found.setdefault((source_key(image), language), shown)
    if not found:
        raise DataError(
            "no sample says what its picture shows",
            expected="samples of scenes, with meta.objects and meta.language",
            fix="Make them with: tsugiki synth scenes",
        )
    return list(found.values())
