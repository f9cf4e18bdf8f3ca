"""LynX, a dual mixture of experts: trainable experts beside the frozen FFN, and a gate between the two.

    y = a * FFN(u) + (1 - a) * sum_e w_e E_e(u)        w = the best k of softmax(u W), scaled to the sum 1

arXiv:2410.10491, later called TWIST. No code is published; its base is MoE-LLaVA, whose code gives the routing, the
balance loss and the layers with experts. Reported: both paths share attention and residual; one gate for a request,
a = 1 or 0, set by a classifier that reads the prompt (BERT in the paper). Our reconstruction, for nothing was found:
what experts start as, a soft gate, what a sparse one is held to, and the classifier by word embeddings.
Shapes: B rows, T positions, D width of the LLM, N experts, k of them for each token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from tsugiki.decoder import Block, DecoderSpec
from tsugiki.errors import InputError, UnknownNameError, UnsupportedError
from tsugiki.grafts._base import Graft as Base
from tsugiki.grafts._classifier import Classifier
from tsugiki.grafts._context import Context
from tsugiki.grafts._experts import CopiedMixture, Copies, Ffn, LowRankExperts, Routing, balance, entropy, mean, watch
from tsugiki.grafts._sites import Site
from tsugiki.types import BRANCHES, PAD

PAPER = "arXiv:2410.10491"
CODE = None  # the authors published none
LICENSE = None

GROUNDING = "grounding"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Where experts stand, what they are, and who decides between them and the frozen FFN."""

    experts: int | None = None
    """N. None = as the base: an MoE's own number, 1 beside a dense FFN (then there is nothing to route). The paper does
    not say; its 1.67 B parameters fit 2, or 4 of which the best 2 are counted."""
    top_k: int | None = None
    """k. None = an MoE's own number, else 1, which costs what the frozen FFN costs. 2 of 4 in MoE-LLaVA."""
    every: int | None = None
    """Experts in every `every`-th layer, starting with the first. None = 2 in a dense LLM, as in MoE-LLaVA; 1 among the
    sparse layers of an MoE, and among inserted ones."""
    layers: tuple[int, ...] | None = None
    """The layers, from 0, instead of `every`; with `inside: inserted`, places in the list of inserted layers."""
    expert: Literal["copy", "low_rank"] = "copy"
    """`copy` of the frozen FFN (of the whole MoE with its router, where it is one), or a `low_rank` difference to it:
    FFN(u) + B silu(A u), B = 0 at the start. Both start as the frozen FFN; the paper does not say what it does."""
    rank: int = 16
    """Of the `low_rank` difference."""
    gate: Literal["task", "prompt", "soft"] = "task"
    """`task`: the branch that the request names, else "image". `prompt`: a request that names none is decided by a
    logistic classifier on the mean word embedding of its last user turn, before the forward; a recipe fits it, and
    until then it says "image". `soft`: both paths run, a = sigmoid(w h + b) for each token, h the state that enters the
    first of these layers; not more than that, for what a later token says must not change an earlier one."""
    balance: float = 0.01
    """c of the loss c N sum_e f_e p_e, mean over the layers: MoE-LLaVA's. An MoE's copied router is held to it, too."""
    gate_sparsity: float = 0.01
    """Factor of the entropy of a token's distribution over the experts, or, of a `soft` gate, of a (1 - a); mean over
    tokens and layers. Our reconstruction: no source says what the sparse gate is held to."""
    inside: Literal["auto", "llm", "inserted"] = "auto"
    """Whose FFNs: the LLM's, or those of layers that a graft before this one has inserted. `auto`: the inserted ones
    where there are any."""


class Graft(Base):
    """Experts around the FFN of the chosen layers.

    With a hard gate the branch "image" is what was there before, bit for bit and without a further operator; on
    "grounding" the experts run and the frozen FFN does not. A fresh graft changes that branch by numeric noise only.
    """

    SPLICES = False
    STARTS_AS_IDENTITY = True
    PREFIX_EXACT = False  # text before the image runs through the experts, too
    ADJUSTABLE = frozenset({"balance", "gate_sparsity"})

    def __init__(self, config: Config, decoder: DecoderSpec) -> None:
        super().__init__(config, decoder)
        self.check(decoder)
        self.inserted = config.inside == "inserted" or (config.inside == "auto" and bool(decoder.inserted))
        own = [b if b.after is None else decoder.blocks[b.after] for b in self._candidates(decoder)]
        found = watch(decoder, [_ffn(b, decoder) for b in own])
        self.places = self._choose(found)
        blocks = [self._candidates(decoder)[i] for i in self.places]
        self.layers = nn.ModuleList(
            self._experts(_ffn(block, decoder), found[i], decoder) for i, block in zip(self.places, blocks, strict=True)
        )
        self.gate = nn.Linear(decoder.hidden_size, 1) if config.gate == "soft" else None
        if self.gate is not None:
            nn.init.zeros_(self.gate.weight)
            nn.init.zeros_(self.gate.bias)
        self.classifier = Classifier(decoder.embedding_size) if config.gate == "prompt" else None

    def check(self, decoder: DecoderSpec) -> None:
        config = self.config
        for name, value in (("rank", config.rank), *((n, getattr(config, n)) for n in ("experts", "top_k", "every"))):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"{name} = {value!r}", expected="a number, at least 1", where=f"lynx.{name}")
        for name in ("balance", "gate_sparsity"):
            factor = getattr(config, name)
            if isinstance(factor, bool) or not isinstance(factor, int | float) or not isfinite(factor) or factor < 0:
                raise InputError(f"{name} = {factor!r}", expected="a number, at least 0", where=f"lynx.{name}")
        for name, known in (
            ("expert", ("copy", "low_rank")),
            ("gate", ("task", "prompt", "soft")),
            ("inside", ("auto", "llm", "inserted")),
        ):
            if getattr(config, name) not in known:
                raise UnknownNameError(name, str(getattr(config, name)), known, where=f"lynx.{name}")

    def _candidates(self, decoder: DecoderSpec) -> tuple[Block, ...]:
        """The layers among which those with experts are chosen."""
        if not self.inserted:
            return decoder.blocks
        indices = [b.index for b in decoder.inserted]
        if not indices:
            raise InputError(
                "inside = 'inserted', and no graft before this one inserts layers",
                expected="'llm', or a graft such as iaa before it",
                where="lynx.inside",
            )
        if len(set(indices)) != len(indices):
            raise UnsupportedError(
                "the inserted layers are those of several branches",
                expected="one set of layers, which the grounding experts share with the other requests",
                fix="Attach iaa with branches=('image',), or lynx with inside='llm'.",
            )
        return decoder.inserted

    def _choose(self, found: list[Ffn]) -> tuple[int, ...]:
        """Places, among the candidates, of the layers with experts."""
        count, layers, every = len(found), self.config.layers, self.config.every
        if layers is not None:
            inside = isinstance(layers, tuple | list) and all(isinstance(i, int) and 0 <= i < count for i in layers)
            if not inside or not layers or len(set(layers)) != len(layers):
                raise InputError(
                    f"layers = {layers!r}", expected=f"different numbers from 0 to {count - 1}", where="lynx.layers"
                )
            return tuple(sorted(layers))
        sparse = [i for i, facts in enumerate(found) if facts.mixture]
        step = every or (1 if sparse or self.inserted else 2)
        return tuple((sparse or range(count))[::step])

    def _experts(self, ffn: nn.Module, facts: Ffn, decoder: DecoderSpec) -> nn.Module:
        """The experts beside one FFN."""
        config, d, name = self.config, decoder.hidden_size, f"the FFN of {decoder.name}"
        if not facts.plain:
            raise UnsupportedError(
                f"{name} takes or gives more than hidden states",
                expected="an FFN of one tensor [B, T, D]",
                fix="Use a graft that does not hook the FFN: projector, cross_attention or wings.",
            )
        n, k = config.experts or facts.experts, config.top_k or min(facts.top_k, config.experts or facts.experts)
        if k > n:
            raise InputError(f"top_k = {k} of {n} experts", expected="at most as many as there are", where="lynx.top_k")
        if config.expert == "low_rank":
            return LowRankExperts(d, config.rank, n, k)
        if not facts.copyable or (facts.mixture and facts.router is None):
            why = "is quantised" if not facts.copyable else "is a mixture of experts whose router can't be told apart"
            raise UnsupportedError(f"{name} {why}", expected="weights to copy", fix="Take expert='low_rank'.")
        if facts.router is None:
            return Copies(ffn, d, n, k)
        if (n, k) != (facts.experts, facts.top_k):
            raise InputError(
                f"{k} of {n} experts, and {name} is an MoE with {facts.top_k} of {facts.experts}",
                expected="experts and top_k left out: its copy keeps its own",
                fix="Leave them out, or take expert='low_rank'.",
                where="lynx.experts",
            )
        return CopiedMixture(ffn, facts.router)

    # -- claims, parts, branches ---------------------------------------------------------------------------------------

    @property
    def image_exact(self) -> bool:
        return self.gate is None

    @property
    def branches(self) -> tuple[str, ...]:
        return () if self.gate is not None else (GROUNDING,)

    @property
    def chooses_branch(self) -> bool:
        return self.classifier is not None

    def choose_branch(self, question: Tensor) -> Tensor:
        assert self.classifier is not None
        grounds = self.classifier(question) > 0  # [B]
        return torch.where(grounds, BRANCHES[GROUNDING], BRANCHES["image"])

    def learn_branch(self, question: Tensor, branch: Tensor) -> None:
        assert self.classifier is not None
        self.classifier.fit(question, branch == BRANCHES[GROUNDING])

    def taught_by(self, parts: Sequence[str], known: Sequence[str]) -> frozenset[str]:
        return frozenset(known if self.gate is not None else {GROUNDING})

    def parts(self) -> dict[str, list[str]]:
        """Experts, routers and the soft gate, those that there are."""
        names = [n for n, _ in self.named_parameters()]
        router = [n for n in names if ".router." in n or any(f".mixture.{r}." in n for r in self._routers())]
        gate = [n for n in names if n.startswith("gate.")]
        experts = [n for n in names if n not in {*router, *gate}]
        return {k: v for k, v in {"experts": experts, "router": router, "gate": gate}.items() if v}

    def _routers(self) -> set[str]:
        return {layer.router_name for layer in self.layers if isinstance(layer, CopiedMixture)}

    # -- sites ---------------------------------------------------------------------------------------------------------

    def sites(self, decoder: DecoderSpec) -> Iterator[Site]:
        blocks = [self._candidates(decoder)[i] for i in self.places]
        names = [f"{'inserted ' if self.inserted else ''}layer {i}" for i in self.places]
        if self.gate is not None:
            yield Site("before", blocks[0].layer, self.weigh, names[0])
        act, branches = (self.ground, frozenset({GROUNDING})) if self.gate is None else (self.mix, None)
        for place, (block, name) in enumerate(zip(blocks, names, strict=True)):
            yield Site("around", _ffn(block, decoder), partial(act, place), name, branches=branches)

    def ground(self, place: int, call: Callable[[Tensor], Tensor], u: Tensor, context: Context) -> Tensor:
        """a = 0, u [B, T, D] -> [B, T, D]: the frozen FFN runs only where an expert needs it, or a row has no image."""
        if self.config.expert != "low_rank" and context.rows is None:
            return self._mixture(place, u, None, context)
        frozen = call(u)
        y = self._mixture(place, u, frozen, context)
        return context.for_rows(y, frozen)

    def weigh(self, x: Tensor, context: Context) -> Tensor:
        """The state x [B, T, D] that enters the first of the layers decides for all of them; it goes on as it is."""
        assert self.gate is not None
        a = self.gate(x.to(self.gate.weight.dtype)).sigmoid()  # [B, T, 1]
        context.notes["lynx.alpha"] = a
        if self.training and self.config.gate_sparsity:
            self._hold(context, "gate", self.config.gate_sparsity * mean((a * (1 - a)).flatten(), _real(context)))
        return x

    def mix(self, place: int, call: Callable[[Tensor], Tensor], u: Tensor, context: Context) -> Tensor:
        """Both paths, u [B, T, D] -> [B, T, D]."""
        frozen = call(u)
        a = context.notes["lynx.alpha"].to(device=u.device, dtype=u.dtype)
        y = a * frozen + (1 - a) * self._mixture(place, u, frozen, context)
        return context.for_rows(y, frozen)

    def _mixture(self, place: int, u: Tensor, frozen: Tensor | None, context: Context) -> Tensor:
        y, routing = cast("tuple[Tensor, Routing | None]", self.layers[place](u, frozen))
        if self.training and routing is not None:
            real, config = _real(context), self.config
            term = config.balance * balance(routing, real)
            if self.gate is None and config.gate_sparsity:
                term = term + config.gate_sparsity * entropy(routing, real)
            self._hold(context, place, term)
        return y

    def _hold(self, context: Context, place: Any, term: Tensor) -> None:
        # By place: a layer that is recomputed in the backward pass says the same once more, and counts once.
        context.notes.setdefault("lynx.terms", {})[place] = term

    def penalty(self, context: Context) -> Tensor | None:
        terms: dict[Any, Tensor] = context.notes.get("lynx.terms", {})
        layers = [t for place, t in terms.items() if place != "gate"]
        means = [torch.stack([t.to(layers[0].device) for t in layers]).mean()] if layers else []
        found = means + [t for place, t in terms.items() if place == "gate"]
        return torch.stack([t.to(found[0].device) for t in found]).sum() if found else None


def _real(context: Context) -> Tensor:
    """Tokens of rows with an image that are no padding, float [B * T]."""
    assert context.token_kind is not None
    real = context.token_kind != PAD
    return (real if context.rows is None else real & context.rows[..., 0]).flatten().float()


def _ffn(block: Block, decoder: DecoderSpec) -> nn.Module:
    if block.ffn is None:
        raise UnsupportedError(
            f"the layers of {decoder.name} hold the FFN's matrices themselves",
            expected="layers with an FFN module, around which experts can stand",
            fix="Use a graft that does not hook the FFN: projector, cross_attention or wings.",
        )
    return block.ffn
