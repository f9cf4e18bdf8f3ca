"""Started by test_models.py: mixes two models and kills itself in the middle of the first file.

python -m tests.mixing._killed A B OUT
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

from torch import Tensor

from tsugiki.mixing import linear

if __name__ == "__main__":
    pieces, given = linear._mixed, iter(range(1_000))

    def killed(*arguments: object) -> Iterator[Tensor]:
        if next(given) == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        yield from pieces(*arguments)  # type: ignore[arg-type]

    linear._mixed = killed  # type: ignore[assignment]
    linear.mix(sys.argv[1:3], [0.5, 0.5], sys.argv[3])
