"""A few kills of fit, train, save and cache writing: nothing is damaged, and what is continued ends the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_kills_leave_nothing_broken(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/kills.py", "--kills", "8", "--out", str(tmp_path / "kills")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    *each, every = json.loads(done.stdout.splitlines()[-1])
    assert [row["kills"] for row in each] == [2, 2, 2, 2]
    assert every["files that were not whole"] == 0
    assert every["runs"] == every["ended well"] == every["equal to the undisturbed run"] >= 4, done.stderr[-2000:]
