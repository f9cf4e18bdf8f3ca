"""What one writes without Tsugiki: transformers' Trainer on a tower, a projector and an LLM.

Every step encodes its pictures, and the labels go to the LLM's own forward, which computes logits at every position.
Collator, batches and projector are those of the other arms.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments


class PlainModel(nn.Module):
    """Tower -> projector -> the LLM's forward with `labels`.

    Args:
        llm: frozen, without any hook.
        tower: pixels [N, 3, S, S] -> features [N, P, V], frozen.
        projector: features -> visual tokens [N, M, D]; it trains.
    """

    def __init__(self, llm: PreTrainedModel, tower: nn.Module, projector: nn.Module, image_kind: int) -> None:
        super().__init__()
        self.llm, self.tower, self.projector, self.image_kind = llm, tower, projector, image_kind
        llm.requires_grad_(False)
        tower.requires_grad_(False)

    def train(self, mode: bool = True) -> PlainModel:
        super().train(mode)
        self.llm.eval()
        self.tower.eval()
        return self

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_kind: Tensor,
        pixel_values: Tensor,
        labels: Tensor,
        **_: Any,
    ) -> Any:
        with torch.no_grad():
            features = self.tower(pixel_values)
        visual = self.projector(features)  # [N, M, D]
        seen = token_kind == self.image_kind  # [B, T]
        embeds = self.llm.get_input_embeddings()(input_ids.masked_fill(seen, 0))
        embeds = embeds.masked_scatter(seen[..., None], visual.to(embeds.dtype).flatten(0, 1))
        return self.llm(inputs_embeds=embeds, attention_mask=attention_mask, labels=labels, use_cache=False)


class _Batches(IterableDataset[Any]):
    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class _Trainer(Trainer):
    def get_train_dataloader(self) -> Any:
        # Not prepared by accelerate, which would draw one batch ahead and blur the time of a step.
        return DataLoader(self.train_dataset, batch_size=None)


def plain_trainer(
    model: PlainModel, batches: Iterable[Any], steps: int, lr: float, out: Path, callback: TrainerCallback
) -> Trainer:
    """transformers' Trainer with its defaults for everything that is not said here."""
    args = TrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        learning_rate=lr,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    return _Trainer(model=model, args=args, train_dataset=_Batches(batches), callbacks=[callback])
