"""Kills (SIGKILL) at random moments of fit, train, save and cache writing, on tiny fakes: what is left, and what comes
of the same command afterwards.

    python benchmarks/kills.py                       # 200 kills, some minutes; continues where it was stopped
    python benchmarks/kills.py --kills 8 --out FOLDER    # a few, as JSON on standard output, for the tests

An episode is one run that is killed up to four times, each time after a random share of the time that an undisturbed
one takes, and that is then left alone. After each kill all files are read; at its end it is compared, number by number,
with the undisturbed run. Children are forks of a process that has imported everything and computes nothing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from _killed import ACTIVITIES, broken, photos, temporary
from _results import write

from tsugiki import assets

EACH = 4
"""Kills of one run at most."""
IMPORTED = (
    *("tsugiki.processor", "tsugiki.evals.yardsticks", "tsugiki.training.stage_trainer", "torch.utils.tensorboard"),
    *("scipy.stats", "sklearn.linear_model", "sklearn.model_selection", "sklearn.neighbors", "sklearn.pipeline"),
    *("sklearn.dummy", "statsmodels.stats.proportion", "statsmodels.stats.power"),
)
"""What a child would import anew each time."""


def child(activity: str, folder: Path, log: Path) -> int:
    """Do it in a fork; this process itself never computes, so that forking is safe."""
    number = os.fork()
    if number:
        return number
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        os.environ["TSUGIKI_CACHE"] = str(folder / "cache")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            ACTIVITIES[activity].work(folder)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            os._exit(1)
        os._exit(0)


def finished(number: int, seconds: float) -> int | None:
    """The exit code of a child that ends within some seconds; else it is killed, and None."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (found := os.waitpid(number, os.WNOHANG))[0]:
            return os.waitstatus_to_exitcode(found[1])
        time.sleep(0.002)
    os.kill(number, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
    return None if code == -signal.SIGKILL else code


def whole(activity: str, folder: Path) -> tuple[float, Any]:
    """Seconds and outcome of an undisturbed run."""
    photos(folder / "photos")
    began, log = time.monotonic(), folder / "whole.log"
    code = finished(child(activity, folder / "whole", log), 600)
    if code:
        raise SystemExit(f"{activity} fails undisturbed: {log.read_text()[-1000:]}")
    seconds = time.monotonic() - began
    print(f"{activity}: {seconds:.1f} s undisturbed", file=sys.stderr, flush=True)
    return seconds, ACTIVITIES[activity].curve(folder / "whole")


def episode(activity: str, folder: Path, rng: random.Random, seconds: float, curve: Any, most: int) -> dict[str, Any]:
    """One run, killed up to `most` times, then left alone."""
    kills: list[dict[str, Any]] = []
    run, log = folder / "run", folder / "log"
    folder.mkdir(parents=True)
    (folder / "photos").symlink_to(folder.parent / "photos")
    code: int | None = None
    while len(kills) < most:
        after = rng.uniform(0, seconds)
        code = finished(child(activity, run, log), after)
        if code is not None:
            break
        kills.append({"after": round(after / seconds, 3), "broken": broken(run), "left": len(temporary(run))})
    else:
        code = finished(child(activity, run, log), 60 + 20 * seconds)
    found = {"activity": activity, "kills": kills, "code": code, "broken": [] if code else broken(run)}
    found["same"] = code == 0 and ACTIVITIES[activity].curve(run) == curve
    found["left"] = [str(p.relative_to(run)) for p in temporary(run)]
    if code or not found["same"]:
        found["log"] = log.read_text()[-2000:]
        print(f"{activity}: {found}", file=sys.stderr, flush=True)
    else:
        shutil.rmtree(folder)
    return found


def episodes(activity: str, wanted: int, folder: Path, seed: int, done: list[dict[str, Any]]) -> Iterator[Any]:
    """New ones until there are `wanted` kills together with those of `done`."""
    count, number = sum(len(e["kills"]) for e in done), len(done)
    if count >= wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    seconds, curve = whole(activity, folder)
    while count < wanted:
        rng = random.Random(f"{seed}/{activity}/{number}")
        found = episode(activity, folder / str(number), rng, seconds, curve, min(EACH, wanted - count))
        count, number = count + len(found["kills"]), number + 1
        yield found


def run(kills: int, folder: Path, seed: int) -> list[dict[str, Any]]:
    """All episodes; those that are in `episodes.jsonl` already are not run again."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "episodes.jsonl"
    found = [json.loads(line) for line in file.open()] if file.exists() else []
    for activity in ACTIVITIES:
        done = [e for e in found if e["activity"] == activity]
        for one in episodes(activity, kills // len(ACTIVITIES), folder / activity, seed, done):
            with file.open("a") as log:
                log.write(json.dumps(one, ensure_ascii=False) + "\n")
            found.append(one)
            print(f"{activity}: {len(one['kills'])} kills, same {one['same']}", file=sys.stderr, flush=True)
    return found


def rows(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The table."""
    out = []
    for name in [*ACTIVITIES, "all"]:
        own = [e for e in found if name in (e["activity"], "all")]
        kills = [k for e in own for k in e["kills"]]
        out.append(
            {
                "activity": name,
                "kills": len(kills),
                "of these in the middle of a write": sum(bool(k["left"]) for k in kills),
                "files that were not whole": sum(len(k["broken"]) for k in kills) + sum(len(e["broken"]) for e in own),
                "runs": len(own),
                "ended well": sum(e["code"] == 0 for e in own),
                "equal to the undisturbed run": sum(e["same"] for e in own),
                "temporary files left at the end": sum(len(e["left"]) for e in own),
            }
        )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="work there, print JSON, write no table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for module in IMPORTED:
        importlib.import_module(module)
    if options.out is not None:
        print(json.dumps(rows(run(options.kills, options.out, options.seed))))
        return
    found = run(options.kills, assets.cache_dir() / "runs" / "kills", options.seed)
    notes = [
        "A kill comes after a random share of the time of an undisturbed run, four to a run at most, wherever the run"
        " was continued from. After each, every file under its own name is read: JSON and YAML parsed, hashes of"
        " checkpoints and grafts and checksums of features compared.",
        "Equal means: every loss and learning rate, the hash of the saved weights, scores and marks of `fit`, every"
        " cached feature, bit for bit.",
        "A temporary file is one that a killed writer left; nobody reads it. Those of a run's folder go when it is"
        " continued, those of the feature cache after an hour, those beside a saved graft after a day.",
    ]
    write("kills", "200 kills", rows(found), notes, seed=options.seed)


if __name__ == "__main__":
    main()
