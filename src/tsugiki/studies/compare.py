"""`tsugiki compare`: methods side by side on one base, one data set, one budget and the same seeds.

    <out>/  plan.json  shared/ (first stages)  runs/<arm>-<seed>/ (graft, log, proof)  arms/<arm>-<seed>.json
            compare.html  compare.md  compare.json  pareto.svg

The front-end learns first, once for a seed; every arm begins with it and gets the same samples in the same order. An
arm's file is written when it is done: a comparison that was stopped goes on with the same call. An arm that fails is
told on the page; the others go on. So is one whose file is of another plan, other data or another version: what took
hours is neither mixed up with the rest nor written over, unless it is asked for (`anew`), and then it is kept aside.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from tsugiki.data.files import atomic_write, hold, sha256_file
from tsugiki.errors import InputError, StoreError, TsugikiError, UnknownNameError
from tsugiki.evals._charts import standalone
from tsugiki.extras import require
from tsugiki.studies import _compare_arm as arms
from tsugiki.studies import _compare_figures as figures
from tsugiki.studies import _compare_page
from tsugiki.studies import _compare_plan as plans
from tsugiki.studies._build import build_model
from tsugiki.studies._compare_arm import Place
from tsugiki.studies._compare_figures import Tested
from tsugiki.studies._compare_plan import Plan, Test
from tsugiki.studies._compare_process import told
from tsugiki.training.run import LOCK


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What was found."""

    out: Path
    plan: Plan
    found: Mapping[str, Sequence[Mapping[str, Any]]]
    """Arm -> its finished runs, in the order of the seeds."""
    failed: Mapping[str, str]
    """Arm and seed -> why."""
    left_out: Mapping[str, str]
    """Arms and seeds whose file is of another plan, other data or another version, or damaged -> what it is."""
    waiting: Sequence[str]
    """Arms and seeds that were not run yet."""
    tests: Sequence[Tested]
    untested: Sequence[Test]
    """Comparisons for which an arm is missing."""

    @property
    def report(self) -> Path:
        return self.out / "compare.html"


def compare(
    plan: str | Path | Mapping[str, Any] | Plan,
    out: str | Path,
    *,
    only: Sequence[str] = (),
    anew: bool = False,
    make: arms.Build | None = None,
    say: Callable[[str], None] = print,
) -> Compared:
    """Run what is not finished yet, then write the page.

    Args:
        plan: a YAML file, its fields, or a Plan.
        out: the comparison's folder.
        only: arms (`wings`), or arms under a seed (`wings:0`); () = all.
        anew: run those that would be left out, too, and those that another plan has begun; what is there of them gets
            another name.
        make: builds models instead of `build_model`; then everything runs in this process. By default, and from a YAML
            file, each arm has a process of its own: its memory is its own, and a crash takes nothing along.
        say: told what goes on.

    Raises:
        RecipeError: a plan that can't be run.
        UnknownNameError: an arm, method, task or suite that does not exist.
        StoreError: the disk is full.
        InputError: no arm is finished.
    """
    require("statsmodels", extra="eval")
    wanted, folder = plans.load(plan), Path(out)
    chosen = _chosen(wanted, only)
    alone = make is None and isinstance(plan, str | Path)
    places = [Place(out=folder, name=name, seed=seed) for seed in wanted.seeds for name in _ordered(wanted)]
    todo = [place for place in places if (place.name, place.seed) in chosen and _open(wanted, place, anew, say)]
    kept = folder / "plan.json"
    if todo:  # what runs is this plan, whatever becomes of the file meanwhile
        atomic_write(kept, json.dumps(wanted.model_dump(mode="json", exclude_unset=True), ensure_ascii=False, indent=1))
    started = time.monotonic()
    for number, place in enumerate(todo):
        say(f"{place.stem}: {number + 1} of {len(todo)}{_left(time.monotonic() - started, number, len(todo))}")
        try:
            if alone:
                told(kept, (folder, place.name, place.seed), say)
            else:
                arms.run(wanted, place, make=make or build_model, say=say)
        except (TsugikiError, RuntimeError, MemoryError) as error:
            why = " ".join(str(error).split())[:500] or type(error).__name__
            if arms.begun_otherwise(wanted, place):
                why += " Another plan has begun this arm: `--anew` (anew=True) keeps that aside and begins again."
            atomic_write(_failure(place), why + "\n")
            say(f"{place.stem} failed: {why}")
        else:
            _failure(place).unlink(missing_ok=True)
    return write(wanted, folder)


def write(plan: Plan, folder: Path) -> Compared:
    """The page, its Markdown and the numbers, of all arms that are finished.

    Raises:
        InputError: none is.
    """
    found: dict[str, list[Mapping[str, Any]]] = {}
    waiting: list[str] = []
    failed: dict[str, str] = {}
    left_out: dict[str, str] = {}
    pictures = figures.Pictures.of(plan)
    for name in plan.arms:
        for seed in plan.seeds:
            place = Place(out=folder, name=name, seed=seed)
            try:
                run = arms.read(plan, place)
            except StoreError as error:
                left_out[place.stem] = str(error).replace(f"{folder}{os.sep}", "")
                continue
            if run is not None:
                found.setdefault(name, []).append(figures.by_picture(run, pictures))
            elif _failure(place).is_file():
                failed[place.stem] = _failure(place).read_text(encoding="utf-8").strip()
            else:
                waiting.append(place.stem)
    if not found:
        first = next(iter({**failed, **left_out}.items()), None)
        why = f"; {first[0]}: {first[1]}" if first is not None else ""
        raise InputError(f"no arm is finished{why}", expected="one at least", where=str(folder))
    tests, untested = figures.tested(plan, found)
    result = Compared(
        out=folder,
        plan=plan,
        found=found,
        failed=failed,
        left_out=left_out,
        waiting=waiting,
        tests=tests,
        untested=untested,
    )
    content = {
        "plan": plan.model_dump(mode="json", exclude={"data"}),
        "arms": [figures.summary(name, runs, plan.arms[name].published) for name, runs in found.items()],
        "rows": _compare_page.rows(result),
        "tests": [
            {"first": t.test.first, "second": t.test.second, "score": t.test.score, "difference": t.difference.value,
             "low": t.difference.low, "high": t.difference.high, "items": t.difference.n, "seeds": t.seeds,
             "p": t.pvalue, "holm": t.corrected}
            for t in result.tests
        ],
        "failed": failed,
        "left_out": left_out,
        "waiting": waiting,
        "environment": next(iter(found.values()))[0]["environment"],
    }  # fmt: skip
    if drawn := _compare_page.pareto(result):
        atomic_write(folder / "pareto.svg", standalone(drawn))
    atomic_write(folder / "compare.json", json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n")
    atomic_write(folder / "compare.md", _compare_page.markdown(result))
    atomic_write(result.report, _compare_page.html(result))
    return result


def _chosen(plan: Plan, only: Sequence[str]) -> set[tuple[str, int]]:
    """Arms and seeds that are wanted, with those that they mix."""
    found: set[tuple[str, int]] = set()
    for item in only or plan.arms:
        name, _, seed = item.partition(":")
        if name not in plan.arms:
            raise UnknownNameError("arm", name, plan.arms, where="--only")
        if seed and seed not in map(str, plan.seeds):
            raise InputError(
                f"seed {seed!r} of {name}", expected=f"one of {', '.join(map(str, plan.seeds))}", where="--only"
            )
        for each in (int(seed),) if seed else plan.seeds:
            found |= {(n, each) for n in (name, plan.arms[name].mix_of) if n}
    return found


def _open(plan: Plan, place: Place, anew: bool, say: Callable[[str], None]) -> bool:
    """Whether an arm has still to be run; told where what is there of it is no part of this comparison."""
    try:
        if arms.read(plan, place) is not None:
            return False
        if not anew or not arms.begun_otherwise(plan, place):
            return True
        marks = (f"begun-{k}" for k in count(1))
        mark = next(mark for mark in marks if not place.run.with_name(f"{place.stem}.{mark}").exists())
    except StoreError as error:
        if not anew:
            say(f"{place.stem} is left out: {error}")
            return False
        mark = sha256_file(place.file)[:8]  # another one each time
    _keep_aside(place, mark)
    say(f"{place.stem} is run anew; what was there is kept as {place.stem}.{mark}")
    return True


def _keep_aside(place: Place, mark: str) -> None:
    """Give what is there of an arm another name.

    Raises:
        StoreError: it is being trained right now.
    """
    if (lock := place.run / LOCK).is_file():
        with lock.open("a") as file:
            hold(
                file, found="another process trains this arm", expected="an arm that nobody trains", fix="Wait for it.",
                where=str(place.run),
            )  # fmt: skip
    # The file last: without it, a call that comes after a crash would go on with the old training.
    for path, end in ((place.run, ""), (place.file, ".json")):
        if path.exists():
            path.rename(path.with_name(f"{place.stem}.{mark}{end}"))


def _failure(place: Place) -> Path:
    """Why an arm failed, until it is finished."""
    return place.file.with_suffix(".failed.txt")


def _ordered(plan: Plan) -> list[str]:
    """Arms that mix another one come after it."""
    return sorted(plan.arms, key=lambda name: bool(plan.arms[name].mix_of))


def _left(seconds: float, done: int, every: int) -> str:
    """Time left, from what was done so far."""
    return f", about {seconds / done * (every - done) / 60:.0f} min left" if done else ""
