"""Mixing two models against safetensors loading and saving one of them, and the memory that it takes.

    python benchmarks/weight_mix.py             # SmolLM2-135M twice, fp32: two minutes
    python benchmarks/weight_mix.py --rounds 10

Mixing reads two models and writes one; loading and saving reads one and writes one. Both end when the new file is on
the disk (fsync). Memory is the peak of fresh processes: one that mixes, one that only reads every page of both mapped
models, and one that loads and saves.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _results
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tsugiki import assets, identity
from tsugiki.evals import stats
from tsugiki.mixing.linear import mix

LLM, FILE = "smollm2-135m-instruct", "model.safetensors"


def parents(folder: Path) -> list[Path]:
    """The asset, and a copy whose weights are moved by noise."""
    source = Path(assets.resolve(LLM))
    made = [folder / "a", folder / "b"]
    state = {k: t for file in identity.tensor_files(source) for k, t in load_file(file).items()}
    generator = torch.Generator().manual_seed(0)
    for path in made:
        path.mkdir()
        for name in ("config.json", "tokenizer.json"):
            shutil.copyfile(source / name, path / name)
        save_file(state, path / FILE, metadata={"format": "pt"})
        state = {k: t + 1e-3 * torch.randn(t.shape, generator=generator) for k, t in state.items()}
    return made


def mixed(made: list[Path], out: Path, weight: float) -> float:
    """Seconds."""
    began = time.perf_counter()
    mix(made, [weight, 1 - weight], out)
    return time.perf_counter() - began


def copied(made: list[Path], out: Path) -> float:
    """Seconds of loading and saving one."""
    began = time.perf_counter()
    state = load_file(made[0] / FILE)
    save_file(state, out / FILE, metadata={"format": "pt"})
    with (out / FILE).open("rb") as file:
        os.fsync(file.fileno())
    return time.perf_counter() - began


def peak(what: str, a: str, b: str, out: str) -> None:
    """Run by a fresh process: prints its peak memory in bytes."""
    made = [Path(a), Path(b)]
    if what == "mix":
        mix(made, [0.3, 0.7], out)
    elif what == "maps":
        opened = [safe_open(path / FILE, framework="pt") for path in made]
        kept = [file.get_tensor(name) for file in opened for name in file.keys()]  # noqa: SIM118 - not a dict
        print(sum(float(t.view(-1)[::1024].sum()) for t in kept), file=sys.stderr)
    elif what == "load and save":
        copied(made, Path(out))
    elif what == "make":
        parents(Path(out))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def fresh(what: str, *folders: Path) -> int:
    """Bytes."""
    command = [sys.executable, __file__, "--peak", json.dumps([what, *map(str, folders)])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def memory(made: list[Path], folder: Path) -> dict[str, int]:
    """Peaks of fresh processes; the median of three."""
    (folder / "saved").mkdir(exist_ok=True)
    found = {}
    for what in ("mix", "maps", "load and save", "imports"):
        runs = []
        for i in range(3):
            target = folder / f"mixed-{i}" if what == "mix" else folder / "saved"
            runs.append(fresh(what, *made, target))
            if what == "mix":
                shutil.rmtree(target)
        found[what] = sorted(runs)[1]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        peak(*json.loads(options.peak))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # A process starts with the peak of the one that started it: here nothing large is read before `memory`.
        made = [folder / "a", folder / "b"]
        fresh("make", *made, folder)
        found = memory(made, folder)
        mixed(made, folder / "mixed", 0.5), copied(made, folder / "saved")  # warms up, and is not counted
        times: dict[str, list[float]] = {"mix": [], "load and save": []}
        for i in range(options.rounds):
            for arm in list(times)[:: 1 if i % 2 else -1]:
                weight = 0.1 + 0.8 * i / options.rounds
                seconds = mixed(made, folder / "mixed", weight) if arm == "mix" else copied(made, folder / "saved")
                times[arm].append(seconds)
        with safe_open(made[0] / FILE, framework="pt") as file:
            largest = max(file.get_tensor(n).nbytes for n in file.keys())  # noqa: SIM118 - not a dict
        size = (made[0] / FILE).stat().st_size
    report(times, found, largest, size, options.rounds)


def report(times: dict[str, list[float]], found: dict[str, int], largest: int, size: int, rounds: int) -> None:
    """The tables."""
    ratio = stats.median_ratio(times["mix"], times["load and save"])
    above = found["mix"] - found["maps"]
    rows: list[dict[str, Any]] = []
    for arm, seconds in times.items():
        rows.append(
            {
                "arm": "mix two" if arm == "mix" else "load and save one",
                "median s": round(sorted(seconds)[len(seconds) // 2], 3),
                "against load and save": f"{ratio.value:.2f} x ({ratio.low:.2f} to {ratio.high:.2f})"
                if arm == "mix"
                else "1",
                "peak MB above imports": round((found[arm] - found["imports"]) / 1e6, 1),
            }
        )
    notes = [
        f"{LLM} in fp32, {size / 1e6:.0f} MB a model, and a copy moved by noise; {rounds} interleaved pairs, the order"
        " changes; median of the ratios and its 95 % interval. The bound is 3 x.",
        "Mixing includes the checks, the hashes of all tensors of the result, its card and fsync; both parents' hashes"
        " are in the cache, as after their first use.",
        f"Peak of a process that mixes, above one that only reads every page of both mapped models: {above / 1e6:+.1f}"
        f" MB. The largest tensor has {largest / 1e6:.1f} MB, which is the bound.",
        "Peak = ru_maxrss of fresh processes, median of three; mapped pages count.",
    ]
    _results.write("weight_mix", "Mixing two models", rows, notes, seconds=times, peaks=found, largest_tensor=largest)


if __name__ == "__main__":
    main()
