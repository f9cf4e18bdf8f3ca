"""Tsugiki gives a pretrained language model eyes and proves that it kept its words."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tsugiki.build import attach, available, methods
    from tsugiki.configuration import TsugikiConfig
    from tsugiki.evals.proof import verify
    from tsugiki.evals.task import evaluate
    from tsugiki.mixing.linear import mix
    from tsugiki.model import TsugikiForConditionalGeneration
    from tsugiki.processor import TsugikiProcessor
    from tsugiki.store import load
    from tsugiki.studies.predict import predict
    from tsugiki.training.trainer import train
    from tsugiki.types import Batch, Box, Message, Proof, Sample, Score, Segment, VisualTokens

try:
    __version__ = version("tsugiki")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

_HOMES = {
    "attach": "build",
    "available": "build",
    "methods": "build",
    "TsugikiConfig": "configuration",
    "verify": "evals.proof",
    "evaluate": "evals.task",
    "mix": "mixing.linear",
    "TsugikiForConditionalGeneration": "model",
    "TsugikiProcessor": "processor",
    "load": "store",
    "predict": "studies.predict",
    "train": "training.trainer",
    **dict.fromkeys(("Batch", "Box", "Message", "Proof", "Sample", "Score", "Segment", "VisualTokens"), "types"),
}
__all__ = [
    "Batch",
    "Box",
    "Message",
    "Proof",
    "Sample",
    "Score",
    "Segment",
    "TsugikiConfig",
    "TsugikiForConditionalGeneration",
    "TsugikiProcessor",
    "VisualTokens",
    "attach",
    "available",
    "evaluate",
    "load",
    "methods",
    "mix",
    "predict",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Public names are looked up when they are used: rooms of optional packages, and a command that answers at once."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"tsugiki.{_HOMES[name]}"), name)
    if not name.startswith("_"):
        try:
            return importlib.import_module(f"tsugiki.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"tsugiki.{name}":
                raise
    raise AttributeError(f"module 'tsugiki' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _is_command() -> bool:
    """Whether this process is the command line: the console script, or `python -m tsugiki.cli`."""
    module = sys.orig_argv[sys.orig_argv.index("-m") + 1 :][:1] if "-m" in sys.orig_argv else []
    return Path(sys.argv[0] if sys.argv else "").stem == "tsugiki" or (
        sys.argv[:1] == ["-m"] and module == ["tsugiki.cli"]
    )


# `AutoModelForImageTextToText` has to know our class after `import tsugiki`; the command line asks for it by itself.
if not _is_command():
    importlib.import_module("tsugiki.processor")
