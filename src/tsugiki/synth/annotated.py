"""Pictures with named boxes, from wherever they come: what questions about true boxes are made from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsugiki.data import schema
from tsugiki.data.boxes import BoxCodec, PaddedSquare
from tsugiki.data.convert import coco
from tsugiki.data.images import image_size, source_key
from tsugiki.errors import InputError
from tsugiki.synth.phrases.base import BOX
from tsugiki.types import Box, ImageSource, Sample

ABSENT = 3
"""So many names that are not on a picture are kept for questions about what is not there."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture and what is known of it."""

    source: ImageSource
    size: tuple[int, int]
    """Width and height, pixels."""
    name: str
    """Begins the ids of its samples."""
    things: Mapping[str, tuple[Box, ...]]
    """Name -> all boxes of that name, from left to right."""
    absent: tuple[str, ...] = ()
    """Names of what is certainly not there."""
    whole: bool = True
    """Whether all things of the names that were annotated are in `things`."""
    caption: str = ""
    """What a warm start takes for its words."""

    @property
    def span(self) -> int:
        """The longer side."""
        return max(self.size)

    @property
    def singles(self) -> list[str]:
        """Names that one thing has."""
        return [name for name, boxes in self.things.items() if len(boxes) == 1]

    def several(self, low: int, high: int) -> list[str]:
        """Names that `low` to `high` things have."""
        return [name for name, boxes in self.things.items() if low <= len(boxes) <= high]


def read(
    path: str | Path,
    *,
    images: str | Path | None = None,
    seed: int = 0,
    codec: BoxCodec | None = None,
    problems: list[InputError],
    left_out: Counter[str],
) -> list[Picture]:
    """The pictures of a COCO file (`.json`), or of samples whose box parts have labels (`.jsonl`), in their order.

    All boxes of a picture belong together, whichever sample they are in; a thing has one name in all of them. What a
    COCO file lists and does not mark on a picture is absent there; of samples, what one with the task "absent" names as
    `meta["category"]`, as converters do.

    Args:
        images: folder of COCO's pictures.
        seed: chooses the absent names of COCO.
        codec: that boxes have to get through.
        problems: takes the errors of wrong entries, which are left out.
        left_out: takes counts of what is right and of no use, by reason.

    Raises:
        InputError: the file can't be read at all.
    """
    if Path(path).suffix.lower() == ".json":
        samples = coco.convert(path, images=images, absent=ABSENT, seed=seed, problems=problems)
    else:
        samples = []
        for item in schema.scan_checked(path):
            if isinstance(item, Sample):
                samples.append(item)
            elif item.where == str(path):  # of the whole file
                raise item
            else:
                problems.append(item)
    return from_samples(samples, codec=codec, left_out=left_out)


def from_samples(
    samples: Iterable[Sample], *, codec: BoxCodec | None = None, left_out: Counter[str] | None = None
) -> list[Picture]:
    """Pictures of samples with labelled box parts; see `read`."""
    left_out = Counter() if left_out is None else left_out
    found: dict[Any, tuple[ImageSource, dict[str, dict[Box, None]], dict[str, None]]] = {}
    crowds: dict[Any, set[str]] = {}
    for sample in samples:
        for source in sample.images:
            found.setdefault(source_key(source), (source, {}, {}))
            crowds.setdefault(source_key(source), set()).update(map(_name, sample.meta.get("crowds") or ()))
        for part in sample.boxes:
            if name := _name(part.label):
                _, things, _ = found[source_key(sample.images[part.image])]
                things.setdefault(name, {})[part.box] = None
            else:
                left_out["box without a label"] += 1
        if sample.task == "absent" and len(sample.images) == 1 and (name := _name(sample.meta.get("category"))):
            found[source_key(sample.images[0])][2][name] = None
    return [
        _picture(f"{i:06d}", source, things, absent, codec or BoxCodec(), left_out, crowds[key])
        for i, (key, (source, things, absent)) in enumerate(found.items())
    ]


def from_scene(sample: Sample, names: Sequence[str], key: str) -> Picture:
    """A picture of `scenes.generate`, of which the sample's `meta` tells everything.

    Args:
        names: that scenes are made of, those that may be absent.
        key: under which an object has its name in the language that is wanted.
    """
    things: dict[str, list[Box]] = {}
    for item in sample.meta["objects"]:
        things.setdefault(item[key], []).append(Box(*item["box"]))
    absent = tuple(name for name in names if name not in things)
    boxes = {name: tuple(boxes) for name, boxes in things.items()}  # sorted already
    return Picture(
        sample.images[0], tuple(sample.meta["size"]), sample.id, boxes, absent, caption=sample.meta["caption"]
    )


def _picture(
    name: str,
    source: ImageSource,
    things: Mapping[str, Iterable[Box]],
    absent: Iterable[str],
    codec: BoxCodec,
    left_out: Counter[str],
    crowds: Collection[str],
) -> Picture:
    size = image_size(source)
    square, usable = PaddedSquare(*size), {}
    for said, given in things.items():
        boxes = sorted(given, key=lambda b: (b.x1, b.y1, b.x2, b.y2))
        texts = {codec.encode(box, square) for box in boxes}
        if said in crowds:
            left_out["name of which some have no box of their own"] += 1
        elif len(texts) < len(boxes):
            left_out["name with the same box twice"] += 1
        elif not all(readable(box, codec, square) for box in boxes):
            left_out["name with a box that the codec does not bring back"] += 1
        else:
            usable[said] = tuple(boxes)
    certain = tuple(said for said in absent if said not in things)
    return Picture(source, size, name, usable, certain, len(usable) == len(things) and not crowds, ", ".join(things))


def readable(box: Box, codec: BoxCodec, square: PaddedSquare) -> bool:
    """Whether a box lies inside, and its text is read back with every edge within half a step of the codec."""
    back = codec.parse(codec.encode(box, square), square)
    if len(back) != 1:
        return False
    edges = zip((box.x1, box.y1, box.x2, box.y2), (back[0].x1, back[0].y1, back[0].x2, back[0].y2), strict=True)
    return all(abs(a - b) <= (0.5 / codec.steps + 1e-9) * square.side for a, b in edges)


def _name(label: Any) -> str:
    """A name on one line; "" where there is none."""
    return " ".join(label.split()).replace(BOX, "") if isinstance(label, str) else ""
