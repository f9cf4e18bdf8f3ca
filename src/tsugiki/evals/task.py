"""Tasks: what is measured, found by file name in `tasks/`, and `evaluate`, which runs them.

A task is a module with `VERSION: int`, `DESCRIPTION: str`, `select(samples)` and `measure(model, samples, settings)`;
its name is the file's. One with `BY_NAME = True` runs only where it is named, one with `NEEDED` not on fewer samples;
one with `WHOLE = True` gets all that `select` gave, in order, and cuts it to `Settings.limit` itself. A change of what
a figure means raises VERSION, so that old figures are not compared with new.
"""

from __future__ import annotations

import importlib
import random
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol, cast

from tsugiki.data import schema
from tsugiki.data.images import source_key
from tsugiki.errors import DataError, InputError, UnknownNameError
from tsugiki.evals import _known, stats
from tsugiki.evals.options import Normalise, text_key
from tsugiki.types import Box, BoxPart, Message, Sample, Score, TextPart

Data = str | Path | Sequence[Sample] | Mapping[str, Sequence[Sample]]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a task is run. Everything has a default."""

    features: Any = None
    """Cached tower outputs (a `FeatureCache`, or picture -> [P, V]); None encodes pixels. Yardsticks need them."""
    train: Sequence[Sample] = ()
    """The training samples, from which probe, ridge, k-NN and constant answers learn; without them there are none."""
    demos: Any = None
    """Puts demonstrations in front of what the model is asked (`studies.neighbours.BankDemos`); None = none."""
    calibrate: bool = False
    """Closed-set answers without what the demonstrations alone make likely, see `contextual.py`; needs `demos`."""
    base: Any = None
    """The bare LLM, where the composite's text path is not exactly it (guarantee "bounded"); None looks for it."""
    limit: int | None = None
    """At most so many samples of a task, drawn by `seed`."""
    seconds: float | None = None
    """Stop a task after so many seconds; the samples are in random order, so what was done is a fair part. n tells."""
    batch_size: int = 8
    max_new_tokens: int = 32
    normalise: Normalise = "sum"
    """Of option likelihoods: see `OptionScores.scores`."""
    tolerance: float | None = 7.0
    """Nats: options that can't come that near to the best are not finished. None gives every probability exactly."""
    holdout: Sequence[int] | float = 0.2
    """Share (or indices) of the training samples on which the yardsticks choose C, alpha and k."""
    seed: int = 0
    inner: Sequence[str] = ()
    """Tasks that `conditions` runs on altered pictures; () = the first that can score a sample."""
    conditions: Sequence[str] = ()
    """Of `alterations.CONDITIONS`, at `strengths`; () = all."""
    strengths: Sequence[int] = (1, 2, 3)
    suites: Sequence[str] | None = None
    """Of `retention`; None = those that come with the library."""
    own: str | Path | Sequence[Any] = ()
    """Own prompts (`evals.own`), or their file, which `retention` asks beside its suites."""
    int8: bool = False
    """Measure retention again with int8 weights on both sides."""
    progress: Callable[[str, int, int], None] | None = None
    """Called with task name, items done, items in all."""

    @classmethod
    def of(cls, **settings: Any) -> Settings:
        """Raises UnknownNameError for a setting that does not exist."""
        known = {f.name for f in fields(cls)}
        for name in settings:
            if name not in known:
                raise UnknownNameError("setting", name, known)
        return cls(**settings)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the model said about one sample, for people and for reports."""

    task: str
    sample: Sample
    text: str
    gold: str
    correct: bool
    base_text: str | None = None
    """The bare LLM's answer to the same question without the picture."""
    probabilities: Mapping[str, float] = field(default_factory=dict)
    """Per option, in closed tasks."""
    base_probabilities: Mapping[str, float] = field(default_factory=dict)
    """The bare LLM's."""
    boxes: tuple[Box, ...] = ()
    gold_boxes: tuple[Box, ...] = ()
    numbers: tuple[int, ...] = ()
    """What stands at each of `boxes` in a picture: the number of its step or its place in the answer; () for one."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """Scores of one task, and the answers behind them."""

    task: str
    scores: list[Score]
    answers: list[Answer] = field(default_factory=list)
    seconds: float = 0.0


class Task(Protocol):
    """What a module of `tasks/` offers."""

    VERSION: int
    DESCRIPTION: str

    def select(self, samples: Sequence[Sample]) -> list[Sample]:
        """Those that this task can score."""
        ...

    def measure(self, model: Any, samples: Sequence[Sample], settings: Settings) -> Result:
        """Score them. Called with what `select` gave, shuffled and cut to `settings.limit`."""
        ...


def available() -> list[str]:
    """Names of the tasks, from the folder."""
    return _known.tasks()


def load(name: str) -> Task:
    """The task of that name.

    Raises:
        UnknownNameError: there is none; names the nearest.
    """
    if name not in available():
        raise UnknownNameError("task", name, available())
    return cast(Task, importlib.import_module(f"tsugiki.evals.tasks.{name}"))


def scorable(samples: Sequence[Sample], limit: int | None = None) -> list[str]:
    """Tasks that can score the samples, at most `limit` of each; those that run only where they are named, and those
    that would have too few for an interval, are left out."""
    loaded = {name: load(name) for name in available()}
    usual = {n: t for n, t in loaded.items() if getattr(t, "NEEDS_SAMPLES", True) and not getattr(t, "BY_NAME", False)}
    counts = {name: len(task.select(samples)[:limit]) for name, task in usual.items()}
    return [name for name, count in counts.items() if count >= getattr(usual[name], "NEEDED", 1)]


def evaluate(model: Any, tasks: str | Sequence[str], data: Data | None = None, **settings: Any) -> list[Score]:
    """Measure `model` on tasks; every figure comes with its error and the bare LLM's on the same items.

    Args:
        model: a Tsugiki model.
        tasks: names, see `available()`.
        data: samples, or a JSONL file of them; or a mapping from task to samples. A task takes what it can score.
            None: the task's own data, where it has some.
        settings: the fields of `Settings`.

    Raises:
        UnknownNameError: a task or a setting does not exist.
        DataError: nothing in `data` that a task can score.
    """
    return [score for result in measure(model, tasks, data, **settings).values() for score in result.scores]


def measure(model: Any, tasks: str | Sequence[str], data: Data | None = None, **settings: Any) -> dict[str, Result]:
    """As `evaluate`, with the answers behind the scores."""
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    if not names:
        raise InputError("no task", expected=f"some of {', '.join(available())}")
    loaded = {name: load(name) for name in names}
    chosen = Settings.of(**settings)
    samples = {name: _samples(name, task, data, chosen) for name, task in loaded.items()}
    results = {}
    for name, task in loaded.items():
        started = time.monotonic()
        result = task.measure(model, samples[name], chosen)
        results[name] = Result(
            task=name, scores=result.scores, answers=result.answers, seconds=time.monotonic() - started
        )
    return results


def _samples(name: str, task: Task, data: Data | None, settings: Settings) -> list[Sample]:
    """What the task can score, in random order, at most `limit`."""
    if data is None:
        own = getattr(task, "own_samples", None)
        if own is None:
            raise DataError(f"no data for task {name}", expected="samples or a JSONL file", fix="Pass data=.")
        given: Sequence[Sample] = own(settings)
    elif isinstance(data, Mapping):
        if name not in data:
            raise DataError(f"no data for task {name}", expected=f"a key {name!r} beside {', '.join(map(repr, data))}")
        given = data[name]
    elif isinstance(data, str | Path):
        given = schema.load(Path(data))
    else:
        given = data
    selected = list(task.select(given))
    if not selected and getattr(task, "NEEDS_SAMPLES", True):
        raise DataError(f"none of {len(given)} samples can be scored by {name}", expected=task.DESCRIPTION)
    if getattr(task, "WHOLE", False):
        return selected
    random.Random(settings.seed).shuffle(selected)
    return selected[: settings.limit]


def bare_llm(model: Any, settings: Settings) -> Any:
    """What answers as the bare LLM: `settings.base`, the model itself where its text path is exactly it, or its source
    loaded again. None where it is not here (a trained LLM without source, a PeftModel): then scores have no base."""
    if settings.base is not None:
        return settings.base
    if model.guarantee == "exact":
        return model
    from tsugiki import identity
    from tsugiki.evals._claims import load_bare

    if model.base_identity.get("peft"):
        return None  # its files lack the adapter
    folder = identity.find_source(model.language_model, model.base_identity)
    return None if folder is None else load_bare(folder, model.language_model)


def picture_groups(samples: Sequence[Sample]) -> list[Hashable] | None:
    """For paired statistics: questions on one picture are drawn together. None where every sample has its own."""
    keys = [_picture_key(s, i) for i, s in enumerate(samples)]
    return None if len(set(keys)) == len(keys) else keys


def _picture_key(sample: Sample, row: int) -> Hashable:
    if not sample.images:
        return ("no picture", row)
    return source_key(sample.images[0])


def message_text(message: Message | None) -> str:
    """The text of a message without its pictures and boxes, stripped; "" without a message."""
    return "" if message is None else schema.message_text(message).strip()


def by_kind(answers: Sequence[Answer]) -> dict[str, list[Answer]]:
    """Answers by the kind of question they answer, in order of name: kinds are scored apart."""
    kinds: dict[str, list[Answer]] = {}
    for answer in answers:
        kinds.setdefault(answer.sample.task, []).append(answer)
    return dict(sorted(kinds.items()))


class Once:
    """Asks each question once: without pictures, many samples have the same one."""

    def __init__(self, ask: Callable[[Sequence[Sample]], list[Any]]) -> None:
        self._ask = ask
        self._known: dict[tuple[object, ...], Any] = {}

    def __call__(self, samples: Sequence[Sample]) -> list[Any]:
        new = {k: s for s in samples if (k := text_key(s)) not in self._known}
        self._known.update(zip(new, self._ask(list(new.values())), strict=True))
        return [self._known[text_key(s)] for s in samples]


def shown_text(message: Message | None) -> str:
    """The text of a message for people: a box is a small frame."""
    parts = () if message is None else message.parts
    marks = ("▭" if isinstance(p, BoxPart) else p.text for p in parts if isinstance(p, BoxPart | TextPart))
    return "".join(marks).strip()


def difference(
    task: str,
    metric: str,
    own: Sequence[float],
    other: Sequence[float],
    *,
    groups: Sequence[Hashable] | None = None,
    version: int = 1,
) -> Score:
    """A figure that is itself a paired difference: the model's minus a yardstick's, item by item."""
    found = stats.paired(own, other, groups=groups)
    return Score(
        task=task,
        metric=metric,
        value=found.value,
        stderr=found.stderr,
        n=found.n,
        low=found.low,
        high=found.high,
        version=version,
    )


def short_answer(sample: Sample) -> str:
    """The gold answer in a word or two, whatever the form of the answer: `meta["short"]`, else its text."""
    return str(sample.meta.get("short") or "") or message_text(sample.answer)


class Clock:
    """Hands out the samples in windows until the time of the task is up, and reports progress."""

    def __init__(self, task: str, total: int, settings: Settings) -> None:
        self.task, self.total, self.settings = task, total, settings

    def windows(self, samples: Sequence[Sample], size: int) -> Iterator[Sequence[Sample]]:
        """At least one window, however short the time."""
        end = None if self.settings.seconds is None else time.monotonic() + self.settings.seconds
        for start in range(0, len(samples), size):
            window = samples[start : start + size]
            yield window
            if self.settings.progress is not None:
                self.settings.progress(self.task, start + len(window), self.total)
            if end is not None and time.monotonic() >= end:
                return
