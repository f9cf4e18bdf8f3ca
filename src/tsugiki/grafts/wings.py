"""WINGS: low-rank visual and textual learners beside attention, mixed by a router. arXiv:2406.03496.

A learner is a low-rank residual attention (LoRRA): every token asks (query: the hidden state), the LLM's input of layer
0 answers (keys and values: visual tokens for one learner, text tokens for the other), and a low-rank output is added to
the attention's. The router reads where the main attention of the token goes. This is the corrected form: causal by
position, any number of images, with a cache of low-rank codes.

Shapes: B rows, T positions of this forward, P positions whose keys are known, D LLM width, H heads, K = D / H, r rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tsugiki.decoder import DecoderSpec
from tsugiki.errors import InputError, UnknownNameError, UnsupportedError
from tsugiki.grafts._base import Graft as Base
from tsugiki.grafts._context import Context
from tsugiki.grafts._learners import LEARNERS, Keys, Learners, Router, lay_out
from tsugiki.grafts._rotary import Rotary
from tsugiki.grafts._sites import Site
from tsugiki.types import DEMO, IMAGE, PAD, TEXT, Guarantee

PAPER = "arXiv:2406.03496"
CODE = "https://github.com/AIDC-AI/Wings"
LICENSE = "Apache-2.0"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which learners stand where, how the router sees, and what is promised."""

    rank: int = 64
    """r, of all low-rank products; 64 in the released scripts."""
    layers: tuple[int, ...] | None = None
    """Layers that get learners, from 0; None = all, as published."""
    learners: Literal["both", "visual", "textual"] = "both"
    """Which learners are built. A single one is added with weight 1, without a router."""
    active: Literal["both", "visual", "textual"] = "both"
    """Which of the built learners take part; a recipe sets it by stage (published: first the visual ones alone)."""
    order: Literal["after_attention", "parallel"] = "after_attention"
    """The query: the hidden state after the attention's residual (as in the code), or the attention's own input. In
    families that run attention and FFN side by side: the block's input, or its norm."""
    router: Literal["positions", "segments", "none"] = "positions"
    """What the router reads of each token's attention: all of it by position of the keys (published); its mass on text
    before the image, on the image, on text after it; or nothing: equal weights."""
    width: int = 4096
    """Positions that the router `positions` tells apart; later ones count as the last."""
    heads: int | None = None
    """H of the learners; must divide D. None = the LLM's number, fewer where a head would be too narrow to rotate."""
    llm: Literal["frozen", "trainable"] = "frozen"
    """`frozen`: nothing runs before the first image of a request, so the guarantee is `exact`. `trainable`: as
    published, textual learners run on text alone too, and the guarantee is `bounded`."""
    scale: float | None = None
    """c, the factor of the learners' output. None = 1 (paper), or 2 with `compat`."""
    exclude_prefix: int = 0
    """First positions that are no textual keys: the system prompt's length in the released code (14 or 17)."""
    compat: Literal["reference"] | None = None
    """`reference`: the arithmetic of the released code for its weights: doubled output, image keys visible from before
    the image too. Needs `llm: trainable`."""


class Graft(Base):
    """Learners beside the attention of the chosen layers.

    They see keys by kind and position: an attention mask of the caller's own that separates positions of one row
    (packed samples) is not theirs. They rotate in every layer, also where the LLM's own attention does not (SmolLM3).
    """

    SPLICES = False
    STARTS_AS_IDENTITY = True
    ADJUSTABLE = frozenset({"active", "scale"})

    def __init__(self, config: Config, decoder: DecoderSpec) -> None:
        super().__init__(config, decoder)
        self.rotary = Rotary(decoder)
        self.check(decoder)
        self.indices = range(len(decoder.layers)) if config.layers is None else tuple(config.layers)
        self.parallel_block = decoder.block_kind == "parallel"
        built = LEARNERS if config.learners == "both" else (config.learners,)
        d = decoder.hidden_size
        heads = config.heads or self._heads(decoder)
        self.layers = nn.ModuleList(Learners(d, heads, config.rank, built) for _ in self.indices)
        self.routers: nn.ModuleList | None = None
        if config.router != "none" and len(built) == 2:
            segments = config.router == "segments"
            self.routers = nn.ModuleList(Router(3 if segments else config.width, segments) for _ in self.indices)

    def check(self, decoder: DecoderSpec) -> None:
        config, d, depth = self.config, decoder.hidden_size, len(decoder.layers)
        if decoder.embedding_size != d:
            raise UnsupportedError(
                f"{decoder.name} has word embeddings of width {decoder.embedding_size} and layers of width {d}",
                expected="equal widths, since the learners' keys are the input of layer 0",
                fix="Use the projector graft.",
            )
        if config.compat and config.llm != "trainable":
            raise InputError(
                "compat='reference' with a frozen LLM",
                expected="llm='trainable', as the released weights have it",
                where="wings.llm",
            )
        heads = 1 if config.heads is None else config.heads
        numbers = (("rank", config.rank, 1), ("width", config.width, 1), ("heads", heads, 1))
        for name, value, least in (*numbers, ("exclude_prefix", config.exclude_prefix, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{name} = {value!r}", expected=f"a number, at least {least}", where=f"wings.{name}")
        layers = range(depth) if config.layers is None else config.layers
        listed = isinstance(layers, Sequence) and all(isinstance(i, int) and 0 <= i < depth for i in layers)
        if not listed or not layers or len(set(layers)) != len(layers):
            raise InputError(
                f"layers = {config.layers!r}",
                expected=f"different numbers from 0 to {depth - 1}",
                where="wings.layers",
            )
        for name, value, known in (
            ("learners", config.learners, ("both", *LEARNERS)),
            ("active", config.active, ("both", *LEARNERS)),
            ("order", config.order, ("after_attention", "parallel")),
            ("router", config.router, ("positions", "segments", "none")),
            ("llm", config.llm, ("frozen", "trainable")),
            ("compat", config.compat, (None, "reference")),
        ):
            if value not in known:
                raise UnknownNameError(name, str(value), [str(k) for k in known], where=f"wings.{name}")
        if config.scale is not None and (
            isinstance(config.scale, bool) or not isinstance(config.scale, int | float) or not isfinite(config.scale)
        ):
            raise InputError(f"scale = {config.scale!r}", expected="a number", where="wings.scale")
        if not self.active:
            raise InputError(
                f"active = {config.active!r} with the {config.learners} learners alone",
                expected="a learner that is built",
                where="wings.active",
            )
        rotated = self.rotary.width()
        if d % heads or d // heads < rotated:
            raise InputError(
                f"heads = {config.heads}",
                expected=f"a divisor of the width {d} that leaves a head at least {rotated} wide, to rotate",
                where="wings.heads",
            )

    def _heads(self, decoder: DecoderSpec) -> int:
        """The LLM's number of heads, or the next smaller one that divides D into heads wide enough to rotate."""
        d, rotated = decoder.hidden_size, self.rotary.width()
        return next(
            h for h in range(int(decoder.config.num_attention_heads), 0, -1) if d % h == 0 and d // h >= rotated
        )

    # -- claims and parts ----------------------------------------------------------------------------------------------

    @property
    def guarantee(self) -> Guarantee:
        return "exact" if self.config.llm == "frozen" else "bounded"

    @property
    def prefix_exact(self) -> bool:
        return bool(self.config.llm == "frozen")

    @property
    def on_text(self) -> bool:
        return bool(self.config.llm == "trainable")

    @property
    def active(self) -> tuple[str, ...]:
        """The learners that are built and take part."""
        built = {"both": LEARNERS}.get(self.config.learners, (self.config.learners,))
        return tuple(a for a in built if self.config.active in ("both", a))

    def teaches_text(self, parts: Sequence[str]) -> bool:
        return self.on_text and "textual" in self.active and (not parts or "textual" in parts)

    def idle_parts(self) -> list[str]:
        return [p for p in (*LEARNERS, "router") if p not in self.active and (p != "router" or len(self.active) < 2)]

    def parts(self) -> dict[str, list[str]]:
        names = [n for n, _ in self.named_parameters()]
        found = {a: [n for n in names if f".{a}_" in n] for a in LEARNERS}
        return {**found, "router": [n for n in names if n.startswith("routers.")]}

    # -- sites ---------------------------------------------------------------------------------------------------------

    def sites(self, decoder: DecoderSpec) -> Iterator[Site]:
        text = self.on_text
        yield Site("before", decoder.layers[0], self.begin, "layer 0", text)
        first, last = decoder.attention_ends
        for place, index in enumerate(self.indices):
            block, name = decoder.blocks[index], f"layer {index}"
            asked = block.child(first) if self.config.order == "after_attention" else block.attention
            yield Site("before", asked, partial(self.note, place), name, text)
            if self.routers is not None:
                yield Site("attention", block.attention, partial(self.route, place), name, text)
            yield Site("after", block.child(last), partial(self.learn, place, index), name, text)

    def begin(self, x: Tensor, context: Context) -> Tensor:
        """Layer 0's input x [B, T, D] is where all keys come from; it goes on as it is."""
        context.notes["wings"] = self._keys(x, context)
        if self.routers is not None:
            context.notes["wings.router"] = self._read(context)
        return x

    def note(self, place: int, x: Tensor, context: Context) -> Tensor:
        context.notes[f"wings.{place}"] = x
        return x

    def route(
        self, place: int, call: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor, context: Context, **keywords: Any
    ) -> Any:
        """The main attention, and the weights of the two learners beside it."""
        if len(self.active) < 2:
            return call(q, k, v)
        assert self.routers is not None
        scaling = keywords.get("scaling")
        scaling = q.shape[-1] ** -0.5 if scaling is None else scaling
        output, weights = self.routers[place](call, q, k, v, scaling, context.notes["wings.router"])
        context.notes[f"wings.{place}.weights"] = weights
        return output

    def learn(self, place: int, index: int, y: Tensor, _: Tensor, context: Context) -> Tensor:
        """Add the learners' output to the attention's, y [B, T, D]."""
        keys: Keys = context.notes["wings"]
        x: Tensor = context.notes.pop(f"wings.{place}")
        if self.config.order == "after_attention" and not self.parallel_block:
            x = x + y
        routed = self.routers is not None and len(self.active) == 2
        gate = self._gate(context.notes.pop(f"wings.{place}.weights") if routed else None, keys)
        layer, slot = self.layers[place], f"wings.{place}"
        out = layer(
            x.to(keys.features.dtype),
            keys,
            gate,
            self.rotary if self.rotary.exists else None,
            self.rotary.kind(index),
            self.active,
            None if context.cache is None else partial(context.cache.extend, slot),
        )
        added: Tensor = y + out.to(y.dtype)
        return added

    def _gate(self, weights: Tensor | None, keys: Keys) -> Tensor:
        """[B, T, active learners]: the router's weights, times c, 0 where there is nothing to read."""
        scale = self.config.scale if self.config.scale is not None else 2.0 if self.config.compat else 1.0
        if len(self.active) < 2:
            return scale * keys.reads[..., [LEARNERS.index(a) for a in self.active]]
        if weights is None:
            weights = torch.full_like(keys.reads, 0.5)
        alone = torch.ones_like(weights)  # before the first image only the textual learner has keys: weight 1
        return scale * torch.where(keys.routed[..., None], weights, alone) * keys.reads

    # -- what the layers share -----------------------------------------------------------------------------------------

    def _keys(self, x: Tensor, context: Context) -> Keys:
        assert context.kinds is not None and context.positions is not None
        features = x.to(next(self.layers.parameters()).dtype)
        if context.cache is not None:
            features = context.cache.extend("wings.features", features)
        t, p = x.shape[1], features.shape[1]
        started, routed = self._since_image(context.kinds)
        kinds, positions = context.kinds[:, -p:], context.positions[:, -p:]
        visual = (kinds == IMAGE) | (kinds == DEMO)
        textual = (kinds == TEXT) & started[:, -p:] & (positions >= self.config.exclude_prefix)
        rotations = sorted({self.rotary.kind(i) for i in self.indices}) if self.rotary.exists else []
        return lay_out(
            features,
            torch.stack([visual, textual], -1),
            t,
            routed=routed[:, -t:],
            tables={name: self.rotary.tables(features, positions, name) for name in rotations},
            visual_keys=context.image_tokens,
            spans=self._spans(context, p),
            see_later=self.config.compat is not None,
        )

    def _spans(self, context: Context, p: int) -> tuple[slice, slice]:
        """Where among the last P positions any row has keys of each learner."""
        assert context.kinds is not None
        behind = context.kinds.shape[1] - p
        start, stop = context.image_span
        text = context.text_from if self.config.llm == "frozen" else 0
        return _within(start - behind, stop - behind, p), _within(text - behind, p, p)

    def _since_image(self, kinds: Tensor) -> tuple[Tensor, Tensor]:
        """Kinds [B, S] -> from where textual keys count, and from where the router decides, bool [B, S] each."""
        image = (kinds == IMAGE) | (kinds == DEMO)
        since = image.long().cumsum(1) > 0
        if self.config.compat is not None:
            since = image.any(1, keepdim=True).expand_as(kinds)
        return (since if self.config.llm == "frozen" else torch.ones_like(since)), since

    def _read(self, context: Context) -> Tensor:
        """What the router tells keys apart by: position ids [B, S], or one of three segments, float [B, S, 3]."""
        assert context.kinds is not None and context.positions is not None
        if self.config.router == "positions":
            return context.positions
        image = (context.kinds == IMAGE) | (context.kinds == DEMO)
        since = image.long().cumsum(1) > 0
        text = (context.kinds != PAD) & ~image
        return torch.stack([text & ~since, image, text & since], -1).float()


def _within(start: int, stop: int, p: int) -> slice:
    """The part of [start, stop) that lies in [0, P), one position at least: no kernel likes to be empty."""
    start = min(max(start, 0), p - 1)
    return slice(start, max(min(stop, p), start + 1))


def from_reference(state: Mapping[str, Tensor], graft: Graft) -> dict[str, Tensor]:
    """The graft's state dict from that of a released checkpoint; whatever else is in there is left out.

    Args:
        state: with `model.layers.<i>.attn_pool` (visual), `.attn_t_pool` (textual) and `.reweight_module` (router).
        graft: built for the same layers, rank and width.

    Raises:
        InputError: a tensor is missing or has another shape.
    """
    pools = {"visual": "attn_pool", "textual": "attn_t_pool"}
    found = {}
    for name, wanted in graft.state_dict().items():
        group, place, own = name.split(".", 2)
        layer = f"model.layers.{graft.indices[int(place)]}"
        if group == "routers":
            theirs = f"{layer}.reweight_module.linear.{own}"
        else:
            learner, factor, side = own.split("_")
            theirs = f"{layer}.{pools[learner]}.{factor}_proj.{0 if side == 'down' else 1}.weight"
        if theirs not in state or state[theirs].shape != wanted.shape:
            shape = list(state[theirs].shape) if theirs in state else "no such tensor"
            raise InputError(
                f"{theirs}: {shape}", expected=f"shape {list(wanted.shape)}", fix="Check rank, width and layers."
            )
        found[name] = state[theirs].to(wanted.dtype)
    return found
