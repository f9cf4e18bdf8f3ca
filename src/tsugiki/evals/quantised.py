"""Both sides of a comparison with int8 weights: what a graft keeps once its base is served quantised.

Inside `int8` the linear weights of an LLM's decoder layers are int8 with one scale for each output channel,

    s_o = max_i |W_oi| / 127.5,   q_oi = clamp(round(W_oi / s_o), -128, 127),   W_oi is read as s_o q_oi

which is torchao's `Int8WeightOnlyConfig` (weights only, symmetric, per row). With the extra `int8` torchao holds and
multiplies them; without it they are rounded to the same grid and kept in the LLM's dtype, which is said in every note.
Embeddings, head, norms, biases, adapters of PEFT and grafts stay as they are, and on leaving all weights are back.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from tsugiki import identity
from tsugiki.decoder import DecoderSpec
from tsugiki.errors import UnsupportedError
from tsugiki.extras import require

MOST_NEGATIVE, MOST_POSITIVE = -128, 127
HALF_RANGE = (MOST_POSITIVE - MOST_NEGATIVE) / 2


@contextmanager
def int8(*llms: Any) -> Iterator[str]:
    """Bare LLMs with int8 weights, inside; gives the words that say how.

    Args:
        llms: causal LMs. A composite's `language_model` takes part where it is, under the grafts.

    Raises:
        UnsupportedError: an LLM that is quantised already, or has no linear weights (GPT-2 keeps its transposed).
    """
    linears = [linear for llm in llms for linear in _linears(llm)]
    kept = [linear.weight for linear in linears]
    make = _stored if installed() else rounded
    try:
        for linear in linears:
            linear.weight = nn.Parameter(make(linear.weight), requires_grad=False)
        yield how()
    finally:
        for linear, weight in zip(linears, kept, strict=True):
            linear.weight = weight


def installed() -> bool:
    """Whether torchao is there."""
    return importlib.util.find_spec("torchao") is not None


def how() -> str:
    """What holds the weights, in words."""
    return "int8 weights, " + (f"torchao {version('torchao')}" if installed() else "simulated per output channel")


@torch.no_grad()
def rounded(weight: Tensor) -> Tensor:
    """A weight [O, I] as int8 with one scale a row would read it, in its own dtype; a row of zeros stays."""
    full = weight.detach().float()
    scale = full.abs().amax(1, keepdim=True) / HALF_RANGE  # [O, 1]
    scale = scale.clamp(min=torch.finfo(torch.float32).eps)
    return ((full / scale).round().clamp(MOST_NEGATIVE, MOST_POSITIVE) * scale).to(weight.dtype)


def _stored(weight: Tensor) -> Tensor:
    """A weight as torchao's tensor. It is made in a module of its own: torchao marks the module that it is given."""
    ao = require("torchao.quantization", extra="int8")
    holder = nn.Linear(1, 1, bias=False)
    holder.weight = nn.Parameter(weight.detach(), requires_grad=False)
    ao.quantize_(nn.Sequential(holder), ao.Int8WeightOnlyConfig(set_inductor_config=False))
    return holder.weight.detach()


def _linears(llm: Any) -> list[nn.Linear]:
    """The linear modules of the decoder layers, without those of adapters."""
    decoder = DecoderSpec(llm)
    if getattr(decoder.config, "quantization_config", None) is not None:
        raise UnsupportedError(
            f"{decoder.name} is quantised already", expected="an LLM in floats", fix="Measure it as it is."
        )
    own = {tensor.data_ptr() for tensor in identity.llm_tensors(llm).values()}
    inside = [module for layer in decoder.layers for module in layer.modules()]
    found = [m for m in inside if isinstance(m, nn.Linear) and m.weight.data_ptr() in own]
    if not found:
        raise UnsupportedError(f"{decoder.name} has no linear weights", expected="torch.nn.Linear in its layers")
    return found
