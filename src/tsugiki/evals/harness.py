"""lm-eval on our models: its local tasks on text requests, and the same tasks asked after a picture.

The tasks are `lm_tasks/*.yaml`; their documents are given in memory, so nothing is downloaded. lm-eval comes with the
extra `eval`.
"""

from __future__ import annotations

import copy
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from importlib.resources import files
from itertools import groupby
from typing import Any

import yaml

from tsugiki.errors import DataError, UnknownNameError, UnsupportedError
from tsugiki.evals.options import OptionScorer, without_pictures
from tsugiki.extras import require
from tsugiki.types import ImagePart, ImageSource, Message, Sample, TextPart

LEAD = "Here is a picture. What I ask now has nothing to do with it.\n\n"

Document = Mapping[str, Any]


def tasks() -> list[str]:
    """Names of the local lm-eval tasks."""
    names = (f.name for f in files("tsugiki.evals").joinpath("lm_tasks").iterdir())
    return sorted(n.removesuffix(".yaml") for n in names if n.endswith(".yaml"))


def run(lm: Any, documents: Mapping[str, Sequence[Document]]) -> dict[str, list[float]]:
    """Run local tasks and return one value a document, in their order: its main metric, or nats for a loss.

    Args:
        lm: from `text_lm` or `picture_lm`, or any LM of lm-eval.
        documents: task name -> documents; choices have "context", "options" and "answer", losses have "text".

    Raises:
        UnknownNameError: no such task.
        DataError: a task without documents.
    """
    lm_eval = require("lm_eval", extra="eval")
    with _quiet():
        built = {name: _task(name, rows) for name, rows in documents.items()}
        result = lm_eval.simple_evaluate(
            model=lm,
            tasks=list(built.values()),
            task_manager=require("lm_eval.tasks", extra="eval").TaskManager(include_defaults=False),
            bootstrap_iters=0,  # intervals are paired, and so ours
            log_samples=True,
        )
    return {name: _values(result["samples"][task.config.task], task) for name, task in built.items()}


def text_lm(model: Any, tokenizer: Any, *, batch_size: int = 8) -> Any:
    """lm-eval's own wrapper, for requests without a picture.

    Args:
        model: a composite or a bare LLM.
        tokenizer: the LLM's; a copy is used, because lm-eval sets its padding.
    """
    hf = require("lm_eval.models.huggingface", extra="eval")
    config = getattr(model, "language_model", model).config
    length = int(getattr(config, "max_position_embeddings", None) or 2048)
    with _quiet():
        return hf.HFLM(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),
            backend="causal",
            batch_size=batch_size,
            max_length=length,
        )


def picture_lm(model: Any, pictures: Sequence[ImageSource], *, llm: Any = None, batch_size: int = 8) -> Any:
    """An LM of lm-eval that asks every multiple-choice question in a conversation that began with a picture.

    Args:
        model: the composite.
        pictures: question i is asked after picture i modulo their number.
        llm: the bare LLM instead: the same conversation without the picture.
    """
    base: Any = require("lm_eval.api.model", extra="eval").LM
    scorer = OptionScorer(model, llm=llm, batch_size=batch_size)

    class PictureLM(base):  # type: ignore[misc]
        """Log-likelihoods of options as answers."""

        def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            samples = []
            for (_, i), found in groupby(requests, key=lambda r: (r.task_name, r.doc_id)):
                group = [request.args for request in found]
                context, options = group[0][0], tuple(continuation.strip() for _, continuation in group)
                messages = after_picture([Message.of("user", context)], pictures[i % len(pictures)])
                sample = Sample(id=str(i), messages=messages, options=options)
                samples.append(sample if llm is None else without_pictures(sample))
            return [(value, False) for found in scorer(samples) for value in found.logprobs]

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            raise _unsupported("loglikelihood_rolling")

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            raise _unsupported("generate_until")

    return PictureLM()


def after_picture(messages: Sequence[Message], picture: ImageSource) -> tuple[Message, ...]:
    """The same conversation with an unrelated picture, and the words that say so, in front of its first user turn."""
    at = next(i for i, message in enumerate(messages) if message.role == "user")
    parts = (ImagePart(picture), TextPart(LEAD), *messages[at].parts)
    return (*messages[:at], Message("user", parts), *messages[at + 1 :])


def _task(name: str, rows: Sequence[Document]) -> Any:
    if name not in tasks():
        raise UnknownNameError("lm-eval task", name, tasks())
    if not rows:
        raise DataError("no documents", expected="at least one", where=name)
    datasets = require("datasets", extra="eval")
    text = files("tsugiki.evals").joinpath("lm_tasks", f"{name}.yaml").read_text(encoding="utf-8")
    data = {"test": datasets.Dataset.from_list([dict(r) for r in rows])}
    config = {**yaml.safe_load(text), "custom_dataset": lambda **_: data}
    return require("lm_eval.api.task", extra="eval").ConfigurableTask(config=config)


def _values(samples: Sequence[Mapping[str, Any]], task: Any) -> list[float]:
    metric = task.config.metric_list[0]["metric"]
    ordered = sorted(samples, key=lambda s: int(s["doc_id"]))
    # A perplexity's value of a document is (log-likelihood in nats, bytes).
    return [float(-s[metric][0]) if isinstance(s[metric], tuple) else float(s[metric]) for s in ordered]


def _unsupported(what: str) -> UnsupportedError:
    return UnsupportedError(
        f"a request of the kind {what} after a picture",
        expected="multiple choice",
        fix="Measure it on text requests with text_lm.",
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval reports every default that it takes, and draws bars."""
    noise = io.StringIO()  # its progress bars
    loggers = [logging.getLogger(n) for n in ("lm_eval", "lm-eval", "lm_eval.evaluator")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(noise):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
