"""Checkpoint folders: whole or passed over; random states and optimisers come back bit for bit."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tsugiki.errors import StoreError
from tsugiki.training import checkpoints
from tsugiki.training.checkpoints import Position, latest, save


def write(folder: Path, step: int, stage: int = 0, keep: int = 10, finished: bool = False) -> Path:
    weights = {"w": torch.full((3,), float(step))}
    position = Position(stage=stage, step=step, finished=finished)
    return save(folder, position, weights=weights, optimizer={}, state={"x": "é"}, keep=keep)


def test_the_newest_is_found_and_old_ones_go(tmp_path: Path) -> None:
    assert latest(tmp_path / "none") is None
    for stage, step in ((0, 9), (0, 10), (1, 2), (1, 11)):
        write(tmp_path, step, stage, keep=3)
    found = latest(tmp_path)
    assert found is not None and found.position == Position(stage=1, step=11)
    assert found.tensors(checkpoints.WEIGHTS)["w"].tolist() == [11.0] * 3 and found.state["x"] == "é"
    assert len(list(tmp_path.iterdir())) == 3 and not (tmp_path / "stage-0-step-00000009").exists()


def test_a_stages_last_step_is_written_over(tmp_path: Path) -> None:
    write(tmp_path, 4)
    write(tmp_path, 4, finished=True)
    found = latest(tmp_path)
    assert found is not None and found.position.finished and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("harm", ["byte", "missing", "state", "no state", "not a dict"])
def test_damaged_ones_are_passed_over(harm: str, tmp_path: Path) -> None:
    write(tmp_path, 1)
    newest = write(tmp_path, 2)
    if harm == "byte":
        raw = (newest / checkpoints.WEIGHTS).read_bytes()
        (newest / checkpoints.WEIGHTS).write_bytes(raw[:-1] + b"\x01")
    elif harm == "missing":
        (newest / checkpoints.RANDOM).unlink()
    elif harm == "state":
        (newest / checkpoints.STATE).write_text('{"format": 1, "files"')
    elif harm == "no state":
        (newest / checkpoints.STATE).unlink()
    else:
        (newest / checkpoints.STATE).write_text("[]")
    found = latest(tmp_path)
    assert found is not None and found.position.step == 1


def test_none_that_is_whole_does_not_start_anew(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    (path / checkpoints.STATE).unlink()
    with pytest.raises(StoreError, match="1 checkpoints, all of them damaged"):
        latest(tmp_path)


def test_remains_of_killed_writers_go(tmp_path: Path) -> None:
    write(tmp_path, 1)
    for name in (".stage-0-step-00000002.abc.part", ".stage-0-step-00000001.abc.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("x")
    assert latest(tmp_path) is not None and len(list(tmp_path.iterdir())) == 1


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    state = json.loads((path / checkpoints.STATE).read_text())
    (path / checkpoints.STATE).write_text(json.dumps({**state, "format": 99}))
    with pytest.raises(StoreError, match="format 99; expected format 1 or older. Update"):
        latest(tmp_path)


def test_no_pickle_is_ever_written(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    assert {p.suffix for p in path.iterdir()} == {".safetensors", ".json"}


def test_random_states_come_back(tmp_path: Path) -> None:
    random.random(), np.random.normal(), torch.rand(3)  # a cached Gaussian in numpy's state
    write(tmp_path, 1)
    expected = random.random(), np.random.normal(), np.random.rand(2).tolist(), torch.rand(3), random.gauss(0, 1)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    found = latest(tmp_path)
    assert found is not None
    checkpoints.restore_random(found)
    again = random.random(), np.random.normal(), np.random.rand(2).tolist(), torch.rand(3), random.gauss(0, 1)
    assert all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(expected, again, strict=True)
    )


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_an_optimiser_goes_on_bit_for_bit(kind: type[torch.optim.Optimizer], tmp_path: Path) -> None:
    def made() -> tuple[nn.Linear, torch.optim.Optimizer, dict[int, str]]:
        torch.manual_seed(0)
        module = nn.Linear(3, 2)
        groups = [{"params": [module.weight], "lr": 0.1}, {"params": [module.bias], "lr": 0.01}]
        options = {"lr": 0.1} | ({"momentum": 0.9} if kind is torch.optim.SGD else {})
        return module, kind(groups, **options), {id(p): n for n, p in module.named_parameters()}

    def step(module: nn.Linear, optimizer: torch.optim.Optimizer, value: float) -> None:
        optimizer.zero_grad()
        module(torch.full((1, 3), value)).square().sum().backward()
        optimizer.step()

    one, first, names = made()
    for value in (1.0, 2.0):
        step(one, first, value)
    stored = checkpoints.optimizer_state(first, names)
    two, second, other = made()
    two.load_state_dict(one.state_dict())
    checkpoints.restore_optimizer(second, {k: v.clone() for k, v in stored.items()}, other)
    for value in (3.0, 4.0):
        step(one, first, value)
        step(two, second, value)
    assert torch.equal(one.weight, two.weight) and torch.equal(one.bias, two.bias)


def test_weights_of_another_model_are_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path, 1)
    found = latest(tmp_path)
    assert found is not None
    module = nn.Module()
    module.w = nn.Parameter(torch.zeros(3))
    checkpoints.restore_weights(module, found, dict(module.named_parameters()))
    assert module.w.tolist() == [1.0] * 3
    module.w = nn.Parameter(torch.zeros(4))
    with pytest.raises(StoreError, match=r"tensor w is \(3,\) in the checkpoint; expected \(4,\)"):
        checkpoints.restore_weights(module, found, dict(module.named_parameters()))
    module.v = nn.Parameter(torch.zeros(1))
    with pytest.raises(StoreError, match="tensor v is absent in the checkpoint"):
        checkpoints.restore_weights(module, found, dict(module.named_parameters()))
