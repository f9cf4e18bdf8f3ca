"""What is compared with few labels: each arm answers the same test pictures from the same few labelled ones.

An arm is a function of a `Draw`; its name in `ARMS` is that of tables and files. One that trains begins from a fresh
`draw.start()`; one that does not asks `draw.model`, which no arm changes. Tuning in context is one function: what makes
it MMICT or plain is whether the model has a hub.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tsugiki.data.demos import Groups, in_front
from tsugiki.errors import UnsupportedError
from tsugiki.evals import yardsticks
from tsugiki.evals.options import OptionScorer
from tsugiki.evals.task import Settings, short_answer
from tsugiki.studies import _divide, _in_context
from tsugiki.studies._draws import TASK
from tsugiki.studies.neighbours import BankDemos, Form, Recent, form_of, labelled, pooled
from tsugiki.training.recipe import Recipe
from tsugiki.training.trainer import train
from tsugiki.types import ImageSource, Sample

PLAIN, MMICT = "plain in context", "mmict"

Place = Callable[[Sample, Sequence[Sample]], Sample]
"""(question, its demonstrations, the most alike first) -> the question with these in front."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One size and fold: what an arm may learn from, and what it is asked."""

    labelled: Sequence[Sample]
    test: Sequence[Sample]
    start: Callable[[], Any]
    """A model with the weights that all arms begin with, a new one each time."""
    model: Any
    """One such model."""
    features: Any
    """Cached tower outputs, or None."""
    plan: Recipe
    """Of every training: the same steps and batches."""
    folder: Path
    """The arm's own."""
    shown: int
    """Demonstrations in front of a question."""
    classes: Sequence[str]
    seed: int
    batch_size: int = 8

    def trained(self, samples: Sequence[Sample] | None = None) -> Any:
        """A model that has learned from the labelled pictures, or from `samples` made of them; a training that was
        stopped is continued."""
        model, learn = self.start(), list(self.labelled if samples is None else samples)
        train(model, self.plan, self.folder / "run", data=learn, features=self.features, progress=False)
        return model

    def ask(self, model: Any, demos: BankDemos | None = None) -> list[str]:
        """The likeliest option for each test picture."""
        scorer = OptionScorer(model, features=self.features, demos=demos, batch_size=self.batch_size, tolerance=0.0)
        return [found.best() for found in scorer(self.test)]

    def with_bank(self, model: Any, form: Form = "pictures") -> list[str]:
        """As `ask`, with the labelled pictures that are nearest to each test picture in front of the question."""
        given: dict[str, Any] = {"form": form, "answers": self.classes, "features": self.features}
        with _in_context.shown_from(model, self.labelled, self.folder / "bank", self.shown, **given) as demos:
            return self.ask(model, demos)

    def yardstick(self, name: str) -> list[str]:
        """What a simple learner on the same features says."""
        settings = Settings(features=self.features, train=self.labelled, seed=self.seed)
        return yardsticks.choices(TASK, self.test, settings, self.model)[name]


Arm = Callable[[Draw], list[str]]


def fine_tuning(draw: Draw) -> list[str]:
    """Trained on the labelled pictures, as by `fit`."""
    return draw.ask(draw.trained())


def grouped(
    samples: Sequence[Sample],
    encode: Callable[[ImageSource], Tensor],
    plan: Recipe,
    place: Place,
    *,
    most: int,
    seed: int,
) -> list[Sample]:
    """Each sample with 0 to `most` of its nearest others in front, as a bank shows them; as often drawn anew as the
    training comes back to it. First all of them alone, which a warm start looks at.

    Args:
        encode: picture -> tower outputs [P, V].
        plan: what will be trained.
    """
    vectors = np.stack([pooled(encode(s.images[0])) for s in samples])
    near = _divide.nearness(samples)
    groups = Groups(samples=samples, most=most, sampler="nearest", vectors=vectors, seed=seed, near=near)
    epochs = -(-(plan.stages[0].draws or 1) // len(groups))
    drawn = [(e, groups(i, e)) for e in range(epochs) for i in range(len(groups))]
    return [*samples, *(replace(place(g.query, g.demos), id=f"{g.query.id} {e}") for e, g in drawn)]


def in_context(draw: Draw) -> list[str]:
    """Trained with demonstrations in front, and asked with the nearest labelled pictures in front, in the same form:
    through the model's hub (MMICT), or as pictures and labels (plain tuning in context)."""
    encode = draw.features or Recent(draw.model)
    learn = grouped(draw.labelled, encode, draw.plan, as_shown(draw.model), most=draw.shown, seed=draw.seed)
    return draw.with_bank(draw.trained(learn))


def as_shown(model: Any) -> Place:
    """Demonstrations as a bank puts them in front of the model's questions."""
    return partial(_placed, form_of(model))


def as_pictures(query: Sample, demos: Sequence[Sample]) -> Sample:
    """Each demonstration as its picture and its label, the first one next to the question."""
    return _placed(None, query, demos)


def _placed(form: str | None, query: Sample, demos: Sequence[Sample]) -> Sample:
    shown = [(demo.images[0], short_answer(demo)) for demo in demos]
    return replace(query, messages=in_front(query.messages, labelled(query.messages, shown, form)))


def bank(draw: Draw) -> list[str]:
    """No step trained: the nearest labelled pictures stand in front of the question, each with its label."""
    return draw.with_bank(draw.model)


def bank_in_words(draw: Draw) -> list[str]:
    """No step trained: the labels of the nearest labelled pictures are said."""
    return draw.with_bank(draw.model, "words")


def probe(draw: Draw) -> list[str]:
    """Logistic regression on the features."""
    return draw.yardstick("probe")


def k_nn(draw: Draw) -> list[str]:
    """The vote of the nearest labelled pictures."""
    return draw.yardstick("k-NN")


ARMS: dict[str, Arm] = {
    "fine-tuning": fine_tuning,
    PLAIN: in_context,
    MMICT: in_context,
    "bank": bank,
    "bank in words": bank_in_words,
    "probe": probe,
    "k-NN": k_nn,
}


def able(arms: Sequence[str], *, hub: bool, other: bool, say: Callable[[str], None]) -> list[str]:
    """Of these arms, those that the given weights allow; says which ones are left out, and why.

    Args:
        hub: whether the model that all arms begin with has a hub.
        other: whether there is a second one, with a hub, for `MMICT` alone.

    Raises:
        UnsupportedError: none is left.
    """
    reasons = {}
    if hub:
        reasons[PLAIN] = "the graft has a hub, through which demonstrations go"
    elif not other:
        reasons[MMICT] = "the graft has no hub"
    left = [arm for arm in dict.fromkeys(arms) if arm not in reasons]
    for arm, why in reasons.items():
        if arm in arms and left:
            say(f"The arm {arm!r} is left out: {why}.")
    if not left:
        raise UnsupportedError(
            f"the arm {' and '.join(map(repr, dict.fromkeys(arms)))}: {next(iter(reasons.values()))}",
            expected=f"other arms ({', '.join(a for a in ARMS if a not in reasons)}), or another graft",
            fix="Leave the arms out to run all that can be; or begin with no graft, and both are made.",
            where="arms",
        )
    return left
