"""The suites of retention: each asks the model and its base the same, and gives scores of paired items."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from tsugiki.errors import DataError
from tsugiki.evals import harness, published, rules, stats
from tsugiki.evals._material import Material
from tsugiki.evals._sides import Losses, Sides, joined
from tsugiki.evals.budget import AFTER
from tsugiki.evals.options import OptionScorer, without_pictures
from tsugiki.evals.own import Own
from tsugiki.evals.text_items import CHANCE
from tsugiki.types import ImageSource, Sample, Score

VERSION = 1

Progress = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """Scores of the suites that have something to ask."""

    sides: Sides
    material: Material
    max_new_tokens: int
    batch_size: int
    tell: Progress
    form: str = ""
    """Behind the names of all scores, where the LLM runs in another form than it was handed over in."""
    how: str = ""
    """That form, in words."""

    def scores(self, suites: Sequence[str], after_picture: bool) -> Iterator[Score]:
        for pictures in ((), self.material.pictures) if after_picture and self.material.pictures else ((),):
            for score in self._asked(self.material.measured(suites), pictures):
                proven = "equal by the guarantee, not measured again" if self.sides.proven and not pictures else ""
                score = replace(
                    score,
                    task=f"{score.task}{AFTER if pictures else ''}{self.form}",
                    note="; ".join(words for words in (score.note, self.how, proven) if words),
                    version=VERSION,
                )
                base = "" if score.base is None else f", base {score.base:.4g}"
                self.tell(f"{score.task}.{score.metric}: {score.value:.4g}{base} (n={score.n})")
                yield score

    def _asked(self, suites: Sequence[str], pictures: Sequence[ImageSource]) -> Iterator[Score]:
        if "wiki" in suites:
            texts = self.material.texts
            sides, size = self.sides, self.batch_size
            read = sides.picture_losses(texts, pictures) if pictures else sides.text_losses(texts, size)
            yield from _lost("wiki", joined(read))
        yield from self._choices([name for name in suites if name in self.material.choices], pictures)
        if "instructions" in suites:
            yield self._instructions(pictures)
        if "answers" in suites:
            values = list(self.sides.agreements(self.material.prompts, self.max_new_tokens, pictures))
            yield _agreement("answers", values)
        for name in suites:
            if name in self.material.published:
                yield self._published(self.material.published[name], pictures)
        for name, judge in (
            ("own_options", self._own_options),
            ("own_answers", self._own_answers),
            ("own_prompts", self._own_prompts),
        ):
            if name in suites:
                yield from judge([item for item in self.material.own if item.suite == name], pictures)

    def _choices(self, names: Sequence[str], pictures: Sequence[ImageSource]) -> Iterator[Score]:
        if not names:
            return
        documents = {name: [c.document() for c in self.material.choices[name]] for name in names}
        own, base = self._both(lambda lm: harness.run(lm, documents), pictures)
        for name in names:
            yield stats.score(name, "accuracy", own[name], base[name], chance=CHANCE, note="lm-eval")

    def _instructions(self, pictures: Sequence[ImageSource]) -> Score:
        items = self.material.instructions
        documents = {"instructions": [item.document() for item in items]}
        own, base = self._both(lambda lm: harness.outcomes(lm, documents)["instructions"], pictures, chat=True)
        chance = rules.unread([outcome.text for outcome in base], items)
        values, reference = ([outcome.value for outcome in said] for said in (own, base))
        note = f"lm-eval; chance {chance:.2f}: the rules on the base's answers to other prompts"
        return stats.score("instructions", "accuracy", values, reference, chance=chance, note=note)

    def _published(self, fetched: published.Fetched, pictures: Sequence[ImageSource]) -> Score:
        own, base = self._both(lambda lm: published.run(lm, fetched), pictures)
        asked = fetched.suite
        note = f"lm-eval {', '.join(asked.tasks)} ({asked.metric}), {asked.fewshot} solved examples in front"
        return stats.score(asked.name, "accuracy", own, base, chance=asked.chance, note=note)

    def _own_options(self, items: Sequence[Own], pictures: Sequence[ImageSource]) -> Iterator[Score]:
        samples = _samples(items, pictures)

        def right(side: Any) -> list[float]:
            llm = None if side is self.sides.model else side
            asked = samples if llm is None else [without_pictures(sample) for sample in samples]
            found = OptionScorer(self.sides.model, llm=llm, batch_size=self.batch_size)(asked)
            return [float(scores.best() == item.answer) for scores, item in zip(found, items, strict=True)]

        with self.sides.base() as llm:
            base = right(llm)
        own = base if self.sides.proven and not pictures else right(self.sides.own)
        chance = sum(1 / len(item.options) for item in items) / len(items)
        yield stats.score("own_options", "accuracy", own, base, chance=chance, note=f"chance {chance:.2f}")

    def _own_answers(self, items: Sequence[Own], pictures: Sequence[ImageSource]) -> Iterator[Score]:
        yield from _lost("own_answers", joined(self.sides.answer_losses(_samples(items, pictures))))

    def _own_prompts(self, items: Sequence[Own], pictures: Sequence[ImageSource]) -> Iterator[Score]:
        found = list(self.sides.greedy([item.prompt for item in items], self.max_new_tokens, pictures))
        yield _agreement("own_prompts", [each.agreement for each in found])
        yield from _lost("own_prompts", joined(self.sides.losses_after(each) for each in found))

    def _both(self, ask: Callable[[Any], T], pictures: Sequence[ImageSource], *, chat: bool = False) -> tuple[T, T]:
        """What the own side and the base say to lm-eval: to bare text or, after a picture always, in a conversation."""
        with self.sides.base() as llm:
            base = ask(self._lm(llm, pictures, chat))
        if self.sides.proven and not pictures:
            return base, base
        return ask(self._lm(self.sides.own, pictures, chat)), base

    def _lm(self, side: Any, pictures: Sequence[ImageSource], chat: bool) -> Any:
        model, size = self.sides.model, 2 * self.batch_size
        if not pictures and not chat:
            return harness.text_lm(side, model.tokenizer, batch_size=size)
        return harness.chat_lm(model, pictures, llm=None if side is model else side, batch_size=size)


def _samples(items: Sequence[Own], pictures: Sequence[ImageSource]) -> list[Sample]:
    return [item.sample(pictures[i % len(pictures)] if pictures else None) for i, item in enumerate(items)]


def _lost(task: str, found: Losses) -> Iterator[Score]:
    """Loss and KL in nats a token, weighted by tokens."""
    if not found.tokens:
        raise DataError("no text whose tokens are the same with and without a picture", where=task)
    note = f"{sum(found.tokens)} tokens, nats a token"
    for metric, own, base in (("loss", found.own, found.base), ("kl", found.divergence, [0.0] * len(found.tokens))):
        values, reference = ([t / k for t, k in zip(x, found.tokens, strict=True)] for x in (own, base))
        yield stats.score(task, metric, values, reference, weights=found.tokens, note=note)


def _agreement(task: str, values: Sequence[float]) -> Score:
    whole = sum(v == 1 for v in values)
    note = f"{whole} of {len(values)} greedy answers are the base's, word for word"
    return stats.score(task, "agreement", values, [1.0] * len(values), note=note)
