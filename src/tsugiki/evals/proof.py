"""Prove a model's guarantee against the bare LLM it was made from, and recognise an edited proof.

`exact`: a request without an image is answered by the base LLM, bit for bit at the same shapes, dtype and kernel.
(Other batch sizes or cache splits change the last digits of any LLM; that is numerics, not forgetting.)
`bounded`: the LLM's weights changed; the proof says which, and the drop is measured by `evals.retention`.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import transformers

from tsugiki import identity, store
from tsugiki.data.files import atomic_write
from tsugiki.errors import InputError, ProofError
from tsugiki.evals import _claims, _pictured, _reference
from tsugiki.evals.prompts import Given, Prompt, collect
from tsugiki.types import Check, Proof

Progress = Callable[[str], None]

NUMERICS = "Another batch size or cache split changes the last digits of any LLM: numerics, not forgetting."
AFTER_PICTURE = "Once a picture has entered a conversation, its text answers are measured, not proven."
MEASURED = "The LLM's weights are not the base's: what its text lost is measured by the retention scores, not proven."


def verify(
    model: Any,
    against: Any = None,
    *,
    prompts: Given | None = None,
    answers: int = 20,
    max_new_tokens: int = 24,
    seed: int = 0,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Proof:
    """Check every claim of the model's guarantee and return what was found; the proof holds if all of them do.

    Args:
        model: from `attach` or `load`.
        against: a parent instead of the source: a saved graft's folder, an LLM's folder or id, or a model.
        prompts: own prompts, in front of the bundled ones.
        answers: how many whole answers are compared.
        max_new_tokens: their greatest length.
        seed: for generation configs that sample; both sides draw the same numbers.
        out: where to write the proof: a .json file (a .txt for people beside it), or a folder for `proof.json`.
        progress: told what was checked, and in the long checks how far it is and how long the rest takes.

    Raises:
        DataError: unusable prompts. A claim that fails is no error: it is in the proof.
    """
    asked = collect(prompts)
    tell = progress or (lambda _: None)
    training = model.training
    model.eval()
    try:
        ref = _reference.reference(model) if against is None else _reference.parent_reference(_load(against, model))
        checks = []
        for check in _checks(model, ref, asked, answers, max_new_tokens, seed, tell):
            tell(f"{check.name}: {'holds' if check.holds else 'DOES NOT HOLD'} - {check.detail}")
            checks.append(check)
    finally:
        model.train(training)
    settings = {
        "prompts_sha256": identity.hash_json([p.turns for p in asked]),
        "answers": answers,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "against": ref.origin,
    }
    note = f"{NUMERICS} {AFTER_PICTURE}" if model.guarantee == "exact" else f"{MEASURED} {AFTER_PICTURE}"
    proof = sealed(
        Proof(
            holds=all(c.holds for c in checks),
            guarantee=model.guarantee,
            how=model.how,
            prefix_exact=model.prefix_exact,
            checks=tuple(checks),
            base={k: v for k, v in model.base_identity.items() if k != "tensors"},
            graft_sha256=store.graft_sha256(model),
            environment={**environment(model), **settings},
            prompts=len(asked) if any(c.name == "logits" for c in checks) else 0,
            answers=answers if any(c.name == "answers" for c in checks) else 0,
            note=note,
        )
    )
    if out is not None:
        write(proof, out)
    return proof


def check(path: str | Path, model: Any = None, *, against: Any = None, prompts: Given | None = None) -> Proof:
    """Read a proof again: its content must be what was sealed, and, with a model, its claims must come out the same.

    Raises:
        ProofError: it can't be read, was edited, belongs to another model, or a claim differs now.
    """
    proof, where = read(path), str(path)
    if sealed(proof).sha256 != proof.sha256:
        raise ProofError(
            "the proof was edited: its content does not have its SHA-256", fix="Run verify again.", where=where
        )
    if model is None:
        return proof
    for name, found, expected in (
        ("base", model.base_identity.get("tensors_sha256"), proof.base.get("tensors_sha256")),
        ("graft", store.graft_sha256(model), proof.graft_sha256),
    ):
        if found != expected:
            raise ProofError(
                f"the model's {name} has SHA-256 {found}", expected=str(expected), fix="Prove this model.", where=where
            )
    settings = proof.environment
    if identity.hash_json([p.turns for p in collect(prompts)]) != settings.get("prompts_sha256"):
        raise ProofError(
            "the proof was made with other prompts", fix="Give the same prompts as then, or verify again.", where=where
        )
    options = {k: settings[k] for k in ("answers", "max_new_tokens", "seed")}
    again = verify(model, against, prompts=prompts, **options)
    difference = _difference(proof, again)
    if difference:
        raise ProofError(f"the claims come out differently now: {difference}", fix="Run verify again.", where=where)
    return proof


def sealed(proof: Proof) -> Proof:
    """The proof with the SHA-256 of its canonical content (sorted JSON without spaces)."""
    return replace(proof, sha256=identity.hash_json(proof.content()))


def write(proof: Proof, out: str | Path) -> Path:
    """Write the proof as JSON, and a short text for people beside it; a folder gets `proof.json`.

    Raises:
        StoreError: full disk, or a place that can't be written.
    """
    path = Path(out)
    if path.suffix != ".json":
        path = path / "proof.json"
    content = {**proof.content(), "sha256": proof.sha256}
    atomic_write(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    atomic_write(path.with_suffix(".txt"), describe(proof) + "\n")
    return path


def read(path: str | Path) -> Proof:
    """A proof's file, as it stands.

    Raises:
        ProofError: missing, not JSON, or not a proof.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        return Proof(**{**content, "checks": tuple(Check(**c) for c in content["checks"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ProofError(
            f"not a proof ({type(error).__name__}: {error})",
            expected="the JSON file that verify wrote",
            where=str(path),
        ) from error


def describe(proof: Proof) -> str:
    """The proof in a few lines for people."""
    verdict = "holds" if proof.holds else "DOES NOT HOLD"
    lines = [f"The guarantee {proof.guarantee!r} ({proof.how}) {verdict} for a graft on {proof.base.get('name', '?')}."]
    lines += [f"  [{'ok' if c.holds else 'FAIL'}] {c.name}: {c.detail}" for c in proof.checks]
    e = proof.environment
    lines.append(f"  {e['date']}, torch {e['torch']}, transformers {e['transformers']}, {e['device']}, {e['dtype']}")
    lines.append(f"  {proof.note}")
    lines.append(f"  graft {proof.graft_sha256[:16]}..., proof {proof.sha256[:16]}...")
    return "\n".join(lines)


def _checks(
    model: Any,
    ref: _reference.Reference,
    asked: Sequence[Prompt],
    answers: int,
    max_new_tokens: int,
    seed: int,
    tell: Progress,
) -> Iterator[Check]:
    if not ref.parent:
        yield _claims.recorded_base(model, ref)
    exact = model.guarantee == "exact"
    yield _claims.tensors(model, ref) if exact else _claims.changed_tensors(model, ref)
    yield _claims.keys(model, ref)
    yield from _claims.words(model, ref)
    if not exact:
        return
    tokenizer = ref.tokenizer or model.tokenizer
    yield _claims.logits(model, ref, asked, tokenizer, tell)
    yield _claims.answers(model, ref, asked, answers, max_new_tokens, seed, tell)
    if model.prefix_exact:
        yield _claims.prefix(model, ref, asked)
    if _pictured.compared(model, ref):
        yield _pictured.pictures(model, ref, max_new_tokens)


def _load(against: Any, model: Any) -> Any:
    """A parent given as a folder, an id or an object."""
    if not isinstance(against, str | Path):
        if against is model:
            raise InputError(
                "the model itself",
                expected="the model that it was made from",
                fix="`attach` changes a model that sees, in place: save it before, and give that folder.",
                where="verify(against=)",
            )
        return against
    folder, llm = Path(against), model.language_model
    if (folder / store.CONFIG).is_file():
        settings = json.loads((folder / store.CONFIG).read_text(encoding="utf-8"))
        if settings.get("model_type") == "tsugiki":
            own, stored = model.frontend, settings.get("frontend") or {}
            there = [one.get("tower") for one in stored.get("towers") or [stored]]
            same = there == [tower.name for tower in own.towers]  # also finds towers made from objects
            return store.load(folder, vision=own.towers if same else None, dtype=llm.dtype)
    try:
        return _reference.load_bare(against, llm)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{against} can't be loaded ({str(error).splitlines()[0]})",
            expected="a saved graft, or an LLM's folder or id",
            where="verify(against=)",
        ) from error


def _difference(old: Proof, new: Proof) -> str:
    for name in ("holds", "guarantee", "how", "prefix_exact", "prompts", "answers"):
        if getattr(old, name) != getattr(new, name):
            return f"{name} was {getattr(old, name)}, is {getattr(new, name)}"
    if [c.name for c in old.checks] != [c.name for c in new.checks]:
        return "other claims were checked"
    for a, b in zip(old.checks, new.checks, strict=True):
        if a.holds != b.holds:
            return f"{a.name} {'held' if a.holds else 'did not hold'}, now: {b.detail}"
    return ""


def environment(model: Any) -> dict[str, Any]:
    """Versions, device, dtype, attention, threads and date of a run."""
    llm = model.language_model
    return {
        "tsugiki": _version("tsugiki"),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "device": str(model.device),
        "dtype": str(llm.dtype).removeprefix("torch."),
        "attention": llm.config._attn_implementation,
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "?"
