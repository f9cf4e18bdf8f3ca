"""Text replay in packed rows: whether a model reads them exactly, and the rows of a source."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tsugiki.data import packing
from tsugiki.errors import RecipeError
from tsugiki.training.recipe import Stage
from tsugiki.types import Sample


def check(model: Any, stage: Stage, samples: Mapping[str, Sequence[Sample]], *, where: str) -> None:
    """Whether the packed sources of a stage can be packed.

    Raises:
        RecipeError: a picture in one, a loss that counts rows, a graft that acts on text, or an LLM that does not keep
            the documents of a row apart.
    """
    for name in (name for name, source in stage.data.items() if source.replay == "packed"):
        place = f"{where}.data.{name}.replay"
        shown = [s for s in samples[name] if s.images]
        if shown:
            raise RecipeError(
                f"{len(shown)} of {len(samples[name])} samples have a picture (the first: {shown[0].id!r})",
                expected="text only in a packed source",
                fix="Put them into a source of their own.",
                where=place,
            )
        limits = [getattr(model.language_model.config, "max_position_embeddings", None), stage.max_length]
        longest = min((limit for limit in limits if limit), default=stage.data[name].pack_length)
        if stage.data[name].pack_length > longest:
            raise RecipeError(
                f"pack_length: {stage.data[name].pack_length}",
                expected=f"at most {longest}, what the LLM reads and max_length allows",
                fix="Make it smaller, or raise max_length.",
                where=f"{where}.data.{name}.pack_length",
            )
        if stage.loss != "per_token":
            raise RecipeError(
                f"loss: {stage.loss} counts rows, and a packed row is many samples",
                expected="loss: per_token",
                fix="Change the loss, or set `replay: none`.",
                where=place,
            )
        if model.on_text or not keeps_apart(model):
            reason = "a graft acts on text" if model.on_text else f"{model.decoder.name} does not tell documents apart"
            raise RecipeError(
                f"{reason}, so a packed row would be read as one text",
                expected="rows of one sample each",
                fix="Set `replay: none`: the samples are then padded instead of packed.",
                where=place,
            )


@torch.no_grad()
def keeps_apart(model: Any) -> bool:
    """Whether other words in a row's first document leave the logits of its second as they are, bit for bit."""
    llm = model.language_model
    if "position_ids" not in inspect.signature(model.decoder.llm.forward).parameters:
        return False
    size, words = 4, min(model.decoder.vocabulary, 64)
    ids = torch.arange(2 * size, device=llm.device)[None] % words
    other = ids.clone()
    other[:, :size] = (ids[:, :size] + words // 2) % words
    positions = torch.arange(size, device=llm.device).repeat(2)[None]
    with model.detached():
        a, b = (llm(input_ids=i, position_ids=positions, use_cache=False).logits[:, size:] for i in (ids, other))
        alone = llm(input_ids=ids[:, size:], use_cache=False).logits
    scale = float(alone.float().std()) + 1e-6
    return torch.equal(a, b) and bool(((a - alone).float().abs() < 0.1 * scale).all())


def rows(model: Any, samples: Sequence[Sample], length: int, *, seed: int, where: str) -> list[packing.Pack]:
    """Packed rows of a source.

    Raises:
        PromptError: a conversation that is longer than a row.
    """
    collator = model.processor.collator(labels=True, padding_side="right", question=False, max_length=length)
    return packing.pack(
        samples, model.tokenizer, encode=collator.encode, length=length, pad_id=collator.pad_id, seed=seed, where=where
    )
