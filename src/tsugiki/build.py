"""Put grafts on an LLM: names, settings, and the order in which things are built."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoTokenizer, PreTrainedModel

from tsugiki import assets, grafts, identity
from tsugiki.configuration import TsugikiConfig
from tsugiki.decoder import DecoderSpec
from tsugiki.errors import InputError, UnknownNameError
from tsugiki.grafts._base import Graft, claims
from tsugiki.grafts._sites import refuse_unregistered
from tsugiki.model import TsugikiForConditionalGeneration
from tsugiki.vision.frontend import FrontEnd, FrontEndConfig

logger = logging.getLogger("tsugiki")

_RESERVED = re.compile(
    r"<\|?(image_pad|image|vision_pad|reserved_special_token_\d+|reserved_\d+|unused_?\d+|extra_id_\d+|SPECIAL_\d+)\|?>"
    r"|\[(control_\d+|unused\d+|IMG)\]"
)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named whole: grafts in order, settings, and the recipe that trains them."""

    grafts: tuple[str, ...]
    recipe: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the front-end and the grafts that differ from their defaults."""


PRESETS: dict[str, Preset] = {
    "full_finetune": Preset(grafts=("projector",), recipe="full_finetune"),  # the LLM trains too
    "iaa": Preset(grafts=("iaa",), recipe="iaa-demo"),  # recipe `iaa` has the paper's base, and branches
    "lynx": Preset(grafts=("lynx",), recipe="lynx-demo"),  # recipe `lynx` has the paper's base
    # The light hub; recipe `mmict` has the paper's hub and base.
    "mmict": Preset(grafts=("projector",), recipe="mmict-demo", options={"projector": "hub"}),
    "sphinx": Preset(grafts=("projector",), recipe="sphinx-demo"),  # recipe `sphinx` has the paper's base and stages
    "wings": Preset(grafts=("wings",), recipe="wings-demo"),  # recipe `wings` trains the LLM, which this leaves frozen
}
"""Presets that are more than a graft and the recipe of its name."""


def preset(name: str) -> Preset:
    """What stands behind a method's name.

    Raises:
        UnknownNameError: no such method; names the nearest.
    """
    if name not in methods():
        raise UnknownNameError("method", name, methods())
    return PRESETS.get(name, Preset(grafts=(name,), recipe=name))


def available() -> list[str]:
    """Names of all grafts."""
    return grafts.available()


def methods() -> list[str]:
    """Names of all presets: every graft, and wholes of front-end, grafts and recipe."""
    return sorted({*grafts.available(), *PRESETS})


def attach(
    llm: PreTrainedModel | TsugikiForConditionalGeneration,
    /,
    name: str,
    *,
    vision: Any = None,
    tokenizer: Any = None,
    **options: Any,
) -> TsugikiForConditionalGeneration:
    """Give `llm` eyes by the graft or preset `name`; on a model that already sees, the graft is stacked on top.

    Args:
        llm: a causal LM of transformers, or a model that `attach` returned.
        name: one of `tsugiki.methods()`.
        vision: a hub id, a local folder, an asset's name, a tower object, a FrontEndConfig or a dict of its fields, or
            a list of towers, which are mixed.
        tokenizer: the LLM's own; looked up by the LLM's name where it is left out.
        options: settings of the front-end and of the graft, by field name.

    Raises:
        UnknownNameError: no such method or setting; names the nearest.
        UnsupportedError: the graft refuses the LLM's family.
        InputError: no vision tower or no tokenizer.
    """
    chosen = preset(name)
    settings = {**chosen.options, **options}
    stacked = isinstance(llm, TsugikiForConditionalGeneration)
    names = list(chosen.grafts)
    present = [g.name for g in llm.grafts] if stacked else []  # type: ignore[union-attr]
    if not stacked and _needs_splice(names):
        names.insert(0, "projector")
        logger.warning("%s reads visual tokens in the prompt: the graft 'projector' is put first.", name)
    configs, rest = _graft_configs(names, settings)
    if stacked:
        _check_rest(rest, names, frontend=False)
        return _stack(llm, names, configs, present)  # type: ignore[arg-type]
    if vision is None:
        raise InputError(
            "no vision tower given", expected="vision=, a hub id, folder, asset or tower", where="attach(vision=)"
        )
    _check_rest(rest, names, frontend=True)
    tokenizer = tokenizer if tokenizer is not None else tokenizer_of(llm)
    # The identity is taken first: it is the base as it was handed over.
    base = identity.source_identity(llm, tokenizer) | _asset(llm)
    decoder = DecoderSpec(llm)
    frontend = FrontEnd.build(vision, hidden_size=decoder.embedding_size, embedding_rms=decoder.embedding_rms(), **rest)
    if frontend.places is not None:
        frontend.places.take_glyphs(tokenizer, decoder.embed)
    if frontend.hub is not None:
        frontend.hub.take_separator(tokenizer, decoder.embed)
    return build(llm, tokenizer, frontend, names, configs, base)


def build(
    llm: PreTrainedModel,
    tokenizer: Any,
    frontend: FrontEnd,
    names: Sequence[str],
    configs: Sequence[Any],
    base: Mapping[str, Any],
    *,
    llm_trained: bool = False,
) -> TsugikiForConditionalGeneration:
    """Put ready parts together."""
    decoder = DecoderSpec(llm)
    config = TsugikiConfig(
        text_config=llm.config,
        frontend=frontend.config.to_dict(),
        grafts=[_saved(n, c) for n, c in zip(names, configs, strict=True)],
        base_identity=dict(base),
        placeholder_id=placeholder(tokenizer, decoder.vocabulary),
        llm_trained=llm_trained,
    )
    parts = _made(names, configs, decoder)
    _follow(parts, llm)
    for own in (frontend.projector, frontend.mix, frontend.places):
        if own is not None:
            own.to(llm.device)
    return TsugikiForConditionalGeneration(config, llm, frontend, parts, tokenizer)


def _stack(
    model: TsugikiForConditionalGeneration, names: list[str], configs: list[Any], present: list[str]
) -> TsugikiForConditionalGeneration:
    if not model.splices and _needs_splice(names):
        names.insert(0, "projector")
        configs.insert(0, grafts.load("projector").Config())
        logger.warning("%s reads visual tokens in the prompt: the graft 'projector' is put before it.", names[-1])
    if doubled := [n for n in names if n in present]:
        raise InputError(
            f"the model has the graft {doubled[0]!r} already",
            expected="a graft that it does not have",
            fix=f"It has {', '.join(present)}.",
            where="attach",
        )
    before, parts = model.decoder.inserted, []
    try:
        with model.detached():  # a graft that copies layers must not copy the hooks of others with them
            parts = _made(names, configs, model.decoder)
        _follow(parts, model.language_model)
        for part in parts:
            part.attach(model.decoder)
            refuse_unregistered(model.decoder)
    except BaseException:
        model.decoder.inserted = before
        for part in parts:
            part.detach()
        raise
    model.grafts.extend(parts)
    model.config.grafts = [*(model.config.grafts or []), *(_saved(n, c) for n, c in zip(names, configs, strict=True))]
    model.train(False)
    return model


def _made(names: Sequence[str], configs: Sequence[Any], decoder: DecoderSpec) -> list[Graft]:
    """New grafts in their order; each sees the layers that those before it insert."""
    parts: list[Graft] = []
    for name, config in zip(names, configs, strict=True):
        parts.append(grafts.load(name).Graft(config, decoder))
        decoder.inserted += parts[-1].added_layers()
    return parts


def _asset(llm: PreTrainedModel) -> dict[str, str]:
    """Name and licence of the asset that an LLM was loaded from: it is found by them on another machine."""
    card = Path(llm.name_or_path or "") / "card.json"
    if not card.is_file() or not card.is_relative_to(assets.cache_dir()):
        return {}
    facts = json.loads(card.read_text(encoding="utf-8"))
    return {"name": facts["name"], "asset": facts["name"], "licence": facts["licence"]}


def _follow(parts: Sequence[Graft], llm: PreTrainedModel) -> None:
    # Trainable weights stay in fp32, whatever the frozen LLM is in: small, and updates of 1e-4 need the digits.
    for part in parts:
        part.to(llm.device)


def _needs_splice(names: Sequence[str]) -> bool:
    return not any(grafts.load(n).Graft.SPLICES for n in names) and any(n != "cross_attention" for n in names)


def _saved(name: str, config: Any) -> dict[str, Any]:
    return {"name": name, "config": dataclasses.asdict(config)}


def _graft_configs(names: Sequence[str], settings: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Each graft's Config from the settings that are its fields; and the settings that no graft took."""
    rest, configs = dict(settings), []
    for name in names:
        config = grafts.load(name).Config
        own = {f.name for f in dataclasses.fields(config)}
        configs.append(config(**{k: v for k, v in settings.items() if k in own}))
        rest = {k: v for k, v in rest.items() if k not in own}
    return configs, rest


def _check_rest(rest: Mapping[str, Any], names: Sequence[str], *, frontend: bool) -> None:
    # The tower says these itself; a site is adapted to.
    found = {"tower", "towers", "grid", "width", "licence", "tower_sha256", "fingerprint", "site"}
    known = {f.name for f in dataclasses.fields(FrontEndConfig)} - found if frontend else set()
    for name in rest:
        if name not in known:
            fields = {f.name for n in names for f in dataclasses.fields(grafts.load(n).Config)}
            raise UnknownNameError("setting", name, known | fields or {"(none)"}, where=f"attach({', '.join(names)})")


def tokenizer_of(llm: PreTrainedModel) -> Any:
    """The LLM's tokenizer, by the name it was loaded from.

    Raises:
        InputError: there is none under that name.
    """
    try:
        return AutoTokenizer.from_pretrained(llm.name_or_path)
    except Exception as error:
        raise InputError(
            f"no tokenizer found for the LLM {llm.name_or_path!r}",
            expected="tokenizer=, the LLM's own",
            fix="Pass AutoTokenizer.from_pretrained(...).",
            where="attach(tokenizer=)",
        ) from error


def placeholder(tokenizer: Any, rows: int) -> int:
    """The id that stands for a visual token: a reserved token, an unused row, or an id beyond the vocabulary."""
    for token, number in sorted(tokenizer.get_added_vocab().items(), key=lambda item: item[1]):
        if _RESERVED.fullmatch(token) and number < rows:
            return int(number)
    free = max(len(tokenizer), *(number + 1 for number in tokenizer.get_vocab().values()))  # ids may have gaps
    return free if free < rows else rows


def describe(model: TsugikiForConditionalGeneration) -> str:
    """What hooks where, what trains, and what is promised."""
    base = model.base_identity
    lines = [f"{type(model.language_model).__name__} ({base.get('name', '?')}) with eyes: {model.frontend.config.name}"]
    lines.append(f"  front-end   {model.tokens_per_image} tokens an image, {_count(model.frontend)}")
    for graft in model.grafts:
        places = [f"{s.kind} {s.name}".strip() for s in graft.sites(model.decoder)]  # type: ignore[operator]
        source = claims(graft)["paper"]  # type: ignore[arg-type]
        shown = ", ".join(places[:4]) + (f", ... ({len(places)})" if len(places) > 4 else "")
        lines.append(f"  {graft.name:<11} {shown}; {_count(graft)}; {source}")
    lines.append(f"  LLM         {_count(model.language_model)}")
    lines.append(
        f"  guarantee   {model.guarantee} ({model.how}), prefix exact: {'yes' if model.prefix_exact else 'no'}"
    )
    return "\n".join(lines)


def _count(module: nn.Module) -> str:
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in module.parameters() if not p.requires_grad)
    return f"{trained:,} trainable, {frozen:,} frozen"
