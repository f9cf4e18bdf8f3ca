"""WINGS: low-rank visual and textual learners beside attention, mixed by a router. arXiv:2406.03496.

A learner is a low-rank residual attention (LoRRA): every token asks (query: the hidden state), the LLM's input of layer
0 answers (keys and values: visual tokens for one learner, text tokens for the other), and a low-rank output is added to
the attention's. The router reads where the main attention of the token goes. This is the corrected form: causal by
position, any number of images, with a cache of low-rank codes.

Shapes: B rows, T positions of this forward, P positions whose keys are known, D LLM width, H heads, K = D / H, r rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsugiki.decoder import DecoderSpec
from tsugiki.errors import InputError, UnsupportedError
from tsugiki.grafts._base import Graft as Base
from tsugiki.grafts._base import Site
from tsugiki.grafts._context import Context
from tsugiki.grafts._rotary import Rotary, Tables
from tsugiki.grafts._statistics import attend
from tsugiki.types import DEMO, IMAGE, PAD, TEXT, Guarantee

PAPER = "arXiv:2406.03496"
CODE = "https://github.com/AIDC-AI/Wings"
LICENSE = "Apache-2.0"

LEARNERS = ("visual", "textual")
FACTORS = ("q", "k", "v", "o")
CHANNELS = 8  # a head's width grows by these; two of them say which keys a learner may read


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


@dataclass(frozen=True)
class Keys:
    """What all layers share in one forward. Order of the channels and of the last axes: visual, textual."""

    features: Tensor  # float [B, P, D], input of layer 0
    kind: Tensor  # float [B, P, 2], 1 where the position is a key of the learner
    bias: Tensor  # float [B, 1, P, CHANNELS], added to the scores of a learner by its own channel
    mask: Tensor | None  # bool [T, P], True = not later than the query; None where the kernel's own causality is right
    reads: Tensor  # float [B, T, 2], 1 where the token has any key of the learner
    routed: Tensor  # bool [B, T], True from the first image on: before it, textual learners have weight 1
    queries: Mapping[str, Tables]  # kind of rotation -> tables of the T queries
    keys: Mapping[str, Tables]  # ... of the P keys


class Learners(nn.Module):
    """The visual and the textual learner of one layer; second factors start at zero, so they add nothing.

    Args:
        dim: D.
        heads: H.
        rank: r.
        built: the learners that exist.
    """

    def __init__(self, dim: int, heads: int, rank: int, built: tuple[str, ...]) -> None:
        super().__init__()
        self.heads, self.rank, self.built = heads, rank, built
        for learner in built:
            for factor in FACTORS:
                down = nn.Parameter(nn.init.trunc_normal_(torch.empty(rank, dim), std=0.02))
                self.register_parameter(f"{learner}_{factor}_down", down)
                self.register_parameter(f"{learner}_{factor}_up", nn.Parameter(torch.zeros(dim, rank)))

    def _factors(self, name: str, active: tuple[str, ...]) -> list[Tensor]:
        return [getattr(self, f"{learner}_{name}") for learner in active]

    def codes(self, features: Tensor, kind: Tensor, active: tuple[str, ...]) -> Tensor:
        """features [B, P, D] -> [B, P, 2r]: low-rank parts of key and value, of the learner whose key it is."""
        down = torch.cat([*self._factors("k_down", active), *self._factors("v_down", active)])
        codes = F.linear(features, down).unflatten(-1, (2, len(active), self.rank))  # [B, P, k|v, learner, r]
        own: Tensor = (codes * kind[..., None, :, None]).sum(-2).flatten(-2)
        return own

    def forward(
        self,
        x: Tensor,
        keys: Keys,
        gate: Tensor,
        rotary: Rotary | None,
        rotation: str,
        active: tuple[str, ...],
        store: Callable[[Tensor], Tensor],
        new: int,
        see_later: bool,
    ) -> Tensor:
        """What is added to the attention's output.

        Args:
            x: queries [B, T, D].
            gate: [B, T, learners], their weights; 0 where a token has no key.
            rotation: the kind of this layer's rotary tables.
            active: the learners that take part.
            store: takes the codes of the last `new` positions, [B, new, 2r], and returns those of all P.
            see_later: whether image keys are visible from before the image (released code).

        Returns:
            [B, T, D] in the dtype of the weights.
        """
        b, t, d = x.shape
        n, heads = len(active), self.heads
        index = [LEARNERS.index(a) for a in active]
        kind = keys.kind[..., index]  # [B, P, n]
        codes = store(self.codes(keys.features[:, -new:], kind[:, -new:], active)).unflatten(-1, (2, self.rank))
        # Each position is a key of one learner at most, so one key and one value tensor serve both.
        placed = (codes[..., None, :] * kind[:, :, None, :, None]).flatten(-2).permute(2, 0, 1, 3).flatten(1, 2)
        flat = keys.features.reshape(-1, d)
        up = [torch.cat(self._factors(f"{f}_up", active), 1).T for f in ("k", "v")]  # [n r, D] each
        k, v = (torch.addmm(flat, placed[i], up[i]).view(b, -1, heads, d // heads).transpose(1, 2) for i in range(2))
        low = F.linear(x, torch.cat(self._factors("q_down", active))).view(b * t, n, self.rank).transpose(0, 1)
        ups = torch.stack(self._factors("q_up", active)).transpose(1, 2)  # [n, r, D]
        q = torch.baddbmm(x.reshape(1, -1, d).expand(n, -1, -1), low, ups)
        q = q.view(n, b, t, heads, d // heads).transpose(2, 3)  # [n, B, H, T, K]
        if rotary is not None:
            q, k = rotary.turn(q, keys.queries[rotation]), rotary.turn(k, keys.keys[rotation])
        attended = self._attend(q, k, v, keys, index, see_later)
        down = self._factors("o_down", active)
        out = torch.cat(
            [F.linear(a, w) * gate[..., i : i + 1] for i, (a, w) in enumerate(zip(attended, down, strict=True))], -1
        )
        return F.linear(out, torch.cat(self._factors("o_up", active), 1))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Keys, index: list[int], see_later: bool) -> list[Tensor]:
        """q [n, B, H, T, K], k and v [B, H, P, K] -> n tensors [B, T, D]; an own channel excludes others' keys."""
        n, b, h, t, width = q.shape
        chosen = torch.eye(CHANNELS, dtype=q.dtype, device=q.device)[index]  # [n, CHANNELS]
        q = torch.cat([q, chosen[:, None, None, None].expand(n, b, h, t, CHANNELS)], -1)
        k = torch.cat([k, keys.bias.expand(b, h, -1, -1)], -1)
        v = F.pad(v, (0, CHANNELS))
        found = []
        for i, learner in enumerate(index):
            later = see_later and learner == 0
            causal = t > 1 and keys.mask is None and not later
            mask = None if later else keys.mask
            out = F.scaled_dot_product_attention(q[i], k, v, mask, is_causal=causal, scale=width**-0.5)
            found.append(out[..., :width].transpose(1, 2).reshape(b, t, -1))
        return found


class Router(nn.Module):
    """Weights of the two learners for each token, from where its attention goes; equal at the start.

    Args:
        inputs: positions (or segments) that it tells apart.
    """

    def __init__(self, inputs: int, segments: bool) -> None:
        super().__init__()
        self.segments = segments
        self.weight = nn.Parameter(torch.zeros(2, inputs))
        self.bias = nn.Parameter(torch.zeros(2))

    def forward(
        self, call: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor, scaling: float, keys: Tensor
    ) -> tuple[Any, Tensor]:
        """Run the main attention `call`, and weigh the learners.

        Args:
            keys: float [B, S, 3], the segment of each key; or int64 [B, S], its position id.

        Returns:
            The attention's own output, and softmax(SiLU(W u + b)) [B, T, 2], with u the token's attention summed over
            heads (by position) or averaged (by segment).
        """
        channels = keys if self.segments else F.embedding(keys.clamp(max=self.weight.shape[1] - 1), self.weight.T)
        output, mass = attend(call, q, k, v, channels, scaling)
        mass = mass.to(self.weight.dtype)
        scores = F.linear(mass / q.shape[1], self.weight) if self.segments else mass
        return output, F.silu(scores + self.bias).softmax(-1)


class Graft(Base):
    """Learners beside the attention of the chosen layers."""

    SPLICES = False
    STARTS_AS_IDENTITY = True
    ADJUSTABLE = frozenset({"active", "scale"})

    def __init__(self, config: Config, decoder: DecoderSpec) -> None:
        super().__init__(config, decoder)
        self._check(decoder)
        self.rotary = Rotary(decoder)
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

    def _check(self, decoder: DecoderSpec) -> None:
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
        wrong = [i for i in config.layers or () if not 0 <= i < depth]
        if wrong or config.layers == () or len(set(config.layers or ())) != len(config.layers or ()):
            raise InputError(
                f"layers = {list(config.layers or ())}",
                expected=f"different numbers from 0 to {depth - 1}",
                where="wings.layers",
            )
        for name, value in (("rank", config.rank), ("width", config.width), ("heads", config.heads or 1)):
            if value < 1:
                raise InputError(f"{name} = {value}", expected="at least 1", where=f"wings.{name}")
        if d % (config.heads or 1):
            raise InputError(f"heads = {config.heads}", expected=f"a divisor of the width {d}", where="wings.heads")

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
        gate = self._gate(context.notes.pop(f"wings.{place}.weights", None), keys)
        layer, slot = self.layers[place], f"wings.{place}"
        out = layer(
            x.to(keys.features.dtype),
            keys,
            gate,
            self.rotary if self.rotary.exists else None,
            self.rotary.kind(index),
            self.active,
            (lambda new: new) if context.cache is None else partial(context.cache.extend, slot),
            x.shape[1],
            self.config.compat is not None,
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
        dtype = next(self.layers.parameters()).dtype
        features = x.to(dtype)
        if context.cache is not None:
            features = context.cache.extend("wings.features", features)
        t, p = x.shape[1], features.shape[1]
        started, routed = self._since_image(context.kinds)
        kinds, positions = context.kinds[:, -p:], context.positions[:, -p:]
        visual = (kinds == IMAGE) | (kinds == DEMO)
        textual = (kinds == TEXT) & started[:, -p:] & (positions >= self.config.exclude_prefix)
        kind = torch.stack([visual, textual], -1)  # [B, P, 2]
        reads = (kind.long().cumsum(1) > 0)[:, -t:]
        if self.config.compat is not None:
            reads = torch.stack([visual.any(1, keepdim=True).expand(-1, t), reads[..., 1]], -1)
        rows, columns = torch.arange(p - t, p, device=x.device), torch.arange(p, device=x.device)
        mask = None if t in (1, p) else columns <= rows[:, None]
        tables: list[dict[str, Tables]] = [{}, {}]
        if self.rotary.exists:
            for name in sorted({self.rotary.kind(i) for i in self.indices}):
                tables[0][name] = self.rotary.tables(features, positions[:, -t:], name)
                tables[1][name] = self.rotary.tables(features, positions, name)
        return Keys(
            features=features,
            kind=kind.to(dtype),
            bias=F.pad(_exclusion(kind, dtype), (0, CHANNELS - 2))[:, None],
            mask=mask,
            reads=reads.to(dtype),
            routed=routed[:, -t:],
            queries=tables[0],
            keys=tables[1],
        )

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


def _exclusion(kind: Tensor, dtype: torch.dtype) -> Tensor:
    """0 for a learner's keys, else a number that no score outweighs: kind bool [B, P, 2] -> [B, P, 2]."""
    far = -1e9 if torch.finfo(dtype).max > 1e9 else -3e4
    return torch.zeros_like(kind, dtype=dtype).masked_fill(~kind, far)


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
