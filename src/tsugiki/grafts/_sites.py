"""Places of the LLM where a graft acts, and the hooks that make it act there; each is taken away again without a trace.

A site does nothing unless the running request has an image, or the site says `on_text`.
Shapes: B rows, T positions, D width of the LLM.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeGuard

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tsugiki.decoder import DecoderSpec
from tsugiki.errors import UnsupportedError
from tsugiki.grafts._context import KEYWORD, Context, current

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


def install(site: Site) -> Callable[[], None]:
    """Hook a site into the LLM; returns what takes it away again.

    Raises:
        UnsupportedError: the attention of the family can't be hooked.
    """
    return _INSTALL[site.kind](site)
