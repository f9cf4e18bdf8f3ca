"""Several processes that train one model: which one this is, and what they do together.

Start them with torchrun or accelerate launch; alone, every method does its work and nothing else. Collectives have to
be called by all processes in one order, so what one of them decides (a clock, an error, a checkpoint) is told to all.
"""

from __future__ import annotations

import atexit
import os
import pickle
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from tsugiki.errors import InputError, RecipeError, TsugikiError, UnsupportedError
from tsugiki.training.recipe import Recipe

Result = TypeVar("Result")
# Launchers' own engines would wrap the model in ways that know no hooks of grafts.
ENGINES = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "accelerate's own FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "accelerate's parallelism config",
}


@dataclass(frozen=True)
class Processes:
    """This process among those that train together."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def several(self) -> bool:
        return self.world > 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    @property
    def share(self) -> slice | None:
        """This process's rows of a batch: every world-th one, for a batch may be sorted by length."""
        return slice(self.rank, None, self.world) if self.several else None

    def tell(self, work: Callable[[], Result]) -> Result:
        """What `work` gives in the first process, in all of them; an error there is raised in all."""
        if not self.several:
            return work()
        box: list[Any] = [None, None]
        if self.first:
            try:
                box[0] = work()
            except Exception as error:
                box[1] = error
        self._send(box)
        if box[1] is not None:
            raise box[1]
        result: Result = box[0]
        return result

    def in_turn(self, work: Callable[[], Result]) -> Result:
        """`work` in the first process, then in the others, which find on disk what it left."""
        done: list[Result] = []

        def begin() -> None:
            done.append(work())

        if self.several:
            self.tell(begin)
        return done[0] if done else work()

    def _send(self, box: list[Any]) -> None:
        sent = [box[0], _portable(box[1])] if self.first else box
        dist.broadcast_object_list(sent, src=0, device=self.device)
        if not self.first:
            box[:] = sent

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.several:
            value = value.detach().to(self.device, copy=True)
            dist.all_reduce(value)
        return value

    def told(self, number: float) -> float:
        """The first process's number."""
        if not self.several:
            return number
        value = torch.tensor([number], dtype=torch.float64, device=self.device)
        dist.broadcast(value, src=0)
        return float(value)

    def collect(self, value: Any) -> list[Any]:
        """Every process's value, in their order."""
        values: list[Any] = [value]
        if self.several:
            values = [None] * self.world
            dist.all_gather_object(values, value)
        return values

    @torch.no_grad()
    def align(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with the first process's: fresh weights are random, and each process made its own."""
        if not self.several:
            return
        for tensor in tensors:
            there = tensor.detach().to(self.device).contiguous()
            dist.broadcast(there, src=0)
            if there.data_ptr() != tensor.data_ptr():
                tensor.copy_(there)

    def refuse_difference(self, what: str, value: Any) -> None:
        """All processes have to be given the same.

        Raises:
            InputError: they were not.
        """
        odd = [rank for rank, other in enumerate(self.collect(value)) if other != value]
        if odd and self.several:
            raise InputError(
                f"process {odd[0]} was given another {what} than process {self.rank}",
                expected="the same base, grafts and data in every process",
                fix="Start all of them by one command, with files that all of them see.",
            )


def join(plan: Recipe, out: Path) -> Processes:
    """This process among those of its launcher; alone without one.

    Raises:
        UnsupportedError: a launcher's engine, or a launcher that does not say how many there are.
        RecipeError: a batch that does not divide.
    """
    for variable, engine in ENGINES.items():
        if os.environ.get(variable, "").lower() in ("true", "1"):
            raise UnsupportedError(
                f"{engine} ({variable} is set)",
                expected="DDP, or FSDP2 by the recipe's `parallel: fsdp`",
                fix="Launch with torchrun, or with accelerate launch --multi_gpu.",
            )
    if int(os.environ.get("WORLD_SIZE") or 1) == 1:
        return Processes()
    from tsugiki.training._work import arguments

    world = int(os.environ["WORLD_SIZE"])
    for i, stage in enumerate(plan.stages):
        if stage.batch_size % world:
            raise RecipeError(
                f"batch_size {stage.batch_size} for {world} processes",
                expected=f"a multiple of {world}: the batch is divided among them",
                fix=f"Set it to {stage.batch_size + world - stage.batch_size % world}",
                where=f"stages.{i}.batch_size",
            )
    started = dist.is_initialized()
    args = arguments(plan, 0, out, world)
    if not started:
        atexit.register(_leave)
    return Processes(args.process_index, args.world_size, args.device)


def _leave() -> None:
    if not dist.is_initialized():
        return
    # Together: a process whose peer has left while it is closing its connections can die of it.
    with suppress(Exception):  # of one that failed; the others' own errors are what counts
        if dist.get_backend() == "gloo":
            dist.monitored_barrier(timeout=timedelta(seconds=5))
    dist.destroy_process_group()


def _portable(error: Exception | None) -> Exception | None:
    """The error, or one that says the same where it can't travel."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - what this process itself has just written
    except Exception:
        return TsugikiError(f"{type(error).__name__} in the first process: {error}")
    return error
