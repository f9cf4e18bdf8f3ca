"""What all methods of mixing share: the decorator that makes a function a method."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tsugiki.errors import UnknownNameError

F = TypeVar("F", bound=Callable[..., Path])
_METHODS: dict[str, Callable[..., Path]] = {}


def method(*, paper: str | None) -> Callable[[F], F]:
    """Make a function a method of mixing, named by its file: it takes `folders` first, `out`, and typed settings.

    Args:
        paper: where the method is from.
    """

    def register(function: F) -> F:
        name = function.__module__.rpartition(".")[2]
        parameters = inspect.signature(function).parameters
        bare = [p.name for p in parameters.values() if p.annotation is inspect.Parameter.empty]
        if list(parameters)[:1] != ["folders"] or "out" not in parameters or bare:
            raise TypeError(f"mixing/{name}.py: takes folders, ..., out, all with types; found {list(parameters)}")
        function.paper = paper  # type: ignore[attr-defined]
        _METHODS[name] = function
        return function

    return register


def get(name: str) -> Callable[..., Path]:
    """A method by name.

    Raises:
        UnknownNameError: no such method.
    """
    if name not in _METHODS:
        raise UnknownNameError("method of mixing", name, _METHODS)
    return _METHODS[name]
