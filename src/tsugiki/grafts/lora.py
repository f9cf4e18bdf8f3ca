"""LoRA for the eyes: low-rank updates of the LLM's linear modules on requests with an image. arXiv:2106.09685.

    y = W x + s B(A x)      s = alpha / r, or alpha / sqrt(r) (rsLoRA, arXiv:2312.03732); B = 0 at the start

The update is added to a module's output by a hook: weights and module tree stay as they are, quantised modules and
PEFT's own wrappers (a company's LoRA) included. A request without an image, and a row without one in a batch, get
nothing. In a request with an image every token does, those before the image too. Files are PEFT's, in both directions.

Shapes: B rows, T positions, I and O features of a module, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsugiki.decoder import Block, DecoderSpec
from tsugiki.errors import InputError, StoreError, UnknownNameError, UnsupportedError
from tsugiki.grafts import _peft
from tsugiki.grafts._base import Graft as Base
from tsugiki.grafts._context import Context
from tsugiki.grafts._sites import Site

PAPER = "arXiv:2106.09685"
CODE = "https://github.com/microsoft/LoRA"
LICENSE = "MIT"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which modules get an update, and how large it may be."""

    rank: int = 16
    """r, of every update."""
    alpha: float = 32.0
    """The update's factor is alpha / r."""
    use_rslora: bool = False
    """Rank-stabilised: the factor is alpha / sqrt(r)."""
    targets: tuple[str, ...] | None = None
    """Names of linear modules as in PEFT's `target_modules`: `q_proj`, `self_attn.q_proj` or a whole name. None = all
    linear modules of attention and FFN; experts of a mixture are no modules of their own and stay out."""
    layers: tuple[int, ...] | None = None
    """Layers whose modules get one, from 0; None = all."""
    dropout: float = 0.0
    """Share of x that the update does not see while it trains."""


class LowRank(nn.Module):
    """B(A x) of one module; B starts at zero.

    Args:
        features_in, features_out: I and O.
        rank: r.
    """

    def __init__(self, features_in: int, features_out: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(features_in, rank, bias=False)  # A
        self.up = nn.Linear(rank, features_out, bias=False)  # B
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor, acts: Tensor | None = None, dropout: float = 0.0) -> Tensor:
        """x [..., I] -> [..., O] in the weights' dtype; 0 where `acts`, bool [..., 1], is given and false."""
        code = self.down(F.dropout(x.to(self.down.weight.dtype), dropout, self.training))
        out: Tensor = self.up(code if acts is None else code * acts)
        return out


class Graft(Base):
    """Low-rank updates of the chosen modules."""

    SPLICES = False
    STARTS_AS_IDENTITY = True
    PREFIX_EXACT = False
    HOW = "switched"
    ADJUSTABLE = frozenset({"alpha", "dropout"})

    def __init__(self, config: Config, decoder: DecoderSpec) -> None:
        super().__init__(config, decoder)
        self.check(decoder)
        layers: dict[str, nn.ModuleDict] = {}
        for index, path, module in chosen(config, decoder):
            features = linear_features(module)
            assert features is not None
            own = layers.setdefault(str(index), nn.ModuleDict())
            own[_key(path)] = LowRank(*features, config.rank)
        self.layers = nn.ModuleDict(layers)

    def check(self, decoder: DecoderSpec) -> None:
        config, depth = self.config, len(decoder.layers)
        if isinstance(config.rank, bool) or not isinstance(config.rank, int) or config.rank < 1:
            raise InputError(f"rank = {config.rank!r}", expected="a number, at least 1", where="lora.rank")
        for name, value, below in (("alpha", config.alpha, math.inf), ("dropout", config.dropout, 1)):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 <= value < below:
                expected = "a number from 0" + (" to below 1" if below == 1 else "")
                raise InputError(f"{name} = {value!r}", expected=expected, where=f"lora.{name}")
        layers = range(depth) if config.layers is None else config.layers
        listed = isinstance(layers, Sequence) and all(isinstance(i, int) and 0 <= i < depth for i in layers)
        if not listed or not layers or len(set(layers)) != len(layers):
            raise InputError(
                f"layers = {config.layers!r}", expected=f"different numbers from 0 to {depth - 1}", where="lora.layers"
            )
        targets = config.targets
        named = isinstance(targets, tuple | list) and targets and all(isinstance(t, str) for t in targets)
        if targets is not None and not named:
            raise InputError(f"targets = {targets!r}", expected="a list of names, or None", where="lora.targets")
        chosen(config, decoder)

    @property
    def scale(self) -> float:
        """s."""
        rank = self.config.rank
        return float(self.config.alpha) / (math.sqrt(rank) if self.config.use_rslora else rank)

    def parts(self) -> dict[str, list[str]]:
        names = [n for n, _ in self.named_parameters()]
        return {side: [n for n in names if f".{side}." in n] for side in ("down", "up")}

    # -- sites ---------------------------------------------------------------------------------------------------------

    def sites(self, decoder: DecoderSpec) -> Iterator[Site]:
        for index, path, module in chosen(self.config, decoder):
            update = self.layers[str(index)][_key(path)]  # type: ignore[index]
            yield Site("after", module, partial(self.add, update), f"{path} of layer {index}")

    def add(self, update: LowRank, y: Tensor, x: Tensor, context: Context) -> Tensor:
        """y [B, T, O] (or [B * T, O], as OPT's FFN has it) of a module's x: -> y + s B(A x)."""
        acts = context.rows
        if acts is not None and context.token_kind is not None:
            acts = acts.to(x.device).expand(*context.token_kind.shape, 1).reshape(*x.shape[:-1], 1)
        added: Tensor = y + self.scale * update(x, acts, self.config.dropout)
        return added.to(y.dtype)


# -- the LLM's linear modules ------------------------------------------------------------------------------------------


def linear_features(module: nn.Module) -> tuple[int, int] | None:
    """I and O of a linear module: also a quantised one, GPT-2's transposed one, or PEFT's wrapper of one; else None."""
    if next(module.children(), None) is not None and not hasattr(module, "base_layer"):
        return None
    for names in (("in_features", "out_features"), ("nx", "nf")):
        found = tuple(getattr(module, name, None) for name in names)
        if all(isinstance(n, int) for n in found):
            return found  # type: ignore[return-value]
    return None


def linear_modules(block: Block) -> dict[str, nn.Module]:
    """Path below the layer -> linear module. Lists are left out: experts see tokens of their own, not rows."""
    found: dict[str, nn.Module] = {}

    def walk(module: nn.Module, path: str) -> None:
        for name, child in module.named_children():
            if linear_features(child) is not None:
                found[f"{path}{name}"] = child
            elif not isinstance(child, nn.ModuleList):
                walk(child, f"{path}{name}.")

    walk(block.layer, "")
    return found


def chosen(config: Config, decoder: DecoderSpec) -> list[tuple[int, str, nn.Module]]:
    """The modules that get an update: index of the layer, path below it, module.

    Raises:
        UnknownNameError: no linear module of the layers has a target's name.
        InputError: the layers have none of that kind.
    """
    names = {id(m): n for n, m in decoder.llm.named_modules()}
    everywhere = [(b.index, p, m) for b in decoder.blocks for p, m in linear_modules(b).items()]
    for target in config.targets or ():
        if not any(_named(names[id(m)], target) for _, _, m in everywhere):
            known = {p.rpartition(".")[2] for _, p, _ in everywhere}
            raise UnknownNameError("linear module", target, known, where="lora.targets")

    def wanted(index: int, path: str, module: nn.Module) -> bool:
        if config.layers is not None and index not in config.layers:
            return False
        if config.targets is not None:
            return any(_named(names[id(module)], t) for t in config.targets)
        return _of_attention_or_ffn(decoder.blocks[index], path)

    if found := [place for place in everywhere if wanted(*place)]:
        return found
    raise InputError(
        f"targets = {config.targets!r} in layers = {config.layers!r}: no linear module of {decoder.name}",
        expected="names of modules of these layers",
        where="lora.targets",
    )


def _of_attention_or_ffn(block: Block, path: str) -> bool:
    top, _, rest = path.partition(".")
    child = block.child(top)
    return child is block.attention or child is block.ffn or (block.ffn is None and not rest)


def _named(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _key(path: str) -> str:
    return path.replace(".", "-")  # a ModuleDict takes no dots


# -- PEFT's files ------------------------------------------------------------------------------------------------------


def to_peft(graft: Graft, decoder: DecoderSpec, folder: str | Path) -> Path:
    """Write a folder that `peft.PeftModel.from_pretrained(llm, folder)` loads: there the update acts on text too.

    Raises:
        StoreError: the disk is full or can't be written; an older folder stays whole.
    """
    config, places = graft.config, chosen(graft.config, decoder)
    names = {id(m): n for n, m in decoder.llm.named_modules()}
    own = {names[id(m)] for _, _, m in places}
    targets = sorted({name.rpartition(".")[2] for name in own})
    if {n for n in names.values() if any(_named(n, t) for t in targets)} != own:
        targets = sorted(own)
    pairs = {names[id(m)]: graft.layers[str(i)][_key(path)] for i, path, m in places}  # type: ignore[index]
    settings = {
        "base_model_name_or_path": decoder.llm.config._name_or_path or None,  # type: ignore[union-attr]
        "r": config.rank,
        "lora_alpha": int(config.alpha) if config.alpha == int(config.alpha) else config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.use_rslora,
        "target_modules": targets,
        "fan_in_fan_out": all(hasattr(m, "nx") or getattr(m, "fan_in_fan_out", False) for _, _, m in places),
    }
    return _peft.write(folder, settings, {n: (u.down.weight, u.up.weight) for n, u in pairs.items()})


def from_peft(folder: str | Path, llm: nn.Module) -> tuple[Config, dict[str, Tensor]]:
    """The config and the state dict of a LoRA that PEFT saved for a causal LM.

        config, state = lora.from_peft("adapter", llm)
        model = tsugiki.attach(llm, "lora", vision=..., **dataclasses.asdict(config))
        model.graft("lora").load_state_dict(state)

    Raises:
        StoreError: no such folder, a pickle, a damaged file, or a tensor that does not fit the LLM.
        UnsupportedError: a setting that this graft does not have, such as DoRA.
    """
    settings, pairs = _peft.read(folder)
    decoder = DecoderSpec(llm)
    names = {n: id(m) for n, m in decoder.llm.named_modules()}
    places = {id(m): (b.index, p, m) for b in decoder.blocks for p, m in linear_modules(b).items()}
    rank = int(settings["r"])
    state: dict[str, Tensor] = {}
    used: list[tuple[int, str, str]] = []
    for name, (a, b) in pairs.items():
        place = places.get(names.get(name, 0))
        if place is None:
            raise UnsupportedError(
                f"{name} has a low-rank update and is no linear module of a layer of {decoder.name}",
                expected="modules of the decoder layers",
                fix="Train the adapter on modules of the layers alone, on the LLM given.",
                where=str(folder),
            )
        index, path, module = place
        features = linear_features(module)
        assert features is not None
        if (tuple(a.shape), tuple(b.shape)) != ((rank, features[0]), (features[1], rank)):
            raise StoreError(
                f"{name}: A {list(a.shape)}, B {list(b.shape)}",
                expected=f"[{rank}, {features[0]}] and [{features[1]}, {rank}]",
                fix="Give the LLM that the adapter was trained on.",
                where=str(folder),
            )
        key = f"layers.{index}.{_key(path)}"
        state |= {f"{key}.down.weight": a.to(torch.float32), f"{key}.up.weight": b.to(torch.float32)}
        used.append((index, path, name))
    return Config(**_peft.own_settings(settings), **_targets(used, len(decoder.layers))), state


def _targets(used: Sequence[tuple[int, str, str]], depth: int) -> dict[str, Any]:
    """`targets` and `layers` that choose these modules: paths below the layer where every layer has the same."""
    layers, paths = sorted({i for i, _, _ in used}), sorted({p for _, p, _ in used})
    if len(used) == len(layers) * len(paths):
        return {"targets": tuple(paths), "layers": None if len(layers) == depth else tuple(layers)}
    return {"targets": tuple(sorted(name for _, _, name in used)), "layers": None}
