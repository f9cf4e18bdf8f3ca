"""The decoder is described by structure, on every family."""

from __future__ import annotations

import pytest
import torch

from tsugiki.decoder import DecoderSpec
from tsugiki.errors import UnsupportedError
from tsugiki.testing import FAMILIES, tiny_llm

KINDS = {"gemma2": "sandwich", "gemma3_text": "sandwich", "olmo2": "post-norm", "gpt_neox": "parallel"}


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_and_block_kind(family: str) -> None:
    llm = tiny_llm(family)
    spec = DecoderSpec(llm)
    assert spec.block_kind == KINDS.get(family, "pre-norm")
    assert len(spec.layers) == len(spec.blocks) == 4
    assert spec.hidden_size == spec.embedding_size == 32
    assert spec.embed is llm.get_input_embeddings() and spec.head is llm.get_output_embeddings()
    assert all(hasattr(b.attention, "layer_idx") for b in spec.blocks)
    assert (spec.blocks[0].ffn is None) is (family == "opt")
    assert not any(m is spec.norm for layer in spec.layers for m in layer.modules())
    assert all(not m._forward_hooks for m in llm.modules()), "a probe left a hook"


@pytest.mark.parametrize("family", FAMILIES)
def test_embedding_rms_is_that_of_what_the_first_layer_reads(family: str) -> None:
    llm = tiny_llm(family)
    ids = torch.arange(272)
    want = llm.get_input_embeddings()(ids).pow(2).mean().sqrt().item()
    assert DecoderSpec(llm).embedding_rms() == pytest.approx(want, rel=1e-5)


def test_a_probe_leaves_the_modes_of_modules_alone() -> None:
    llm = tiny_llm()
    llm.train()
    llm.model.layers[1].eval()
    assert DecoderSpec(llm).block_kind == "pre-norm"
    assert llm.training and not llm.model.layers[1].training and llm.model.layers[2].training


def test_something_else_is_refused() -> None:
    class Other(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = tiny_llm().config
            self.embed = torch.nn.Embedding(4, 4)

        def get_input_embeddings(self) -> torch.nn.Module:
            return self.embed

        def get_output_embeddings(self) -> torch.nn.Module:
            return self.embed

    with pytest.raises(UnsupportedError, match="0 lists of 4 modules"):
        DecoderSpec(Other())
