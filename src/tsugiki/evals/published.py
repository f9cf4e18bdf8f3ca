"""Published benchmarks of text as suites of retention, through lm-eval, for where a hub (or its cache) can be reached.

A suite is a file of `lm_suites/`: which of lm-eval's tasks, with which metric, how many solved examples in front, and
the level of chance. lm-eval comes with the extra `eval`; the data is fetched when a suite is asked for, never before.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import yaml

from tsugiki.errors import AssetError, DataError, UnknownNameError, UnsupportedError
from tsugiki.evals import _known
from tsugiki.evals.harness import asked, quiet
from tsugiki.extras import require


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A file of `lm_suites/`."""

    name: str
    tasks: Sequence[str]
    """Tasks or groups of lm-eval."""
    metric: str
    """Of lm-eval, 0 or 1 an item."""
    fewshot: int
    """Solved examples in front of each question."""
    chance: float
    filter: str = "none"
    """Of lm-eval: what picks the answer out of free text."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A suite whose data is here, and which items of it are asked."""

    suite: Suite
    tasks: Mapping[str, Any]
    """Name -> lm-eval's task."""
    items: Mapping[str, list[int]]
    """Name -> indices of its questions, ascending."""


def available() -> list[str]:
    """Names of the suites, from the folder."""
    return _known.published()


def suite(name: str) -> Suite:
    """What is asked under a name.

    Raises:
        UnknownNameError: no such suite; says the nearest.
    """
    if name not in available():
        raise UnknownNameError("published suite", name, available())
    text = (_known.LM_SUITES / f"{name}.yaml").read_text(encoding="utf-8")
    return Suite(name=name, **yaml.safe_load(text))


def fetch(name: str, n: int, *, seed: int = 0) -> Fetched:
    """Get a suite's data and draw `n` questions, its tasks in turn.

    Raises:
        AssetError: no network and not in the hub's cache, or a data set that can't be read.
        UnsupportedError: this version of lm-eval has no such task.
    """
    chosen = suite(name)
    tasks = _tasks(chosen)
    return Fetched(chosen, tasks, _drawn({task: len(t.eval_docs) for task, t in tasks.items()}, n, seed))


def run(lm: Any, fetched: Fetched) -> list[float]:
    """Ask a suite: 1 for each right answer, else 0, always in the same order.

    Args:
        lm: from `harness.text_lm` or `harness.chat_lm`, or any LM of lm-eval.
    """
    chosen = fetched.suite
    tasks = [fetched.tasks[name] for name in fetched.items]
    found = asked(lm, tasks, fewshot=chosen.fewshot, items=fetched.items)
    said = [sample for name in fetched.items for sample in found[name]]
    return [float(sample[chosen.metric]) for sample in said if sample["filter"] == chosen.filter]


def _tasks(chosen: Suite) -> dict[str, Any]:
    """lm-eval's tasks with their data: this is where the hub is read."""
    manager = _manager()
    failures = require("datasets", extra="eval").exceptions.DatasetsError
    if missing := [task for task in chosen.tasks if task not in manager.task_index]:
        found = f"lm-eval {version('lm_eval')} has no task {missing[0]}"
        raise UnsupportedError(found, fix="Install another version.", where=f"suite {chosen.name}")
    try:
        with quiet():
            loaded: dict[str, Any] = manager.load(list(chosen.tasks))["tasks"]
            return loaded
    except (OSError, ValueError, RuntimeError, failures) as error:
        raise AssetError(
            f"its data can't be read ({type(error).__name__}: {error})",
            expected="the data set in the hub's cache, or a hub that can be reached",
            fix="Run it once where there is a network, or ask a local suite: wiki, arithmetic, instructions.",
            where=f"suite {chosen.name}",
        ) from error


@lru_cache(maxsize=1)
def _manager() -> Any:
    """It reads the heads of lm-eval's thousands of files: seconds."""
    return require("lm_eval.tasks", extra="eval").TaskManager()


def _drawn(sizes: Mapping[str, int], n: int, seed: int) -> dict[str, list[int]]:
    """`n` questions at random, the tasks in turn; the first k of a longer draw are the draw of k."""
    rng = random.Random(f"published {seed}")
    names = rng.sample(sorted(sizes), len(sizes))
    orders = {name: rng.sample(range(sizes[name]), sizes[name]) for name in names}
    rounds = range(max(sizes.values(), default=0))
    turns = [(name, orders[name][i]) for i in rounds for name in names if i < sizes[name]][:n]
    if not turns:
        raise DataError("no questions", expected="at least one", where="suite")
    return {name: sorted(i for task, i in turns if task == name) for name in dict.fromkeys(name for name, _ in turns)}
