"""IAA, the inner-adaptor architecture: trainable decoder layers inserted into a frozen LLM. arXiv:2408.12902.

    text:   h_l = D_l(h_{l-1})
    image:  h_l = I_k(D_l(h_{l-1}))  where layer l is the k-th of the chosen ones, else D_l(h_{l-1})

I_k is a whole layer of the LLM's own class, with no gate and no further residual around it. A branch is a set of such
layers with its own final norm and, where asked for, its own word vectors; a request without an image takes none.
The released code gives each branch a projector of its own, too; here all branches read the front-end's one.
Shapes: B rows, T positions of this forward, D LLM width, V words, R words with a vector of their own, L layers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tsugiki.decoder import Block, DecoderSpec
from tsugiki.errors import InputError, UnknownNameError
from tsugiki.grafts._base import Graft as Base
from tsugiki.grafts._context import Context
from tsugiki.grafts._copies import copied, layer_like, silence
from tsugiki.grafts._sites import Site
from tsugiki.grafts._words import Words
from tsugiki.types import TEXT, register_branch

PAPER = "arXiv:2408.12902"
CODE = "https://github.com/360CVGroup/Inner-Adaptor-Architecture"
LICENSE = "Apache-2.0"

PRESETS: dict[str, Callable[[int], set[int]]] = {
    "iaa-14": lambda n: {i for i in range(n) if i % 5 < 2} | {n - 2, n - 1},
    "iaa-8": lambda n: {i for i in range(n) if i % 5 == 0} | {n - 1},
}
"""Layers of an LLM of n that are followed by an inserted one: 14 and 8 of 32. Those of IAA-14 are the released code's;
those of IAA-8 are not published, this list is our reconstruction."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Where layers are inserted, what they start as, and what else a branch has of its own."""

    layers: str | int | tuple[int, ...] = "iaa-14"
    """After which layers, from 0: "iaa-14", "iaa-8", a number k for every k-th layer, or a list."""
    init: Literal["copy", "copy_zero", "random"] = "copy_zero"
    """`copy`: of the layer before (what the paper does is not published; its code speaks of copies). `copy_zero`: the
    same with both output matrices at zero, so that the graft starts as the identity. `random`: as a new LLM."""
    branches: tuple[str, ...] = ("image",)
    """One set of layers for each; published: ("image", "grounding"). A request of another branch takes the set of
    "image" where there is one."""
    norm: bool = True
    """Whether each branch has its own final norm, as published."""
    words: Literal["none", "delta_rows", "full"] = "none"
    """Word vectors of a branch's own, at the input and in the head: none, a trained difference for `rows`, or, as
    published, whole matrices (2 V D parameters a branch)."""
    rows: tuple[int, ...] = ()
    """Token ids of `delta_rows`: those of digits and brackets, say."""
    inherit: str | None = None
    """Set by a stage of a recipe: when it begins, the other branches that it trains take over this one's weights."""


class Graft(Base):
    """One set of inserted layers for each branch."""

    SPLICES = False
    PREFIX_EXACT = False  # text before an image runs through the inserted layers too
    ADJUSTABLE = frozenset({"inherit"})

    def __init__(self, config: Config, decoder: DecoderSpec) -> None:
        super().__init__(config, decoder)
        self.check(decoder)
        self.places = places(config.layers, len(decoder.layers))
        silent = config.init == "copy_zero"
        self.sets = nn.ModuleDict()
        blocks: list[Block] = []
        for name in config.branches:
            register_branch(name)
            layers = nn.ModuleList()
            for k, place in enumerate(self.places):
                index = len(decoder.layers) + k  # branches share these: a cache belongs to one
                layer = layer_like(decoder, place, index, copy=config.init != "random")
                layers.append(layer)
                blocks.append(decoder.block(index, layer, after=place))
            own = nn.ModuleDict({"layers": layers})
            if config.norm:
                own["norm"] = copied(decoder.norm)
            if config.words != "none":
                own["words"] = Words(decoder, config.rows if config.words == "delta_rows" else None)
            self.sets[name] = own
        self._blocks = tuple(blocks)
        if silent:
            silence(decoder, [b.layer for b in blocks])

    def check(self, decoder: DecoderSpec) -> None:
        config = self.config
        places(config.layers, len(decoder.layers))
        for name, value, known in (
            ("init", config.init, ("copy", "copy_zero", "random")),
            ("words", config.words, ("none", "delta_rows", "full")),
        ):
            if value not in known:
                raise UnknownNameError(name, str(value), known, where=f"iaa.{name}")
        names = config.branches
        listed = isinstance(names, tuple | list) and len(names) > 0 and len(set(names)) == len(names)
        if not listed or not all(_is_name(n) for n in names):
            raise InputError(
                f"branches = {names!r}", expected="a list of different names, of small letters", where="iaa.branches"
            )
        if "text" in names:
            raise InputError("a branch 'text'", expected="branches of requests with an image", where="iaa.branches")
        if config.inherit is not None and config.inherit not in names:
            raise UnknownNameError("branch", config.inherit, names, where="iaa.inherit")
        rows = config.rows
        listed = isinstance(rows, tuple | list) and all(
            isinstance(i, int) and 0 <= i < decoder.vocabulary for i in rows
        )
        if not listed or (config.words == "delta_rows") is not bool(rows):
            raise InputError(
                f"rows = {rows!r} with words = {config.words!r}",
                expected=f"token ids from 0 to {decoder.vocabulary - 1} with words='delta_rows', none otherwise",
                where="iaa.rows",
            )

    @property
    def STARTS_AS_IDENTITY(self) -> bool:  # type: ignore[override]
        return bool(self.config.init == "copy_zero")

    @property
    def branches(self) -> tuple[str, ...]:
        return tuple(self.config.branches)

    def added_layers(self) -> tuple[Block, ...]:
        return self._blocks

    def parts(self) -> dict[str, list[str]]:
        """One a branch: `graft.iaa.grounding`."""
        names = [n for n, _ in self.named_parameters()]
        return {b: [n for n in names if n.startswith(f"sets.{b}.")] for b in self.branches}

    def taught_by(self, parts: Sequence[str], known: Sequence[str]) -> frozenset[str]:
        names = frozenset(parts or self.branches)
        return names | (set(known) - set(self.branches) if "image" in names else set())

    def begin_stage(self, changes: Mapping[str, Any], trained: Sequence[str]) -> None:
        source = changes.get("inherit")
        for name in trained:
            if source is not None and name != source:
                self.sets[name].load_state_dict(self.sets[source].state_dict())

    def sites(self, decoder: DecoderSpec) -> Iterator[Site]:
        for k, place in enumerate(self.places):
            yield Site("after", decoder.layers[place], partial(self._insert, k), f"layer {place}", again=True)
        if self.config.words != "none":
            yield Site("embed", decoder.embed, self._embed, "word embeddings")
        if self.config.norm:
            yield Site("norm", decoder.norm, self._norm, "final norm")
        if self.config.words != "none":
            yield Site("head", decoder.head, self._head, "head")

    def _own(self, context: Context) -> Any:
        """The set of this request's branch, or None."""
        sets: Any = self.sets
        name = next((n for n in (context.branch, "image") if n in self.config.branches), None)
        return None if name is None else sets[name]

    def _insert(self, k: int, y: Tensor, x: Tensor, context: Context, again: Callable[..., Tensor]) -> Tensor:
        """y [B, T, D], the output of the layer -> the inserted layer's, for the rows with an image."""
        own = self._own(context)
        if own is None:
            return y
        layer = own["layers"][k]
        changed = again(layer, y.to(next(layer.parameters()).dtype))
        return context.for_rows(changed.to(y.dtype), y)

    def _norm(self, call: Callable[[Tensor], Tensor], x: Tensor, context: Context) -> Tensor:
        """x [B, T, D] -> [B, T, D]."""
        own = self._own(context)
        if own is None:
            return call(x)
        norm = own["norm"]
        y = norm(x.to(next(norm.parameters()).dtype)).to(x.dtype)
        return y if context.rows is None else context.for_rows(y, call(x))

    def _embed(self, embeddings: Tensor, input_ids: Tensor, context: Context) -> Tensor:
        """Word vectors of text positions; what is spliced in stays. [B, T, D], ids int64 [B, T] -> [B, T, D]."""
        own = self._own(context)
        if own is None:
            return embeddings
        assert context.token_kind is not None
        changed = own["words"](embeddings, ids=input_ids).to(embeddings.dtype)
        text = (context.token_kind == TEXT)[..., None]
        return torch.where(text if context.rows is None else text & context.rows, changed, embeddings)

    def _head(self, call: Callable[[Tensor], Tensor], x: Tensor, context: Context) -> Tensor:
        """x [B, T, D], or [1, L, D] at the label positions of all rows -> scores [.., V]."""
        own = self._own(context)
        if own is None:
            return call(x)
        rows = context.rows
        if rows is not None and context.keep is not None and context.token_kind is not None:
            rows = rows[context.keep // context.token_kind.shape[1], :, 0].T[..., None]  # [1, L, 1]
        whole = self.config.words == "full" and rows is None
        scores = None if whole else call(x)
        y: Tensor = own["words"](scores, hidden=x)
        return y if rows is None or scores is None else torch.where(rows, y, scores)


def places(chosen: str | int | tuple[int, ...], depth: int) -> tuple[int, ...]:
    """The layers, from 0, after which one is inserted.

    Args:
        chosen: a preset's name, k for every k-th layer, or a list.
        depth: number of the LLM's layers.

    Raises:
        UnknownNameError: no such preset.
        InputError: no layers of this LLM.
    """
    if isinstance(chosen, str):
        if chosen not in PRESETS:
            raise UnknownNameError("preset", chosen, PRESETS, where="iaa.layers")
        return tuple(sorted(i for i in PRESETS[chosen](depth) if i >= 0))
    if isinstance(chosen, int) and not isinstance(chosen, bool) and 1 <= chosen <= depth:
        return tuple(range(chosen - 1, depth, chosen))
    listed = tuple(chosen) if isinstance(chosen, tuple | list) else ()
    if not listed or len(set(listed)) != len(listed) or not all(isinstance(i, int) and 0 <= i < depth for i in listed):
        raise InputError(
            f"layers = {chosen!r}",
            expected=f"{' or '.join(PRESETS)}, k for every k-th of {depth} layers, or numbers from 0 to {depth - 1}",
            where="iaa.layers",
        )
    return tuple(sorted(listed))


def _is_name(name: object) -> bool:
    """Small letters, and no attribute of the dictionary in which the sets stand."""
    return isinstance(name, str) and bool(re.fullmatch(r"[a-z][a-z0-9_]*", name)) and not hasattr(nn.ModuleDict, name)
