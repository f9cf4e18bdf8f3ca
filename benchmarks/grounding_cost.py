"""What the grafts that ground cost beside a projector alone: IAA, LynX and low-rank updates.

    python benchmarks/grounding_cost.py                  # everything
    python benchmarks/grounding_cost.py --only decode    # one part; the others stay as they were measured

Arms take turns, one step each, in an order that changes from round to round; a ratio is the median over rounds, its
interval a bootstrap over rounds. Times are of the processor, not of the wall. Memory is the peak of a fresh process
during one training step minus that of one that only loads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _commands as commands
import torch
from _results import write
from _turns import median, ratios, timed, turns
from _wings_arms import LLM, SHORT, TOWER, load, request, twin
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoTokenizer

import tsugiki
from tsugiki import assets
from tsugiki.types import VisualTokens

INSERTED, LAYERS = 7, 30
ARMS: dict[str, tuple[str, dict[str, Any], str]] = {
    "projector": ("projector", {}, "image"),
    "iaa": ("iaa", {"layers": "iaa-8"}, "image"),
    "lynx, grounding": ("lynx", {"experts": 4, "top_k": 1, "every": 2}, "grounding"),
    "lynx, understanding": ("lynx", {"experts": 4, "top_k": 1, "every": 2}, "image"),
    "lora, rank 16": ("lora", {"rank": 16}, "image"),
}
"""Graft, its settings, and the branch of the requests."""
CONTEXT = {"batch": 1, "image": 256, "text": 256, "labels": 0}
BOUNDS = {
    "training step: iaa": f"at most {(1 + 1.5 * INSERTED / LAYERS) * 1.1:.3f}",
    "time to first token: iaa": f"at most {(1 + INSERTED / LAYERS) * 1.1:.3f}",
    "decoding: iaa": f"at most {(1 + INSERTED / LAYERS) * 1.1:.3f}",
    "time to first token: lynx, grounding": "at most 1.15",
    "decoding: lynx, grounding": "at most 1.15",
}


def seeing(llm: Any, arm: str) -> Any:
    """The LLM with the arm's graft, moved off its start."""
    torch.manual_seed(0)
    name, settings, _ = ARMS[arm]
    tokenizer = AutoTokenizer.from_pretrained(assets.resolve(LLM))
    model = tsugiki.attach(llm, name, vision=TOWER, tokenizer=tokenizer, input_size=224, **settings)
    model.freeze_llm()
    with torch.no_grad():
        for p in model.grafts.parameters():
            p.requires_grad_(True).add_(0.01 * torch.randn_like(p))
    return model


def stepper(model: Any, branch: str) -> Callable[[], float]:
    """A training step: forward, backward, AdamW of what is trained on such a request."""
    model.train()
    with torch.no_grad():
        features = model.frontend.tower(torch.randn(SHORT["batch"], 3, 224, 224))
    own = [*model.grafts.parameters(), *model.frontend.projector.parameters()]
    optimizer = torch.optim.AdamW([p for p in own if p.requires_grad], lr=1e-6, fused=True)  # as our trainer has it
    inputs = request(SHORT, model.placeholder_id)

    def run() -> float:
        loss = model(**inputs, vision_features=features, branch=branch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return run


def step(rounds: int) -> dict[str, Any]:
    """A training step at the scenes' shape."""
    llm = load()
    trained = [a for a in ARMS if a != "lynx, understanding"]  # nothing of it trains there
    steps = {a: stepper(seeing(twin(llm), a), ARMS[a][2]) for a in trained}
    return _beside("training step", turns({a: lambda s=s: timed(s) for a, s in steps.items()}, rounds))


def first(rounds: int) -> dict[str, Any]:
    """The prompt's forward, up to the first token of the answer."""
    runs = {a: _reader(a)[0] for a in ARMS}
    return _beside("time to first token", turns({a: lambda r=r: timed(r) for a, r in runs.items()}, rounds))


def decode(rounds: int, tokens: int = 8) -> dict[str, Any]:
    """Greedy tokens with a cache, at the context's length."""
    arms: dict[str, Callable[[], float]] = {}
    for arm in ARMS:
        run, model = _reader(arm)
        state = {"out": run(), "length": CONTEXT["image"] + CONTEXT["text"]}

        def go(model: Any = model, state: dict[str, Any] = state) -> None:
            with torch.no_grad():
                for _ in range(tokens):
                    state["length"] += 1
                    ids = state["out"].logits[:, -1:].argmax(-1)
                    mask = torch.ones(1, state["length"], dtype=torch.long)
                    state["out"] = model(input_ids=ids, attention_mask=mask, cache=state["out"].cache, use_cache=True)

        arms[arm] = lambda go=go: timed(go)
    return _beside("decoding", turns(arms, rounds))


def _reader(arm: str) -> tuple[Callable[[], Any], Any]:
    model, branch = seeing(load(), arm).eval(), ARMS[arm][2]
    inputs = request(CONTEXT, model.placeholder_id)
    visual = VisualTokens(torch.randn(1, CONTEXT["image"], 576, generator=torch.Generator().manual_seed(1)))

    def run() -> Any:
        with torch.no_grad():
            return model(**inputs, visual=visual, branch=branch, use_cache=True, logits_to_keep=1)

    return run, model


class _Operators(TorchDispatchMode):
    """Operators of a forward: those that give numbers of the network, and those on integers and masks."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[bool, list[str]] = {True: [], False: []}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        first = out[0] if isinstance(out, (tuple, list)) and out else out
        self.names[isinstance(first, torch.Tensor) and first.is_floating_point()].append(str(function))
        return out


def operators(_: int) -> dict[str, Any]:
    """An understanding request runs the parent's operators, and a few on the numbers of branches."""
    seen = {}
    for arm in ("projector", "lynx, understanding"):
        run, _model = _reader(arm)
        with _Operators() as mode:
            run()
        seen[arm] = mode.names
    parent, own = seen.values()
    same = "the parent's, in order" if own[True] == parent[True] else "NOT the parent's"
    more = len(own[False]) - len(parent[False])
    value = f"{len(own[True])} on floats, {same}; {more} more on [B, T] integers that say the branch"
    return {"rows": {"operators of an understanding request: lynx": value}}


def _beside(what: str, seconds: dict[str, list[float]]) -> dict[str, Any]:
    base = seconds["projector"]
    rows = {f"{what}: {a}": median(ratios(s, base)) for a, s in seconds.items() if a != "projector"}
    return {"rows": rows, "seconds": seconds}


def peak(arm: str) -> None:
    """In a fresh process: the peak of resident memory from the end of loading to the end of one step, in MiB."""
    model = seeing(load(), "projector" if arm == "load" else arm)
    run = stepper(model, ARMS.get(arm, ARMS["projector"])[2])
    for p in model.parameters():  # weights are mapped from their file: read them, so that all processes count them
        p.sum()
    if arm != "load":
        run()
    status = Path("/proc/self/status").read_text()
    print(next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024)


def memory(_: int) -> dict[str, Any]:
    """Peaks of a training step, weights and optimiser of the graft included, beyond a process that only loads."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    used = {}
    for arm in ("load", *(a for a in ARMS if a != "lynx, understanding")):
        command = [sys.executable, str(Path(__file__)), "--peak", json.dumps([arm])]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        used[arm] = float(done.stdout.split()[-1])
        print(f"{arm}: {used[arm]:.0f} MiB", flush=True)
    empty = used.pop("load")
    base = used["projector"] - empty
    rows = {
        f"peak memory of a step: {a}": f"{(m - empty) / base:.2f} ({m - empty:.0f} MiB; projector {base:.0f})"
        for a, m in used.items()
        if a != "projector"
    }
    return {"rows": rows, "MiB": used}


PARTS = {f.__name__: f for f in (step, first, decode, operators, memory)}


def table(parts: dict[str, Any], rounds: int) -> None:
    """Write what is measured so far."""
    rows = [
        {"measured, / projector's": name, "value": value, "bound": BOUNDS.get(name, "")}
        for part in PARTS
        for name, value in parts.get(part, {"rows": {}})["rows"].items()
    ]
    notes = [
        f"{LLM}, frozen, fp32. IAA: {INSERTED} layers inserted into {LAYERS}; LynX: 4 copies of the FFN, top-1,"
        " in every second layer; lora: rank 16 in all matrices of attention and FFN.",
        f"Training step: batch {SHORT['batch']}, {SHORT['image']} image tokens and {SHORT['text']} of text, visual"
        " features cached, loss at label positions, AdamW of all that is trained. First token and decoding: batch 1, a"
        f" context of {CONTEXT['image']} image tokens and {CONTEXT['text']} of text; a round of decoding is 8 tokens.",
        f"{rounds} rounds; arms take turns in a changing order. Medians over rounds with 95 % intervals (bootstrap over"
        " rounds). Seconds are the process's own on the processor: the machine was shared.",
    ]
    write("grounding_cost", "What the grafts that ground cost", rows, notes, parts=parts)


if __name__ == "__main__":
    commands.parts(__doc__, "grounding_cost", PARTS, table, peak)
