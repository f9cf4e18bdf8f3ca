"""What is looked at before a run begins: every stage's settings, parts, loss and data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tsugiki.errors import InputError, RecipeError, UnsupportedError
from tsugiki.training import gating, groups, losses, packed, parts, retained, sources, warming
from tsugiki.training.recipe import Recipe
from tsugiki.types import Sample


def checked(model: Any, plan: Recipe, given: sources.Given) -> list[dict[str, list[Sample]]]:
    """The data of all stages; whatever is wrong with any stage is found before the first one starts."""
    loaded = []
    handed = {graft.name: graft.config for graft in model.grafts}
    try:
        for i, stage in enumerate(plan.stages):
            where = f"stages.{i}"
            for graft, changes in stage.settings.items():
                # For what follows here; each stage sets them, and says so in the model's config, when it begins.
                model.graft(graft).config = _adjusted(model, graft, changes, where=f"{where}.settings.{graft}")
            parts.check(model, stage.parts, where=where)
            if stage.retention is not None:
                trains, sharded = parts.trains_llm(stage.parts), plan.parallel == "fsdp"
                before = any(parts.trains_llm(s.parts) for s in plan.stages[:i])
                retained.check(
                    model, stage.retention, trains=trains, sharded=sharded, where=f"{where}.retention",
                    trained_before=before,
                )  # fmt: skip
            losses.get(stage.loss, where=f"{where}.loss")
            warming.check(stage, where=where)
            warming.check_places(model, plan.stages[: i + 1], where=where)
            if plan.parallel == "fsdp" and len(model.branches) > 1:
                raise RecipeError(
                    "parallel: fsdp with a model of several branches",
                    expected="parallel: ddp, or grafts with one branch",
                    fix="Its branches run in forwards of their own, and processes with sharded weights would not meet.",
                    where="parallel",
                )
            samples = sources.load(stage, given, where=where)
            if gating.fits(model, stage) is not None:
                gating.check(model, stage, samples, where=where)
            elif not (taught := parts.taught_by(model, stage.parts)).issuperset(model.branches):
                sources.refuse_idle_branches(samples, stage, model.branches, taught, where=where)
            packed.check(model, stage, samples, where=where)
            groups.check(model, stage, samples, where=where)
            if not parts.teaches_text(model, stage.parts):
                sources.refuse_idle_text(samples, stage, where=where)
            loaded.append(samples)
    finally:
        for graft in model.grafts:
            graft.config = handed[graft.name]
    return loaded


def _adjusted(model: Any, graft: str, changes: Mapping[str, Any], *, where: str) -> Any:
    try:
        return model.graft(graft).adjusted(model.decoder, **changes)
    except (InputError, UnsupportedError) as error:
        raise RecipeError(str(error), where=where) from None


def as_begun(model: Any, plan: Recipe) -> list[dict[str, Any]]:
    """The grafts' settings as the first stage has them: what it sets may have been anything before, as in a model of
    which an earlier call stopped half-way."""
    first = plan.stages[0].settings
    return [{**g, "config": {**g["config"], **first.get(g["name"], {})}} for g in model.config.grafts or []]
