"""Training in two processes on the loopback is training in one: same losses, same weights, under DDP and FSDP2."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.training import _several
from tests.training._tiny import cache, model, samples

from tsugiki.errors import RecipeError, UnsupportedError
from tsugiki.training import feed, parallel, parts, processes
from tsugiki.training import recipe as recipes
from tsugiki.training.processes import Processes
from tsugiki.training.stream import Encoder

ROOT = Path(__file__).parents[2]
GRAFTS = ["projector", "cross_attention", "wings", "lora"]
KINDS = ["ddp", "fsdp"]
# Text-only samples teach something only where the LLM trains; by length they would all be in batches of their own.
LLM: dict[str, Any] = {"mixed": True, "also": ["llm"], "stage": {"length_grouping": False}}
# WINGS says by a setting whether the LLM may train.
TRAINABLE: dict[str, Any] = {"wings": {"attach": {"llm": "trainable"}}}

LONG: dict[str, Any] = {"llm": {"max_position_embeddings": 2048}}

# name -> what is trained; each of them alone, under DDP and under FSDP2
CASES: dict[str, dict[str, Any]] = {
    **{f"{graft}, pictures": {"graft": graft} for graft in GRAFTS},
    **{f"{graft}, mixed": {"graft": graft, **LLM, **TRAINABLE.get(graft, {})} for graft in GRAFTS},
    "accumulated": {
        "graft": "wings",
        **LLM,
        **TRAINABLE["wings"],
        "stage": {"gradient_accumulation": 2, "batch_size": 2, **LLM["stage"]},
    },
    **{
        f"{graft}, recomputed": {
            "graft": graft,
            **LLM,
            **TRAINABLE.get(graft, {}),
            "stage": {"gradient_checkpointing": True, **LLM["stage"]},
        }
        for graft in GRAFTS[1:]
    },
    "steps": {
        "graft": "projector",
        "marked": True,
        "stage": {
            "loss": "per_step",
            "gradient_accumulation": 2,
            "batch_size": 2,
            "data": {"train": {"order": "staged"}},
        },
    },
    "tower": {"graft": "projector", "mixed": True, "also": ["llm", "tower"], "attach": {"train_tower": True}},
    "mix": {"graft": "projector", "attach": {"vision": "two towers"}},
    "unclipped": {"graft": "projector", "stage": {"max_grad_norm": 0, "warm_start": True, "variants": 1}},
    "bf16": {"graft": "cross_attention", "recipe": {"precision": "bf16"}},
    # Each process sees the losses of its own rows alone, and shows what is hard among all; twice through the data.
    "hard": {
        "graft": "projector",
        "attach": {
            "projector": "hub",
            "hub": {"layers": 1, "width": 16, "heads": 2, "hidden": 24, "queries": 4},
            **LONG,
        },
        "stage": {
            "loss": "per_query",
            "batch_size": 8,
            "length_grouping": False,
            "data": {"train": {"demos": {"most": 2, "sampler": "hard"}}},
        },
    },
}
# Only in two processes; runs of one name continue each other.
OTHERS: list[dict[str, Any]] = [
    {"name": "a", "run": "swapped", "graft": "cross_attention", "parallel": "fsdp", **LLM, "stop": 3, "save": 2},
    {"name": "swapped", "graft": "cross_attention", "parallel": "ddp", **LLM},
    {"name": "b", "run": "back", "graft": "cross_attention", "parallel": "ddp", **LLM, "stop": 3, "save": 2},
    {"name": "back", "graft": "cross_attention", "parallel": "fsdp", **LLM},
    {"name": "c", "run": "alone", "graft": "cross_attention", "parallel": "fsdp", **LLM, "stop": 3, "save": 2},
    {"name": "dropout", "graft": "projector", "parallel": "ddp", "dropout": 0.3},
    {"name": "d", "run": "dropped", "graft": "projector", "parallel": "ddp", "dropout": 0.3, "stop": 3, "save": 2},
    {"name": "dropped", "graft": "projector", "parallel": "ddp", "dropout": 0.3},
    {"name": "clock", "graft": "projector", "parallel": "ddp", "stage": {"minutes": 0.01, "steps": None}},
    {"name": "odd", "graft": "projector", "parallel": "ddp", "stage": {"batch_size": 3}},
    {"name": "differ", "graft": "projector", "parallel": "ddp", "differ": True},
    {"name": "again", "run": "projector, pictures ddp", "graft": "projector", "parallel": "ddp", "stage": {"steps": 3}},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all workers of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    found = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "several"
    found.mkdir(exist_ok=True)
    return found


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    """What each of two processes says of all cases."""
    results = [folder / f"result-{rank}.json" for rank in range(2)]
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not all(result.exists() for result in results) and not start_two(folder):
            for found in folder.iterdir():  # nothing of the first attempt is to be continued
                if found.name != "lock":
                    shutil.rmtree(found) if found.is_dir() else found.unlink()
            assert start_two(folder), "a process died of a signal twice; what it was at is printed above"
    return [json.loads(result.read_text()) for result in results]


def start_two(folder: Path) -> bool:
    """Run all cases; False where a signal ended a process: torch's own threads have done so, once in dozens of runs."""
    cases = [{"name": f"{name} {kind}", "parallel": kind, **case} for name, case in CASES.items() for kind in KINDS]
    (folder / "cases.json").write_text(json.dumps(cases + OTHERS))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training._several", str(folder)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
        )
        for rank in range(2)
    ]
    try:
        patience = time.monotonic() + 900  # for two that wait for each other
        while all(process.poll() is None for process in started) and time.monotonic() < patience:
            time.sleep(0.1)
        ended = [process.wait(timeout=60) for process in started]
    except subprocess.TimeoutExpired:  # the other one waits for it
        ended = [process.poll() for process in started]
    finally:
        for process in started:
            process.kill()
    if any(code is not None and code < 0 for code in ended):
        warnings.warn(f"the two processes ended with {ended}; what they printed says where", stacklevel=2)
        return False
    assert ended == [0, 0]
    return True


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """What one process says of a case, and its folder."""
    folder = tmp_path_factory.mktemp("alone")
    known: dict[str, Any] = {}

    def once(name: str) -> dict[str, Any]:
        if name not in known:
            known[name] = _several.run(folder, {"name": f"{name} alone", "parallel": "ddp", **CASES[name]})
            known[name]["folder"] = folder
        found: dict[str, Any] = known[name]
        return found

    return once


def assert_same_weights(one_file: Path, other_file: Path, within: float) -> None:
    one, more = load_file(one_file), load_file(other_file)
    assert one.keys() == more.keys()
    for key, tensor in one.items():
        assert (tensor - more[key]).abs().max() <= within, key


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one(name: str, kind: str, folder: Path, two: Any, alone: Any) -> None:
    expected, (first, second) = alone(name), [each[f"{name} {kind}"] for each in two]
    assert "error" not in expected and "error" not in first, (expected, first)
    assert first.keys() == second.keys() and first["sum"] == second["sum"] and first["losses"] == second["losses"]
    assert first["reported"] == second["reported"] == first["losses"]
    close = 2e-3 if name == "bf16" else 1e-5
    assert first["losses"] == pytest.approx(expected["losses"], rel=close)
    assert first["norms"] == pytest.approx(expected["norms"], rel=20 * close)
    assert [row[1] for row in first["tokens"]] == [row[1] for row in expected["tokens"]]
    files = expected["folder"] / f"{name} alone.safetensors", folder / f"{name} {kind}.safetensors"
    assert_same_weights(*files, 0.02 if name == "bf16" else 5e-4)


def test_the_mixed_data_has_every_kind_of_batch(tmp_path: Path) -> None:
    built = model()
    stage = {"train": {"llm": 1}, "data": "t", "batch_size": 4, "steps": 1, **LLM["stage"]}
    plan = recipes.load({"stages": [stage]})
    given = {"t": _several.mixed()}
    streams = [
        feed.stream(built, plan.stages[0], given, cache(built, tmp_path), seed=0, here=Processes(rank, 2))
        for rank in range(2)
    ]
    seen = [
        tuple("vision_features" in part and int(part["image_index"].max()) >= 0 for part in parts)
        for _, *parts in zip(range(_several.STEPS), *streams, strict=False)
    ]
    assert {(False, False), (True, True)} <= set(seen) and {(True, False), (False, True)} & set(seen), seen


# -- interrupted and continued -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swapped", "back"])
def test_another_kind_continues_a_run(name: str, folder: Path, two: Any, alone: Any) -> None:
    expected, found = alone("cross_attention, mixed"), two[0][name]
    assert found["resumed"] and found["losses"] == pytest.approx(expected["losses"], rel=1e-5)
    files = expected["folder"] / "cross_attention, mixed alone.safetensors", folder / f"{name}.safetensors"
    assert_same_weights(*files, 5e-4)


@pytest.mark.slow
def test_one_process_continues_a_run_of_two(folder: Path, two: Any, alone: Any) -> None:
    case = {"name": "alone", "graft": "cross_attention", "parallel": "ddp", **LLM}
    found = _several.run(folder, case)
    assert found["resumed"] and found["losses"] == pytest.approx(alone("cross_attention, mixed")["losses"], rel=1e-5)


@pytest.mark.slow
def test_every_process_has_its_own_random_numbers_back(two: Any) -> None:
    whole, continued = two[0]["dropout"], two[0]["dropped"]
    assert continued["resumed"] and continued["losses"] == whole["losses"] and continued["sum"] == whole["sum"]


@pytest.mark.slow
def test_the_clock_stops_all_at_one_step(two: Any) -> None:
    assert two[0]["clock"]["losses"] == two[1]["clock"]["losses"] and two[0]["clock"]["losses"]


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("odd", "RecipeError: stages.0.batch_size: batch_size 3 for 2 processes; expected a multiple of 2"),
        ("differ", "was given another base, graft or data"),
        ("again", "but the run in this folder was started with 6"),
    ],
)
def test_all_processes_are_told(name: str, said: str, two: Any) -> None:
    assert all(said in each[name]["error"] for each in two)


@pytest.mark.parametrize("engine", sorted(processes.ENGINES))
def test_other_engines_are_refused(engine: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(engine, "true")
    with pytest.raises(UnsupportedError, match=rf"{engine} is set.*parallel: fsdp"):
        processes.join(recipes.load("projector"), tmp_path)


def test_a_batch_that_does_not_divide_names_one_that_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(RecipeError, match="batch_size 4 for 3 processes.*Set it to 6"):
        processes.join(recipes.load("projector", ["batch_size=4"]), tmp_path)


# -- in one process ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graft", GRAFTS)
def test_a_blank_picture_reaches_all_that_trains_and_changes_nothing(graft: str, tmp_path: Path) -> None:
    built, features = model(graft), None
    features = cache(built, tmp_path)
    encoder, rates = Encoder(built.processor.collator(features)), {"projector": 1.0, "llm": 1.0}
    rates |= {f"graft.{graft}": 1.0} if graft != "projector" else {}
    with parts.training(built, rates):

        def gradients(inputs: Any) -> dict[str, torch.Tensor | None]:
            built.zero_grad()
            built(**inputs).loss.backward()
            return {name: p.grad for name, p in built.named_parameters() if p.requires_grad}

        usual = gradients(encoder(samples(2)))
        plain = encoder(_several.text(3))
        blank = gradients(encoder(_several.text(3), stand_in=feed.blank(built, features)))
        seen = {name for name, grad in usual.items() if grad is not None}
        assert seen == {name for name, grad in blank.items() if grad is not None}
        for name, grad in gradients(plain).items():
            other = blank[name]
            if grad is not None and other is not None:
                assert torch.allclose(grad, other, rtol=1e-5, atol=1e-7), name
            else:
                assert other is None or not other.any(), name


def test_units_leave_no_parameter_twice() -> None:
    built = model("cross_attention")
    found = list(parallel.units(built))
    owned = [id(p) for unit in found for p in unit.parameters()]
    assert len(owned) == len(set(owned)) and len(found) == 4 + 1 + 1  # layers, one block, projector
    shared = built.decoder.layers
    shared[1].mlp = shared[0].mlp  # such layers are gathered with the root
    assert len(list(parallel.units(built))) == len(found) - 2


def test_an_error_that_can_not_travel_says_the_same() -> None:
    class Odd(Exception):
        def __init__(self, a: int, b: int) -> None:
            super().__init__(f"{a} {b}")

    said = processes._portable(Odd(1, 2))
    assert str(said) == "Odd in the first process: 1 2"
    known = RecipeError("found", expected="this", where="there")
    assert processes._portable(known) is known


def test_alone_nothing_is_asked_of_others() -> None:
    here = Processes()
    value = torch.ones(2)
    assert here.share is None and here.total(value) is value and here.collect(3) == [3] and here.told(1.5) == 1.5
    assert here.tell(lambda: 4) == here.in_turn(lambda: 4) == 4
    assert replace(here, rank=1, world=2).share == slice(1, None, 2)
