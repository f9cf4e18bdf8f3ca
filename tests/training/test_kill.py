"""kill -9 at any moment leaves a run that can be continued, step for step as if nothing had happened."""

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
def test_killed_and_continued_is_uninterrupted(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "tests.training._killed", str(tmp_path), "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["status"] == 0, done.stderr[-2000:]
    assert result["same"] and len(result["steps"]) >= 4, result
    assert result["steps"] == sorted(result["steps"])  # no kill threw the run back
    assert result["left"] == ["stage-0-step-00000015", "stage-0-step-00000016"]
