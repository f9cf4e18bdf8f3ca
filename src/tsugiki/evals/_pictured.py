"""The claim that requests with a picture come out as a parent model's: grafts on top leave the branch "image" alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw

from tsugiki.evals._claims import picture, same_bits
from tsugiki.evals._reference import Reference
from tsugiki.types import Check, Message, Sample

CAPTIONS = ("Describe the picture.", "Write a short caption.", "写真を説明してください。")
QUESTIONS = (
    "What is in the picture?",
    "What colour is the largest thing? Answer with one word.",
    "How many things are there? Answer with a number.",
    "Is there a red circle in the picture? Answer yes or no.",
    "写真の左側に何がありますか。",
)

ROOM = 160
"""Tokens for the words of a request and for its template."""


def compared(model: Any, ref: Reference) -> bool:
    """Whether the claim is made: a parent with eyes, and on it only grafts that promise this."""
    below = [g.name for g in getattr(ref.llm, "grafts", ())] if ref.parent else []
    above = model.grafts[len(below) :]
    same = [g.name for g in model.grafts[: len(below)]] == below
    return bool(below) and same and len(above) > 0 and all(g.image_exact for g in above)


def requests(model: Any, max_new_tokens: int) -> list[Sample]:
    """Every caption prompt and question about a made picture, and, where they fit, one question about two."""
    drawn = list(_drawn())
    asked = [Message.of("user", t, (drawn[i % len(drawn)],)) for i, t in enumerate((*CAPTIONS, *QUESTIONS))]
    room = model.processor.max_length
    if room is None or 2 * model.tokens_per_image + max_new_tokens + ROOM <= room:
        asked.append(Message.of("user", "What is different between these pictures?", (drawn[0], drawn[1])))
    return [Sample(id="pictured", messages=(message,)) for message in asked]


def _drawn() -> Iterator[Image.Image]:
    for shape, colour, ground in (
        ("ellipse", "red", "white"),
        ("rectangle", "blue", "lightgray"),
        ("ellipse", "green", "black"),
    ):
        image = Image.new("RGB", (64, 48), ground)
        draw = ImageDraw.Draw(image)
        getattr(draw, shape)((8, 8, 30, 30), fill=colour)
        draw.line((36, 40, 60, 6), fill=colour, width=3)
        yield image
    yield picture(1)


@torch.no_grad()
def pictures(model: Any, ref: Reference, max_new_tokens: int) -> Check:
    """Logits bit for bit, and whole greedy answers, of caption and question requests under the branch "image"."""
    asked, wrong = requests(model, max_new_tokens), []
    for i, each in enumerate(asked):
        own, other = _said(model, each, max_new_tokens, branch="image"), _said(ref.llm, each, max_new_tokens)
        if not same_bits(own[0], other[0]):
            wrong.append(f"request {i + 1} (logits)")
        elif own[1] != other[1]:
            wrong.append(f"request {i + 1} (answer)")
    what = f"logits and answers of {len(asked)} caption and question requests with pictures"
    if wrong:
        return Check(name="pictures", holds=False, detail=f"{what}: {_first(wrong)} of {len(asked)} differ")
    return Check(name="pictures", holds=True, detail=f"{what} equal those of {ref.origin}")


def _said(model: Any, asked: Sample, max_new_tokens: int, **branch: str) -> tuple[torch.Tensor, list[int]]:
    batch = model.encode_samples([asked], add_generation_prompt=True)
    inputs = {k: v for k, v in batch.inputs().items() if k not in ("branch", "question")} | branch
    logits = model(**inputs).logits
    answer = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    return logits, answer[0].tolist()


def _first(wrong: Sequence[str]) -> str:
    return f"{len(wrong)} ({', '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''})"
