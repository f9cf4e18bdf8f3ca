"""Our models in lmms-eval (0.7): `lmms_eval --model tsugiki --model_args pretrained=runs/a/graft --tasks pope`.

lmms-eval finds `manifest` by the entry point group "lmms_eval.models", and then asks this module for `Tsugiki`. It is
no dependency of ours: its own are many, so give it an environment of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from tsugiki.errors import MissingExtraError, UnsupportedError
from tsugiki.evals.free import FreeAnswerer
from tsugiki.evals.options import OptionScorer
from tsugiki.extras import require
from tsugiki.types import Message, Sample

TOKENS = 256
"""Of an answer, where a task does not say."""


def manifest() -> Any:
    """What lmms-eval's registry takes."""
    registry = _theirs("lmms_eval.models.registry_v2")
    return registry.ModelManifest(model_id="tsugiki", simple_class_path=f"{__name__}.Tsugiki")


def __getattr__(name: str) -> Any:
    """`Tsugiki` is a class of lmms-eval's, and exists where that is installed."""
    if name == "Tsugiki":
        return model_class(_theirs("lmms_eval.api.model").lmms)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _theirs(module: str) -> Any:
    """A module of lmms-eval, which no extra of ours installs."""
    try:
        return require(module, extra="eval")
    except MissingExtraError as error:
        raise MissingExtraError("lmms_eval is not installed", fix="Run: pip install lmms-eval") from error


@cache
def model_class(base: type) -> type:
    """An LMM of lmms-eval on a saved graft.

    Args:
        base: `lmms_eval.api.model.lmms`.
    """

    class Tsugiki(base):  # type: ignore[misc]
        """`pretrained` is a graft's folder, `base` its LLM (None = the stored one), or `model` a loaded model."""

        is_simple = True

        def __init__(
            self,
            pretrained: str = "",
            base: str | None = None,
            batch_size: int = 8,
            device: str = "cpu",
            model: Any = None,
            **ignored: Any,
        ) -> None:
            super().__init__()
            if model is None:
                from tsugiki.store import load

                loaded: Any = load(pretrained, base=base)
                model = loaded.to(device)
            self.model, self.batch_size, self.device = model, int(batch_size), device

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            answers = []
            for start in range(0, len(requests), self.batch_size):
                window = [r.args for r in requests[start : start + self.batch_size]]
                limits = [int(given.get("max_new_tokens") or TOKENS) for _, given, *_ in window]
                samples = [self._sample(a[0], a[2:]) for a in window]
                ask = FreeAnswerer(self.model, batch_size=len(window), max_new_tokens=max(limits))
                answers += [_until(text, a[1].get("until")) for text, a in zip(ask(samples), window, strict=True)]
            return answers

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            """Nats of each continuation as a whole answer; whether greedy decoding gives it is not told (False)."""
            samples = []
            for context, target, *rest in (r.args for r in requests):
                text = target if isinstance(target, str) else target(self._document(rest))
                samples.append(self._sample(context, rest, options=(str(text).strip(),)))
            found = OptionScorer(self.model, batch_size=self.batch_size)(samples)
            return [(scores.logprobs[0], False) for scores in found]

        def generate_until_multi_round(self, requests: Any) -> Any:
            raise UnsupportedError(
                "questions in several rounds", expected="tasks of one round", fix="Choose tasks without rounds."
            )

        def _document(self, rest: Sequence[Any]) -> Any:
            _, number, task, split = rest
            return self.task_dict[task][split][number]

        def _sample(self, context: str, rest: Sequence[Any], **fields: Any) -> Sample:
            visual: Callable[[Any], Sequence[Any]] | None = rest[0]
            images = tuple(visual(self._document(rest)) or ()) if visual is not None else ()
            text = context.replace("<image>", "").strip()
            return Sample(id=str(rest[1]), messages=(Message.of("user", text, images),), **fields)

    return Tsugiki


def _until(text: str, stops: Any) -> str:
    """The text before the first of the stops."""
    for stop in [stops] if isinstance(stops, str) else stops or ():
        text = text.split(stop)[0] if stop else text
    return text.strip()
