"""The only code that imports what is optional."""

from __future__ import annotations

import importlib
from types import ModuleType

from tsugiki.errors import MissingExtraError


def require(module: str, *, extra: str) -> ModuleType:
    """Import `module`, or say which extra installs it.

    Raises:
        MissingExtraError: the package is not installed. An import error inside an installed package is passed on.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingExtraError(
            f"{module} is not installed", expected=f"the extra {extra!r}", fix=f"Run: pip install 'tsugiki[{extra}]'"
        ) from error
