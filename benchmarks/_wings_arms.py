"""What `wings_cost.py` measures: models, requests and training steps.

Shapes: B rows, T positions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from _wings_plain import PlainWings
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

import tsugiki
from tsugiki import assets
from tsugiki.types import IMAGE, TEXT, VisualTokens

LLM, TOWER = "smollm2-135m-instruct", "efficientnet-lite0"
BEFORE = 6  # text tokens before the image
SHORT = {"batch": 8, "image": 16, "text": 46, "labels": 14}  # the scenes' shape
LONG = {"batch": 1, "image": 1024, "text": 64, "labels": 16}
CONTEXT = {"batch": 1, "image": 256, "text": 768, "labels": 0}
ARMS: dict[str, dict[str, Any] | None] = {
    "projector": None,
    "rank 16": {"rank": 16},
    "rank 16, no router": {"rank": 16, "router": "none"},
    "rank 64": {"rank": 64},
}
PLAIN = "plain, "


def load(layers: int | None = None) -> Any:
    """The LLM, or its first layers."""
    llm = AutoModelForCausalLM.from_pretrained(assets.resolve(LLM), dtype=torch.float32)
    if layers is not None:
        llm.model.layers, llm.config.num_hidden_layers = llm.model.layers[:layers], layers
    return llm


def twin(llm: Any) -> Any:
    """Another LLM of the same weights in memory."""
    return copy.deepcopy(llm, {id(p): p for p in llm.parameters()})


def seeing(llm: Any, arm: str) -> Any:
    """The LLM with the arm's graft, moved off its start; or the plain form."""
    torch.manual_seed(0)
    if arm.startswith(PLAIN):
        llm.set_attn_implementation("eager")
        return PlainWings(llm, ARMS[arm.removeprefix(PLAIN)]["rank"])  # type: ignore[index]
    name, settings = ("projector", {}) if ARMS[arm] is None else ("wings", ARMS[arm] or {})
    tokenizer = AutoTokenizer.from_pretrained(assets.resolve(LLM))
    model = tsugiki.attach(llm, name, vision=TOWER, tokenizer=tokenizer, input_size=224, **settings)
    model.freeze_llm()
    with torch.no_grad():
        for p in model.grafts.parameters():
            p.requires_grad_(True).add_(0.02 * torch.randn_like(p))
    return model.train()


def request(shape: dict[str, int], placeholder: int) -> dict[str, Tensor]:
    """Random text around one image a row."""
    b, image, t = shape["batch"], slice(BEFORE, BEFORE + shape["image"]), shape["image"] + shape["text"]
    ids = torch.randint(100, 40000, (b, t), generator=torch.Generator().manual_seed(0))
    kinds, images = torch.full_like(ids, TEXT), torch.full_like(ids, -1)
    ids[:, image], kinds[:, image], images[:, image] = placeholder, IMAGE, torch.arange(b)[:, None]
    labels = torch.full_like(ids, -100)
    labels[:, t - shape["labels"] :] = ids[:, t - shape["labels"] :]
    found = {"input_ids": ids, "token_kind": kinds, "image_index": images, "attention_mask": torch.ones_like(ids)}
    return found | ({"labels": labels} if shape["labels"] else {})


def stepper(model: Any, shape: dict[str, int]) -> Callable[[], float]:
    """A training step: forward, backward, AdamW. Visual tokens are trained where the projector doesn't make so many."""
    visual = torch.randn(shape["batch"], shape["image"], 576, generator=torch.Generator().manual_seed(1))
    plain = isinstance(model, PlainWings)
    own = model.own() if plain else list(model.grafts.parameters())
    if shape == SHORT:
        with torch.no_grad():
            features = {"vision_features": model.frontend.tower(torch.randn(shape["batch"], 3, 224, 224))}
        own += model.frontend.projector.parameters()
    else:
        own.append(visual.requires_grad_(True))
        features = {"visual": VisualTokens(visual)}
    optimizer = torch.optim.AdamW([p for p in own if p.requires_grad], lr=1e-5, fused=True)  # as our trainer has it
    inputs = request(shape, 0 if plain else model.placeholder_id)
    labels = inputs["labels"]
    keep = torch.arange(labels.shape[1] - shape["labels"], labels.shape[1]) - 1

    def step() -> float:
        if plain:
            logits = model(inputs["input_ids"], visual, BEFORE, keep)
            loss = F.cross_entropy(logits.flatten(0, 1), labels[:, keep + 1].flatten())
        else:
            loss = model(**inputs, **features).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def same(wings: Any, plain: PlainWings, shape: dict[str, int]) -> float:
    """The largest difference of logits, against the largest logit; both forms have to compute the same."""
    plain.take(wings.grafts[-1].state_dict())
    inputs, keep = request({**shape, "labels": 0}, wings.placeholder_id), torch.arange(shape["image"] + shape["text"])
    visual = torch.randn(shape["batch"], shape["image"], 576, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = wings(**inputs, visual=VisualTokens(visual)).logits
        theirs = plain(inputs["input_ids"].clamp(max=40000), visual, BEFORE, keep)
        wings.grafts[-1].requires_grad_(True)
    return float((ours - theirs).abs().max() / theirs.abs().max())
