"""The gate of a stage whose graft decides on branches by itself: what it is fitted on, and what it then says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tsugiki import identity
from tsugiki.data.branch import branch_in
from tsugiki.errors import RecipeError
from tsugiki.evals import experts
from tsugiki.training import parts
from tsugiki.training.recipe import Stage
from tsugiki.types import BRANCHES, Sample

Samples = Mapping[str, list[Sample]]

MOST = 2000
"""Samples of each branch that a gate is fitted on."""
HELD = 5
"""One of so many different questions is held out."""


def fits(model: Any, stage: Stage) -> Any | None:
    """The graft whose gate this stage fits, if there is one."""
    trained = {part.split(".")[1] for part in stage.parts if part.startswith("graft.")}
    return next((g for g in model.grafts if g.chooses_branch and g.name in trained), None)


def check(model: Any, stage: Stage, samples: Samples, *, where: str) -> None:
    """Whether a gate that is to be fitted finds samples of several branches.

    Raises:
        RecipeError: it finds one alone, or none of those that train.
    """
    found = {branch_in(s, model.branches) for content in samples.values() for s in content if s.images}
    if any(stage.data[n].replay == "in_picture" and any(not s.images for s in c) for n, c in samples.items()):
        found.add("image")  # text questions behind a picture, put there later
    taught = parts.taught_by(model, stage.parts)
    if len(found) < 2 or not found & taught:
        raise RecipeError(
            f"all samples with a picture take the branch {' or '.join(found) or 'none'}",
            expected="samples of both, image and grounding, from which the gate learns to tell them apart",
            fix="Add the others to `data`: those from which nothing else learns are read by the gate alone.",
            where=f"{where}.data",
        )


def teaching(model: Any, stage: Stage, samples: Samples) -> dict[str, list[Sample]]:
    """Those from which more learns than the gate, without the sources of which nothing is left."""
    taught = parts.taught_by(model, stage.parts)
    if taught.issuperset(model.branches) or fits(model, stage) is None:
        return dict(samples)
    found = {
        name: [s for s in content if not s.images or branch_in(s, model.branches) in taught]
        for name, content in samples.items()
    }
    return {name: content for name, content in found.items() if content}


def fit(model: Any, stage: Stage, samples: Samples) -> dict[str, Any]:
    """Fit the gate on the questions of the stage's samples; returns what it then says to those that were held out."""
    graft = fits(model, stage)
    assert graft is not None
    kinds: dict[str, list[Sample]] = {}
    for sample in (s for content in samples.values() for s in content if s.images):
        kinds.setdefault(branch_in(sample, model.branches), []).append(sample)
    seen, means, branches = experts.questions(model, [s for kind in kinds.values() for s in kind[:MOST]])
    held = _held_out(means, branches)
    graft.learn_branch(means[~held], branches[~held])
    wanted, chosen = branches[held], graft.choose_branch(means[held])
    right = (wanted == BRANCHES["grounding"]) == (chosen == BRANCHES["grounding"])
    return {
        "questions": len(seen),
        "held_out": int(held.sum()),
        "accuracy": float(right.float().mean()) if len(right) else None,
        "confusion": experts.counted(wanted, chosen),
    }


def _held_out(means: Tensor, branches: Tensor) -> Tensor:
    """Which of n questions are held out, bool [n]: all that read alike together, about one in `HELD` of each branch."""
    texts = [identity.hash_tensor(m) for m in means.cpu()]
    out: set[str] = set()
    for branch in branches.unique().tolist():
        own = sorted({text for text, b in zip(texts, branches.tolist(), strict=True) if b == branch})
        out |= set(own[: max(1, len(own) // HELD)]) if len(own) > 1 else set()
    held = torch.tensor([text in out for text in texts], device=branches.device)
    missing = set(branches.tolist()) - set(branches[~held].tolist())
    return torch.zeros_like(held) if missing else held


def told(report: Mapping[str, Any]) -> str:
    """A gate's report in a line or two for people."""
    if not report["held_out"]:
        return f"gate fitted on {report['questions']} questions, too few different ones to hold any out"
    rows: Sequence[str] = [
        f"{want} -> {', '.join(f'{got} {n}' for got, n in row.items())}" for want, row in report["confusion"].items()
    ]
    return (
        f"gate: {report['accuracy']:.1%} of {report['held_out']} held-out questions right of {report['questions']}"
        f" ({'; '.join(rows)})"
    )
