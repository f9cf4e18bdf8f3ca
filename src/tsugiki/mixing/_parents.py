"""What is mixed: saved grafts and exports, plain causal LMs in transformers' form, and the base of grafts.

Nothing is read before it is needed: tensors are maps of their files. All names are those of a saved graft; tensors of a
plain LLM, and those of an export's folder `base`, stand under `language_model.`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tsugiki import assets, identity, store
from tsugiki.errors import BaseMismatchError, InputError, StoreError
from tsugiki.mixing._checkpoint import Checkpoint, Renamed
from tsugiki.mixing._weights import LLM

BASE = "base"
"""The name that stands for the base of the other parents."""
_HERE = "mix"


@dataclass(frozen=True)
class Parent:
    """One of those that are mixed."""

    folder: Path
    settings: Mapping[str, Any]
    checkpoint: Checkpoint
    base: Checkpoint | None = None
    """The LLM in an export's folder `base`."""
    is_base: bool = False
    name: str = field(default="")

    @property
    def is_graft(self) -> bool:
        return self.settings.get("model_type") == "tsugiki"

    @cached_property
    def sha256(self) -> str:
        """Of a graft its own; of an LLM over the hashes of its tensors."""
        if self.is_graft:
            return str((self.settings.get("tsugiki") or {}).get("graft_sha256", ""))
        return identity.digest(identity.tensor_hashes(self.folder))


def read(folders: Sequence[str | Path], base: str | Path | None = None) -> list[Parent]:
    """Parents that can be mixed: all grafts or all LLMs, of one base, of the same parts, settings and shapes.

    Args:
        folders: each a folder, or "base".
        base: where the base is; by default where the grafts say.

    Raises:
        InputError: fewer than two, or others in kind, parts, settings or shapes; names the first difference.
        BaseMismatchError: made for different bases; names the first difference.
        StoreError: a folder holds neither a graft nor an LLM.
    """
    if len(folders) < 2:
        raise InputError(
            f"{len(folders)} parent(s)", expected="two or more", fix="Name all folders.", where="mix(folders)"
        )
    own = [_parent(Path(folder)) for folder in folders if str(folder) != BASE]
    if not own or len(own) < len(folders) - 1:
        raise InputError("base named twice", expected="one beside other parents", where="mix(folders)")
    first = own[0]
    for other in own[1:]:
        if first.is_graft != other.is_graft:
            kinds = ["a graft" if p.is_graft else "an LLM" for p in (first, other)]
            raise InputError(
                f"{first.folder} is {kinds[0]} and {other.folder} is {kinds[1]}",
                expected="parents of one kind",
                fix="The LLM of a graft is the parent named base.",
                where=_HERE,
            )
        _same_base(first, other)
        _same_settings(first, other)
        _same_shapes(first, other)
    at = next((i for i, folder in enumerate(folders) if str(folder) == BASE), None)
    return own if at is None else [*own[:at], _base(first, base), *own[at:]]


def _parent(folder: Path) -> Parent:
    kind = _config(folder).get("model_type")
    if kind != "tsugiki" and kind is not None:
        return Parent(folder, _config(folder), Checkpoint(folder, LLM), name=folder.name)
    settings = store.settings_of(folder)
    store.check_weights(folder, settings)
    inside = folder / store.BASE
    return Parent(
        folder,
        settings,
        Checkpoint(folder / store.WEIGHTS),
        base=Checkpoint(inside, LLM) if inside.is_dir() else None,
        name=folder.name,
    )


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / store.CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}  # said by the store, with what it would need
    except (OSError, ValueError) as error:
        raise StoreError(f"not readable as JSON ({error})", fix="Save it again.", where=str(folder)) from error
    return found if isinstance(found, dict) else {}


def _base(first: Parent, given: str | Path | None) -> Parent:
    """The base as a parent: it has the LLM's tensors only."""
    if not first.is_graft:
        if given is None:
            raise InputError("plain LLMs do not say what their base is", expected="base=, --base", where=_HERE)
        found = _parent(Path(assets.resolve(str(given))))
        _same_base(first, found)
        _same_shapes(first, found)
        return Parent(found.folder, found.settings, found.checkpoint, is_base=True, name=str(given))
    wanted = first.settings.get("base_identity") or {}
    if not first.settings.get("llm_trained"):
        raise InputError(
            "the base is a parent, but these grafts left the LLM as it was",
            expected="grafts whose LLM was trained",
            fix="Mix the grafts alone.",
            where=_HERE,
        )
    name = str(given or wanted.get("asset") or wanted.get("source") or "")
    folder = identity.source_folder(
        str(assets.resolve(name)) if name else "", None if given else wanted.get("revision")
    )
    if folder is None:
        raise StoreError(
            f"the base {name or wanted.get('name')} has no safetensors files here",
            expected="the LLM that the grafts were made for",
            fix="Pass base=, --base, a folder, a hub id or an asset.",
            where=_HERE,
        )
    hashes = identity.tensor_hashes(folder)
    short = {name: value[: identity.SHORT] for name, value in hashes.items()}
    found_base = {"tensors_sha256": identity.digest(hashes), "count": len(hashes), "tensors": short}
    if difference := identity.first_difference(wanted, {**found_base, "peft": wanted.get("peft")}):
        raise BaseMismatchError(
            f"{first.folder} was made for {wanted.get('name')}, not for {folder}: {difference}",
            expected="the base of the grafts",
            where=_HERE,
        )
    parent = Parent(folder, {}, Renamed(folder, first.checkpoint), is_base=True, name=name)
    _same_shapes(first, parent)
    return parent


def _same_base(first: Parent, other: Parent) -> None:
    if first.is_graft:
        a, b = first.settings.get("base_identity") or {}, other.settings.get("base_identity") or {}
        difference = identity.first_difference(a, b)
        names = [a.get("name"), b.get("name")]
    else:
        difference = _llm_difference(first, other)
        names = [p.settings.get("model_type") for p in (first, other)]
    if difference:
        raise BaseMismatchError(
            f"{first.folder} was made for {names[0]} and {other.folder} for {names[1]}: {difference}",
            expected="parents of one base",
            fix="Train both on the same base.",
            where=_HERE,
        )


def _llm_difference(first: Parent, other: Parent) -> str:
    """An LLM does not say what it was trained from: its form and its vocabulary have to be the same."""
    a, b = ({k: v for k, v in p.settings.items() if k not in identity.VOLATILE} for p in (first, other))
    if a != b:
        place, old, new = _difference(a, b, "config")
        return f"{place} is {old} and {new}"
    return "" if _same_vocabulary(first.folder, other.folder) else "the tokenizer differs"


def _same_vocabulary(first: Path, other: Path) -> bool:
    """Files that differ are read, which takes longer: versions of the library write the same words differently."""
    try:
        files = [(folder / "tokenizer.json").read_bytes() for folder in (first, other)]
        words = [] if files[0] == files[1] else [json.loads(file)["model"]["vocab"] for file in files]
    except (OSError, ValueError, KeyError, TypeError):
        return True  # another kind of tokenizer: the config holds its size
    return not words or bool(words[0] == words[1])


def _same_settings(first: Parent, other: Parent) -> None:
    for key in ("grafts", "frontend", "llm_trained"):
        a, b = first.settings.get(key), other.settings.get(key)
        if a != b:
            place, old, new = _difference(a, b, key)
            raise InputError(
                f"{place} is {old} in {first.folder} and {new} in {other.folder}",
                expected="the same grafts with the same settings",
                fix="Mix grafts that were attached alike.",
                where=_HERE,
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


def _same_shapes(first: Parent, other: Parent) -> None:
    """The base has to have what the others have of the LLM."""
    names = {n for n in first.checkpoint if n.startswith(LLM) or not other.is_base}
    for name in sorted(names if other.is_base else names | set(other.checkpoint)):
        shapes = [p.checkpoint.shape(name) if name in p.checkpoint else "absent" for p in (first, other)]
        if shapes[0] != shapes[1]:
            there = list(other.checkpoint)
            near = difflib.get_close_matches(name, there, n=1) if name not in there else []
            raise InputError(
                f"{name} is {shapes[0]} in {first.folder} and {shapes[1]} in {other.folder}",
                expected="the same tensors",
                fix=f"The nearest there is {near[0]}." if near else "Mix parents that were made alike.",
                where=_HERE,
            )
