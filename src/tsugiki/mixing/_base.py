"""What all methods of mixing share: the decorator, reading grafts that fit together, writing the result."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import save_file
from torch import Tensor

from tsugiki import identity, store
from tsugiki.data.files import atomic_folder, sha256_file
from tsugiki.errors import BaseMismatchError, InputError, StoreError, UnknownNameError

F = TypeVar("F", bound=Callable[..., Path])
_METHODS: dict[str, Callable[..., Path]] = {}


def method(*, paper: str | None) -> Callable[[F], F]:
    """Make a function a method of mixing, named by its file: it takes `folders` first, `out`, and typed settings.

    Args:
        paper: where the method is from.
    """

    def register(function: F) -> F:
        name = function.__module__.rpartition(".")[2]
        parameters = inspect.signature(function).parameters
        bare = [p.name for p in parameters.values() if p.annotation is inspect.Parameter.empty]
        if list(parameters)[:1] != ["folders"] or "out" not in parameters or bare:
            raise TypeError(f"mixing/{name}.py: takes folders, ..., out, all with types; found {list(parameters)}")
        function.paper = paper  # type: ignore[attr-defined]
        _METHODS[name] = function
        return function

    return register


def get(name: str) -> Callable[..., Path]:
    """A method by name.

    Raises:
        UnknownNameError: no such method.
    """
    if name not in _METHODS:
        raise UnknownNameError("method of mixing", name, _METHODS)
    return _METHODS[name]


@dataclass(frozen=True)
class Saved:
    """One saved graft."""

    folder: Path
    settings: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def sha256(self) -> str:
        return str((self.settings.get("tsugiki") or {}).get("graft_sha256", ""))


def read(folders: Sequence[str | Path]) -> list[Saved]:
    """Saved grafts that can be mixed: one base, the same grafts with the same settings, the same shapes.

    Raises:
        InputError: fewer than two, or other grafts, settings or shapes; names the first difference.
        BaseMismatchError: made for different bases; names the first difference.
        StoreError: a folder is no saved graft.
    """
    if len(folders) < 2:
        raise InputError(
            f"{len(folders)} graft(s)", expected="two or more", fix="Name all folders.", where="mix(folders)"
        )
    grafts = [Saved(Path(folder), *store.read_state(folder)) for folder in folders]
    first = grafts[0]
    for other in grafts[1:]:
        _same_base(first, other)
        _same_settings(first, other)
        _same_shapes(first, other)
    return grafts


def _same_base(first: Saved, other: Saved) -> None:
    a, b = first.settings.get("base_identity") or {}, other.settings.get("base_identity") or {}
    difference = identity.first_difference(a, b)
    if difference:
        raise BaseMismatchError(
            f"{first.folder} was made for {a.get('name')} and {other.folder} for {b.get('name')}: {difference}",
            expected="grafts of one base",
            fix="Train both on the same base.",
            where="mix",
        )


def _same_settings(first: Saved, other: Saved) -> None:
    for key in ("grafts", "frontend", "llm_trained"):
        a, b = first.settings.get(key), other.settings.get(key)
        if a != b:
            place, old, new = _difference(a, b, key)
            raise InputError(
                f"{place} is {old} in {first.folder} and {new} in {other.folder}",
                expected="the same grafts with the same settings",
                fix="Mix grafts that were attached alike.",
                where="mix",
            )


def _difference(a: Any, b: Any, place: str) -> tuple[str, str, str]:
    """The first place where two JSON values differ."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in [*a, *(k for k in b if k not in a)]:
            if a.get(key) != b.get(key):
                return _difference(a.get(key), b.get(key), f"{place}.{key}")
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            if x != y:
                return _difference(x, y, f"{place}.{i}")
    return place, json.dumps(a, default=str)[:80], json.dumps(b, default=str)[:80]


def _same_shapes(first: Saved, other: Saved) -> None:
    for name in sorted(set(first.tensors) | set(other.tensors)):
        shapes = [list(g.tensors[name].shape) if name in g.tensors else "absent" for g in (first, other)]
        if shapes[0] != shapes[1]:
            near = difflib.get_close_matches(name, other.tensors, n=1) if name not in other.tensors else []
            raise InputError(
                f"{name} is {shapes[0]} in {first.folder} and {shapes[1]} in {other.folder}",
                expected="the same tensors",
                fix=f"The nearest there is {near[0]}." if near else "Mix grafts that were attached alike.",
                where="mix",
            )


def write(out: str | Path, grafts: Sequence[Saved], tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> Path:
    """Save the mixed tensors as a graft of its own; its config says from what it was made.

    Args:
        record: method and settings.

    Raises:
        StoreError: `out` is one of the sources, or the disk is full.
    """
    path = Path(out)
    if any(path.resolve() == graft.folder.resolve() for graft in grafts):
        raise StoreError("is one of the grafts that are mixed", expected="another folder", where=str(path))
    settings = json.loads(json.dumps(grafts[0].settings))
    hashes = {name: identity.hash_tensor(tensor) for name, tensor in tensors.items()}
    hashes["(settings)"] = identity.hash_json({"frontend": settings.get("frontend"), "grafts": settings.get("grafts")})
    sources = [{"name": graft.folder.name, "graft_sha256": graft.sha256} for graft in grafts]
    with atomic_folder(path, replaces=store.replaced(path)) as work:
        save_file(dict(tensors), work / store.WEIGHTS, metadata={"format": "pt"})
        settings["tsugiki"] = {
            **(settings.get("tsugiki") or {}),
            "graft_sha256": identity.digest(hashes),
            "weights_sha256": sha256_file(work / store.WEIGHTS),
            "mixed": {**record, "sources": sources},
        }
        text = json.dumps(settings, indent=1, ensure_ascii=False, default=str) + "\n"
        (work / store.CONFIG).write_text(text, encoding="utf-8")
        (work / store.CARD).write_text(_card(settings, sources, record), encoding="utf-8")
    return path


def _card(settings: Mapping[str, Any], sources: Sequence[Mapping[str, str]], record: Mapping[str, Any]) -> str:
    weights = record.get("weights") or [""] * len(sources)
    rows = "\n".join(f"| {s['name']} | {w} | `{s['graft_sha256']}` |" for s, w in zip(sources, weights, strict=True))
    facts, base = settings["tsugiki"], settings.get("base_identity") or {}
    return f"""---
library_name: tsugiki
pipeline_tag: image-text-to-text
tags: [tsugiki, mixed]
---

# {base.get("name", "LLM")} with eyes, mixed

Made from {len(sources)} grafts by `{record.get("method")}`. Guarantee: **{facts.get("guarantee", "?")}**, as theirs.
Licences are those on the cards of the sources.

| source | weight | SHA-256 |
|---|---|---|
{rows}

* Base: SHA-256 over its tensors `{base.get("tensors_sha256", "?")}`.
* Graft: SHA-256 `{facts["graft_sha256"]}`.
"""
