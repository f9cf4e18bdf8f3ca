"""Parts of a model that can train: whose a parameter is, what trains at which rate, and the table that says so."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.table import Table
from torch import Tensor, nn

from tsugiki.decoder import is_peft
from tsugiki.errors import RecipeError

_LAST = re.compile(r"llm\.last_[1-9]\d*")
_ROOTS = {
    "projector": {"frontend.projector", "frontend.mix", "frontend.places"},
    "tower": {"frontend.tower"},
    "llm": {"language_model"},
}


def parts_of(model: Any, asked: Iterable[str] = ()) -> dict[str, dict[str, nn.Parameter]]:
    """Part -> full name -> parameter: `tower`, `projector`, `graft.<name>` in their order, `llm`.

    A graft of which `asked` names a part, as in `graft.wings.visual`, is divided into its parts. `llm.last_4` is what
    the last 4 decoder layers and the norm after them hold; `llm` is then the rest.
    """
    parts: dict[str, dict[str, nn.Parameter]] = {"tower": {}, "projector": {}}
    grafts = [f"graft.{graft.name}" for graft in model.grafts]
    parts |= {name: {} for name in grafts}
    parts["llm"] = {}
    for name, parameter in model.named_parameters():
        keys = name.split(".")
        if keys[0] == "grafts":
            parts[grafts[int(keys[1])]][name] = parameter
        elif keys[0] == "frontend":
            parts["tower" if keys[1] in ("tower", "more_towers") else "projector"][name] = parameter
        else:
            parts["llm"][name] = parameter
    for last in (part for part in asked if _LAST.fullmatch(part)):
        own = _last(model, int(last.rpartition("_")[2]))
        rest = parts.pop("llm")
        parts |= {last: {k: p for k, p in rest.items() if id(p) in own}}
        parts["llm"] = {k: p for k, p in rest.items() if id(p) not in own}
    divided = {part.rpartition(".")[0] for part in asked if part.count(".") == 2}
    return {k: v for part, content in parts.items() for k, v in _divided(model, part, content, divided).items()}


def trains_llm(rates: Iterable[str]) -> bool:
    """Whether any of the LLM's own weights are among the parts."""
    return any(part == "llm" or part.startswith("llm.") for part in rates)


def _last(model: Any, layers: int) -> set[int]:
    """Ids of the parameters of the last decoder layers and of the norm after them."""
    modules = [*model.decoder.layers[-layers:], model.decoder.norm]
    return {id(p) for module in modules for p in module.parameters()}


def _divided(model: Any, part: str, content: Mapping[str, nn.Parameter], divided: Iterable[str]) -> dict[str, Any]:
    if part not in divided:
        return {part: dict(content)}
    place, graft = next((i, g) for i, g in enumerate(model.grafts) if f"graft.{g.name}" == part)
    return {
        f"{part}.{name}": {key: content[key] for key in (f"grafts.{place}.{own}" for own in names)}
        for name, names in graft.parts().items()
    }


def frozen_tower(model: Any) -> bool:
    """Whether the tower's outputs are the same in every step, so that they can be encoded once."""
    return bool(getattr(model.frontend.tower, "frozen", True))


def check(model: Any, rates: Mapping[str, float], *, where: str) -> None:
    """Whether a stage's parts exist and have weights.

    Raises:
        RecipeError: an unknown part (nearest name), a frozen tower, an LLM that a graft keeps frozen, a part without
            weights, or one that its graft's settings leave out.
    """
    if trains_llm(rates):
        _check_llm(model, rates, where=f"{where}.train.llm")
    parts = parts_of(model, rates)
    trainable = [part for part, content in parts.items() if content and (part != "tower" or not frozen_tower(model))]
    for part in rates:
        if part == "tower" and frozen_tower(model):
            raise RecipeError(
                "the vision tower is to train, but it is frozen",
                expected=f"one of {', '.join(trainable)}",
                fix="Attach with train_tower=True, or remove it",
                where=f"{where}.train.tower",
            )
        if part not in parts:
            near = difflib.get_close_matches(part, trainable, n=1, cutoff=0.3)
            raise RecipeError(
                f"unknown part {part!r}",
                expected=f"one of {', '.join(trainable)}",
                fix=f"Did you mean {near[0]!r}?" if near else "Attach that graft, or remove the part.",
                where=f"{where}.train",
            )
        if not parts[part]:
            raise RecipeError(
                f"part {part!r} has no weights, so it trains nothing",
                expected=f"one of {', '.join(trainable)}",
                fix="Remove it",
                where=f"{where}.train.{part}",
            )
        kind, _, rest = part.partition(".")
        graft, _, own = rest.partition(".")
        idle = [p for p in model.graft(graft).idle_parts() if model.graft(graft).parts()[p]] if kind == "graft" else []
        if idle and not own:
            raise RecipeError(
                f"of part {part!r}, {' and '.join(idle)} take no part under the settings of this stage",
                expected="the parts that train",
                fix=f"Name them: {', '.join(f'{part}.{p}' for p in model.graft(graft).parts() if p not in idle)}.",
                where=f"{where}.train.{part}",
            )
        if own in idle:
            raise RecipeError(
                f"part {part!r} takes no part under the settings of this stage, so it trains nothing",
                expected=f"parts of {graft} that do, or other settings",
                fix=f"Change `settings: {{{graft}: ...}}` of this stage, or remove the part.",
                where=f"{where}.train.{part}",
            )


def _check_llm(model: Any, rates: Iterable[str], *, where: str) -> None:
    """A PeftModel stays as it is; a graft that has a setting for it says whether the LLM may train."""
    if is_peft(model.language_model):
        raise RecipeError(
            "the LLM is to train, but it is a PeftModel, which stays as it was handed over",
            expected="a plain LLM",
            fix="Attach to peft_model.merge_and_unload(), or remove the part.",
            where=where,
        )
    depth = len(model.decoder.layers)
    for part in rates:
        if _LAST.fullmatch(part) and int(part.rpartition("_")[2]) > depth:
            raise RecipeError(
                f"{part.removeprefix('llm.')} of an LLM of {depth} layers",
                expected=f"last_1 to last_{depth}",
                fix="Name fewer layers, or train all of it with `llm: trainable`.",
                where=where,
            )
    for graft in model.grafts:
        if getattr(graft.config, "llm", "trainable") == "frozen":
            raise RecipeError(
                f"the LLM is to train, but the graft {graft.name!r} has llm: frozen, which keeps text exact",
                expected="llm: trainable",
                fix=f"Attach with llm='trainable' (`model: {{options: {{llm: trainable}}}}` in a recipe), or take a"
                f" recipe that leaves the LLM frozen, such as {graft.name}-demo.",
                where=where,
            )


def teaches_text(model: Any, rates: Mapping[str, float]) -> bool:
    """Whether a sample without a picture has a gradient: the LLM trains, or a graft that runs on text alone."""
    if trains_llm(rates):
        return True
    asked = [part.split(".") for part in rates if part.startswith("graft.")]
    names = {keys[1] for keys in asked}
    return any(model.graft(n).teaches_text([k[2] for k in asked if k[1] == n and len(k) > 2]) for n in names)


def taught_by(model: Any, rates: Mapping[str, float]) -> frozenset[str]:
    """Branches of the samples with a picture that have a gradient: all where more than grafts train."""
    if not all(part.startswith("graft.") for part in rates):
        return frozenset(model.branches)
    own: dict[str, list[str]] = {}
    for part in rates:
        _, name, *rest = part.split(".")
        own.setdefault(name, []).extend(rest)
    return frozenset().union(*(model.graft(name).taught_by(rest, model.branches) for name, rest in own.items()))


def trained_parts(graft: Any, rates: Mapping[str, float]) -> list[str]:
    """Those of a graft's sub-parts that train: all of them where it trains as a whole."""
    whole = f"graft.{graft.name}"
    return [name for name in graft.parts() if whole in rates or f"{whole}.{name}" in rates]


def trained_tensors(model: Any, parts: Mapping[str, Any]) -> dict[str, Tensor]:
    """Parameters and saved buffers of the named parts, by full name."""
    saved = set(model.state_dict())
    named: dict[str, Tensor] = {}
    for part in parts:
        own = parts_of(model, [part])[part]
        named |= own
        roots = _ROOTS.get(part.partition(".")[0]) or {".".join(name.split(".")[:2]) for name in own}
        for name, buffer in model.named_buffers():
            if name in saved and any(name.startswith(f"{root}.") for root in roots):
                named[name] = buffer
    return named


def new_tensors(model: Any, trained: Mapping[str, Any]) -> dict[str, Tensor]:
    """All that is not the base as handed over: what came with the grafts, and what has trained."""
    named = {"projector": 0.0, **{part: 0.0 for part in parts_of(model) if part.startswith("graft.")}, **trained}
    if model.config.llm_trained:
        named["llm"] = 0.0
    return trained_tensors(model, named)


def groups(model: Any, rates: Mapping[str, float], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for the optimiser: one a part, and one for its norms, biases and gates without weight decay."""
    found = []
    parts = parts_of(model, rates)
    for part, rate in rates.items():
        matrices = [p for p in parts[part].values() if p.dim() > 1]
        others = [p for p in parts[part].values() if p.dim() <= 1]
        found.append({"name": part, "params": matrices, "lr": rate, "weight_decay": weight_decay})
        found.append({"name": f"{part} (norms, biases, gates)", "params": others, "lr": rate, "weight_decay": 0.0})
    return [group for group in found if group["params"]]


@contextmanager
def training(model: Any, rates: Mapping[str, float], *, gradient_checkpointing: bool = False) -> Iterator[None]:
    """Inside, exactly the named parts take gradients; afterwards all is frozen or free as before, in eval mode."""
    before = {id(p): p.requires_grad for p in model.parameters()}
    use_cache = getattr(model.config, "use_cache", None)
    parts = parts_of(model, rates)
    if trains_llm(rates):
        model.freeze_llm(False)
    model.requires_grad_(False)
    for part in rates:
        for parameter in parts[part].values():
            parameter.requires_grad_(True)
    if gradient_checkpointing:
        _checkpointing(model, True)
    try:
        yield
    finally:
        if gradient_checkpointing:
            _checkpointing(model, False)
        for parameter in model.parameters():
            parameter.requires_grad_(before[id(parameter)])
            parameter.grad = None
        if use_cache is not None:
            model.config.use_cache = use_cache
        elif hasattr(model.config, "use_cache"):
            del model.config.use_cache
        model.eval()


def _checkpointing(model: Any, on: bool) -> None:
    # transformers 5.20 gave these another name; the old one warns from then on.
    verb = "enable" if on else "disable"
    method = getattr(model, f"activation_checkpointing_{verb}", None) or getattr(
        model, f"gradient_checkpointing_{verb}"
    )
    method()


def set_modes(model: Any) -> None:
    """Training mode for what trains, eval mode (no dropout) for what is frozen."""
    model.train()
    for module in (*model.frontend.towers, model.frontend.projector, *model.grafts):
        if not any(p.requires_grad for p in module.parameters()):
            module.eval()


def table(model: Any, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """One row a part: its tensors, parameters, learning rate; frozen where the rate is None."""
    rows = []
    for part, content in parts_of(model, rates).items():
        count = sum(p.numel() for p in {id(p): p for p in content.values()}.values())
        rate = rates.get(part)
        rows.append(
            {"part": part, "tensors": len(content), "parameters": count, "lr": rate, "trains": rate is not None}
        )
    return [row for row in rows if row["tensors"]]


def draw(rows: list[dict[str, Any]], title: str) -> Table:
    """The table for a terminal."""
    drawn = Table(title=title, title_justify="left")
    drawn.add_column("part")
    for column in ("tensors", "parameters", "learning rate"):
        drawn.add_column(column, justify="right")
    for row in rows:
        rate = f"{row['lr']:g}" if row["trains"] else "frozen"
        drawn.add_row(row["part"], f"{row['tensors']:,}", f"{row['parameters']:,}", rate)
    trained = sum(row["parameters"] for row in rows if row["trains"])
    drawn.caption = f"{trained:,} of {sum(row['parameters'] for row in rows):,} parameters train"
    return drawn
