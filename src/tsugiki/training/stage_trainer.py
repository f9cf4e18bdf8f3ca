"""transformers' Trainer for one stage: order of data, rates by part, schedule by steps or clock, checkpoints."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tsugiki.errors import RecipeError
from tsugiki.training import checkpoints, losses, parallel, parts
from tsugiki.training._work import ENDLESS, Clock, Work
from tsugiki.training.checkpoints import Checkpoint, Position
from tsugiki.training.prefix import SharedPrefix
from tsugiki.training.schedule import factor


class StageTrainer(Trainer):
    """Run it inside `parts.training`, which decides what takes gradients."""

    def __init__(self, model: Any, args: TrainingArguments, work: Work) -> None:
        self.work, self.stage, self.clock = work, work.recipe.stages[work.index], Clock()
        self.here, self.hardness = work.processes, work.stream.hardness
        self.loss_function = losses.get(self.stage.loss, where=f"stages.{work.index}.loss")
        self.seconds = 0.0  # of the clock at the last step
        self.prefix: SharedPrefix | None = None
        self._saved, self.ended = 0.0, False
        self._step_loss, self._tokens, self._labels, self._text = 0.0, 0, 0, 0
        super().__init__(model=model, args=args, train_dataset=work.stream, data_collator=_as_it_is)
        self.model_accepts_loss_kwargs = True
        # Recomputed layers keep no cache, and ranks of sharded weights would not meet in the same forward.
        if self.stage.share_prefix and not self.stage.gradient_checkpointing and not self._sharded:
            self.prefix = SharedPrefix(self.model)
        for callback in list(self.callback_handler.callbacks):
            if type(callback).__name__ in {"PrinterCallback", "ProgressCallback"}:
                self.remove_callback(callback)  # the run has a display of its own
        self.add_callback(_Steps(self))
        self.names = {id(p): name for name, p in model.named_parameters()}

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        """What joins the gradients of several processes; the Trainer wraps nothing that is wrapped already."""
        if not self.here.several:
            return super()._wrap_model(model, training, dataloader)
        return parallel.wrap(model, self.here, self.work.recipe.parallel)

    # -- data, loss, optimiser -----------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        """The stream as it is: nothing is drawn ahead, so its state is that of the last step."""
        # Its own generator: a DataLoader draws from the global one, and a continued run makes one DataLoader more.
        return DataLoader(self.work.stream, batch_size=None, num_workers=0, generator=torch.Generator())

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The batches of one step, and the number of what the loss is a mean over."""
        batches = [next(epoch_iterator) for _ in range(num_batches)]
        labels = sum(map(losses.label_tokens, batches))
        tokens = sum(map(losses.tokens, batches))
        text = sum(map(losses.text_labels, batches))
        items = sum(losses.count(self.stage.loss, batch) for batch in batches)
        totals = self.here.total(torch.tensor([labels, tokens, text, items])).to(device)
        self._labels, self._tokens, self._text = (int(n) for n in totals[:3])
        self._step_loss = 0.0
        return batches, totals[3].clamp(min=1)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """As the Trainer's; a loss that is no number ends the run before it harms the weights.

        Raises:
            RecipeError: the loss is not finite.
        """
        loss = self.here.total(super().training_step(model, inputs, num_items_in_batch)) / self.here.world
        value = float(loss)
        if not math.isfinite(value):
            raise RecipeError(
                f"the loss became {value} at step {self.state.global_step + 1}",
                expected="a number",
                fix="Lower the learning rate or raise the warmup, and train into another folder.",
                where=f"stages.{self.work.index}.train",
            )
        self._step_loss += value
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The stage's loss, with what is frozen in eval mode."""
        parts.set_modes(self.model)
        # accelerate puts autocast into the forward of a model that it wraps itself: that is the one of one process.
        with self.accelerator.autocast() if self.here.several else nullcontext():
            if self.prefix is not None:
                inputs = self.prefix(inputs)
            loss = self.loss_function(model, inputs, num_items_in_batch)
        if self.hardness is not None:
            self.hardness.learn(self.here)
        if self.here.several:  # gradients are averaged over the processes, and the items are those of all of them
            loss = loss * self.here.world
        return (loss, {}) if return_outputs else loss

    @property
    def _sharded(self) -> bool:
        return self.here.several and self.work.recipe.parallel == "fsdp"

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW with a learning rate for each part."""
        if self.optimizer is None:
            groups = parts.groups(self.model, self.stage.parts, self.stage.weight_decay)
            # Fused: a quarter of the time on a CPU, where whole layers train.
            self.optimizer = torch.optim.AdamW(groups, betas=self.stage.betas, fused=True)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """By the share of the steps, or of the time, that is behind."""
        if self.lr_scheduler is None:
            chosen: Any = optimizer if optimizer is not None else self.optimizer
            self.lr_scheduler = LambdaLR(chosen, self._scale)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _scale(self, done: int) -> float:
        # A step's rate is the schedule's in the step's middle: neither the first nor the last is spent at 0.
        stage = self.stage
        if stage.minutes:
            each = self.seconds / done if done else 0.0
            share = (self.seconds + each / 2) / (60 * stage.minutes) if done else stage.warmup / 4
        else:
            share = (done + 0.5) / (stage.steps or ENDLESS)
        return factor(stage.scheduler, share, warmup=stage.warmup, decay=stage.decay)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        return parallel.full(norm) if isinstance(norm, Tensor) else norm

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted."""
        return 0

    # -- time and progress ---------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Read the clock, once a step: the first process's, so that all stop and save at the same one."""
        self.seconds = self.here.told(self.clock.seconds)

    @property
    def progress(self) -> float:
        """Share of the stage that is done, 0 to 1."""
        if self.stage.minutes:
            return min(self.seconds / (60 * self.stage.minutes), 1.0)
        return self.state.global_step / (self.stage.steps or ENDLESS)

    @property
    def time_is_up(self) -> bool:
        """Whether another step would pass the stage's minutes by more than half of itself."""
        if not self.stage.minutes:
            return False
        each = self.seconds / max(self.state.global_step, 1)
        return self.seconds + each / 2 >= 60 * self.stage.minutes

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Called after each step: one row for the log, and a checkpoint where one is due."""
        if "loss" not in logs:
            return
        row = {
            "stage": self.work.index,
            "step": self.state.global_step,
            "loss": self._step_loss,
            "lr": logs["learning_rate"],
            "grad_norm": logs.get("grad_norm"),
            "seconds": round(self.seconds, 3),
            "tokens": self._tokens,
            "label_tokens": self._labels,
            "text_label_tokens": self._text,
        }
        lost = self._watched()
        ended = self.work.record(row | ({"retention": lost} if lost else {}), self.progress)
        self.ended = bool(self.here.told(float(ended)))
        self.control.should_training_stop = self.control.should_training_stop or self.ended
        every = self.work.recipe.save_steps
        due = every is not None and self.state.global_step % every == 0
        if due or "beta" in lost or self.seconds - self._saved >= self.work.recipe.save_seconds:
            self.save()

    def _watched(self) -> dict[str, Any]:
        """What the text has lost, where it is due, for the log; the clock stands meanwhile."""
        watch, step = self.work.watch, self.state.global_step
        last = step == self.stage.steps or self.time_is_up
        if watch is None or not (last or step % watch.limits.every == 0):
            return {}
        self.clock.stop()
        lost = watch.look(self.model, self.stage.parts, self.work.folder, self.here, self.work.say)
        self.control.should_training_stop = self.control.should_training_stop or watch.stopped
        self.clock.start()
        return lost

    def run(self) -> None:
        """Train what is left: nothing where the run was killed between the last step and the stage's end."""
        checkpoint = self.work.checkpoint
        if checkpoint is not None:
            self._place(checkpoint)
            stopped = self.ended or self.work.watch is not None and self.work.watch.stopped
            if stopped or self.time_is_up or checkpoint.position.step == self.stage.steps:
                return
        if self.stage.steps != 0:
            try:
                with nullcontext() if self.hardness is None else self.hardness.listening(self.model):
                    self.train()
            finally:
                self.bare_model()

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def save(self, *, finished: bool = False) -> None:
        """Write a checkpoint of this moment.

        Raises:
            StoreError: the disk is full; the checkpoint before is intact.
        """
        self._saved = self.seconds
        optimizer: dict[str, Tensor] = {}
        schedule = None
        if not finished:
            optimizer = checkpoints.optimizer_state(_bare(self.optimizer), self.names)
            rates: Any = self.lr_scheduler
            schedule = {"last_epoch": rates.last_epoch, "rates": rates.get_last_lr()}
        weights = parts.trained_tensors(self.model, self.work.keeps)
        content = {
            "weights": parallel.gathered(weights, self.model, self.here),
            "optimizer": parallel.gathered(optimizer, self.model, self.here),
            "others": parallel.others_random(self.here),
        }

        def write() -> None:
            self.work.sync()
            state = {"seconds": self.clock.seconds, "stream": self.work.stream.state_dict(), "schedule": schedule}
            state["ended"] = self.ended
            position = Position(stage=self.work.index, step=self.state.global_step, finished=finished)
            keep = self.work.recipe.keep
            if self.work.watch is not None:
                state["retention"] = self.work.watch.state
            checkpoints.save(self.work.folder, position, **content, state={**state, **self.work.state}, keep=keep)

        self.here.tell(write)

    def bare_model(self) -> None:
        """Take off what accelerate put around the model's forward for autocast; it would not do so again for a later
        stage if its mark were left on the model."""
        if "_original_forward" in vars(self.model):
            self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
            vars(self.model).pop("forward", None)
        vars(self.model).pop("_is_accelerate_prepared", None)

    def begin(self) -> None:
        """Before the first step: continue from the checkpoint, or write the first one."""
        checkpoint = self.work.checkpoint
        if self.here.rank:  # the same mask for other rows would not be a random one
            torch.manual_seed(self.work.recipe.seed + self.here.rank)
        if checkpoint is None:
            self.save()
        else:
            self._place(checkpoint)
            tensors = checkpoint.tensors(checkpoints.OPTIMIZER)
            checkpoints.restore_optimizer(_bare(self.optimizer), tensors, self.names, parallel.like)
            done, rates = checkpoint.state["schedule"]["last_epoch"], checkpoint.state["schedule"]["rates"]
            schedule: Any = self.lr_scheduler
            own = schedule.state_dict()
            schedule.load_state_dict({**own, "last_epoch": done, "_step_count": done + 1, "_last_lr": rates})
            for group, rate in zip(_bare(self.optimizer).param_groups, rates, strict=True):
                group["lr"] = rate
            checkpoints.restore_random(checkpoint, self.here.rank)
        self.clock.start()

    def _place(self, checkpoint: Checkpoint) -> None:
        self.state.global_step = checkpoint.position.step
        self.ended = bool(checkpoint.state.get("ended"))
        self.seconds = self._saved = float(checkpoint.state["seconds"])
        self.clock.set(self.seconds)
        self.work.stream.load_state_dict(checkpoint.state["stream"])


class _Steps(TrainerCallback):
    """Calls the trainer back at the moments that only a callback sees."""

    def __init__(self, trainer: StageTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.trainer.begin()

    def on_optimizer_step(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.trainer.tick()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> TrainerControl:
        control.should_training_stop = control.should_training_stop or self.trainer.time_is_up
        return control

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.trainer.clock.stop()


def _as_it_is(batch: Any) -> Any:
    return batch


def _bare(optimizer: Any) -> torch.optim.Optimizer:
    """The optimiser inside accelerate's wrapper."""
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner
