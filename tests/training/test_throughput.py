"""The benchmark of the training path runs, on fakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_arms_take_turns() -> None:
    command = [sys.executable, "benchmarks/throughput.py", "--tiny", "--rounds", "2", "--batch", "4"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(done.stdout[done.stdout.index("[\n") :])
    steps = ["plain loop", "label positions only", "+ cache", "+ length grouping", "+ shared prefix"]
    assert [row["arm"] for row in rows] == steps
    # The same positions in the same batches, but for the last two arms: less padding, and no system prompt.
    widths = [row["positions a sample"] for row in rows]
    assert widths[0] == widths[1] == widths[2] > widths[3] > widths[4]
