"""What every graft is: its own weights, and the places of the LLM where they act.

A graft never changes the LLM's module tree or state-dict keys; attaching puts hooks, detaching takes them away again.
A site does nothing unless the running request has an image, or the site says `on_text`.
Shapes: B rows, T positions, D width of the LLM.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, TypeGuard

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tsugiki.decoder import Block, DecoderSpec
from tsugiki.errors import UnknownNameError, UnsupportedError
from tsugiki.grafts._context import KEYWORD, Context, current
from tsugiki.types import Guarantee, How

SiteKind = Literal["before", "after", "around", "attention", "embed", "norm", "head"]


@dataclass(frozen=True)
class Site:
    """One place where a graft acts.

    `function` by kind (x and y are the hidden states, the first argument and the first output of the module):

    * `before`: f(x, context) -> x
    * `after`: f(y, x, context) -> y
    * `around`, `norm`, `head`: f(call, x, context) -> y, where call(x) runs the original
    * `embed`: f(embeddings [B, T, D], input_ids [B, T], context) -> embeddings, scaling included
    * `attention`: f(call, query, key, value, context, **keywords) -> (output, weights) of the attention function;
      `call(query, key, value, **changes)` runs the original with changed keywords (attention_mask, scaling, ...)
    """

    kind: SiteKind
    module: nn.Module
    function: Callable[..., Any]
    name: str = ""
    on_text: bool = False
    """Whether the site runs on requests without an image too: then the graft's guarantee is `bounded`."""
    branches: frozenset[str] | None = None
    """The branches under which it runs; under any other one it is as if it were not there. None = all."""
    again: bool = False
    """Of an `after` site: its function is f(y, x, context, again), and again(module, y) runs another module with all
    else that this one was given (masks, positions, cache)."""


class Graft(nn.Module):
    """Base of all grafts: owns every new weight of the LLM side."""

    SPLICES: ClassVar[bool] = False
    """Whether visual tokens take the place of the prompt's placeholders."""
    STARTS_AS_IDENTITY: ClassVar[bool] = True
    """Whether a fresh graft changes nothing, also on a request with an image."""
    PREFIX_EXACT: ClassVar[bool] = True
    """Whether tokens before the first image have the base's logits."""
    GUARANTEE: ClassVar[Guarantee] = "exact"
    HOW: ClassVar[How] = "untouched"
    ADJUSTABLE: ClassVar[frozenset[str]] = frozenset()
    """Fields of the config that a stage of a recipe may set: they change no shape of any weight."""

    def __init__(self, config: Any, decoder: DecoderSpec) -> None:
        super().__init__()
        self.config = config
        self._removers: list[Callable[[], None]] = []

    @property
    def name(self) -> str:
        return type(self).__module__.rpartition(".")[2]

    @property
    def guarantee(self) -> Guarantee:
        return self.GUARANTEE

    @property
    def how(self) -> How:
        return self.HOW

    @property
    def prefix_exact(self) -> bool:
        return self.PREFIX_EXACT

    @property
    def image_exact(self) -> bool:
        """Whether requests of the branch "image" come out, bit for bit, as without it."""
        return False

    @property
    def on_text(self) -> bool:
        """Whether the graft also acts on requests without an image."""
        return False

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches that it tells apart beside "image"; a row of a request takes one."""
        return ()

    @property
    def chooses_branch(self) -> bool:
        """Whether `choose_branch` decides for requests that name no branch."""
        return False

    def choose_branch(self, question: Tensor) -> Tensor:
        """The branch of each request that names none, before its forward.

        Args:
            question: float [B, D], mean word embedding of the last user turn.

        Returns:
            int64 [B], numbers of `BRANCHES`.
        """
        raise NotImplementedError("abstract")

    def learn_branch(self, question: Tensor, branch: Tensor) -> None:
        """Fit what `choose_branch` decides by.

        Args:
            question: float [n, D], as there.
            branch: int64 [n], the right answers.
        """
        raise NotImplementedError("abstract")

    def added_layers(self) -> tuple[Block, ...]:
        """Decoder layers that it adds to the LLM's; a graft behind it may act inside them."""
        return ()

    def adjusted(self, decoder: DecoderSpec, **changes: Any) -> Any:
        """The config with settings changed that alter no shape.

        Raises:
            UnknownNameError: not a setting that can change.
            InputError: a wrong value.
        """
        for name in changes:
            if name not in self.ADJUSTABLE:
                known = sorted(self.ADJUSTABLE) or ["(none)"]
                raise UnknownNameError("setting that can change", name, known, where=self.name)
        before = self.config
        self.config = dataclasses.replace(before, **changes)
        try:
            self.check(decoder)
            return self.config
        finally:
            self.config = before

    def begin_stage(self, changes: Mapping[str, Any], trained: Sequence[str]) -> None:
        """Called once when a stage of a recipe begins, and not when it is continued.

        Args:
            changes: what the stage sets of its settings.
            trained: those of its parts that train in the stage, all where it trains as a whole.
        """

    def teaches_text(self, parts: Sequence[str]) -> bool:
        """Whether training the named parts of it (all of it if none is named) has a gradient on text alone."""
        return False

    def taught_by(self, parts: Sequence[str]) -> frozenset[str] | None:
        """Branches of the samples that give its named parts (all where none is named) a gradient; None = any."""
        return None

    def penalty(self, context: Context) -> Tensor | None:
        """What it adds to the loss of a label token in training; None where it has nothing to add.

        Args:
            context: of the forward, with what its sites left in `notes`.
        """
        return None

    def idle_parts(self) -> list[str]:
        """Those of its parts that have no gradient under its present settings."""
        return []

    def check(self, decoder: DecoderSpec) -> None:
        """Whether the config fits itself and the LLM.

        Raises:
            InputError: a wrong value.
            UnsupportedError: the family has no place for the graft, with the reason.
        """

    def parts(self) -> dict[str, list[str]]:
        """Sub-parts that may train at their own rate: name -> the names of their parameters."""
        return {}

    def sites(self, decoder: DecoderSpec) -> Iterator[Site]:
        """Yield the places where this graft acts.

        Raises:
            UnsupportedError: the family has no such place, with the reason.
        """
        raise NotImplementedError("abstract")

    @property
    def attached(self) -> bool:
        return bool(self._removers)

    def attach(self, decoder: DecoderSpec) -> None:
        """Hook the graft into the LLM."""
        if self.attached:
            raise RuntimeError(f"the graft {self.name!r} is attached already")
        try:
            for site in self.sites(decoder):
                self._removers.append(_INSTALL[site.kind](site))
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        """Take every hook away: the LLM is what it was before."""
        while self._removers:
            self._removers.pop()()


def _active(context: Context | None, site: Site) -> TypeGuard[Context]:
    if context is None or (site.branches is not None and context.branch not in site.branches):
        return False
    return context.visual is not None or (site.on_text and context.kinds is not None)


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    x: Tensor = args[0] if args else kwargs["hidden_states"]
    return x


def _with_hidden(args: tuple[Any, ...], kwargs: dict[str, Any], x: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})


def _first(output: Any) -> Tensor:
    y: Tensor = output[0] if isinstance(output, tuple) else output
    return y


def _with_first(output: Any, y: Tensor) -> Any:
    return (y, *output[1:]) if isinstance(output, tuple) else y


def _before(site: Site) -> Callable[[], None]:
    def pre(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        context = kwargs.get(KEYWORD) or current()
        if not _active(context, site):
            return None
        return _with_hidden(args, kwargs, site.function(_hidden(args, kwargs), context))

    return site.module.register_forward_pre_hook(pre, with_kwargs=True).remove


def _after(site: Site) -> Callable[[], None]:
    def post(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        context = kwargs.get(KEYWORD) or current()
        if not _active(context, site):
            return None
        more = (partial(_again, args, kwargs),) if site.again else ()
        return _with_first(output, site.function(_first(output), _hidden(args, kwargs), context, *more))

    return site.module.register_forward_hook(post, with_kwargs=True).remove


def _again(args: tuple[Any, ...], kwargs: dict[str, Any], module: nn.Module, y: Tensor) -> Tensor:
    new_args, new_kwargs = _with_hidden(args, kwargs, y)
    return _first(module(*new_args, **new_kwargs))


def _embed(site: Site) -> Callable[[], None]:
    def post(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Any:
        context = current()
        if not _active(context, site):
            return None
        return site.function(output, args[0] if args else kwargs["input"], context)

    return site.module.register_forward_hook(post, with_kwargs=True).remove


def _nest(function: Callable[..., Tensor], call: Callable[[Tensor], Tensor], context: Context, x: Tensor) -> Tensor:
    return function(call, x, context)


def _around(site: Site) -> Callable[[], None]:
    """Replace the instance's `forward`; nested sites call each other, and may be taken off in any order."""
    module: Any = site.module
    chain: list[Site] | None = module.__dict__.get("_tsugiki_around")
    if chain is None:
        chain = []
        original = module.forward
        had_own = "forward" in module.__dict__
        module.__dict__["_tsugiki_around"] = chain

        def forward(*args: Any, **kwargs: Any) -> Any:
            context = kwargs.get(KEYWORD) or current()
            sites = [s for s in chain if _active(context, s)]
            if not sites or context is None:
                return original(*args, **kwargs)
            whole: Any = None  # everything the original gave, where it gave more than hidden states

            def call(x: Tensor) -> Tensor:
                nonlocal whole
                new_args, new_kwargs = _with_hidden(args, kwargs, x)
                whole = original(*new_args, **new_kwargs)
                return _first(whole)

            run: Callable[[Tensor], Tensor] = call
            for acting in sites:
                run = partial(_nest, acting.function, run, context)
            y = run(_hidden(args, kwargs))  # sets `whole`
            return _with_first(whole, y)

        module.__dict__["forward"] = forward

        def restore() -> None:
            del module.__dict__["_tsugiki_around"]
            del module.__dict__["forward"]
            if had_own:
                module.__dict__["forward"] = original

        module.__dict__["_tsugiki_restore"] = restore
    chain.append(site)

    def remove() -> None:
        chain.remove(site)
        if not chain:
            module.__dict__.pop("_tsugiki_restore")()

    return remove


class _AttentionConfig:
    """A layer's view of the LLM's config that sends its attention through the site; all else is the LLM's own."""

    _wrapped: Any

    def __init__(self, config: Any) -> None:
        self.__dict__["_wrapped"] = config

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.__dict__["_wrapped"], name)
        return _register(value) if name == "_attn_implementation" else value

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._wrapped, name, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> _AttentionConfig:
        return _AttentionConfig(copy.deepcopy(self._wrapped, memo))


_PREFIX = "tsugiki|"


def _nest_attention(
    function: Callable[..., Any],
    call: Callable[..., Any],
    context: Context,
    keywords: dict[str, Any],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    **changes: Any,
) -> Any:
    return function(call, q, k, v, context, **{**keywords, **changes})


def _register(implementation: str) -> str:
    """Register an attention function that consults the layer's sites and then calls the original; returns its name."""
    name = _PREFIX + implementation
    if name not in ALL_ATTENTION_FUNCTIONS:

        def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
            if _ENTERED is not None:
                _ENTERED.add(id(module))
            chain: list[Site] = module.__dict__.get("_tsugiki_attention", [])
            eager: Any = module.__dict__.get("_tsugiki_eager")
            original = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager)
            context = kwargs.get(KEYWORD) or current()
            sites = [s for s in chain if _active(context, s)]
            if not sites or context is None:
                return original(module, query, key, value, *args, **kwargs)

            def run(q: Tensor, k: Tensor, v: Tensor, **changes: Any) -> Any:
                return original(module, q, k, v, *args, **{**kwargs, **changes})

            call: Callable[..., Any] = run
            for acting in sites:
                call = partial(_nest_attention, acting.function, call, context, dict(kwargs))
            return call(query, key, value)

        ALL_ATTENTION_FUNCTIONS.register(name, attend)
    return name


_ENTERED: set[int] | None = None  # ids of the attention modules that were called, while someone wants to know


def refuse_unregistered(decoder: DecoderSpec) -> None:
    """Whether attention sites are reached: some families never ask the registry, or ask for the kernel by its name.

    Raises:
        UnsupportedError: a hooked attention does not run through the registered function.
    """
    global _ENTERED
    hooked = {id(b.attention) for b in decoder.blocks if "_tsugiki_attention" in b.attention.__dict__}
    if not hooked:
        return
    _ENTERED = set()
    try:
        decoder.probe()
        missed = hooked - _ENTERED
    finally:
        _ENTERED = None
    if missed:
        raise _unregistered(decoder.name)


def _unregistered(name: str) -> UnsupportedError:
    return UnsupportedError(
        f"{name} does not run its attention through transformers' attention functions",
        expected="a family whose attention asks the registry",
        fix="Use a graft that does not hook attention: projector, cross_attention, or wings with router='none'.",
    )


def _attention(site: Site) -> Callable[[], None]:
    module: Any = site.module
    if not hasattr(module, "config"):
        raise _unregistered(type(module).__name__)
    chain = module.__dict__.setdefault("_tsugiki_attention", [])
    if not chain:
        module.config = _AttentionConfig(module.config)
        home = importlib.import_module(type(module).__module__)
        module.__dict__["_tsugiki_eager"] = getattr(home, "eager_attention_forward", None)
    chain.append(site)

    def remove() -> None:
        chain.remove(site)
        if not chain:
            module.config = module.config._wrapped
            del module.__dict__["_tsugiki_attention"], module.__dict__["_tsugiki_eager"]

    return remove


_INSTALL: dict[SiteKind, Callable[[Site], Callable[[], None]]] = {
    "before": _before,
    "after": _after,
    "around": _around,
    "attention": _attention,
    "embed": _embed,
    "norm": _around,
    "head": _around,
}


def claims(graft: Graft) -> dict[str, Any]:
    """Where a graft comes from, as its file states it: paper, code, licence."""
    module = sys.modules[type(graft).__module__]
    return {name.lower(): getattr(module, name, None) for name in ("PAPER", "CODE", "LICENSE")}
