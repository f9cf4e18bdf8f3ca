"""Tuning in context through a hub (MMICT) against plain tuning in context and none: equal data, steps, batches, rate.

    python benchmarks/mmict.py                                  # the usual arms, each kept; three quarters of an hour
    python benchmarks/mmict.py --only plain mmict               # some arms; the table of those that are finished
    python benchmarks/mmict.py --steps 2 --asked 4 --rounds 2   # a look whether it runs; docs/results stays as it is

An arm learns ten classes of drawings, with or without demonstrations in front. It is asked about other renderings of
these, and about ten classes that it has not seen, alone and with the nearest pictures of a bank in front, in the form
that it was tuned with. Arms of a seed see the same questions in the same batches; their steps are timed in turns.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _mmict_arms import ARMS, BATCH, RATE, USUAL, model_of, plan, times
from _results import RESULTS, write
from _wings_arms import LLM, TOWER
from bank_classes import ENTRIES, PICTURES, SHOWN, made, right

from tsugiki import assets
from tsugiki.data import demos
from tsugiki.data.files import atomic_write
from tsugiki.evals import stats
from tsugiki.studies import bank as banks
from tsugiki.studies._build import fetch_tower
from tsugiki.studies._training import encode
from tsugiki.studies.neighbours import BankDemos
from tsugiki.synth import pictograms
from tsugiki.training.trainer import train
from tsugiki.types import DemoPart, Sample

CLASSES = 10
STEPS, ASKED, ROUNDS = 60, 40, 6
LAST = 10
"""Steps at the end whose mean loss is told."""
KINDS = ("old", "new")


@dataclass(frozen=True)
class Data:
    """What all arms share."""

    learn: list[Sample]
    asked: dict[str, list[Sample]]
    """Old and new classes, each with all names as options."""
    entries: dict[Path, Sample]
    """The bank's pictures, of old and new classes."""
    features: Any
    bank: Path

    @classmethod
    def made(cls, asked: int, runs: Path) -> Data:
        """The pictures, encoded, and a bank of some."""
        table = [p.en for p in pictograms.table()][: 2 * CLASSES]
        names = dict(zip(KINDS, (table[0::2], table[1::2]), strict=True))
        pool = [s for k, mine in names.items() for s in made(runs / f"{k}-bank", ENTRIES * len(mine), mine, "train", 1)]
        queries = {k: made(runs / f"{k}-asked", asked, mine, "test", 0) for k, mine in names.items()}
        learn = made(runs / "learn", PICTURES * CLASSES, names["old"], "train", 0)
        model = model_of(ARMS["none"], 0)
        features = encode(model, [*learn, *pool, *(s for part in queries.values() for s in part)], print)
        bank = runs / "bank"
        if not bank.is_dir():
            banks.build(model, pool, bank, keep="reference")
        queries = {k: [replace(s, options=tuple(sorted(table))) for s in part] for k, part in queries.items()}
        return cls(learn, queries, {Path(str(s.images[0])).resolve(): s for s in pool}, features, bank)

    def neighbours(self, model: Any) -> BankDemos:
        """The bank, as any arm's model sees it."""
        return BankDemos(model, self.bank, k=SHOWN, apart=True, features=self.features)

    def placer(self, model: Any, form: str) -> Callable[[Sequence[Sample]], list[Sample]]:
        """Puts the nearest entries in front of questions, as the arm has learned to see them."""
        near = self.neighbours(model)

        def place(samples: Sequence[Sample]) -> list[Sample]:
            found = []
            for s in samples:
                entries = [near.bank.picture(n.entry) for n in near.neighbours(s)]
                found.append(demos.shown(s, [self.entries[e.resolve()] for e in entries if e is not None], form))
            return found

        return place


def tokens(model: Any, alone: Sequence[Sample], placed: Sequence[Sample]) -> float:
    """Places in the LLM's sequence that a demonstration takes, the mean."""
    encode_one = model.processor.collator(labels=False).encode
    more = sum(len(encode_one(p)) - len(encode_one(a)) for a, p in zip(alone, placed, strict=True))
    return more / sum(isinstance(part, DemoPart) for s in placed for m in s.messages for part in m.parts)


def run(name: str, seed: int, steps: int, data: Data, runs: Path) -> dict[str, Any]:
    """Train and ask one arm."""
    arm = ARMS[name]
    torch.manual_seed(seed)
    model = model_of(arm, seed)
    folder = runs / f"run-{slug(name)}-{steps}-{seed}"
    done = train(model, plan(arm, steps, seed), folder, data=data.learn, features=data.features, progress=False)
    place = data.placer(model, arm.form)
    found: dict[str, Any] = {"arm": name, "seed": seed, "steps": done.steps, "seconds": done.seconds}
    found |= {"losses": [round(v, 4) for v in done.losses], "reports": dict(done.reports), "hits": {}}
    found["tokens"] = tokens(model, data.asked["new"], place(data.asked["new"]))
    for kind, asked in data.asked.items():
        found["hits"][f"{kind}, alone"] = right(model, asked, data.features)
        found["hits"][f"{kind}, shown"] = right(model, asked, data.features, place)
    said = ", ".join(f"{k} {np.mean(v):.3f}" for k, v in found["hits"].items())
    print(f"{name}, seed {seed}: {said}; {done.seconds:.0f} s of training", flush=True)
    return found


def vote(data: Data) -> dict[str, list[int]]:
    """What the same neighbours say without an LLM, query by query."""
    near = data.neighbours(model_of(ARMS["none"], 0))
    return {
        kind: [int(v == demos.answer_text(s)) for v, s in zip(near.vote(asked), asked, strict=True)]
        for kind, asked in data.asked.items()
    }


def kept(file: Path, make: Callable[[], Any]) -> Any:
    """What a finished part wrote, or makes now."""
    if not file.is_file():
        atomic_write(file, json.dumps(make(), default=str))
    return json.loads(file.read_text())


def slug(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-")


def share(hits: Sequence[int], pictures: Sequence[str]) -> str:
    """Share of right answers: Wilson's interval, and over several seeds one over pictures."""
    once = len(set(pictures)) == len(pictures)
    value = stats.proportion(sum(hits), len(hits)) if once else stats.mean(hits, groups=pictures)
    return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"


def minus(hits: Sequence[int], others: Sequence[int], pictures: Sequence[str]) -> str:
    value = stats.paired(hits, others, groups=pictures)
    return f"{value.value:+.3f} [{value.low:+.3f}, {value.high:+.3f}]"


def rows_of(found: dict[str, list[dict[str, Any]]], voted: dict[str, list[int]], seconds: Any) -> list[dict[str, Any]]:
    """A row for each arm and kind of classes, over its seeds."""
    rows = []
    for kind in reversed(KINDS):
        for name, results in found.items():
            pictures = [str(i) for _ in results for i in range(len(voted[kind]))]

            def hits(how: str, arm: str, kind: str = kind) -> list[int]:
                return [h for r in found[arm] for h in r["hits"][f"{kind}, {how}"]]

            def against(arm: str, how: str, name: str = name, pictures: list[str] = pictures) -> str:
                same = name != arm and len(found.get(arm, ())) == len(found[name])
                return minus(hits(how, name), hits(how, arm), pictures) if same else ""

            own = hits("shown", name)
            rows.append(
                {
                    "arm": name,
                    "classes": kind,
                    "asked alone": share(hits("alone", name), pictures),
                    f"{SHOWN} shown": share(own, pictures),
                    "alone, minus none": against("none", "alone"),
                    "shown, minus plain": against("plain", "shown"),
                    "shown, minus vote": minus(own, voted[kind] * len(results), pictures),
                    "tokens a demonstration": round(float(np.mean([r["tokens"] for r in results])), 1),
                    "step / none's": ratio(seconds, name),
                    "loss": round(float(np.mean([r["losses"][-LAST:] for r in results])), 3),
                }
            )
        alone = {**dict.fromkeys(rows[-1], ""), "arm": "k-NN vote", "classes": kind}
        rows.append(alone | {f"{SHOWN} shown": share(voted[kind], list(map(str, range(len(voted[kind])))))})
    return rows


def ratio(seconds: dict[str, list[float]] | None, name: str) -> str:
    if not seconds or name not in seconds:
        return ""
    value = stats.median_ratio(seconds[name], seconds["none"])
    return "1" if name == "none" else f"{value.value:.2f} [{value.low:.2f}, {value.high:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"Of {BATCH} questions.")
    parser.add_argument("--asked", type=int, default=ASKED, help="Queries of old classes, and of new ones.")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="Steps of each arm that are timed; 0 = none.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="Of start and order; the data stay.")
    parser.add_argument("--only", nargs="+", default=USUAL, choices=list(ARMS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in (LLM, "openmoji", "fabric"):
        assets.fetch(name)
    fetch_tower(TOWER)
    runs = Path(os.environ.get("OUT") or assets.cache_dir() / "runs" / "mmict") / str(given.asked)
    runs.mkdir(parents=True, exist_ok=True)
    data = Data.made(given.asked, runs)
    for seed in given.seeds:
        for name in given.only:
            kept(found_file(runs, name, given.steps, seed), partial(run, name, seed, given.steps, data, runs))
    voted = kept(runs / "vote.json", partial(vote, data))
    timing = runs / f"times-{given.rounds}.json"
    seconds = kept(timing, partial(times, data.learn, data.features, given.rounds)) if given.rounds else None
    found: dict[str, list[dict[str, Any]]] = {}
    for name in ARMS:
        files = [found_file(runs, name, given.steps, seed) for seed in given.seeds]
        if all(file.is_file() for file in files):
            found[name] = [json.loads(file.read_text()) for file in files]
    rows = rows_of(found, voted, seconds)
    full = given.steps >= STEPS and given.asked >= ASKED and given.rounds >= ROUNDS
    folder = RESULTS if full else runs
    facts = {"found": found, "vote": voted, "seconds": seconds}
    write("mmict", "Tuning in context through a hub", rows, notes(given), folder=folder, **facts)


def notes(given: argparse.Namespace) -> list[str]:
    """What the table's figures are."""
    return [
        f"{LLM}, frozen, {TOWER} at 224 px. {CLASSES} old classes, {PICTURES} training pictures each; {CLASSES} new"
        f" ones that no training saw; a bank of {ENTRIES} other pictures of each; {given.asked} queries of either kind,"
        f" with other renderings and backgrounds. The options are all {2 * CLASSES} names: chance is"
        f" {1 / (2 * CLASSES):.3f}.",
        f"Every arm: {given.steps} steps of {BATCH}, the same questions in the same batches (not grouped by length),"
        f" rate {RATE:g}, warm start, loss by query, seeds {', '.join(map(str, given.seeds))}. Arms with demonstrations"
        f" learn with 0 to {SHOWN} of the nearest others in front, all that is said of them (question and label).",
        "none, plain: MLP projector over blocks of 2 x 2 cells, 16 tokens a picture; plain: demonstrations are pictures"
        " and texts (without the question where the query asks it in the same words, one in nine). hub: the light hub,"
        " 32 tokens a picture that the question guides; hub, plain: 32 uni-modal tokens"
        " and the text; mmict: the text alone, guided by its picture (published); both: tokens and guided text; visual:"
        " 32 tokens guided by the text.",
        f"Shown: the {SHOWN} nearest entries in front, in the form that the arm was tuned with; entries that show"
        " nearly the same as a query are left out. k-NN vote: what the same entries say without an LLM.",
        "Differences are paired by picture, with 95 % intervals. Tokens: places in the LLM's sequence that a"
        " demonstration takes (one tokenizer), separator included. Step: seconds of the processor of a training step,"
        f" median ratio of {given.rounds} rounds in which the arms take turns. Loss: mean of the last {LAST} steps,"
        " nats a token; the questions of a step are the same in all arms.",
    ]


def found_file(runs: Path, name: str, steps: int, seed: int) -> Path:
    return runs / f"found-{slug(name)}-{steps}-{seed}.json"


if __name__ == "__main__":
    main()
