"""Everything that Tsugiki raises on purpose.

    TsugikiError
    ├── InputError (ValueError)        what the user gave
    │   ├── DataError                  a line or field of a data file
    │   ├── ImageError                 a picture that can't be read, or is too large
    │   ├── BoxError                   a box outside its picture, of no or negative size
    │   ├── PromptError                placeholders, roles, a text longer than the context
    │   ├── RecipeError                a recipe that can't be run
    │   └── UnknownNameError           a name that does not exist, with the nearest one that does
    ├── UnsupportedError               a graft refuses an LLM family or a feature, and says why
    ├── BaseMismatchError              a graft is put on another base than it was made for
    ├── StoreError (OSError)           saving and loading: full disk, newer version, pickle, damaged file
    ├── AssetError (OSError)           fetching: wrong hash, no network, full disk
    ├── ProofError                     a proof that was edited or does not belong here
    └── MissingExtraError (ImportError)  an optional dependency, with the pip command that installs it

Every message says what was found, what was expected, and what to do, on one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TsugikiError(Exception):
    """Base of all errors.

    Args:
        found: what was found.
        expected: what was expected, without a final stop.
        fix: what to do, a sentence.
        where: file, file:line, or field.
    """

    def __init__(self, found: str, *, expected: str = "", fix: str = "", where: str = "") -> None:
        self.found, self.expected, self.fix, self.where = found, expected, fix, where
        text = f"{where}: {found}" if where else found
        if expected:
            text += f"; expected {expected}"
        if fix:
            text += f". {fix}"
        super().__init__(" ".join(text.split()))


class InputError(TsugikiError, ValueError):
    """The user's input can't be used."""


class DataError(InputError):
    """A line or field of a data file is wrong."""


class ImageError(InputError):
    """A picture can't be read, or is larger than the limit."""


class BoxError(InputError):
    """A box is outside its picture, or has no or negative size."""


class PromptError(InputError):
    """Placeholders, roles, or a text longer than the context."""


class RecipeError(InputError):
    """A recipe can't be run."""


class UnknownNameError(InputError):
    """A name that does not exist."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, where: str = "") -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else "Choose one of these."
        super().__init__(f"unknown {kind} {name!r}", expected=f"one of {', '.join(known)}", fix=hint, where=where)
        self.name, self.nearest = name, near[0] if near else None


class UnsupportedError(TsugikiError):
    """A graft refuses an LLM family or a feature."""


class BaseMismatchError(TsugikiError):
    """A graft is put on another base than it was made for."""


class StoreError(TsugikiError, OSError):
    """Saving or loading failed; nothing is half-written."""


class AssetError(TsugikiError, OSError):
    """An asset can't be fetched or does not match its hash."""


class ProofError(TsugikiError):
    """A proof was edited, or does not belong to this model."""


class MissingExtraError(TsugikiError, ImportError):
    """An optional dependency is missing."""
