"""What a model's text lost against its base, measured in one run, item by item, with paired intervals.

On text requests, and after an unrelated picture (`@picture`; the base reads the same words without it):

* `wiki`: loss and KL against the base on held-out text, nats a token;
* `title_choice`, `next_sentence`, `definition_choice`, `arithmetic`: accuracy of multiple-choice questions,
  through lm-eval;
* `answers`: how far greedy answers agree with the base's.

A budget (`evals.budget`) says how large a drop may be.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image, ImageDraw

from tsugiki.errors import DataError, UnknownNameError
from tsugiki.evals import harness, stats
from tsugiki.evals._sides import Sides, joined
from tsugiki.evals.arithmetic import arithmetic
from tsugiki.evals.budget import AFTER, SUITES, Budget, Violation, apply_budget, check_lines, load_budget
from tsugiki.evals.prompts import Given, Prompt, collect
from tsugiki.evals.text_items import CHANCE, Choice, definition_choice, next_sentence, passages, title_choice
from tsugiki.types import ImageSource, Score

__all__ = [
    "AFTER",
    "SUITES",
    "Budget",
    "Material",
    "PowerCheck",
    "Violation",
    "apply_budget",
    "damaged_copy",
    "load_budget",
    "power_check",
    "retention",
    "unrelated_pictures",
]

VERSION = 1

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Material:
    """What is asked. Own material takes the place of Wikipedia's."""

    texts: Sequence[str] = ()
    choices: Mapping[str, Sequence[Choice]] = field(default_factory=dict)
    """Suite name -> questions."""
    prompts: Sequence[Prompt] = ()
    pictures: Sequence[ImageSource] = ()

    @classmethod
    def wiki(cls, n: int, suites: Sequence[str] = SUITES, *, prompts: Given | None = None, seed: int = 0) -> Material:
        """Held-out articles of the asset `wiki` and the bundled (and own) prompts, `n` items a suite at most.

        Raises:
            AssetError: the asset is not fetched.
        """
        makers = {
            "title_choice": title_choice,
            "next_sentence": next_sentence,
            "definition_choice": definition_choice,
            "arithmetic": arithmetic,
        }
        return cls(
            texts=passages(n, seed=seed) if "wiki" in suites else (),
            choices={name: make(n, seed=seed) for name, make in makers.items() if name in suites},
            prompts=_simple(collect(prompts))[:n],
            pictures=unrelated_pictures(8, seed=seed),
        )


@dataclass(frozen=True)
class PowerCheck:
    """Does the gate see damage? `holds` = the damaged copy failed it by a drop, not only for want of items."""

    holds: bool
    noise: float
    scores: tuple[Score, ...]
    violations: tuple[Violation, ...]


def retention(
    model: Any,
    *,
    suites: Sequence[str] = SUITES,
    budget: Budget | None = None,
    n: int = 100,
    after_picture: bool = True,
    measure_exact: bool = True,
    material: Material | None = None,
    base: Any = None,
    max_new_tokens: int = 24,
    batch_size: int = 4,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Score]:
    """Measure what the text of a model lost against its base.

    Args:
        model: the composite.
        suites: some of `SUITES`.
        budget: scores that break it say so in their note; `apply_budget` gives them as a list.
        n: items a suite.
        after_picture: also ask after an unrelated picture.
        measure_exact: False takes, for an `exact` model, the base's figures on text requests for the model's too, which
            `verify` proves equal: half the time, and the note says so.
        material: own texts, questions, prompts and pictures.
        base: the bare LLM, where the model's LLM was trained and its source is not here.
        max_new_tokens: length of the greedy answers.

    Raises:
        UnknownNameError: no such suite.
        AssetError: the asset `wiki` is not fetched (and no own material is given).
        DataError: a line of the budget that would judge nothing.
        InputError: the LLM was trained and no base is found.
    """
    for name in suites:
        if name not in SUITES:
            raise UnknownNameError("retention suite", name, SUITES)
    if budget is not None:
        check_lines(budget, suites, after_picture)
    material = material or Material.wiki(n, suites, seed=seed)
    training = model.training
    model.eval()
    try:
        sides = Sides(model, base=base, proven=model.guarantee == "exact" and not measure_exact)
        run = _Run(sides, material, max_new_tokens, batch_size, progress or (lambda _: None))
        scores = list(run.scores(suites, after_picture))
    finally:
        model.train(training)
    return scores if budget is None else _noted(scores, apply_budget(scores, budget))


def power_check(
    model: Any,
    *,
    budget: Budget,
    noise: float = 0.1,
    suites: Sequence[str] = SUITES,
    n: int = 100,
    material: Material | None = None,
    max_new_tokens: int = 24,
    batch_size: int = 4,
    seed: int = 0,
    progress: Progress | None = None,
) -> PowerCheck:
    """Show that the gate sees damage: a copy of the LLM with noise on its weights has to break the budget.

    Args:
        noise: standard deviation of the noise, as a share of that of each matrix.
        budget: as for `retention`; lines for requests after a picture are left out, the copy has no eyes.
    """
    budget = {key: limit for key, limit in budget.items() if AFTER not in key}
    check_lines(budget, suites, after_picture=False)
    material = material or Material.wiki(n, suites, seed=seed)
    with Sides(model).base() as llm:
        damaged = damaged_copy(llm, noise, seed=seed)
    run = _Run(Sides(model, own=damaged), material, max_new_tokens, batch_size, progress or (lambda _: None))
    scores = list(run.scores(suites, after_picture=False))
    found = apply_budget(scores, budget)
    seen = any(v.score.informative and v.drop > v.limit for v in found)
    return PowerCheck(seen, noise, tuple(_noted(scores, found)), tuple(found))


def damaged_copy(llm: Any, noise: float, *, seed: int = 0) -> Any:
    """A copy of an LLM with Gaussian noise on every matrix, of `noise` times the matrix's own standard deviation."""
    damaged = copy.deepcopy(llm).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in damaged.parameters():
            if parameter.dim() >= 2 and parameter.is_floating_point():
                added = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.add_(added * (noise * float(parameter.float().std())))
    return damaged


def unrelated_pictures(n: int, *, seed: int = 0, side: int = 224) -> list[Image.Image]:
    """Made-up pictures: shapes in plain colours, about nothing that text questions ask."""
    generator = torch.Generator().manual_seed(seed)
    pictures = []
    for i in range(n):
        values = torch.randint(0, 256, (10,), generator=generator).tolist()
        picture = Image.new("RGB", (side, side), tuple(values[:3]))
        x, y = (v * side // 512 for v in values[6:8])
        draw = ImageDraw.Draw(picture)
        (draw.ellipse if i % 2 else draw.rectangle)((x, y, x + side // 3, y + side // 3), fill=tuple(values[3:6]))
        pictures.append(picture)
    return pictures


@dataclass(frozen=True)
class _Run:
    sides: Sides
    material: Material
    max_new_tokens: int
    batch_size: int
    tell: Progress

    def scores(self, suites: Sequence[str], after_picture: bool) -> Iterator[Score]:
        for pictures in ((), self.material.pictures) if after_picture and self.material.pictures else ((),):
            where = AFTER if pictures else ""
            if "wiki" in suites and self.material.texts:
                yield from self._told(self._losses(pictures, where))
            chosen = {name: items for name, items in self.material.choices.items() if name in suites}
            if chosen:
                yield from self._told(self._choices(chosen, pictures, where))
            if "answers" in suites and self.material.prompts:
                yield from self._told(self._answers(pictures, where))

    def _told(self, scores: Iterator[Score]) -> Iterator[Score]:
        for score in scores:
            if self.sides.proven and AFTER not in score.task:
                score = replace(score, note=f"{score.note}; equal by the guarantee, not measured again".strip("; "))
            base = "" if score.base is None else f", base {score.base:.4g}"
            self.tell(f"{score.task}.{score.metric}: {score.value:.4g}{base} (n={score.n})")
            yield score

    def _losses(self, pictures: Sequence[ImageSource], where: str) -> Iterator[Score]:
        texts = self.material.texts
        parts = (
            self.sides.picture_losses(texts, pictures) if pictures else self.sides.text_losses(texts, self.batch_size)
        )
        found = joined(parts)
        if not found.tokens:
            raise DataError("no text whose tokens are the same with and without a picture", where=f"wiki{where}")
        for metric, own, base in (
            ("loss", found.own, found.base),
            ("kl", found.divergence, [0.0] * len(found.tokens)),
        ):
            values, reference = ([t / k for t, k in zip(x, found.tokens, strict=True)] for x in (own, base))
            note = f"{sum(found.tokens)} tokens, nats a token"
            yield stats.score(
                f"wiki{where}", metric, values, reference, weights=found.tokens, note=note, version=VERSION
            )

    def _choices(
        self, chosen: Mapping[str, Sequence[Choice]], pictures: Sequence[ImageSource], where: str
    ) -> Iterator[Score]:
        documents = {name: [c.document() for c in items] for name, items in chosen.items()}
        model, size = self.sides.model, 2 * self.batch_size
        with self.sides.base() as llm:
            if pictures:
                lm = harness.chat_lm(model, pictures, llm=llm, batch_size=size)
            else:
                lm = harness.text_lm(llm, model.tokenizer, batch_size=size)
            base = harness.run(lm, documents)
        if pictures:
            own = harness.run(harness.chat_lm(model, pictures, batch_size=size), documents)
        elif self.sides.proven:
            own = base
        else:
            own = harness.run(harness.text_lm(self.sides.own, model.tokenizer, batch_size=size), documents)
        for name in chosen:
            yield stats.score(
                f"{name}{where}", "accuracy", own[name], base[name], chance=CHANCE, note="lm-eval", version=VERSION
            )

    def _answers(self, pictures: Sequence[ImageSource], where: str) -> Iterator[Score]:
        values = list(self.sides.agreements(self.material.prompts, self.max_new_tokens, pictures))
        whole = sum(v == 1 for v in values)
        note = f"{whole} of {len(values)} greedy answers are the base's, word for word"
        yield stats.score(f"answers{where}", "agreement", values, [1.0] * len(values), note=note, version=VERSION)


def _simple(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Prompts that every template takes: no system turn."""
    return [p for p in prompts if p.turns[0][0] != "system"]


def _noted(scores: Sequence[Score], violations: Sequence[Violation]) -> list[Score]:
    broken = {(v.score.task, v.score.metric): v for v in violations}
    out = []
    for score in scores:
        found = broken.get((score.task, score.metric))
        out.append(score if found is None else replace(score, note=f"{score.note}; {found}".strip("; ")))
    return out
