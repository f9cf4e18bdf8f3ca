"""One arm of a comparison under one seed: train, prove, ask, read, time; in the end one JSON file.

It can be a process of its own (`python -m tsugiki.studies._compare_arm plan out arm seed`), so that its peak memory is
its own and a crash takes nothing else along; the shared stage is then another one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tsugiki.data import schema
from tsugiki.data.files import atomic_folder, atomic_write, sha256_file
from tsugiki.data.images import source_key
from tsugiki.errors import StoreError, TsugikiError
from tsugiki.evals import proof as proofs
from tsugiki.evals import task as tasks
from tsugiki.evals.retention import retention
from tsugiki.evals.tables import records
from tsugiki.identity import hash_json
from tsugiki.mixing import linear
from tsugiki.studies import _compare_plan as plans
from tsugiki.studies import _compare_speed
from tsugiki.studies._build import build_model, load_graft
from tsugiki.studies._compare_plan import Arm, Plan
from tsugiki.studies._training import encode
from tsugiki.training import parts
from tsugiki.training.trainer import train
from tsugiki.types import Box, Sample

VERSION = 1
"""Of the files: another one is not read."""
FRONTEND, PEAK = "frontend.safetensors", "peak.json"
MEGABYTE = 1e6

Say = Callable[[str], None]
Build = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an arm under a seed is kept."""

    out: Path
    name: str
    seed: int

    @property
    def stem(self) -> str:
        return f"{self.name}-{self.seed}"

    @property
    def file(self) -> Path:
        return self.out / "arms" / f"{self.stem}.json"

    @property
    def run(self) -> Path:
        return self.out / "runs" / self.stem


def key(plan: Plan, name: str, seed: int) -> str:
    """Of all that decides an arm's numbers; a file with another one is of another comparison."""
    arm = plan.arm(name)
    files: dict[Any, Path] = {("train",): plan.data.train, **plan.data.ask}
    if plan.data.text is not None and arm.replay:
        files["text",] = plan.data.text
    if plan.data.iit is not None:
        files["iit",] = plan.data.iit
    content = {
        "version": VERSION,
        "arm": arm.model_dump(mode="json"),
        "rates": plans.rates(arm) if not arm.mix_of else key(plan, arm.mix_of, seed),
        "plan": plan.model_dump(mode="json", include={"shared", "budget", "asked", "dtype"}),
        "files": {str(name): sha256_file(file) for name, file in files.items()},
        "tasks": {name: tasks.load(name).VERSION for name in tasks.available()},
        "seed": seed,
    }
    return hash_json(content)


def run(
    plan: Plan, place: Place, *, make: Build = build_model, source: Path | None = None, say: Say = print
) -> dict[str, Any]:
    """Run an arm, or go on with it, and write its file.

    Args:
        source: the plan's file, for a process that has the arm alone: then its peak memory is told.
        make: builds a model from a base, methods, a front-end and settings, as `build_model` does.

    Raises:
        TsugikiError: as training and measuring do.
    """
    arm, learn = plan.arm(place.name), schema.load(plan.data.train)
    asked = {name: schema.load(path) for name, path in plan.data.ask.items()}
    turns = [] if plan.data.iit is None else schema.load(plan.data.iit)
    everything = [*learn, *turns, *(s for samples in asked.values() for s in samples)]
    torch.manual_seed(place.seed)
    if arm.mix_of:
        model, facts = _mixed(plan, place, arm)
        features = encode(model, everything, say)
    else:
        model = make(arm.base, arm.methods, arm.vision, **_settings(plan, arm), say=say)
        features = encode(model, everything, say)
        _share(plan, place, arm, model, learn, features, make, source, say)
        facts = _trained(plan, place, arm, model, learn, features, source is not None, say)
    proof = proofs.verify(model, answers=plan.asked.answers, seed=place.seed, out=place.run / "proof.json")
    say(proofs.describe(proof))
    results = list(_asked(plan, model, asked, learn, features, say))
    conversations, changed = _interleaved(model, turns, features, place.seed, say)
    found = {
        "version": VERSION,
        "key": key(plan, place.name, place.seed),
        "arm": place.name,
        "seed": place.seed,
        "base": model.base_identity.get("name"),
        "methods": [graft.name for graft in model.grafts],
        **facts,
        "tokens_per_image": model.tokens_per_image,
        "stored_mb": sum(f.stat().st_size for f in (place.run / "graft").rglob("*") if f.is_file()) / MEGABYTE,
        "proof": {
            "holds": proof.holds, "guarantee": proof.guarantee, "how": proof.how, "prompts": proof.prompts,
            "sha256": proof.sha256,
        },
        "items": {name: items for name, items, _, _ in results},
        "scores": [record for _, _, scores, _ in results for record in scores],
        "iit": {"items": conversations, "scores": changed},
        "shown": [shown for *_, answers in results for shown in answers],
        "text": _read(plan, model, proof.holds, say),
        "speed": _compare_speed.speed(model, everything[-1], place.seed) if plan.asked.speed else {},
        "environment": dict(proof.environment),
    }  # fmt: skip
    atomic_write(place.file, json.dumps(found, ensure_ascii=False, default=str) + "\n")
    return found


def _settings(plan: Plan, arm: Arm) -> dict[str, Any]:
    return {**arm.options, **({"dtype": getattr(torch, plan.dtype)} if plan.dtype else {})}


def _share(
    plan: Plan,
    place: Place,
    arm: Arm,
    model: Any,
    learn: list[Sample],
    features: Any,
    make: Build,
    source: Path | None,
    say: Say,
) -> None:
    """The shared stage's front-end into the model; trained where no arm with such a front-end has done it."""
    content = {"base": model.base_identity.get("tensors_sha256"), "frontend": model.frontend.config.to_dict(),
               "shared": plan.shared.model_dump(), "budget": plan.budget.model_dump(exclude={"steps"}),
               "seed": place.seed, "data": sha256_file(plan.data.train)}  # fmt: skip
    folder = place.out / "shared" / hash_json(content)[:16]
    if not (folder / FRONTEND).is_file():
        say(f"{place.stem}: shared stage of this front-end, seed {place.seed}")
        if source is None:
            _learn_to_see(plan, place.seed, arm, learn, features, make, folder, say)
        else:  # its memory is not the arm's
            told(source, place, say, str(folder))
    model.frontend.load_trainable_state(load_file(folder / FRONTEND))


def _learn_to_see(
    plan: Plan, seed: int, arm: Arm, learn: list[Sample], features: Any, make: Build, folder: Path, say: Say
) -> None:
    """The shared stage: the projector before the frozen LLM."""
    torch.manual_seed(seed)
    first = make(arm.base, "projector", arm.vision, say=say, **plans.frontend_options(arm.options))
    stage = {
        "name": "shared", "train": {"projector": plan.shared.rate}, "data": {"train": 1},
        "warm_start": plan.shared.warm_start, "steps": plan.shared.steps, "batch_size": plan.budget.batch_size,
        "scheduler": "constant",
    }  # fmt: skip
    features = encode(first, learn, say) if features is None else features
    fields = {"seed": seed, "precision": plan.budget.precision, "stages": [stage]}
    train(first, fields, folder.with_suffix(".run"), data={"train": learn}, features=features, progress=False)
    with atomic_folder(folder) as new:
        save_file({k: v.contiguous() for k, v in first.frontend.trainable_state().items()}, new / FRONTEND)


def _trained(
    plan: Plan, place: Place, arm: Arm, model: Any, learn: list[Sample], features: Any, alone: bool, say: Say
) -> dict[str, Any]:
    """The arm's own stage; the peak of its memory, above that of the loaded model, is kept from when it trained."""
    share, rates = 1.0 / (1.0 + arm.replay), plans.rates(arm)
    sources: dict[str, Any] = {"train": {"weight": share, **arm.source}}
    given: dict[str, Any] = {"train": learn}
    if arm.replay:
        sources["text"] = {"weight": arm.replay * share, "replay": "packed", "pack_length": 128}
        given["text"] = schema.load(plan.data.text) if plan.data.text is not None else []
    stage = {
        "name": "arm", "train": rates, "data": sources, "batch_size": plan.budget.batch_size,
        "steps": plan.budget.steps, "scheduler": "constant_decay", "decay": 0.3, **arm.stage,
    }  # fmt: skip
    say(f"{place.stem}: {plan.budget.steps} steps of {plan.budget.batch_size}, {rates}")
    fields = {"seed": place.seed, "precision": plan.budget.precision, "stages": [stage]}
    loaded = _compare_speed.peak()
    done = train(model, fields, place.run, data=given, features=features, progress=False)
    if alone and not done.resumed:
        atomic_write(place.run / PEAK, json.dumps(_compare_speed.peak() - loaded))
    peak = place.run / PEAK
    rows = parts.table(model, rates)
    return {
        "steps": done.steps,
        "seconds": done.seconds,
        "losses": [round(loss, 4) for loss in done.losses],
        "trainable": sum(row["parameters"] for row in rows if row["trains"]),
        "reports": json.loads(json.dumps(dict(done.reports), default=str)),
        "peak_mb": json.loads(peak.read_text()) if peak.is_file() else None,
    }


def _mixed(plan: Plan, place: Place, arm: Arm) -> tuple[Any, dict[str, Any]]:
    """The other arm's run, drawn back to its base."""
    other = Place(out=place.out, name=arm.mix_of, seed=place.seed)
    found = read(plan, other)
    if found is None:
        raise TsugikiError(
            f"the arm {arm.mix_of} is not finished", expected="it before what mixes it", where=place.stem
        )
    linear.mix([other.run / "graft", "base"], [arm.beta, 1 - arm.beta], place.run / "graft")
    taken = {k: found[k] for k in ("steps", "seconds", "losses", "trainable", "peak_mb")}
    return load_graft(str(place.run / "graft")), {**taken, "reports": {}, "beta": arm.beta}


def _asked(
    plan: Plan, model: Any, asked: Mapping[str, list[Sample]], learn: list[Sample], features: Any, say: Say
) -> Iterator[tuple[str, dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]]:
    """By data and task: which items are right, the scores, and the first answers."""
    wanted = plan.asked
    for data, samples in asked.items():
        for name in wanted.tasks or tasks.scorable(samples, wanted.limit):
            task = tasks.load(name)
            if len(task.select(samples)[: wanted.limit]) < getattr(task, "NEEDED", 1):
                say(f"{data}: too few samples for {name}")
                continue
            done = tasks.measure(
                model, name, samples, features=features, train=learn, limit=wanted.limit, batch_size=16
            )[name]
            title = f"{data}: {name}" if data else name
            say(f"{title}: {len(done.answers)} answers in {done.seconds:.0f} s")
            items = {
                "ids": [a.sample.id for a in done.answers],
                "pictures": _numbered(
                    [source_key(a.sample.images[0]) if a.sample.images else a.sample.id for a in done.answers]
                ),
                "kinds": [a.sample.task for a in done.answers],
                "right": [int(a.correct) for a in done.answers],
            }
            named = [{**record, "data": data} for record in records(done.scores)]
            root = plan.data.ask[data].parent
            yield title, items, named, [_shown(title, a, root) for a in done.answers[: wanted.shown]]


def _interleaved(
    model: Any, turns: list[Sample], features: Any, seed: int, say: Say
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Which last turns of interleaved conversations are right, and the scores; a kind is that of the turns."""
    if not turns:
        return {}, []
    done = tasks.measure(model, "iit", turns, features=features, batch_size=8, seed=seed)["iit"]
    say(f"iit: {len(done.answers)} answers in {done.seconds:.0f} s")
    about = [(a.sample.meta["turns"], a.sample.meta["item"], a.sample.images[-1:]) for a in done.answers]
    return {
        "ids": [item for _, item, _ in about],
        "pictures": _numbered([source_key(seen[0]) if kind.endswith("V") else item for kind, item, seen in about]),
        "kinds": [kind for kind, _, _ in about],
        "right": [int(a.correct) for a in done.answers],
    }, records(done.scores)


def _numbered(values: Sequence[Hashable]) -> list[int]:
    """The same number for the same value: questions on one picture are no independent items."""
    known: dict[Hashable, int] = {}
    return [known.setdefault(value, len(known)) for value in values]


def _shown(title: str, answer: tasks.Answer, root: Path) -> dict[str, Any]:
    """An answer for the page; every arm is asked the same in the same order. Pictures relative to their data's file."""
    picture = next(iter(answer.sample.images), None)
    place = Path(picture) if isinstance(picture, str | Path) else None
    if place is not None and place.resolve().is_relative_to(root.resolve()):
        place = place.resolve().relative_to(root.resolve())
    return {
        "task": title, "id": answer.sample.id, "text": answer.text[:300], "gold": answer.gold[:300],
        "right": answer.correct, "question": tasks.shown_text(answer.sample.prompt[-1])[:300],
        "picture": None if place is None else place.as_posix(), "boxes": [_corners(b) for b in answer.boxes[:5]],
        "gold_boxes": [_corners(b) for b in answer.gold_boxes[:5]],
    }  # fmt: skip


def _corners(box: Box) -> list[float]:
    return [round(v, 1) for v in (box.x1, box.y1, box.x2, box.y2)]


def _read(plan: Plan, model: Any, proven: bool, say: Say) -> list[dict[str, Any]]:
    """What the text lost; where the proof of an exact model holds, its own loss on text requests is the base's."""
    wanted = plan.asked
    if not wanted.retention:
        return []
    options: dict[str, Any] = {"suites": wanted.retention, "n": wanted.items, "after_picture": wanted.after_picture}
    return records(retention(model, measure_exact=not proven, **options, progress=say))


def read(plan: Plan, place: Place) -> dict[str, Any] | None:
    """A finished arm's numbers; None where it is not finished.

    Raises:
        StoreError: the file is damaged, or of another comparison.
    """
    try:
        found: dict[str, Any] = json.loads(place.file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StoreError(f"can't be read ({error})", fix="Delete it.", where=str(place.file)) from error
    if not isinstance(found, dict):
        raise StoreError(
            f"a {type(found).__name__}", expected="an arm's numbers", fix="Delete it.", where=str(place.file)
        )
    if found.get("version") != VERSION or found.get("key") != key(plan, place.name, place.seed):
        other = f"version {found.get('version')}" if found.get("version") != VERSION else "other settings or data"
        raise StoreError(
            f"an arm of {other}", expected="the same plan and files", fix="Choose another folder, or delete it.",
            where=str(place.file),
        )  # fmt: skip
    return found


def told(plan: Path, place: Place, say: Say, *shared: str) -> None:
    """An arm, or its shared stage into the folder `shared`, in a process of its own; its lines are told on.

    Raises:
        TsugikiError: it ended badly; in its own last words.
    """
    command = [sys.executable, "-m", "tsugiki.studies._compare_arm", str(plan), str(place.out), place.name]
    last = ""
    with subprocess.Popen(
        [*command, str(place.seed), *shared], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        errors="replace",
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
        raise TsugikiError(last or ended, expected="a finished arm", where=f"{place.stem}, {ended}")


def main() -> None:
    """Run one arm, or a shared stage; its lines go to standard error."""
    source, out, name, seed, *shared = sys.argv[1:]
    try:
        plan, place = plans.load(Path(source)), Place(out=Path(out), name=name, seed=int(seed))
        if shared:
            arm, learn = plan.arm(name), schema.load(plan.data.train)
            _learn_to_see(plan, place.seed, arm, learn, None, build_model, Path(shared[0]), _tell)
        else:
            run(plan, place, source=Path(source), say=_tell)
    except TsugikiError as error:
        _tell(" ".join(str(error).split()))
        raise SystemExit(2) from None


def _tell(text: object) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
