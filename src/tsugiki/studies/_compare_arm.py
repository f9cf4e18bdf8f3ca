"""One arm of a comparison under one seed: train, prove, ask, read, time; in the end one JSON file.

It can be a process of its own (`python -m tsugiki.studies._compare_arm plan out arm seed`), so that its peak memory is
its own and a crash takes nothing else along; the shared stage is then another one. One that a comparison has started
ends when its standard input does, and so with the comparison, however that was ended.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tsugiki.data import schema
from tsugiki.data.files import atomic_folder, atomic_write, sha256_file
from tsugiki.errors import StoreError, TsugikiError
from tsugiki.evals import proof as proofs
from tsugiki.evals import task as tasks
from tsugiki.identity import hash_json
from tsugiki.mixing import linear
from tsugiki.studies import _compare_asked, _compare_speed
from tsugiki.studies import _compare_plan as plans
from tsugiki.studies._build import build_model, load_graft
from tsugiki.studies._compare_plan import Arm, Plan
from tsugiki.studies._compare_process import FLAG, end_with_input, tell, told
from tsugiki.studies._training import encode
from tsugiki.training import parts
from tsugiki.training.trainer import train
from tsugiki.types import Sample

VERSION = 1
"""Of the files: another one is not read."""
FRONTEND, PEAK, BEGAN, KEY = "frontend.safetensors", "peak.json", "began_with.json", "key.txt"
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
    if not any((place.run / name).exists() for name in ("run.json", BEGAN)):  # else it is gone on with, or refused
        atomic_write(place.run / KEY, key(plan, place.name, place.seed) + "\n")
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
    results = list(_compare_asked.pictures(plan, model, asked, learn, features, say))
    conversations, changed = _compare_asked.conversations(model, turns, features, place.seed, say)
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
        "text": _compare_asked.text(plan, model, proof.holds, say),
        "speed": _compare_speed.speed(model, everything[-1], place.seed) if plan.asked.speed else {},
        "environment": dict(proof.environment),
    }  # fmt: skip
    atomic_write(place.file, json.dumps(found, ensure_ascii=False, default=str) + "\n")
    return found


def _settings(plan: Plan, arm: Arm) -> dict[str, Any]:
    return {**arm.options, **_dtype(plan)}


def _dtype(plan: Plan) -> dict[str, Any]:
    return {"dtype": getattr(torch, plan.dtype)} if plan.dtype else {}


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
               "seed": place.seed, "data": sha256_file(plan.data.train),
               **({"dtype": plan.dtype} if plan.dtype else {})}  # fmt: skip
    folder = place.out / "shared" / hash_json(content)[:16]
    if not (folder / FRONTEND).is_file():
        say(f"{place.stem}: shared stage of this front-end, seed {place.seed}")
        if source is None:
            _learn_to_see(plan, place.seed, arm, learn, features, make, folder, say)
        else:  # its memory is not the arm's
            told(source, (place.out, place.name, place.seed), say, str(folder))
    model.frontend.load_trainable_state(load_file(folder / FRONTEND))
    _refuse_other_start(place, folder.name)


def _refuse_other_start(place: Place, shared: str) -> None:
    """A training that was stopped is gone on with from its own weights: they have to be of this shared stage, which the
    training itself can't tell.

    Raises:
        StoreError: they are of another one.
    """
    file = place.run / BEGAN
    if file.is_file() and (other := json.loads(file.read_text(encoding="utf-8"))) != shared:
        raise StoreError(
            f"a training that began with the shared stage {other}, not {shared}", expected="the plan it began with",
            fix="Choose another folder, or delete this one.", where=str(place.run),
        )  # fmt: skip
    atomic_write(file, json.dumps(shared))


def _learn_to_see(
    plan: Plan, seed: int, arm: Arm, learn: list[Sample], features: Any, make: Build, folder: Path, say: Say
) -> None:
    """The shared stage: the projector before the frozen LLM."""
    torch.manual_seed(seed)
    own = {**plans.frontend_options(arm.options), **_dtype(plan)}
    first = make(arm.base, "projector", arm.vision, say=say, **own)
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
    loaded = _compare_speed.taken(model.device)
    done = train(model, fields, place.run, data=given, features=features, progress=False)
    if alone and not done.resumed:
        atomic_write(place.run / PEAK, json.dumps(_compare_speed.peak(model.device) - loaded))
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
            f"an arm of {other}", expected="the same plan and files", where=str(place.file),
            fix="Choose another folder, or run it again (--anew, anew=True).",
        )  # fmt: skip
    return found


def begun_otherwise(plan: Plan, place: Place) -> bool:
    """Whether an arm was begun under another plan, with other data or another version."""
    file = place.run / KEY
    return file.is_file() and file.read_text(encoding="utf-8").strip() != key(plan, place.name, place.seed)


def main() -> None:
    """Run one arm, or a shared stage; its lines go to standard error."""
    words = sys.argv[1:]
    if words[0] == FLAG:
        end_with_input()
    source, out, name, seed, *shared = words[words[0] == FLAG :]
    try:
        # To YAML, 1e-05 is no number but a word: the plan would be another one.
        given = json.loads(Path(source).read_text(encoding="utf-8")) if source.endswith(".json") else source
        plan, place = plans.load(given), Place(out=Path(out), name=name, seed=int(seed))
        if shared:
            arm, learn = plan.arm(name), schema.load(plan.data.train)
            _learn_to_see(plan, place.seed, arm, learn, None, build_model, Path(shared[0]), tell)
        else:
            run(plan, place, source=Path(source), say=tell)
    except TsugikiError as error:
        tell(" ".join(str(error).split()))
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
