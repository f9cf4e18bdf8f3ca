"""The folder of a run: what it was started with, how far it is, and whose it is right now.

<run>/  recipe.yaml  run.json (seed, versions, data, base)  parts.json  log.jsonl  checkpoints/  tensorboard/
        graft/ and result.json once it is done
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tsugiki.data.files import atomic_write, hold, sweep
from tsugiki.errors import RecipeError, StoreError
from tsugiki.training import checkpoints
from tsugiki.training.checkpoints import Checkpoint
from tsugiki.training.recipe import FREE, Recipe

LOCK = ".lock"
PACKAGES = ("tsugiki", "torch", "transformers", "accelerate", "safetensors", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a run's numbers depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


class Run:
    """One run's folder.

    Args:
        out: made if it is not there.
        recipe: resolved.
        content: what the numbers depend on beside the recipe: data hashes, base, grafts; JSON values.
    """

    def __init__(self, out: Path, recipe: Recipe, content: Mapping[str, Any]) -> None:
        self.out, self.recipe = out, recipe
        self.content = json.loads(json.dumps(content, ensure_ascii=False, default=str))
        self.checkpoints = out / "checkpoints"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one process trains into a folder; a killed one leaves no lock behind.

        Raises:
            StoreError: another one does, or the folder can't be made.
        """
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            file = (self.out / LOCK).open("a")
        except OSError as error:
            raise StoreError(
                f"can't be written ({error.strerror})", expected="a folder for the run", where=str(self.out)
            ) from error
        with file:
            hold(
                file,
                found="another process trains into this folder",
                expected="a folder of its own for each run",
                fix="Wait for it, or choose another folder.",
                where=str(self.out),
            )
            yield

    def open(self, *, resume: bool) -> Checkpoint | None:
        """The checkpoint to continue from, or None for a new run, whose description is written.

        Raises:
            StoreError: there is a run and `resume` is False, or it was written by a newer version.
            RecipeError: the run that is there had another recipe, data or base; names the first difference.
        """
        sweep(self.out)
        found = checkpoints.latest(self.checkpoints)
        if found is not None and not resume:
            raise StoreError(
                f"there is a run already, at stage {found.position.stage}, step {found.position.step}",
                expected="an empty folder",
                fix="Choose another folder, delete this one, or resume.",
                where=str(self.out),
            )
        settings = self.recipe.model_dump(mode="json", exclude=set(FREE))
        for stage in settings["stages"]:
            for source in stage["data"].values():
                del source["path"]  # the file's content counts, not its place
        here = {"recipe": settings, **self.content}
        file = self.out / "run.json"
        if found is not None:
            there = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            difference = first_difference({k: there.get(k) for k in here}, here)
            if difference:
                place, old, new = difference
                raise RecipeError(
                    f"{place} is {new}, but the run in this folder was started with {old}",
                    expected="the same recipe, data and base to continue",
                    fix="Change it back, or train into another folder.",
                    where=str(self.out),
                )
            return found
        atomic_write(self.out / "recipe.yaml", self.recipe.to_yaml())
        description = {**here, "seed": self.recipe.seed, "versions": versions(), "platform": platform.platform()}
        atomic_write(file, json.dumps(description, ensure_ascii=False, indent=1))
        (self.out / "result.json").unlink(missing_ok=True)
        return None


def first_difference(old: Any, new: Any, place: str = "") -> tuple[str, str, str] | None:
    """Where two JSON values differ first: (dotted place, old, new), or None."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(k for k in new if k not in old)]:
            found = first_difference(old.get(key), new.get(key), f"{place}.{key}" if place else str(key))
            if found:
                return found
        return None
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            found = first_difference(a, b, f"{place}.{i}")
            if found:
                return found
        return None
    return None if old == new else (place, _short(old), _short(new))


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
