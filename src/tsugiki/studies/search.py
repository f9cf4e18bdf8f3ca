"""Search for the weights of a mix: the best score under a budget of what text may lose.

    <out>/  search.json (settings, result)  study.log (Optuna)  points/*.json  unseen/*.json
            mixed/ (the chosen weights)     search.html         pareto.png

First the sweep 0, 0.1, ..., 1 of the first parent's weight, then Optuna's tree-structured Parzen estimator, which knows
what the budget allows. The chosen weights and both ends are scored again on items that the search did not see. Last,
part by part: the chosen weights, but the part from one parent alone. A point that was measured is never measured again.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tsugiki.data.files import atomic_write
from tsugiki.errors import InputError, StoreError
from tsugiki.evals.budget import Budget
from tsugiki.evals.tables import records
from tsugiki.extras import require
from tsugiki.mixing import _parents
from tsugiki.mixing._weights import place
from tsugiki.mixing.linear import mix
from tsugiki.studies import _pareto, _points
from tsugiki.studies._points import REST, Measured, Point
from tsugiki.types import Score

VERSION = 1
SWEEP = tuple(round(0.1 * i, 1) for i in range(11))
STEP = 0.01
"""Between two weights that the search can tell apart."""
MOST = 1e6
"""Shares of the budget, in place of infinity."""
RUNS = 3
"""Runs of LLM layers that the ablation moves apart."""

Measure = Callable[[Path], Sequence[Score]]
"""Scores of a mix, given its folder. Text scores carry the base's, so that a budget can judge them."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search found."""

    folder: Path
    objective: str
    points: tuple[Measured, ...]
    """Sweep and trials, in order."""
    chosen: Measured | None
    """The best that keeps the budget; None where none does."""
    nearest: Measured
    """The one that uses the least of the budget."""
    unseen: Mapping[str, Measured] = field(default_factory=dict)
    """"chosen", "first alone", "second alone", on items that the search did not see."""
    ablation: Mapping[str, tuple[Measured, Measured]] = field(default_factory=dict)
    """Part -> the chosen weights with this part from the first parent alone, and from the second."""


def search(
    folders: Sequence[str | Path],
    measure: Measure,
    out: str | Path,
    *,
    objective: str,
    budget: Budget,
    trials: int = 20,
    parts: Sequence[str] = (),
    unseen: Measure | None = None,
    ablate: Sequence[str] | None = None,
    base: str | Path | None = None,
    seed: int = 0,
    say: Callable[[str], None] | None = None,
) -> Found:
    """Look for the weights of two parents. A search that was stopped is continued by the same call.

    Args:
        folders: two parents, as `tsugiki.mix` takes them.
        measure: scores of a mix. What has an attribute `key` is told from another one in the same folder.
        out: its folder.
        objective: task.metric, the score that is raised (a loss: lowered).
        budget: largest drops, see `evals.budget`.
        trials: points after the sweep.
        parts: patterns of `tsugiki.mix`; each gets a weight of its own.
        unseen: scores of a mix on items that `measure` does not use.
        ablate: parts that are moved alone; by default front-end, each graft, runs of the LLM's layers, its other parts.
        base: as for `tsugiki.mix`.

    Raises:
        MissingExtraError: the extra `mix` or `eval` is not installed.
        InputError: not two parents, or parents that can't be mixed.
        UnknownNameError: no such score, or part.
        StoreError: `out` holds another search, or the disk is full.
    """
    require("optuna", extra="mix")
    require("matplotlib", extra="eval")
    if seed < 0:
        raise InputError(f"seed {seed}", expected="0 or more", where="search")
    if len(folders) != 2:
        raise InputError(
            f"{len(folders)} parents", expected="two", fix="Mix two, then the result with the next.", where="search"
        )
    found = _parents.read(folders, base)
    folder = Path(out)
    settings = {
        "version": VERSION,
        "parents": [parent.sha256 for parent in found],
        "objective": objective,
        "budget": dict(budget),
        "parts": list(parts),
        "asked": [getattr(one, "key", None) for one in (measure, unseen)],
    }
    _same_search(folder, settings)
    run = _Run(list(folders), folder, objective, budget, base, say or (lambda _: None))
    points = tuple(_tried(run, measure, parts, trials, seed))
    best = max((m for m in points if m.feasible), key=lambda m: (m.gain, -m.used), default=None)
    nearest = min(points, key=lambda m: (m.used, -m.gain))
    again: dict[str, Measured] = {}
    moved: dict[str, tuple[Measured, Measured]] = {}
    if best is not None:
        mix(folders, [best.point.beta, 1 - best.point.beta], folder / "mixed", parts=best.point.parts, base=base)
        if unseen is not None:
            asked = {"chosen": best.point, "first alone": Point(1.0), "second alone": Point(0.0)}
            again = {name: run.at(point, unseen, "unseen") for name, point in asked.items()}
        for part in _parts(found) if ablate is None else ablate:
            first, second = (run.at(best.point.moved(part, end), measure) for end in (1.0, 0.0))
            moved[part] = first, second
    result = Found(
        folder=folder, objective=objective, points=points, chosen=best, nearest=nearest, unseen=again, ablation=moved
    )
    _write(result, settings)
    return result


@dataclass(frozen=True)
class _Run:
    folders: Sequence[str | Path]
    out: Path
    objective: str
    budget: Budget
    base: str | Path | None
    say: Callable[[str], None]

    def at(self, point: Point, measure: Measure, kind: str = "points") -> Measured:
        """Mix, measure, and forget the mix; or what was measured before."""
        file = self.out / kind / point.file
        found = _points.read(file, self.objective, self.budget)
        if found is None:
            self.out.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".mix-", dir=self.out) as work:
                weights = [point.beta, 1 - point.beta]
                mixed = mix(self.folders, weights, Path(work) / "mixed", parts=point.parts, base=self.base)
                scores = measure(mixed)
            found = Measured.of(point, scores, self.objective, self.budget)
            found.write(file)
            self.say(f"{kind}, {point}: {self.objective} {found.objective.value:.4g}, budget used {found.used:.0%}")
        return found


def _tried(run: _Run, measure: Measure, parts: Sequence[str], trials: int, seed: int) -> Iterator[Measured]:
    """Sweep and trials; those of an earlier call come from their files."""
    optuna = require("optuna", extra="mix")
    complete = optuna.trial.TrialState.COMPLETE
    names = [REST, *parts]
    study = _study(optuna, run.out, seed)
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)  # a call that was killed
    before = [trial.params for trial in study.get_trials(deepcopy=False, states=(complete,))]
    waiting = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,))
    known = [*before, *(trial.system_attrs.get("fixed_params") for trial in waiting)]
    for beta in SWEEP:
        if (params := dict.fromkeys(names, beta)) not in known:
            study.enqueue_trial(params)
    yield from (run.at(Point.of(params), measure) for params in before[: len(SWEEP) + trials])
    for _ in range(len(SWEEP) + trials - len(before)):
        trial = study.ask()
        point = Point.of({name: trial.suggest_float(name, 0.0, 1.0, step=STEP) for name in names})
        measured = run.at(point, measure)
        over = measured.used - 1.0 if measured.feasible else max(measured.used - 1.0, 1e-9)
        trial.set_constraint("budget", min(over, MOST))
        study.tell(trial, measured.gain)
        yield measured


def _study(optuna: Any, out: Path, seed: int) -> Any:
    """In a file of its own, so that a search goes on where it stopped."""
    out.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    backend = optuna.storages.journal.JournalFileBackend(str(out / "study.log"))
    storage = optuna.storages.JournalStorage(backend)
    study = optuna.create_study(study_name="mix", storage=storage, direction="maximize", load_if_exists=True)
    # A continued search must not draw its first numbers again.
    drawn = len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(seed=seed + drawn, n_startup_trials=len(SWEEP))
    return study


def _parts(parents: Sequence[_parents.Parent]) -> list[str]:
    """What the ablation moves: front-end, each graft, runs of layers, and the LLM's other parts."""
    own = next(parent for parent in parents if not parent.is_base)
    places = [place(name).split(".") for name in own.checkpoint]
    heads = dict.fromkeys(words[0] for words in places if words[0] not in ("grafts", "llm"))
    others = dict.fromkeys(
        ".".join(words[:2]) for words in places if words[0] in ("grafts", "llm") and words[1] != "layers"
    )
    layers = sorted({int(words[2]) for words in places if words[:2] == ["llm", "layers"]})
    size = -(-len(layers) // RUNS) or 1
    runs = [layers[i : i + size] for i in range(0, len(layers), size)]
    found = [*heads, *others, *(f"llm.layers.{run[0]}-{run[-1]}" for run in runs)]
    if any(parent.is_base for parent in parents):  # only the LLM has two sources
        found = [part for part in found if part.startswith("llm")]
    return found


def _same_search(folder: Path, settings: Mapping[str, Any]) -> None:
    file = folder / "search.json"
    try:
        before = json.loads(file.read_text(encoding="utf-8"))["settings"]
    except FileNotFoundError:
        atomic_write(file, json.dumps({"settings": settings}, indent=1, ensure_ascii=False) + "\n")
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"can't be read ({error})", fix="Choose another folder.", where=str(file)) from error
    different = [key for key, value in settings.items() if before.get(key) != value]
    if different:
        raise StoreError(
            f"another search is there: {different[0]} was {json.dumps(before.get(different[0]))[:80]}",
            expected="a new folder, or the same settings",
            fix="Choose another folder.",
            where=str(file),
        )


def _write(found: Found, settings: Mapping[str, Any]) -> None:
    content = {
        "settings": settings,
        "chosen": None if found.chosen is None else _plain(found.chosen),
        "nearest": _plain(found.nearest),
        "unseen": {name: _plain(measured) for name, measured in found.unseen.items()},
        "ablation": {part: [_plain(measured) for measured in both] for part, both in found.ablation.items()},
        "points": [{"beta": m.point.beta, "parts": dict(m.point.parts), "feasible": m.feasible} for m in found.points],
    }
    picture = _pareto.png(found.points, found.objective, found.chosen)
    atomic_write(found.folder / "pareto.png", picture)
    atomic_write(found.folder / "search.html", _pareto.page_of(found))
    atomic_write(found.folder / "search.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _plain(measured: Measured) -> dict[str, Any]:
    return {
        "beta": measured.point.beta,
        "parts": dict(measured.point.parts),
        "feasible": measured.feasible,
        "scores": records(measured.scores),
    }
