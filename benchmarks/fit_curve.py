"""What more of one's own pictures bring: `tsugiki curve` on fabric photographs, the yardsticks beside it.

    python benchmarks/fit_curve.py --sizes 20 200 --folds 3

Three classes by likelihood; every picture of a size is asked once, by a graft that learned from the other folds. A
finished fold is kept, and the same call goes on.
"""

from __future__ import annotations

import argparse
import shutil

from _results import RESULTS, by_size, write

from tsugiki import assets
from tsugiki.studies._build import fetch_tower
from tsugiki.studies.curve import curve
from tsugiki.synth import fabric

TASK = "decisions"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[20, 200])
    parser.add_argument("--folds", type=int, default=3)
    given = parser.parse_args()
    out = assets.cache_dir() / "runs" / "fit-curve"
    for name in ("smollm2-135m-instruct", "fabric"):
        assets.fetch(name)
    fetch_tower("efficientnet-lite0")
    samples, _ = fabric.draw(0, max(given.sizes))
    done = curve(samples, out=out, sizes=given.sizes, folds=given.folds, input_size=224, say=print)
    scores = [s for s in done.scores if s.task.startswith(TASK)]
    rows = by_size(scores, ["probe", "k-NN", "constant"])
    write("fit_curve", "Right answers by number of labelled pictures, fabric, 3 classes", rows, done.findings)
    shutil.copy(out / "curve.png", RESULTS / "fit_curve.png")


if __name__ == "__main__":
    main()
