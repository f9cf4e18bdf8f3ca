"""Sentence embeddings of short texts, and which of some names a text means most likely.

Shapes: n texts, T tokens, D width of the encoder (384).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from tsugiki import assets

ASSET = "minilm"
BATCH = 64

Encode = Callable[[Sequence[str]], Tensor]
"""Texts -> unit vectors [n, D]."""


class SentenceEncoder:
    """all-MiniLM-L6-v2: the mean of the last hidden states over a text's tokens, scaled to length 1. English only.

    Raises:
        AssetError: the asset is not in the cache and can't be fetched.
    """

    def __init__(self) -> None:
        folder = next(Path(assets.resolve(ASSET)).rglob("config_sentence_transformers.json")).parent
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors [n, D] on the CPU."""
        parts = []
        for start in range(0, len(texts), BATCH):
            batch = self.tokenizer(
                list(texts[start : start + BATCH]), padding=True, truncation=True, max_length=128, return_tensors="pt"
            )
            hidden = self.model(**batch).last_hidden_state  # [n, T, D]
            real = batch["attention_mask"][..., None]  # [n, T, 1]
            parts.append((hidden * real).sum(1) / real.sum(1))
        return torch.nn.functional.normalize(torch.cat(parts), dim=-1)


def nearest(texts: Sequence[str], names: Sequence[str], encode: Encode) -> list[str]:
    """For each text the name of the highest cosine; each different text is encoded once."""
    if not texts:
        return []
    different = list(dict.fromkeys(texts))
    similar = encode(different) @ encode(names).T  # [texts, names]
    best = dict(zip(different, similar.argmax(-1).tolist(), strict=True))
    return [names[best[text]] for text in texts]
