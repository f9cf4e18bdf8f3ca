"""The LLM side: one file is one method, and the file's name is the method's name everywhere.

A graft of another package joins through the entry-point group `tsugiki.grafts`.
"""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

from tsugiki.errors import UnknownNameError

GROUP = "tsugiki.grafts"


def _plugins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def available() -> list[str]:
    """Names of all grafts, sorted: the files of this folder and other packages' entry points."""
    own = {m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")}
    return sorted(own | set(_plugins()))


def load(name: str) -> ModuleType:
    """Return the method's module: `Config`, `Graft`, and its claims.

    Raises:
        UnknownNameError: no graft of that name.
    """
    plugins = _plugins()
    if name not in available():
        raise UnknownNameError("graft", name, available())
    if name in plugins:
        module: ModuleType = plugins[name].load()
        return module
    return importlib.import_module(f"{__name__}.{name}")
