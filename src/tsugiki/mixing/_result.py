"""What a mix leaves: a graft, an export or an LLM, with a card that says what it was made of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tsugiki import identity, store
from tsugiki.data.files import atomic_folder, sha256_file
from tsugiki.errors import StoreError
from tsugiki.mixing import _writer
from tsugiki.mixing._checkpoint import Checkpoint
from tsugiki.mixing._parents import Parent
from tsugiki.mixing._writer import Entry

RECORD = "mix.json"
"""Of a mixed LLM: what it was made of. A graft has the same in its config."""
MakeEntry = Callable[[str, str], Entry]
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".pkl", ".ckpt", ".gguf", ".h5", ".msgpack")


def write(out: str | Path, parents: Sequence[Parent], entry: MakeEntry, record: Mapping[str, Any]) -> Path:
    """Save the mix under the settings of the first parent that is not the base.

    Args:
        entry: (name of a tensor, "checkpoint" or "base") -> what is to be written.
        record: method and settings.

    Raises:
        StoreError: `out` is one of the parents or holds another model, or the disk is full.
    """
    path = Path(out)
    if any(path.resolve() == parent.folder.resolve() for parent in parents):
        raise StoreError("is one of the parents that are mixed", expected="another folder", where=str(path))
    if any(path.resolve() in parent.folder.resolve().parents for parent in parents if not parent.is_base):
        raise StoreError("holds one of the parents that are mixed", expected="another folder", where=str(path))
    sources = [
        {"name": "base" if p.is_base else p.name, "weight": w, "sha256": p.sha256}
        for p, w in zip(parents, record["weights"], strict=True)
    ]
    own = next(parent for parent in parents if not parent.is_base)
    made = {**record, "sources": sources}
    if own.is_graft:
        with atomic_folder(path, replaces=store.replaced(path)) as work:
            _write_graft(work, own, parents, entry, made)
    else:
        with atomic_folder(path, replaces=_replaced_llm(path)) as work:
            _write_llm(work, own, entry, made)
    return path


def _write_graft(work: Path, own: Parent, parents: Sequence[Parent], entry: MakeEntry, made: Mapping[str, Any]) -> None:
    settings = json.loads(json.dumps(own.settings))
    facts = {k: v for k, v in (settings.get("tsugiki") or {}).items() if k != "exported"}
    hashes = _write_files(work, own.checkpoint, lambda name: entry(name, "checkpoint"))
    if own.base is not None and all(parent.base is not None for parent in parents if not parent.is_base):
        facts["exported"] = _write_base(work, own, own.base, lambda name: entry(name, "base"))
    hashes["(settings)"] = identity.hash_json({"frontend": settings.get("frontend"), "grafts": settings.get("grafts")})
    facts |= {
        "graft_sha256": identity.digest(hashes),
        "weights_sha256": sha256_file(work / store.WEIGHTS),
        "mixed": dict(made),
    }
    settings["tsugiki"] = facts
    (work / store.CONFIG).write_text(store.config_text(settings), encoding="utf-8")
    (work / store.CARD).write_text(_graft_card(settings, made), encoding="utf-8")


def _write_base(work: Path, own: Parent, base: Checkpoint, entry: Callable[[str], Entry]) -> dict[str, Any]:
    """The LLM and the tower of exports; an LLM that was not trained is the same in all, and stays so."""
    (work / store.BASE).mkdir()
    _copy_others(base.folder, work / store.BASE)
    hashes = _write_files(work / store.BASE, base, entry)
    if (own.folder / store.TOWER).is_dir():
        shutil.copytree(own.folder / store.TOWER, work / store.TOWER)
    short = {name: value[: identity.SHORT] for name, value in sorted(hashes.items())}
    return {"tensors_sha256": identity.digest(hashes), "count": len(hashes), "tensors": short}


def _write_llm(work: Path, own: Parent, entry: MakeEntry, made: Mapping[str, Any]) -> None:
    _copy_others(own.folder, work)
    hashes = _write_files(work, own.checkpoint, lambda name: entry(name, "checkpoint"))
    made = {**made, "tensors_sha256": identity.digest(hashes)}
    (work / RECORD).write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (work / store.CARD).write_text(_llm_card(own, made), encoding="utf-8")


def _write_files(work: Path, like: Checkpoint, entry: Callable[[str], Entry]) -> dict[str, str]:
    """Tensors in the same files as a parent's; their hashes."""
    hashes: dict[str, str] = {}
    for name, names in like.layout.items():
        hashes |= _writer.write(work / name, [entry(tensor) for tensor in names])
    return hashes


def _copy_others(folder: Path, work: Path) -> None:
    """Config, tokenizer, index of the weights' files: all but the weights and the card."""
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.suffix not in _WEIGHTS and file.name not in (store.CARD, RECORD):
            shutil.copyfile(file, work / file.name)


def _replaced_llm(path: Path) -> tuple[str, ...]:
    """What of an existing folder goes: the files of an earlier mix."""
    if not path.is_dir():
        return ()
    files = [file.name for file in path.iterdir() if file.is_file()]
    if files and RECORD not in files:
        raise StoreError(
            "holds other files",
            expected="a new folder, or that of an earlier mix",
            fix="Choose another folder.",
            where=str(path),
        )
    return tuple(files)


def _graft_card(settings: Mapping[str, Any], made: Mapping[str, Any]) -> str:
    facts, base = settings["tsugiki"], settings.get("base_identity") or {}
    return f"""---
library_name: tsugiki
pipeline_tag: image-text-to-text
tags: [tsugiki, mixed]
---

# {base.get("name", "LLM")} with eyes, mixed

Guarantee: **{facts.get("guarantee", "?")}**, as of the grafts that it was made from.
{_sources(made)}
* Base: SHA-256 over its tensors `{base.get("tensors_sha256", "?")}`.
* Graft: SHA-256 `{facts["graft_sha256"]}`.
"""


def _llm_card(own: Parent, made: Mapping[str, Any]) -> str:
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [tsugiki, mixed]
---

# {own.settings.get("model_type")}, mixed

Config and tokenizer are those of {own.name}.
{_sources(made)}
* SHA-256 over its tensors `{made["tensors_sha256"]}`.
"""


def _sources(made: Mapping[str, Any]) -> str:
    rows = "\n".join(f"| {s['name']} | {s['weight']:.6g} | `{s['sha256']}` |" for s in made["sources"])
    parts = "".join(
        f"* `{pattern}`: {', '.join(f'{v:.6g}' for v in values)}, in the same order.\n"
        for pattern, values in made["parts"].items()
    )
    return f"""
Made from {len(made["sources"])} parents by `{made["method"]}`. Licences are those on the cards of the parents.

| parent | weight | SHA-256 |
|---|---|---|
{rows}

{parts}"""
