"""A tiny model, samples and recipe that the tests of this folder share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from tsugiki.testing import tiny_images, tiny_model
from tsugiki.types import Message, Sample, TextPart
from tsugiki.vision.cache import FeatureCache


def model(graft: str = "projector", *, dropout: float = 0.0, seed: int = 0, **options: Any) -> Any:
    """A tiny model; `seed` is of the graft, not of the LLM; `dropout` acts on the visual tokens while it trains."""
    built = tiny_model(graft, **options)
    if seed:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in built.frontend.projector.parameters():
                parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    if dropout:
        built.frontend.projector.register_forward_hook(lambda m, _, out: F.dropout(out, dropout, training=m.training))
    return built


def samples(n: int = 24) -> list[Sample]:
    """Pictures with questions and answers of different lengths."""
    pictures = tiny_images(min(n, 8))
    return [
        Sample(
            id=str(i),
            messages=(
                Message.of("user", "What is it? " * (1 + i % 3), (pictures[i % len(pictures)],)),
                Message.of("assistant", f"Picture {i % len(pictures)}" + "." * (i % 5)),
            ),
        )
        for i in range(n)
    ]


def marked(n: int = 24) -> list[Sample]:
    """The same pictures with answers in one to four steps of different lengths, in three levels."""
    found = []
    for i, sample in enumerate(samples(n)):
        steps = tuple(TextPart(f"step {k}" + "." * (i * k % 7) + "\n") for k in range(i % 4))
        answer = Message("assistant", (*steps, TextPart("end")))
        meta = {"steps": [1] * (len(steps) + 1), "level": 1 + i % 3}
        found.append(replace(sample, messages=(sample.messages[0], answer), meta=meta))
    return found


def recipe(*parts: str, **stage: Any) -> dict[str, Any]:
    """One stage of eight steps over the source `train`."""
    trained = dict.fromkeys(parts or ("projector",), 0.01)
    fields = {"train": trained, "data": "train", "batch_size": 4, "steps": 8, **stage}
    if "minutes" in stage:
        del fields["steps"]
    return {"save_steps": 1, "stages": [fields]}


def cache(built: Any, folder: Path) -> FeatureCache:
    """Features in a folder of the test's own."""
    return FeatureCache(built.frontend, folder / "features")


def state(built: Any) -> dict[str, torch.Tensor]:
    """Copies of all parameters."""
    return {name: p.detach().clone() for name, p in built.named_parameters()}
