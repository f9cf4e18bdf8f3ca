"""The common path before and after: help, one's own photographs, tower outputs, `fit`, and the first words of `chat`.

    git worktree add /tmp/before COMMIT && python benchmarks/common_path.py --before /tmp/before
    python benchmarks/common_path.py --before /tmp/before --only help own --rounds 3

Every figure is of a fresh process with an empty cache of tower outputs. The two versions take turns in random order.
Seconds of the processor (all threads) say what work was saved; seconds of the clock say what a user waits, on a machine
that may be shared. The peak is that of the process (`ru_maxrss`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _results
import numpy as np
from _turns import median, ratios
from PIL import Image

from tsugiki import assets
from tsugiki.data import schema
from tsugiki.data.convert import csv
from tsugiki.synth import fabric

ROOT = Path(__file__).parents[1]
FROM_PHONE = (4000, 3000)
PHOTOS = 16
LIMIT = 4.0
"""Gigabytes that `fit` may take."""

CLOCK = """
import json, resource, sys, time
from pathlib import Path
class Clock:
    def __enter__(self):
        self.began, self.used = time.monotonic(), time.process_time()
    def __exit__(self, *_):
        seconds, used = time.monotonic() - self.began, time.process_time() - self.used
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        print(json.dumps({"seconds": seconds, "processor": used, "peak": peak}), flush=True)
"""
READ = """
from tsugiki.data import splits
from tsugiki.studies import _own
with Clock():
    own = _own.read(sys.argv[1])
    splits.sample_groups(own.samples, splits.THRESHOLD)
"""
FILL = """
from tsugiki.data import schema
from tsugiki.vision.cache import FeatureCache
from tsugiki.vision.tower import build_tower
cache = FeatureCache(build_tower("efficientnet-lite0"))
pictures = [s.images[0] for s in schema.load(sys.argv[1])]
with Clock():
    assert cache.fill(pictures) == len(pictures)
"""
FIT = """
with Clock():
    from tsugiki.studies.fit import fit
    steps = ["steps=" + sys.argv[3]]
    fit(sys.argv[1], out=sys.argv[2], overrides=steps, patience=None, answers=2, progress=False)
"""
LOAD = """
with Clock():
    from tsugiki.studies._build import load_graft
    load_graft(sys.argv[1])
"""
FIRST = """
from tsugiki.data import schema
from tsugiki.studies._build import load_graft
model, (sample, *_) = load_graft(sys.argv[1]), schema.load(sys.argv[2])
with Clock():
    next(iter(model.chat("Is it normal?", [sample.images[0]], max_new_tokens=1, do_sample=False, stream=True)))
"""


@dataclass(frozen=True)
class Case:
    """Something that users do: a program and its arguments, or a module; {out} is a folder of each process's own."""

    what: str
    arguments: Sequence[str]
    rounds: int
    program: str = ""

    def run(self, version: Path, folder: Path) -> dict[str, float]:
        """Seconds of the clock and of the processor, and the peak in GB where a program tells it; one process."""
        with tempfile.TemporaryDirectory(dir=folder) as out:
            cache = Path(out) / "cache"
            cache.mkdir()
            for name in ("assets", "llm", "converted", "hashes"):
                (cache / name).symlink_to(assets.cache_dir() / name)
            own = {"PYTHONPATH": str(version / "src"), "TSUGIKI_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
            begin = ["-c", CLOCK + self.program] if self.program else []
            command = [sys.executable, *begin, *(a.replace("{out}", f"{out}/run") for a in self.arguments)]
            before = os.times()
            done = subprocess.run(command, env={**os.environ, **own}, check=True, stdout=subprocess.PIPE, text=True)
            after = os.times()
        if self.program:
            found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
            return found
        used = after.children_user + after.children_system - before.children_user - before.children_system
        return {"seconds": after.elapsed - before.elapsed, "processor": used}


def phone_photos(folder: Path, n: int) -> Path:
    """Photographs of fabric, as large as a phone takes them, and their labels as JSONL."""
    samples, _ = fabric.draw(0, n)
    rng = np.random.default_rng(0)
    for i, sample in enumerate(samples):
        small = Image.open(Path(str(sample.images[0]))).convert("RGB")
        large = np.asarray(small.resize(FROM_PHONE, Image.Resampling.BICUBIC), np.int16)
        noise = rng.integers(-6, 7, large.shape[:2], np.int16)[..., None]
        Image.fromarray(np.clip(large + noise, 0, 255).astype(np.uint8)).save(folder / f"{i}.jpg", quality=90)
    lines = ["path,label", *(f"{i}.jpg,{s.meta['label']}" for i, s in enumerate(samples))]
    (folder / "own.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "own.csv"


def compared(case: Case, versions: dict[str, Path], rounds: int, folder: Path) -> dict[str, list[dict[str, float]]]:
    """What each version takes in each round."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in versions}
    for i in range(rounds):
        order = list(versions)
        random.Random(i).shuffle(order)
        for name in order:
            found[name].append(case.run(versions[name], folder))
        print(
            case.what,
            i,
            {name: {k: round(v, 2) for k, v in runs[-1].items()} for name, runs in found.items()},
            flush=True,
        )
    return found


def row(case: Case, found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """One line of the table."""
    line: dict[str, Any] = {"what": case.what, "rounds": len(found["after"])}
    for key, heading in (("processor", "s of the processor"), ("seconds", "s of the clock")):
        values = {name: [run[key] for run in runs] for name, runs in found.items()}
        line[heading] = " → ".join(f"{np.median(values[name]):.2f}" for name in ("before", "after"))
        ratio = ratios(values["after"], values["before"])
        line[f"{heading}, after / before"] = median(ratio) if len(ratio) > 1 else f"{ratio[0]:.2f}"
    peaks = [[run["peak"] for run in found[name] if "peak" in run] for name in ("before", "after")]
    line["peak GB"] = " → ".join(f"{max(p):.2f}" for p in peaks) if all(peaks) else ""
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="a checkout of the version to compare with")
    parser.add_argument("--rounds", type=int, help="of every case; default: its own")
    parser.add_argument("--only", nargs="+", choices=("help", "own", "tower", "fit", "load", "first"))
    parser.add_argument("--steps", type=int, default=4, help="of each training of fit")
    options = parser.parse_args()
    versions = {"before": options.before.resolve(), "after": ROOT}
    commit = subprocess.run(
        ["git", "-C", str(options.before), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    if commit.returncode == 0:  # what the record names: the place says nothing to others
        sys.argv = [commit.stdout.strip() if a == str(options.before) else a for a in sys.argv]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        own, (photos, _) = phone_photos(folder, PHOTOS), fabric.draw(0, 40)
        schema.write(folder / "fabric.jsonl", photos)
        schema.write(folder / "phone.jsonl", csv.convert(own))
        graft, fabric_file, phone = folder / "fit" / "graft", str(folder / "fabric.jsonl"), str(folder / "phone.jsonl")
        cases = {
            "help": Case("`python -m tsugiki.cli --help`", ["-m", "tsugiki.cli", "--help"], 3),
            "own": Case(f"read and compare {PHOTOS} photographs of a phone", [str(own)], 3, READ),
            "tower": Case(f"outputs of Lite0 for {PHOTOS} photographs of a phone", [phone], 3, FILL),
            "fit": Case("`fit`, 40 photographs", [fabric_file, "{out}", str(options.steps)], 1, FIT),
            "load": Case("load a graft and its LLM", [str(graft)], 3, LOAD),
            "first": Case("first words of `chat` about a picture", [str(graft), fabric_file], 3, FIRST),
        }  # fmt: skip
        names = options.only or list(cases)
        if {"load", "first"} & set(names):
            Case("", [fabric_file, str(folder / "fit"), "1"], 1, FIT).run(ROOT, folder)
        rows, peak = [], 0.0
        for name in names:
            found = compared(cases[name], versions, options.rounds or cases[name].rounds, folder)
            rows.append(row(cases[name], found))
            if name == "fit":
                peak = max(run["peak"] for run in found["after"])
    loads = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    notes = [
        f"Load of the machine in the last 1, 5 and 15 minutes: {loads}.",
        "after / before: the median of the rounds' ratios, and its 95 % interval.",
    ]
    if peak:
        notes.append(
            f"`fit` trains for {options.steps} steps to choose their number, then again; its report is part of it."
        )
        notes.append(f"Peak memory of `fit` {peak:.2f} GB; at most {LIMIT:g} GB are allowed.")
    _results.write("common_path", "The common path, before and after", rows, notes)
    if peak > LIMIT:
        sys.exit(1)


if __name__ == "__main__":
    main()
