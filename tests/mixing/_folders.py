"""Models to be mixed: plain LLMs, one or several files, and grafts whose LLM was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tsugiki
from tsugiki.testing import TinyTower, tiny_llm, tiny_tokenizer


def moved(module: torch.nn.Module, noise: int) -> None:
    """Add seeded noise to every parameter."""
    generator = torch.Generator().manual_seed(noise)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += (0.1 * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype)


def llm(
    folder: Path, *, noise: int = 0, dtype: torch.dtype = torch.float32, shards: bool = False, **options: Any
) -> Path:
    """A plain causal LM in transformers' form."""
    model = tiny_llm(dtype=dtype, **options)
    if noise:
        moved(model, noise)
    model.save_pretrained(folder, max_shard_size="40KB" if shards else "1GB")
    tiny_tokenizer().save_pretrained(folder)
    return folder


def trained(folder: Path, base: Path, *, noise: int, full: bool = False) -> Path:
    """A graft of the base in `base`, its LLM trained: moved by noise."""
    loaded = AutoModelForCausalLM.from_pretrained(base)
    model = tsugiki.attach(loaded, "projector", vision=TinyTower(), tokenizer=AutoTokenizer.from_pretrained(base))
    moved(model.frontend.projector, noise)
    model.freeze_llm(False)
    moved(model.language_model, noise + 100)
    return Path(model.export(folder) if full else model.save(folder))
