"""Checkpoints of a run: trained parts, optimiser, random state and counters; whole or not there, and never a pickle.

    <run>/checkpoints/stage-0-step-00000120/
        weights.safetensors     every tensor that any stage so far has trained
        optimizer.safetensors   "<parameter>/<state>" -> tensor
        random.safetensors      states of torch's generators
        state.json              stage, step, seconds, order of the samples, schedule, hashes of the other files

A folder appears under its name by one rename, after all its bytes are on the disk; `state.json` carries the others'
hashes, so a damaged one is recognised and passed over for the one before it.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tsugiki.data.files import atomic_folder, sha256_file, sweep
from tsugiki.errors import StoreError

FORMAT = 1
WEIGHTS, OPTIMIZER, RANDOM, STATE = "weights.safetensors", "optimizer.safetensors", "random.safetensors", "state.json"
_NAME = re.compile(r"stage-(\d+)-step-(\d+)")


@dataclass(frozen=True, kw_only=True)
class Position:
    """How far a run has come."""

    stage: int
    step: int
    """Optimiser steps of this stage."""
    finished: bool = False
    """Whether the stage has ended."""

    @property
    def name(self) -> str:
        return f"stage-{self.stage}-step-{self.step:08d}"


@dataclass(frozen=True)
class Checkpoint:
    """One whole checkpoint on disk; tensors are read when asked for."""

    folder: Path
    position: Position
    state: Mapping[str, Any]

    def tensors(self, file: str) -> dict[str, Tensor]:
        """Tensors of one of its files, on the CPU."""
        return load_file(self.folder / file)


def save(
    folder: Path,
    position: Position,
    *,
    weights: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep: int,
    others: Mapping[str, Tensor] = MappingProxyType({}),
) -> Path:
    """Write one checkpoint under `folder`, then delete all but the newest `keep`.

    Args:
        others: further random states, of the processes that train beside this one: `rank1.cpu`, ...

    Raises:
        StoreError: the disk is full or can't be written; the checkpoints before are intact.
    """
    target = folder / position.name
    with atomic_folder(target) as temporary:
        hashes = {}
        tensors, python = random_state()
        for name, content in ((WEIGHTS, weights), (OPTIMIZER, optimizer), (RANDOM, {**tensors, **others})):
            save_file({key: value.detach().cpu().contiguous() for key, value in content.items()}, temporary / name)
            hashes[name] = sha256_file(temporary / name)
        described = {
            "format": FORMAT,
            "stage": position.stage,
            "step": position.step,
            "finished": position.finished,
            "random": python,
            "files": hashes,
            **state,
        }
        (temporary / STATE).write_text(json.dumps(described, ensure_ascii=False, indent=1), encoding="utf-8")
    for old in _folders(folder)[:-keep]:
        # First the name: a process that is killed meanwhile must not leave half a checkpoint under it.
        gone = old.with_name(f".{old.name}.old")
        with suppress(OSError):
            shutil.rmtree(old.replace(gone), ignore_errors=True)
    return target


def latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None. What a killed process left half-written is removed.

    Raises:
        StoreError: there are some but none is whole, or the newest one was written by a newer version.
    """
    sweep(folder)
    found = _folders(folder)
    for path in reversed(found):
        state = whole(path)
        if state is not None:
            position = Position(stage=state["stage"], step=state["step"], finished=state["finished"])
            return Checkpoint(path, position, state)
    if found:  # no killed process leaves this behind
        raise StoreError(
            f"{len(found)} checkpoints, all of them damaged",
            expected="at least one whole one to continue from",
            fix="Bring them back from a copy, or delete the folder to start anew.",
            where=str(folder),
        )
    return None


def _folders(folder: Path) -> list[Path]:
    found = [p for p in folder.iterdir() if _NAME.fullmatch(p.name)] if folder.is_dir() else []
    return sorted(found, key=lambda p: tuple(int(n) for n in p.name.split("-")[1::2]))


def whole(path: Path) -> dict[str, Any] | None:
    """The state of a checkpoint whose files all have the hashes it names, else None."""
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        if not isinstance(state, dict):
            return None
        if state.get("format", 0) > FORMAT:
            raise StoreError(
                f"a checkpoint of format {state['format']}",
                expected=f"format {FORMAT} or older",
                fix="Update tsugiki, or start in another folder.",
                where=str(path),
            )
        intact = all(sha256_file(path / name) == digest for name, digest in state["files"].items())
    except StoreError:
        raise
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return state if intact else None


# -- what is in them --------------------------------------------------------------------------------------------------


def random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """States of all generators: torch's as tensors, Python's and numpy's as JSON values."""
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    version, internal, gauss = random.getstate()
    kind, keys, place, has_gauss, cached = np.random.get_state(legacy=True)
    numbers = [kind, np.asarray(keys).tolist(), int(place), int(has_gauss), float(cached)]
    return tensors, {"python": [version, list(internal), gauss], "numpy": numbers}


def restore_random(checkpoint: Checkpoint, rank: int = 0) -> None:
    """Put all generators back to where they were in this process; one that was not there keeps its own."""
    tensors = checkpoint.tensors(RANDOM)
    if rank:
        own = f"rank{rank}."
        tensors = {key.removeprefix(own): value for key, value in tensors.items() if key.startswith(own)}
        if not tensors:
            return
    torch.set_rng_state(tensors["cpu"])
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            if f"cuda.{i}" in tensors:
                torch.cuda.set_rng_state(tensors[f"cuda.{i}"], i)
    version, internal, gauss = checkpoint.state["random"]["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, place, has_gauss, cached = checkpoint.state["random"]["numpy"]
    np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), place, has_gauss, cached))


def optimizer_state(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> dict[str, Tensor]:
    """State of an optimiser as named tensors; `names` maps id(parameter) to its name."""
    found = {}
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            found[f"{names[id(parameter)]}/{key}"] = value if isinstance(value, Tensor) else torch.tensor(value)
    return found


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    names: Mapping[int, str],
    like: Callable[[Tensor, Tensor], Tensor] = lambda value, _: value,
) -> None:
    """Put the state back; learning rates are the schedule's affair.

    Args:
        like: a whole tensor and its parameter -> the tensor in the pieces in which the parameter is.
    """
    state: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        parameter, _, key = name.rpartition("/")
        state.setdefault(parameter, {})[key] = value
    content = optimizer.state_dict()
    order = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    content["state"] = {
        i: {key: value if key == "step" else like(value, parameters[i]) for key, value in state[name].items()}
        for i, name in enumerate(order)
        if name in state
    }
    optimizer.load_state_dict(content)


def restore_weights(model: nn.Module, checkpoint: Checkpoint, expected: Mapping[str, Tensor]) -> None:
    """Copy the trained tensors into the model.

    Raises:
        StoreError: the checkpoint is of another model; the first difference is named.
    """
    try:
        stored = checkpoint.tensors(WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise StoreError(f"can't be read ({error})", expected="safetensors", where=str(checkpoint.folder)) from error
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    for name in sorted(set(expected) | set(stored)):
        here = tuple(expected[name].shape) if name in expected else None
        there = tuple(stored[name].shape) if name in stored else None
        if here != there or name not in own:
            raise StoreError(
                f"tensor {name} is {there or 'absent'} in the checkpoint",
                expected=f"{here or 'no such tensor'}, as in the model",
                fix="Attach the same graft with the same options, or start in another folder.",
                where=str(checkpoint.folder),
            )
    with torch.no_grad():
        for name, value in stored.items():
            own[name].copy_(value)
