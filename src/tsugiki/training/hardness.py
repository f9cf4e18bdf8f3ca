"""How hard each sample of a source is: the loss that it had when it was trained on last, without a pass of its own.

What the sampler `hard` of demonstrations goes by. Ranking samples by their latest known loss is from Online Batch
Selection (Loshchilov and Hutter 2015, 1511.06343), which draws them by it; here they are shown by it.
Shapes: n samples of a source, B rows of a batch, L label positions, V vocabulary.
"""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsugiki.training.processes import Processes

Losses = npt.NDArray[np.float32]
Row = tuple[str, int]
"""Source and number of a sample."""


class Hardness:
    """The latest loss of each sample, by source.

    Samples are drawn many batches ahead, and drawn again where a run is continued: both times by the losses that were
    known then. So samplers do not see what comes in until the next drawing.

    Args:
        seen: source -> float32 [n], what its sampler reads, NaN where nothing is known yet; overwritten in place.
    """

    def __init__(self, seen: Mapping[str, Losses]) -> None:
        self.seen = dict(seen)
        self.latest = {name: losses.copy() for name, losses in seen.items()}
        self._expected: deque[Sequence[Row]] = deque()
        self._heard: list[float] | None = None

    def show(self) -> None:
        """From now on samplers go by all that is known."""
        for name, losses in self.latest.items():
            self.seen[name][:] = losses

    def expect(self, rows: Sequence[Row]) -> None:
        """Of which samples the next batch is; in the order in which batches are trained on."""
        self._expected.append(rows)

    @contextmanager
    def listening(self, model: Any) -> Iterator[None]:
        """Hear the losses of the rows that pass the model's forward: whatever a loss makes of the logits, it has no
        others."""
        handle = model.register_forward_hook(self._hear, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _hear(self, module: nn.Module, args: Any, inputs: Mapping[str, Any], output: Any) -> None:
        if self._heard is None and output.get("label_rows") is not None:  # the first forward of a batch is its own
            logits, count = output.logits.flatten(0, -2), len(inputs["labels"])
            self._heard = row_losses(logits, output.label_ids, output.label_rows, count)

    def learn(self, here: Processes) -> None:
        """Keep what was heard of the batch that is expected, in all processes; of other sources it is dropped."""
        assert self._heard is not None, "a loss runs the model's forward with labels"
        own = list(zip(self._expected.popleft(), self._heard, strict=True))
        self._heard = None
        for (name, number), loss in chain.from_iterable(here.collect(own)):
            if name in self.latest:
                self.latest[name][number] = loss

    def state_dict(self) -> dict[str, dict[str, str]]:
        """What samplers see and what is known, bit for bit, as JSON values."""
        return {"seen": _packed(self.seen), "latest": _packed(self.latest)}

    def load(self, losses: Mapping[str, str]) -> None:
        """What is known, from one of the two of `state_dict`."""
        for name, text in losses.items():
            self.latest[name][:] = np.frombuffer(base64.b64decode(text), "<f4")


def row_losses(logits: Tensor, targets: Tensor, rows: Tensor, count: int) -> list[float]:
    """Cross-entropy of the next token, nats, mean over the label tokens of each row; 0 without any.

    Added up on the CPU: on a GPU the order of the sum, and so the last bit, would be another one each time.

    Args:
        logits: float [L, V].
        targets: int64 [L].
        rows: int64 [L], whose token it is.
        count: B.
    """
    with torch.no_grad():
        nats = F.cross_entropy(logits.float(), targets.to(logits.device), reduction="none").double().cpu()
    rows = rows.cpu()
    total = torch.bincount(rows, weights=nats, minlength=count)
    means: list[float] = (total / torch.bincount(rows, minlength=count).clamp(min=1)).tolist()
    return means


def _packed(losses: Mapping[str, Losses]) -> dict[str, str]:
    return {name: base64.b64encode(values.astype("<f4").tobytes()).decode() for name, values in losses.items()}
