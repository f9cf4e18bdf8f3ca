"""An arm of a comparison in a process of its own: started, listened to, and ended with the one that started it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from tsugiki.errors import TsugikiError

Say = Callable[[str], None]
FLAG = "--ends-with-input"
"""First argument of a process that does."""


def told(plan: Path, arm: tuple[Path, str, int], say: Say, *shared: str) -> None:
    """An arm, or its shared stage into the folder `shared`, in a process of its own; its lines are told on.

    Args:
        arm: the comparison's folder, the arm's name and the seed.

    Raises:
        TsugikiError: it ended badly; in its own last words.
    """
    command = [sys.executable, "-m", "tsugiki.studies._compare_arm", FLAG, str(plan), *map(str, arm)]
    last = ""
    with subprocess.Popen(
        [*command, *shared], stdin=subprocess.PIPE, stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL, text=True, errors="replace",
    ) as process:  # fmt: skip
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if line.strip():
                    last = line.strip()
                    say(last)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        code = process.returncode
        ended = f"signal {-code}" if code < 0 else f"exit code {code}"
        raise TsugikiError(last or ended, expected="a finished arm", where=f"{arm[1]}-{arm[2]}, {ended}")


def end_with_input() -> None:
    """In the arm's process: end as soon as standard input does.

    Nothing is ever written to it, so that is when the process that holds its other end is gone, in whatever way. Files
    are whole at any moment.
    """

    def wait() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def tell(text: object) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
