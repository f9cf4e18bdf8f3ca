"""Samples a second of training against a plain loop, step by step: label positions only; + cache; + length grouping;
+ shared prefix.

    python benchmarks/throughput.py                    # SmolLM2-135M, EfficientNet-Lite0, scenes: five minutes
    python benchmarks/throughput.py --tiny --rounds 3  # fakes, seconds; only to see that it runs

All arms train the same projector on the same samples. They take turns, one step each, in one process; a turn is from
drawing the batch to the end of the optimiser's step. The last two arms see the same samples in other batches, so ratios
are of sums over all rounds; their 95 % interval is a bootstrap over rounds (the two steps of a round together).
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import _results
import numpy as np
import torch
from _plain_loop import PlainModel, plain_trainer
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

import tsugiki
from tsugiki import assets
from tsugiki.data.mixture import length_groups
from tsugiki.synth import scenes
from tsugiki.testing import TinyTower, tiny_images, tiny_llm, tiny_tokenizer
from tsugiki.training import _work, parts, recipe, stage_trainer
from tsugiki.training._work import Work
from tsugiki.training.prefix import common
from tsugiki.training.run import versions
from tsugiki.training.stream import Encoder, Stream
from tsugiki.types import IMAGE, Message, Sample
from tsugiki.vision.cache import FeatureCache

LLM, TOWER, LR = "smollm2-135m-instruct", "efficientnet-lite0", 1e-3
PLAIN = "plain loop"
ARMS = (PLAIN, "label positions only", "+ cache", "+ length grouping", "+ shared prefix")


@dataclass
class Arm:
    """One way to train: it runs in a thread of its own and waits for its turn before every step."""

    name: str
    batches: Sequence[Sequence[Sample]]
    collate: Callable[[Sequence[Sample]], dict[str, Any]]
    shares: bool = False
    """Whether it runs the common prefix once for all steps."""
    trainer: Any = None
    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    """Positions of each batch that run through the LLM, padding included."""
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    done: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    failed: BaseException | None = None
    _started: float = 0.0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for i, batch in enumerate(self.batches):
            if i:
                self.done.release()
            self.turn.acquire()
            self._started = time.perf_counter()
            inputs = self.collate(batch)
            rows, length = inputs["input_ids"].shape
            self.tokens.append(rows * (length - (common(inputs) if self.shares else 0)))
            yield inputs

    def ended(self) -> None:
        """The step is over."""
        self.seconds.append(time.perf_counter() - self._started)

    def run(self) -> None:
        try:
            self.trainer.train()
        except BaseException as error:
            self.failed = error
        self.done.release()


class StepEnd(TrainerCallback):
    """Tells the arm that its step is over."""

    def __init__(self, arm: Arm) -> None:
        self.arm = arm

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.arm.ended()


class _Stream(Stream):
    """An arm in the place of a stream of samples."""

    hardness = None

    def __init__(self, arm: Arm) -> None:
        self.arm = arm

    def __iter__(self) -> Iterator[Any]:
        return iter(self.arm)

    def state_dict(self) -> dict[str, Any]:
        return {}


def real(folder: Path, n: int) -> tuple[Callable[[], Any], Any, Any, list[Sample]]:
    """LLM, tokenizer, tower and data of the figure."""
    source = assets.resolve(LLM)
    samples = scenes.generate(n, out=folder / "scenes", languages=("en",), seed=0)
    return (
        lambda: AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32),
        AutoTokenizer.from_pretrained(source),
        TOWER,
        samples,
    )


def tiny(folder: Path, n: int) -> tuple[Callable[[], Any], Any, Any, list[Sample]]:
    """Fakes."""
    pictures = tiny_images(8)
    samples = [
        Sample(
            id=str(i),
            messages=(
                Message.of("user", "What? " * (1 + i % 7), (pictures[i % 8],)),
                Message.of("assistant", f"{i % 8}"),
            ),
        )
        for i in range(n)
    ]
    return tiny_llm, tiny_tokenizer(), TinyTower(), samples


def arms(made: tuple[Callable[[], Any], Any, Any, list[Sample]], rounds: int, batch: int, folder: Path) -> list[Arm]:
    """All arms, ready to start."""
    llm, tokenizer, tower, samples = made
    model = tsugiki.attach(llm(), "projector", vision=tower, tokenizer=tokenizer)
    bare = tsugiki.attach(llm(), "projector", vision=tower, tokenizer=tokenizer)
    plain = PlainModel(bare.detach(), bare.frontend.tower, bare.frontend.projector, IMAGE)
    random.Random(0).shuffle(samples)
    mixed = [samples[i : i + batch] for i in range(0, batch * rounds, batch)]
    pixels = Encoder(model.processor.collator(labels=True, padding_side="right"))
    cache = FeatureCache(model.frontend, folder / "features")
    began = time.perf_counter()
    cache.fill([image for sample in samples for image in sample.images])
    print(f"encoded {len(samples)} pictures once: {time.perf_counter() - began:.1f} s (not counted)")
    cached = Encoder(model.processor.collator(cache, labels=True, padding_side="right"))
    groups = length_groups([cached.length(s) for s in samples[: batch * rounds]], batch, seed=0, window=rounds)
    alike = [[samples[i] for i in group] for group in groups]
    # The first step of each arm warms up and is not counted: one more batch for it.
    found = [
        Arm(ARMS[0], [mixed[0], *mixed], pixels),
        Arm(ARMS[1], [mixed[0], *mixed], pixels),
        Arm(ARMS[2], [mixed[0], *mixed], cached),
        Arm(ARMS[3], [alike[0], *alike], cached),
        Arm(ARMS[4], [alike[0], *alike], cached, shares=True),
    ]
    steps = rounds + 1
    found[0].trainer = plain_trainer(plain, found[0], steps, LR, folder / "plain", StepEnd(found[0]))
    for i, arm in enumerate(found[1:]):
        found[i + 1].trainer = ours(model, arm, steps, batch, folder / str(i))
    return found


def ours(model: Any, arm: Arm, steps: int, batch: int, folder: Path) -> Any:
    """Our trainer on an arm's batches."""
    stage = {"train": {"projector": LR}, "data": "scenes", "steps": steps, "batch_size": batch}
    stage["share_prefix"] = arm.shares
    plan = recipe.load({"stages": [stage], "save_seconds": 1e6})
    work = Work(
        recipe=plan,
        index=0,
        stream=_Stream(arm),
        keeps={"projector": LR},
        folder=folder / "checkpoints",
        record=lambda row, share: False,
        sync=lambda: None,
    )
    trainer = stage_trainer.StageTrainer(model, _work.arguments(plan, 0, folder), work)
    trainer.add_callback(StepEnd(arm))
    return trainer


def take_turns(found: Sequence[Arm], rounds: int) -> None:
    """Run all arms, one step each at a time, in an order that changes from round to round."""
    threads = [threading.Thread(target=arm.run, daemon=True) for arm in found]
    for thread in threads:
        thread.start()
    for i in range(rounds + 1):
        order = list(found)
        random.Random(i).shuffle(order)
        for arm in order:
            arm.turn.release()
            arm.done.acquire()
            if arm.failed is not None:
                raise arm.failed
        print(f"round {i}: " + "  ".join(f"{arm.name} {arm.seconds[-1]:.2f} s" for arm in found), flush=True)
    for thread in threads:
        thread.join()
    for arm in found:
        del arm.seconds[0], arm.tokens[0]


def ratio(slow: Sequence[float], fast: Sequence[float]) -> tuple[float, float, float]:
    """Sum of `slow` over sum of `fast`, with the ends of its 95 % interval by a paired bootstrap."""
    result = stats.bootstrap(
        (np.array(slow), np.array(fast)),
        lambda a, b, axis=-1: a.sum(axis=axis) / b.sum(axis=axis),
        paired=True,
        n_resamples=9999,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    low, high = result.confidence_interval
    return sum(slow) / sum(fast), float(low), float(high)


def rows_of(found: Sequence[Arm], batch: int) -> list[dict[str, Any]]:
    """The table: one row an arm."""
    rows = []
    for before, arm in zip([found[0], *found], found, strict=False):
        n = batch * len(arm.seconds)
        first = arm is before
        rows.append(
            {
                "arm": arm.name,
                "samples / s": round(n / sum(arm.seconds), 3),
                "positions a sample": round(sum(arm.tokens) / n, 1),
                "against the plain loop": "1" if first else times(found[0].seconds, arm.seconds),
                "against the line above": "1" if first else times(before.seconds, arm.seconds),
            }
        )
    return rows


def times(slow: Sequence[float], fast: Sequence[float]) -> str:
    """`2.10 x (1.95 to 2.24)`."""
    return "{:.2f} x ({:.2f} to {:.2f})".format(*ratio(slow, fast))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tiny", action="store_true", help="fakes instead of real models; nothing is written")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = (tiny if options.tiny else real)(folder, options.rounds * options.batch)
        found = arms(made, options.rounds, options.batch, folder)
        with parts.training(found[1].trainer.model, {"projector": LR}):
            take_turns(found, options.rounds)
        encoded = [found[1].collate.item(s).encoded for s in made[3]]  # type: ignore[attr-defined]
        share = sum(label >= 0 for e in encoded for label in e.labels) / sum(map(len, encoded))
    rows = rows_of(found, options.batch)
    if options.tiny:
        print(json.dumps(rows, indent=1))
        return
    notes = [
        f"{LLM}, {TOWER} at 224 px, scenes in English, batch {options.batch}, fp32; every arm trains the same projector"
        f" on the same samples, one step each in turn, {options.rounds} rounds.",
        "Ratios are of sums over all rounds, with 95 % intervals (paired bootstrap over rounds).",
        "The plain loop (`benchmarks/_plain_loop.py`) is transformers' Trainer, same collator and batches, `labels`"
        " to the LLM's forward, pictures encoded in each step.",
        f"Of the positions without padding, {share:.0%} have a label. Encoding all pictures once is not counted.",
    ]
    raw = {arm.name: {"seconds": arm.seconds, "positions": arm.tokens} for arm in found}
    _results.write("throughput", "Throughput of training", rows, notes, steps=raw, packages=versions())


if __name__ == "__main__":
    main()
