"""What a stage is run with: the Trainer's settings, its work, and the clock that it is run by."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from tsugiki.errors import UnsupportedError
from tsugiki.training.checkpoints import Checkpoint
from tsugiki.training.processes import Processes
from tsugiki.training.recipe import Recipe
from tsugiki.training.retained import Watch
from tsugiki.training.stream import Stream

# Stands for "as many as fit" where the clock decides.
ENDLESS = 1_000_000_000
# Seconds that a process waits for another: the first one encodes all pictures meanwhile.
PATIENCE = 24 * 3600


def arguments(recipe: Recipe, index: int, out: Path, world: int = 1) -> TrainingArguments:
    """The Trainer's own settings for a stage in `world` processes.

    Raises:
        UnsupportedError: there are more, started in a way that was not recognised.
    """
    stage = recipe.stages[index]
    args = TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=stage.batch_size // world,
        gradient_accumulation_steps=stage.gradient_accumulation,
        max_steps=stage.steps or ENDLESS,
        max_grad_norm=stage.max_grad_norm,
        seed=recipe.seed,
        bf16=recipe.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        ddp_timeout=PATIENCE,
        save_strategy="no",
        eval_strategy="no",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    if args.world_size != world:
        raise UnsupportedError(
            f"training in {args.world_size} processes, and WORLD_SIZE says {world}",
            expected="one process, or a launcher that sets WORLD_SIZE, RANK and LOCAL_RANK",
            fix="Start it with torchrun or accelerate launch.",
        )
    args._n_gpu = min(
        args.n_gpu, 1
    )  # several GPUs in one process would be DataParallel, which knows no flat image list
    return args


class Clock:
    """Seconds of training, those before an interruption included."""

    def __init__(self) -> None:
        self._before = 0.0
        self._since: float | None = None

    def set(self, seconds: float) -> None:
        self._before = seconds

    def start(self) -> None:
        self._since = time.monotonic()

    def stop(self) -> None:
        self._before, self._since = self.seconds, None

    @property
    def seconds(self) -> float:
        return self._before + (time.monotonic() - self._since if self._since is not None else 0.0)


@dataclass(kw_only=True)
class Work:
    """What a stage is run with."""

    recipe: Recipe
    index: int
    """The stage's number in the recipe."""
    stream: Stream
    keeps: Mapping[str, Any]
    """Parts whose weights belong in a checkpoint: those that trained in this stage or before."""
    folder: Path
    """Where checkpoints go."""
    record: Callable[[dict[str, Any], float], bool]
    """Called after each step with its row for the log and the share of the stage that is done; True ends the stage."""
    sync: Callable[[], None]
    """Called before a checkpoint is written: the log must not be behind it."""
    checkpoint: Checkpoint | None = None
    """Of this stage, to continue from; the weights are in the model already."""
    watch: Watch | None = None
    """What the text has lost, where the stage has a budget for it."""
    say: Callable[[str], None] = print
    """Tells people."""
    processes: Processes = field(default_factory=Processes)
    """Who trains together."""
    state: dict[str, Any] = field(default_factory=dict)
    """Further values for the checkpoints' state."""
