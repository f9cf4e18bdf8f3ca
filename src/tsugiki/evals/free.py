"""Free answers by greedy generation, in batches.

Shapes: B prompts of a batch, T their padded length, V vocabulary.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from tsugiki.data.branch import branch_of
from tsugiki.types import Sample


@dataclass(frozen=True, slots=True)
class Spoken:
    """An answer and how sure the LLM was of each of its tokens."""

    text: str
    """Stripped."""
    ends: tuple[int, ...]
    """Where each token ends in the NFKC form of the text."""
    probabilities: tuple[float, ...]

    def confidence(self, start: int, end: int) -> float:
        """Mean probability of the tokens that wrote a part of the NFKC form of the text; 1 where none did."""
        starts = (0, *self.ends)
        found = [
            p
            for low, high, p in zip(starts, self.ends, self.probabilities, strict=False)
            if low < min(high, end) and high > start
        ]
        return sum(found) / len(found) if found else 1.0


class FreeAnswerer:
    """Answers questions greedily.

    Args:
        model: the composite; encodes the samples.
        features: cached tower outputs, as `model.encode_samples` takes them.
        llm: what generates instead of the composite (the bare LLM); the samples then have no pictures.
        demos: samples -> the samples with demonstrations in front, which the model then sees.
    """

    def __init__(
        self,
        model: Any,
        *,
        features: Any = None,
        llm: Any = None,
        demos: Callable[[Sequence[Sample]], Sequence[Sample]] | None = None,
        batch_size: int = 8,
        max_new_tokens: int = 32,
    ) -> None:
        self.model, self.llm, self.features, self.demos = model, llm or model, features, demos
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens

    def __call__(self, samples: Sequence[Sample]) -> list[str]:
        """One stripped answer a sample, in their order; a gold answer is not looked at."""
        return [
            text.strip()
            for start in range(0, len(samples), self.batch_size)
            for text in self._decode(self._generate(samples[start : start + self.batch_size]))
        ]

    def spoken(self, samples: Sequence[Sample]) -> list[Spoken]:
        """The same answers with the probability of each token; costs a softmax a token more."""
        found = []
        for start in range(0, len(samples), self.batch_size):
            sure = _Sure()
            rows = self._generate(samples[start : start + self.batch_size], sure)
            found += [self._spoken(ids, p) for ids, p in zip(rows, torch.stack(sure.steps, 1).tolist(), strict=True)]
        return found

    @torch.inference_mode()
    def _generate(self, samples: Sequence[Sample], *processors: LogitsProcessor) -> list[list[int]]:
        """Ids of the new tokens, padding and end included."""
        if self.demos is not None:
            samples = self.demos(samples)
        # What a sample asks for may show in its gold answer alone, which is not part of the prompt.
        prompts = [replace(s, messages=s.prompt, meta={**s.meta, "branch": branch_of(s)}) for s in samples]
        batch = self.model.encode_samples(prompts, features=self.features, add_generation_prompt=True)
        device = next(self.llm.parameters()).device
        inputs = {k: v.to(device) for k, v in batch.inputs().items()}
        if self.llm is not self.model:
            inputs = {k: inputs[k] for k in ("input_ids", "attention_mask")}
        options: dict[str, Any] = {"do_sample": False, "num_beams": 1, "max_new_tokens": self.max_new_tokens}
        if processors:
            options["logits_processor"] = LogitsProcessorList(processors)
        tokens = self.llm.generate(**inputs, **options)
        new: list[list[int]] = tokens[:, batch.input_ids.shape[1] :].tolist()
        return new

    def _decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        texts: list[str] = self.model.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return texts

    def _spoken(self, ids: Sequence[int], probabilities: Sequence[float]) -> Spoken:
        """Each token ends where the text of all tokens up to it ends."""
        grown = self._decode([ids[: i + 1] for i in range(len(ids))])
        whole = grown[-1] if grown else ""
        lead = len(whole) - len(whole.lstrip())
        ends = (len(unicodedata.normalize("NFKC", text[lead:])) for text in grown)
        return Spoken(whole.strip(), tuple(ends), tuple(probabilities))


class _Sure(LogitsProcessor):
    """Takes down the probability of the token that greedy decoding chooses: [B] a step. Changes nothing."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.steps.append(scores.float().softmax(-1).amax(-1).cpu())  # [B, V] -> [B]
        return scores
