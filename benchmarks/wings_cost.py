"""What WINGS costs beside a projector alone, and beside the published algorithm written the straightforward way.

    python benchmarks/wings_cost.py                  # everything, about a quarter of an hour
    python benchmarks/wings_cost.py --only decode    # one part; the others stay as they were measured

Arms take turns, one step each, in an order that changes from round to round; a ratio is the median over rounds, its
interval a bootstrap over rounds. Times are of the processor, not of the wall, so that other work on the machine counts
less. Memory is the peak of a fresh process during one step minus that of one that only loads.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _commands as commands
import torch
from _results import write
from _turns import median, ratios, timed, turns
from _wings_arms import ARMS, CONTEXT, LLM, LONG, PLAIN, SHORT, load, request, same, seeing, stepper, twin

from tsugiki.types import IMAGE, TEXT, VisualTokens

LONG_LAYERS = 10
GROWTH, GROWTH_LAYERS = (256, 1024, 4096), 6


# -- parts -------------------------------------------------------------------------------------------------------------


def step(rounds: int) -> dict[str, Any]:
    """A training step at the scenes' shape."""
    llm = load()
    steps = {name: stepper(seeing(twin(llm), name), SHORT) for name in ARMS}
    seconds = turns({name: lambda s=s: timed(s) for name, s in steps.items()}, rounds)
    rows = {f"step / projector's: wings, {n}": median(ratios(s, seconds["projector"])) for n, s in seconds.items()}
    del rows["step / projector's: wings, projector"]
    return {"rows": rows, "seconds": seconds}


def long(rounds: int) -> dict[str, Any]:
    """A training step at 1k image tokens, against the plain form."""
    llm = load(LONG_LAYERS)
    models = {name: seeing(twin(llm), name) for name in ("projector", "rank 16", f"{PLAIN}rank 16")}
    projector, ours, plain = models
    difference = same(models[ours], models[plain], LONG)
    assert difference < 1e-4, f"the plain form computes something else: {difference}"
    print(f"largest difference of logits: {difference:.1e} of the largest logit")
    steps = {name: stepper(model, LONG) for name, model in models.items()}
    seconds = turns({name: lambda s=s: timed(s) for name, s in steps.items()}, rounds)
    base = seconds[projector]
    rows = {
        "step / projector's at 1k image tokens: wings, rank 16": median(ratios(seconds[ours], base)),
        "step / projector's at 1k image tokens: plain form": median(ratios(seconds[plain], base)),
        "extra time at 1k image tokens / the plain form's": median(ratios(seconds[ours], seconds[plain], base)),
    }
    return {"rows": rows, "seconds": seconds, "difference of logits": difference}


def decode(rounds: int, tokens: int = 8) -> dict[str, Any]:
    """A greedy token at 1k context, with the cache and without; every arm its own conversation."""
    llm = load()
    arms: dict[str, Callable[[], float]] = {}
    for name in ("projector", "rank 16"):
        model = seeing(twin(llm), name).eval()
        prompt = request(CONTEXT, model.placeholder_id)
        visual = VisualTokens(torch.randn(1, CONTEXT["image"], 576, generator=torch.Generator().manual_seed(1)))
        with torch.no_grad():
            first = model(**prompt, visual=visual, use_cache=True, logits_to_keep=1)
        state = {"ids": prompt["input_ids"], "next": first.logits[:, -1:].argmax(-1), "cache": first.past_key_values}

        def cached(model: Any = model, state: dict[str, Any] = state) -> float:
            began = time.process_time()
            with torch.no_grad():
                for _ in range(tokens):
                    state["ids"] = torch.cat([state["ids"], state["next"]], 1)
                    mask = torch.ones_like(state["ids"])
                    out = model(input_ids=state["next"], attention_mask=mask, cache=state["cache"], use_cache=True)
                    state["next"] = out.logits[:, -1:].argmax(-1)
            return (time.process_time() - began) / tokens

        def whole(model: Any = model, state: dict[str, Any] = state, visual: Any = visual) -> float:
            began = time.process_time()
            ids = state["ids"]
            kinds = torch.where(ids == model.placeholder_id, IMAGE, TEXT)
            images = torch.where(kinds == IMAGE, 0, -1)
            with torch.no_grad():
                inputs = {"input_ids": ids, "token_kind": kinds, "image_index": images}
                out = model(**inputs, visual=visual, use_cache=False, logits_to_keep=1)
            spent = time.process_time() - began
            assert torch.equal(out.logits[:, -1:].argmax(-1), state["next"]), "cached and uncached tokens differ"
            return spent

        arms |= {f"{name}, cache": cached, f"{name}, no cache": whole}
    seconds = turns(arms, rounds)
    cached_, none = seconds["rank 16, cache"], seconds["rank 16, no cache"]
    rows = {
        "decode a token at 1k context: without the cache / with it": median(ratios(none, cached_)),
        "the same for the projector": median(ratios(seconds["projector, no cache"], seconds["projector, cache"])),
        "decode with the cache: wings, rank 16 / projector": median(ratios(cached_, seconds["projector, cache"])),
    }
    return {"rows": rows, "seconds": seconds}


# -- memory ------------------------------------------------------------------------------------------------------------


def peak(arm: str, shape: dict[str, int], layers: int | None) -> None:
    """In a fresh process: the peak of resident memory from the end of loading to the end of one step, in MiB."""
    llm = load(layers)
    model = seeing(llm, "projector" if arm == "load" else arm)
    run = stepper(model, shape)
    for p in model.parameters():  # weights are mapped from their file: read them, so that all processes count them
        p.sum()
    # `ru_maxrss` would begin at the size of the process that started this one, and loading has a peak of its own.
    Path("/proc/self/clear_refs").write_text("5")
    if arm != "load":
        run()
    status = Path("/proc/self/status").read_text()
    print(next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024)


def fresh(arm: str, shape: dict[str, int], layers: int | None = None) -> float:
    # Large blocks go back to the system when they are freed, so that the peak is of what is in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__)), "--peak", json.dumps([arm, shape, layers])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    value = float(done.stdout.split()[-1])
    print(f"{arm} {shape} {layers or 'all'} layers: {value:.0f} MiB", flush=True)
    return value


def memory(_: int) -> dict[str, Any]:
    """Peaks of a training step, beyond a process that only loads."""
    empty = fresh("load", SHORT)
    used = {name: fresh(name, SHORT) - empty for name in ARMS if name != "rank 16, no router"}
    rows = {
        f"peak memory / projector's: wings, {n}": f"{m / used['projector']:.2f} ({m:.0f} MiB)" for n, m in used.items()
    }
    del rows["peak memory / projector's: wings, projector"]
    empty = fresh("load", LONG, LONG_LAYERS)
    many = {n: fresh(n, LONG, LONG_LAYERS) - empty for n in ("projector", "rank 16", f"{PLAIN}rank 16")}
    base, ours, plain = many.values()
    rows |= {
        "peak memory / projector's at 1k image tokens: wings, rank 16": f"{ours / base:.2f} ({ours:.0f} MiB)",
        "peak memory / projector's at 1k image tokens: plain form": f"{plain / base:.2f} ({plain:.0f} MiB)",
        "extra memory at 1k image tokens / the plain form's": f"{(ours - base) / (plain - base):.2f}",
    }
    return {"rows": rows, "MiB, short": used, "MiB, 1k image tokens": many}


def growth(_: int) -> dict[str, Any]:
    """What wings adds to the peak of a training step, by the number of image tokens."""
    extra: dict[int, float] = {}
    for image in GROWTH:
        shape = {**LONG, "image": image}
        extra[image] = fresh("rank 16", shape, GROWTH_LAYERS) - fresh("projector", shape, GROWTH_LAYERS)
    rows = {
        f"extra memory at {n} image tokens, {GROWTH_LAYERS} layers": f"{m:.0f} MiB, {m / n:.3f} MiB an image token"
        for n, m in extra.items()
    }
    for (few, a), (many, b) in itertools.pairwise(extra.items()):
        rows[f"each further image token from {few} to {many}"] = f"{(b - a) / (many - few):.3f} MiB"
    return {"rows": rows, "MiB": extra}


PARTS = {f.__name__: f for f in (step, long, decode, memory, growth)}
BOUNDS = {
    "step / projector's: wings, rank 16": "at most 1.65, aim 1.4",
    "extra time at 1k image tokens / the plain form's": "at most 0.5",
    "extra memory at 1k image tokens / the plain form's": "at most 0.5",
    "decode a token at 1k context: without the cache / with it": "at least 5",
}


def table(parts: dict[str, Any], rounds: int) -> None:
    """Write what is measured so far."""
    rows = [
        {"measured": name, "value": value, "bound": BOUNDS.get(name, "")}
        for part in PARTS
        for name, value in parts.get(part, {"rows": {}})["rows"].items()
    ]
    s, c = SHORT, CONTEXT
    notes = [
        f"{LLM}, frozen, fp32; loss at label positions only; wings with the router by positions and learners in every"
        f" layer. A step is forward, backward and AdamW of all that is trained.",
        f"Step: batch {s['batch']}, {s['image']} image tokens and {s['text']} of text a row, {s['labels']} of them"
        f" labels (the scenes' shape), visual features cached, projector trained. At 1k image tokens: batch 1,"
        f" {LONG['image']} + {LONG['text']}, the LLM's first {LONG_LAYERS} layers, random visual tokens that are"
        f" trained in the projector's stead. Growth: the same with the first {GROWTH_LAYERS}"
        " layers; what an image token adds is in proportion to the layers.",
        f"Decode: greedy, batch 1, a context of {c['image']} image tokens and {c['text']} of text, all 30 layers; a"
        " round is 8 tokens with the cache, and one forward over the whole prefix without.",
        f"{rounds} rounds; arms take turns, one step each, in a changing order. Values are medians over rounds, with"
        " 95 % intervals (bootstrap over rounds); extra = beyond the projector's of the same round. Seconds are the"
        " process's own on the processor: the machine was shared with training runs of other work.",
        "Memory: peak resident size of a fresh process during one step, minus that of one that only loads the"
        " projector's model; large blocks go back to the system as soon as they are freed. One process each.",
        "Each part (step, 1k image tokens, decode, memory, growth) is a run of its own; the command above is the last.",
        "The plain form (`benchmarks/_wings_plain.py`) is the published algorithm with eager attention, n x n router"
        " input and full keys in each layer, corrected as ours is. With the same weights its logits are the graft's to"
        f" {parts.get('long', {}).get('difference of logits', float('nan')):.0e} of the largest.",
    ]
    write("wings_cost", "What WINGS costs", rows, notes, parts=parts)


if __name__ == "__main__":
    commands.parts(__doc__, "wings_cost", PARTS, table, peak)
