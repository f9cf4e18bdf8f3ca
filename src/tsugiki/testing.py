"""Public fakes: tiny LLMs of real families, a tokenizer, a tower and pictures. No network, no GPU, seconds.

Shapes: N images, S pixels of a side, P positions of a grid, V width of a tower.
"""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Any

import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

VOCABULARY = 272  # 256 bytes and room for special tokens; the last rows belong to no token

_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _SMALL,
    "mistral": _SMALL,
    "qwen2": _SMALL,
    "qwen3": _SMALL,
    "gemma2": _SMALL,
    "gemma3_text": _SMALL,
    "phi3": _SMALL,
    "olmo2": _SMALL,
    "smollm3": _SMALL,
    "gpt_neox": {k: v for k, v in _SMALL.items() if k not in {"num_key_value_heads", "head_dim"}},
    "opt": {
        **{k: v for k, v in _SMALL.items() if k not in {"intermediate_size", "num_key_value_heads", "head_dim"}},
        "ffn_dim": 48,
        "word_embed_proj_dim": 32,
    },
    "gpt2": {
        "n_embd": 32,
        "n_layer": 4,
        "n_head": 4,
        "vocab_size": VOCABULARY,
        "n_positions": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    },
}
"""Twelve families of transformers, each as the smallest configuration that still has every part."""

_SPECIALS = ("<pad>", "<|im_start|>", "<|im_end|>")
_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_llm(
    family: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any
) -> PreTrainedModel:
    """A random causal LM of a real family, 4 layers of width 32, in eval mode."""
    if family not in FAMILIES:
        from tsugiki.errors import UnknownNameError

        raise UnknownNameError("LLM family", family, FAMILIES)
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**FAMILIES[family], **overrides})
    llm: PreTrainedModel = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    return llm


@lru_cache(maxsize=1)
def _tokenizer_object() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate((*_SPECIALS, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(_SPECIALS))
    return tokenizer


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with the ChatML template: one token a byte, so that any language and any cut occurs."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tokenizer_object().to_str()),
        pad_token="<pad>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        model_max_length=512,
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


class TinyTower(nn.Module):
    """A frozen random vision tower: patches of the picture through one matrix."""

    licence = "Apache-2.0"
    version = "1"
    mean = (0.5, 0.5, 0.5)
    std = (0.5, 0.5, 0.5)

    def __init__(self, grid: tuple[int, int] = (4, 4), width: int = 24, input_size: int = 32, seed: int = 0) -> None:
        super().__init__()
        self.name = f"tiny-tower-{grid[0]}x{grid[1]}-{width}-{seed}"
        self.grid, self.width, self.input_size = grid, width, input_size
        patch = 3 * (input_size // grid[0]) * (input_size // grid[1])
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(patch, width, generator=generator) / patch**0.5, requires_grad=False)

    def forward(self, pixel_values: Tensor) -> Tensor:  # [N, 3, S, S] -> [N, P, V]
        n, (h, w) = pixel_values.shape[0], self.grid
        ph, pw = self.input_size // h, self.input_size // w
        patches = pixel_values.reshape(n, 3, h, ph, w, pw).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w, 3 * ph * pw)
        return torch.tanh(patches @ self.weight)


def tiny_images(n: int, *, size: int = 48, seed: int = 0) -> list[Image.Image]:
    """`n` different pictures, each a coloured rectangle on a coloured ground, some of them not square."""
    rng = random.Random(seed)
    pictures = []
    for i in range(n):
        shape = (size, size - 8 * (i % 3))
        picture = Image.new("RGB", shape, tuple(rng.randrange(256) for _ in range(3)))
        x, y = rng.randrange(size // 2), rng.randrange(shape[1] // 2)
        colour = tuple(rng.randrange(256) for _ in range(3))
        ImageDraw.Draw(picture).rectangle((x, y, x + size // 4, y + size // 4), fill=colour)
        pictures.append(picture)
    return pictures


def tiny_model(graft: str = "projector", family: str = "llama", *, seed: int = 0, **options: Any) -> Any:
    """A tiny LLM with eyes: `TinyTower` and the graft, ready to chat nonsense."""
    from tsugiki.build import attach

    tower = options.pop("vision", None) or TinyTower()
    overrides = options.pop("llm") if isinstance(options.get("llm"), dict) else {}  # a graft may have a setting `llm`
    llm = tiny_llm(family, seed=seed, **overrides)
    torch.manual_seed(seed)
    return attach(llm, graft, vision=tower, tokenizer=tiny_tokenizer(), **options)
