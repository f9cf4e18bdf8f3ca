"""All methods on one base, one data set and one budget: the data, the arms, the page.

    python benchmarks/compare.py --only projector:0 wings:0    # each kept when it is finished
    python benchmarks/compare.py --only                        # the page and the tables of all finished arms
    python benchmarks/compare.py                               # everything that is not finished

Scenes (names, counts, places, what is absent, boxes) and 200 photographs of fabric to learn from; other renderings and
other photographs are asked. The plan is compare.yaml; the page with pictures stays in the cache folder.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from pathlib import Path

from _results import RESULTS, machine

from tsugiki import assets
from tsugiki.data import schema
from tsugiki.evals.tasks import iit
from tsugiki.evals.text_items import articles
from tsugiki.studies import _compare_plan as plans
from tsugiki.studies._build import fetch_tower
from tsugiki.studies._compare_arm import Place
from tsugiki.studies.compare import Compared, compare, write
from tsugiki.synth import fabric, scenes
from tsugiki.types import Message, Sample

SCENES, ASKED, LABELS, PHOTOGRAPHS = 1200, 300, 200, 150
DOCUMENTS = 2000
CONVERSATIONS = 24
"""Last items in words, and as many about pictures; each stands in three or four conversations."""
PLAN = Path(__file__).with_suffix(".yaml")


def data(folder: Path) -> Path:
    """The data, and the plan beside it."""
    for asset in ("smollm2-135m-instruct", "fabric", "openmoji", "wiki", "minilm"):
        assets.fetch(asset)
    for tower in ("efficientnet-lite0", "efficientnet-lite2"):
        fetch_tower(tower)
    plan = folder / PLAN.name
    if not plan.is_file() or plan.read_text() != PLAN.read_text():
        common = {"languages": ("en",), "pictograms": 50, "objects": (1, 2)}
        learn = scenes.generate(SCENES, out=folder / "scenes-train", **common)  # type: ignore[arg-type]
        ask = scenes.generate(ASKED, out=folder / "scenes-test", split="test", **common)  # type: ignore[arg-type]
        photographs, rest = fabric.draw(0, LABELS)
        schema.write(folder / "train.jsonl", [*learn, *photographs])
        schema.write(folder / "scenes.jsonl", ask)
        schema.write(folder / "iit.jsonl", iit.conversations(iit.select(ask), CONVERSATIONS, seed=0))
        schema.write(folder / "fabric.jsonl", random.Random(0).sample(rest, PHOTOGRAPHS))  # they come by class
        documents = (Sample(id=a.title, messages=(Message.of("assistant", a.text),)) for a in articles("train"))
        schema.write(folder / "text.jsonl", [d for d, _ in zip(documents, range(DOCUMENTS), strict=False)])
        shutil.copyfile(PLAN, plan)
    return plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="arm or arm:seed; without a name the page alone")
    parser.add_argument("--anew", action="store_true", help="run arms of another plan again; the old are kept")
    given = parser.parse_args()
    folder = assets.cache_dir() / "runs" / "compare"
    plan = data(folder)
    if given.only == []:
        done = write(plans.load(plan), folder)
    else:
        done = compare(plan, folder, only=given.only or (), anew=given.anew)
    keep(done, RESULTS)
    print(done.report)


def keep(done: Compared, results: Path) -> None:
    """The tables with command and machine, and the arms' files; the same arms give the same bytes."""
    runs = [run for found in done.found.values() for run in found]
    dates = sorted(run["environment"]["date"][:10] for run in runs)
    about = machine()
    told = {
        "command": "python benchmarks/compare.py",
        "machine": {key: about[key] for key in ("cores", "processor", "gpu")},
        "dates": [dates[0], dates[-1]],
    }
    content = json.loads((done.out / "compare.json").read_text(encoding="utf-8"))
    (results / "compare.json").write_text(
        json.dumps({**told, **content}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    last = f"`{told['command']}`, {dates[0]} to {dates[-1]}; {about['cores']} cores, GPU: {about['gpu'] or 'none'}."
    (results / "compare.md").write_text(
        (done.out / "compare.md").read_text(encoding="utf-8") + f"\n{last}\n", encoding="utf-8"
    )
    (results / "compare").mkdir(exist_ok=True)
    for run in runs:
        place = Place(out=done.out, name=run["arm"], seed=run["seed"])
        shutil.copyfile(place.file, results / "compare" / place.file.name)


if __name__ == "__main__":
    main()
