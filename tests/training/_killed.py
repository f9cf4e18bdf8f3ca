"""Started by test_kill.py: trains in a child process, kills it at random moments, and prints what came of it as JSON.

python -m tests.training._killed FOLDER SEED
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from tests.training._tiny import cache, model, recipe, samples

from tsugiki import processor, store  # noqa: F401 - what a child would import anew each time
from tsugiki.training import checkpoints, stage_trainer  # noqa: F401
from tsugiki.training.trainer import train

STEPS = 16


def child(folder: Path, name: str, seed: int) -> int:
    """Train in a fork; this process itself never computes, so that forking is safe."""
    number = os.fork()
    if number:
        return number
    try:
        built = model("cross_attention", dropout=0.1, seed=seed)
        fields = recipe("projector", "graft.cross_attention", steps=STEPS)
        train(built, fields, folder / name, data=samples(), progress=False, features=cache(built, folder))
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        os._exit(1)
    os._exit(0)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def reached(folder: Path) -> int:
    """The newest checkpoint's step by its name; -1 for none."""
    return max((int(p.name[-8:]) for p in folder.glob("checkpoints/stage-0-step-*")), default=-1)


def killed_after(number: int, folder: Path, step: int, wait: float) -> bool:
    """Wait until a checkpoint beyond `step` is there, then `wait` seconds, then kill; False if it was done before."""
    while reached(folder) <= step:
        if os.waitpid(number, os.WNOHANG)[0]:
            return False
        time.sleep(0.002)
    time.sleep(wait)
    if os.waitpid(number, os.WNOHANG)[0]:
        return False
    os.kill(number, signal.SIGKILL)
    os.waitpid(number, 0)
    return True


def main(folder: Path, seed: int) -> None:
    torch.set_num_threads(1)
    rng = random.Random(seed)
    number = child(folder, "whole", 0)
    assert os.waitpid(number, 0)[1] == 0
    each = float(json.loads((folder / "whole/log.jsonl").read_text().splitlines()[-1])["seconds"]) / STEPS
    run, steps = folder / "killed", [-1]
    for attempt in range(5):
        # Until the first checkpoint a run can only begin again, from what it is given.
        number = child(folder, "killed", attempt if steps[-1] >= 0 else 0)
        if not killed_after(number, run, steps[-1], rng.uniform(0, 2 * each)):
            break
        found = checkpoints.latest(run / "checkpoints")
        steps.append(found.position.step if found else -1)
    status = os.waitpid(child(folder, "killed", 99), 0)[1]
    result = {
        "status": status,
        "steps": steps,
        "same": status == 0 and losses(folder / "whole") == losses(run),
        "left": sorted(p.name for p in (run / "checkpoints").iterdir()),
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
