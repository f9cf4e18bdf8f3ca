"""Tsugiki gives a pretrained language model eyes and proves that it kept its words."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tsugiki.build import attach, available, methods
from tsugiki.configuration import TsugikiConfig
from tsugiki.model import TsugikiForConditionalGeneration
from tsugiki.processor import TsugikiProcessor
from tsugiki.store import load
from tsugiki.types import Batch, Box, Message, Proof, Sample, Score, Segment, VisualTokens

try:
    __version__ = version("tsugiki")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

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


# The verbs whose rooms need optional packages are functions here, so that the base install imports without them.
def train(*args: Any, **kwargs: Any) -> Any:
    """Train a model by a recipe; see `tsugiki.training.trainer.train`."""
    from tsugiki.training.trainer import train as run

    return run(*args, **kwargs)


def evaluate(*args: Any, **kwargs: Any) -> Any:
    """Score a model, the bare LLM in the same run; see `tsugiki.evals.task.evaluate`."""
    from tsugiki.evals.task import evaluate as run

    return run(*args, **kwargs)


def verify(*args: Any, **kwargs: Any) -> Proof:
    """Prove a model's guarantee; see `tsugiki.evals.proof.verify`."""
    from tsugiki.evals.proof import verify as run

    return run(*args, **kwargs)


def mix(*args: Any, **kwargs: Any) -> Any:
    """Average saved grafts of one base; see `tsugiki.mixing.linear`."""
    from tsugiki.mixing.linear import mix as run

    return run(*args, **kwargs)


def predict(*args: Any, **kwargs: Any) -> Any:
    """Answer for a folder of pictures; see `tsugiki.studies.predict.predict`."""
    from tsugiki.studies.predict import predict as run

    return run(*args, **kwargs)
