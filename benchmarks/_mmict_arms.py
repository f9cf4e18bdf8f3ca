"""The arms of `mmict.py`: front-ends, recipes, and steps that take turns."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from _turns import timed, turns
from _wings_arms import LLM, TOWER, twin
from bank_classes import SHOWN

from tsugiki.studies._build import build_model, load_llm
from tsugiki.training import feed, losses, parts
from tsugiki.training import recipe as recipes
from tsugiki.training.prefix import SharedPrefix
from tsugiki.training.processes import Processes
from tsugiki.types import Sample

BATCH, RATE = 8, 3e-4


@dataclass(frozen=True)
class Arm:
    """A front-end, and what it learns with."""

    projector: str
    form: str
    """Of demonstrations, one of `types.DEMO_FORMS`."""
    most: int = SHOWN
    """Demonstrations in training: N ~ U{0..most}."""


ARMS = {
    "none": Arm("pixel_unshuffle", "uni_modal", 0),
    "plain": Arm("pixel_unshuffle", "uni_modal"),
    "hub, none": Arm("hub", "visual_guided_text", 0),
    "mmict": Arm("hub", "visual_guided_text"),
    "mmict, both": Arm("hub", "both"),
    "hub, plain": Arm("hub", "uni_modal"),
    "mmict, visual": Arm("hub", "textual_guided_visual"),
}
USUAL = tuple(ARMS)[:-1]
"""What is run and timed where nothing else is asked for."""


def model_of(arm: Arm, seed: int, llm: Any = LLM, tokenizer: Any = None) -> Any:
    """An arm's model at its start."""
    hub = {"hub": {"seed": seed}} if arm.projector == "hub" else {}
    vision = {"tower": TOWER, "input_size": 224, "projector": arm.projector, "seed": seed, **hub}
    return build_model(llm, "projector", vision, tokenizer=tokenizer, device="cpu")


def plan(arm: Arm, steps: int, seed: int) -> recipes.Recipe:
    """What an arm is trained by. Samples are not grouped by length, so that all arms have the same batches."""
    shown = {"most": arm.most, "sampler": "nearest", "form": arm.form}
    stage = {
        "name": "old", "train": {"projector": RATE}, "data": {"old": {"demos": shown}}, "loss": "per_query",
        "batch_size": BATCH, "steps": steps, "warmup": 0.03, "scheduler": "linear", "weight_decay": 0.01,
        "length_grouping": False, "warm_start": {},
    }  # fmt: skip
    return recipes.load({"seed": seed, "stages": [stage]})


def stepper(arm: Arm, model: Any, learn: list[Sample], features: Any, rounds: int) -> Callable[[], None]:
    """Steps as the trainer takes them: batch, common prefix, loss, gradients, AdamW."""
    stage = plan(arm, rounds + 1, 0).stages[0]
    batches = iter(feed.stream(model, stage, {"old": learn}, features, seed=0, here=Processes()))
    optimizer = torch.optim.AdamW(parts.groups(model, stage.parts, stage.weight_decay), fused=True)
    prefix, loss = SharedPrefix(model), losses.get(stage.loss)

    def step() -> None:
        parts.set_modes(model)
        loss(model, prefix(next(batches)), None).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def times(learn: list[Sample], features: Any, rounds: int) -> dict[str, list[float]]:
    """Seconds of the processor of the usual arms' training steps, in turns."""
    llm, tokenizer = load_llm(LLM, device="cpu")
    with ExitStack() as stack:
        steps = {}
        for name in USUAL:
            model = model_of(arm := ARMS[name], 0, twin(llm), tokenizer)
            stack.enter_context(parts.training(model, {"projector": RATE}))
            steps[name] = partial(timed, stepper(arm, model, learn, features, rounds))
        return turns(steps, rounds)
