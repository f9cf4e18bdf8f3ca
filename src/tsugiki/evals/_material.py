"""What retention asks: texts, questions, instructions, prompts, and the pictures that they are asked after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image, ImageDraw

from tsugiki.evals.arithmetic import arithmetic
from tsugiki.evals.budget import OWN, SUITES
from tsugiki.evals.own import Own
from tsugiki.evals.prompts import Given, Prompt, collect
from tsugiki.evals.published import Fetched
from tsugiki.evals.rules import Instruction, instructions
from tsugiki.evals.text_items import Choice, definition_choice, next_sentence, passages, title_choice
from tsugiki.types import ImageSource


@dataclass(frozen=True)
class Material:
    """What is asked. Own material takes the place of Wikipedia's."""

    texts: Sequence[str] = ()
    choices: Mapping[str, Sequence[Choice]] = field(default_factory=dict)
    """Suite name -> questions."""
    instructions: Sequence[Instruction] = ()
    prompts: Sequence[Prompt] = ()
    own: Sequence[Own] = ()
    """The user's own prompts, which are always asked."""
    published: Mapping[str, Fetched] = field(default_factory=dict)
    """Suite name -> benchmark."""
    pictures: Sequence[ImageSource] = ()

    @classmethod
    def wiki(cls, n: int, suites: Sequence[str] = SUITES, *, prompts: Given | None = None, seed: int = 0) -> Material:
        """Held-out articles of the asset `wiki` and the bundled (and own) prompts, `n` items a suite at most.

        Raises:
            AssetError: the asset is not fetched.
        """
        makers = {
            "title_choice": title_choice,
            "next_sentence": next_sentence,
            "definition_choice": definition_choice,
            "arithmetic": arithmetic,
        }
        return cls(
            texts=passages(n, seed=seed) if "wiki" in suites else (),
            choices={name: make(n, seed=seed) for name, make in makers.items() if name in suites},
            instructions=instructions(n, seed=seed) if "instructions" in suites else (),
            prompts=_simple(collect(prompts))[:n],
            pictures=unrelated_pictures(8, seed=seed),
        )

    def measured(self, suites: Sequence[str]) -> list[str]:
        """Of the suites those that have something to ask, and those of own prompts."""
        there = {
            "wiki": self.texts,
            **self.choices,
            "instructions": self.instructions,
            "answers": self.prompts,
            **self.published,
        }
        own = {item.suite for item in self.own}
        return [*(name for name in suites if there.get(name)), *(name for name in OWN if name in own)]


def unrelated_pictures(n: int, *, seed: int = 0, side: int = 224) -> list[Image.Image]:
    """Made-up pictures: shapes in plain colours, about nothing that text questions ask."""
    generator = torch.Generator().manual_seed(seed)
    pictures = []
    for i in range(n):
        values = torch.randint(0, 256, (10,), generator=generator).tolist()
        picture = Image.new("RGB", (side, side), tuple(values[:3]))
        x, y = (v * side // 512 for v in values[6:8])
        draw = ImageDraw.Draw(picture)
        (draw.ellipse if i % 2 else draw.rectangle)((x, y, x + side // 3, y + side // 3), fill=tuple(values[3:6]))
        pictures.append(picture)
    return pictures


def _simple(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Prompts that every template takes: no system turn."""
    return [p for p in prompts if p.turns[0][0] != "system"]
