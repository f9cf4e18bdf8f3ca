"""lm-eval on our models: its local tasks on text requests, in conversations, and asked after a picture.

The tasks are `lm_tasks/*.yaml`; their documents are given in memory, so nothing is downloaded. lm-eval comes with the
extra `eval`.
"""

from __future__ import annotations

import copy
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby
from typing import Any

import yaml

from tsugiki.errors import DataError, UnknownNameError, UnsupportedError
from tsugiki.evals import rules
from tsugiki.evals.free import FreeAnswerer
from tsugiki.evals.options import OptionScorer, without_pictures
from tsugiki.extras import require
from tsugiki.types import ImagePart, ImageSource, Message, Sample, TextPart

LONGEST = 256
"""Tokens of an answer whose task sets no limit, as lm-eval has it."""
SEED = 1234
"""Of the choice of solved examples, as lm-eval has it."""
LEAD = "Here is a picture. What I ask now has nothing to do with it.\n\n"

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one document."""

    value: float
    """The task's main metric, or nats for a loss."""
    text: str = ""
    """The answer, where one was generated."""


def tasks() -> list[str]:
    """Names of the local lm-eval tasks."""
    names = (f.name for f in files("tsugiki.evals").joinpath("lm_tasks").iterdir())
    return sorted(n.removesuffix(".yaml") for n in names if n.endswith(".yaml"))


def run(lm: Any, documents: Mapping[str, Sequence[Document]]) -> dict[str, list[float]]:
    """As `outcomes`, the values alone."""
    return {name: [o.value for o in found] for name, found in outcomes(lm, documents).items()}


def outcomes(lm: Any, documents: Mapping[str, Sequence[Document]]) -> dict[str, list[Outcome]]:
    """Run local tasks and return one outcome a document, in their order.

    Args:
        lm: from `text_lm` or `chat_lm`, or any LM of lm-eval.
        documents: task name -> documents; choices have "context", "options" and "answer", losses have "text", and
            what is generated has "context" and "checks" (see `evals.rules`).

    Raises:
        UnknownNameError: no such task.
        DataError: a task without documents.
    """
    with quiet():
        built = {name: _task(name, rows) for name, rows in documents.items()}
    found = asked(lm, list(built.values()))
    return {name: _outcomes(found[task.config.task], task) for name, task in built.items()}


def asked(
    lm: Any, tasks: Sequence[Any], *, fewshot: int = 0, items: Mapping[str, list[int]] | None = None
) -> dict[str, list[Mapping[str, Any]]]:
    """Run tasks of lm-eval and return its record of every document, by the task's name.

    Its `evaluate` and not `simple_evaluate`, which after each run collects what is installed: seconds, and git's
    complaints where it runs outside a checkout.

    Args:
        fewshot: solved examples in front of each.
        items: task name -> indices of the documents, ascending; None = all.
    """
    evaluator = require("lm_eval.evaluator", extra="eval")
    for task in tasks:
        task.set_config(key="num_fewshot", value=fewshot)
        task.set_fewshot_seed(seed=SEED)
    with quiet():
        result = evaluator.evaluate(
            lm=lm,
            task_dict={task.config.task: task for task in tasks},
            samples=None if items is None else dict(items),
            bootstrap_iters=0,  # intervals are paired, and so ours
            log_samples=True,
        )
    found: dict[str, list[Mapping[str, Any]]] = result["samples"]
    return found


def text_lm(model: Any, tokenizer: Any, *, batch_size: int = 8) -> Any:
    """lm-eval's own wrapper, for requests without a picture.

    Args:
        model: a composite or a bare LLM.
        tokenizer: the LLM's; a copy is used, because lm-eval sets its padding.
    """
    hf = require("lm_eval.models.huggingface", extra="eval")
    config = getattr(model, "language_model", model).config
    length = int(getattr(config, "max_position_embeddings", None) or 2048)
    with quiet():
        return hf.HFLM(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),
            backend="causal",
            batch_size=batch_size,
            max_length=length,
        )


def chat_lm(model: Any, pictures: Sequence[ImageSource] = (), *, llm: Any = None, batch_size: int = 8) -> Any:
    """An LM of lm-eval that asks everything as the user's turn of a conversation, by the LLM's chat template.

    Args:
        model: the composite.
        pictures: question i is asked after picture i modulo their number; () = without one.
        llm: the bare LLM instead: the same conversation without the picture.
    """
    base: Any = require("lm_eval.api.model", extra="eval").LM

    def sample_of(request: Any, options: tuple[str, ...] = ()) -> Sample:
        messages: tuple[Message, ...] = (Message.of("user", request.args[0]),)
        if pictures:
            messages = after_picture(messages, pictures[request.doc_id % len(pictures)])
        sample = Sample(id=str(request.doc_id), messages=messages, options=options)
        return sample if llm is None else without_pictures(sample)

    class ChatLM(base):  # type: ignore[misc]
        """Log-likelihoods of options as answers, and greedy answers."""

        def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            groups = [list(found) for _, found in groupby(requests, key=lambda r: (r.task_name, r.doc_id))]
            options = [[request.args[1].strip() for request in group] for group in groups]
            # A published question may have an answer twice.
            samples = [sample_of(g[0], tuple(dict.fromkeys(o))) for g, o in zip(groups, options, strict=True)]
            scored = OptionScorer(model, llm=llm, batch_size=batch_size)(samples)
            known = [dict(zip(found.options, found.logprobs, strict=True)) for found in scored]
            return [(values[o], False) for values, found in zip(known, options, strict=True) for o in found]

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            answers: list[str] = []
            for length, found in groupby(requests, key=lambda r: r.args[1].get("max_gen_toks", LONGEST)):
                group = list(found)
                answerer = FreeAnswerer(model, llm=llm, batch_size=batch_size, max_new_tokens=length)
                said = answerer([sample_of(request) for request in group])
                answers += [_until(text, r.args[1].get("until")) for text, r in zip(said, group, strict=True)]
            return answers

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            raise UnsupportedError(
                "a request of the kind loglikelihood_rolling in a conversation",
                expected="multiple choice, or an answer",
                fix="Measure it on text requests with text_lm.",
            )

    return ChatLM()


def _until(text: str, stops: Sequence[str] | str | None) -> str:
    """An answer up to the first of the texts that end it."""
    for stop in [stops] if isinstance(stops, str) else stops or ():
        text = text.partition(stop)[0] if stop else text
    return text


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
    if config["output_type"] == "generate_until":
        config["process_results"] = rules.judge
    return require("lm_eval.api.task", extra="eval").ConfigurableTask(config=config)


def _outcomes(samples: Sequence[Mapping[str, Any]], task: Any) -> list[Outcome]:
    metric = task.config.metric_list[0]["metric"]
    written = task.config.output_type == "generate_until"
    found = []
    for sample in sorted(samples, key=lambda s: int(s["doc_id"])):
        # A perplexity's value of a document is (log-likelihood in nats, bytes).
        value = float(-sample[metric][0]) if isinstance(sample[metric], tuple) else float(sample[metric])
        found.append(Outcome(value, sample["filtered_resps"][0] if written else ""))
    return found


@contextmanager
def quiet() -> Iterator[None]:
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
