"""COCO captions: a question for a caption, one for each caption of a picture."""

from __future__ import annotations

from pathlib import Path

from tsugiki.data import _fields
from tsugiki.data.convert import coco
from tsugiki.data.convert._problems import Problems
from tsugiki.errors import InputError
from tsugiki.types import Message, Sample

DESCRIPTION = "COCO captions JSON: images, annotations with caption"
QUESTION = "Describe the picture."


def convert(
    path: str | Path,
    *,
    images: str | Path | None = None,
    question: str = QUESTION,
    problems: list[InputError] | None = None,
) -> list[Sample]:
    """One sample for each caption; the task is "caption".

    Args:
        images: folder of the pictures; by default the JSON's folder, or `images` in it.
        question: asked about every picture.
        problems: a list that takes the errors of wrong entries, which are then left out.

    Raises:
        DataError: not COCO, an unknown id, or an empty caption.
        ImageError: a picture does not exist or can't be read.
    """
    path, wrong = Path(path), Problems(problems)
    data = _fields.mapping(_fields.json_file(path), str(path))
    pictures = coco.read_pictures(data, path, images, wrong)
    samples: list[Sample] = []
    for number, (where, entry) in enumerate(coco.entries(data, "annotations", path)):
        with wrong.caught():
            about = pictures[coco.known_id(entry, "image_id", pictures, where)]
            if about is not None:
                caption = " ".join(_fields.text(entry.get("caption"), f"{where} caption").split())
                messages = (Message.of("user", question, (about.path,)), Message.of("assistant", caption))
                samples.append(Sample(f"{about.name}#caption{number}", messages, task="caption", where=where))
    return wrong.close(samples, str(path))
