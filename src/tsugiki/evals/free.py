"""Free answers by greedy generation, in batches.

Shapes: B prompts of a batch, T their padded length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from tsugiki.types import Sample


class FreeAnswerer:
    """Answers questions greedily.

    Args:
        model: the composite; encodes the samples.
        features: cached tower outputs, as `model.encode_samples` takes them.
        llm: what generates instead of the composite (the bare LLM); the samples then have no pictures.
    """

    def __init__(
        self, model: Any, *, features: Any = None, llm: Any = None, batch_size: int = 8, max_new_tokens: int = 32
    ) -> None:
        self.model, self.llm, self.features = model, llm or model, features
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens

    def __call__(self, samples: Sequence[Sample]) -> list[str]:
        """One stripped answer a sample, in their order; a gold answer is not looked at."""
        return [
            text
            for start in range(0, len(samples), self.batch_size)
            for text in self._generate(samples[start : start + self.batch_size])
        ]

    @torch.inference_mode()
    def _generate(self, samples: Sequence[Sample]) -> list[str]:
        prompts = [replace(s, messages=s.prompt) for s in samples]
        batch = self.model.encode_samples(prompts, features=self.features, add_generation_prompt=True)
        device = next(self.llm.parameters()).device
        inputs = {k: v.to(device) for k, v in batch.inputs().items()}
        if self.llm is not self.model:
            inputs = {k: inputs[k] for k in ("input_ids", "attention_mask")}
        tokens = self.llm.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=self.max_new_tokens)
        new = tokens[:, batch.input_ids.shape[1] :]
        return [text.strip() for text in self.model.tokenizer.batch_decode(new, skip_special_tokens=True)]
