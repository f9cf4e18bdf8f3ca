"""What was found, in sentences that do not flatter: beside the bare LLM, the commonest answer and simpler learners."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from tsugiki.evals import stats
from tsugiki.evals.task import Answer, picture_groups
from tsugiki.studies._training import Trained
from tsugiki.types import Proof, Score

HEADLINES = {"accuracy": "", "Acc@0.5": " (boxes)", "exact match": " (free answers, word for word)"}
"""Of each kind of question the figure that stands for it, a share of right answers; and how it is told."""
SIMPLE = {
    "probe": "a linear probe on the same picture features",
    "k-NN": "the vote of the nearest training pictures",
    "ridge": "a ridge regression on the same picture features",
}
ADVICE = "For this question alone it is enough; the graft pays where you also need words or other questions."


def sentences(scores: Sequence[Score], proof: Proof | None) -> list[str]:
    """For the top of a report and the terminal."""
    found = []
    for score in scores:
        if score.metric in HEADLINES:
            found += [_headline(score), *_rivals(score, scores)]
    if proof is not None:
        found.append(_proven(proof))
    return found


def beside(what: str, one: tuple[str, Sequence[Answer]], other: tuple[str, Sequence[Answer]]) -> str | None:
    """How often two models are right on the items that both were asked, paired; None where there are not two.

    Args:
        what: was asked.
        one, other: a model's name and its answers.
    """
    mine, theirs = ({a.sample.id: a for a in answers} for _, answers in (one, other))
    shared = [i for i in mine if i in theirs]
    if len(shared) < 2:
        return None
    right, rival = ([float(found[i].correct) for i in shared] for found in (mine, theirs))
    gap = stats.paired(right, rival, groups=picture_groups([mine[i].sample for i in shared]))
    shares = [f"{name} {_percent(sum(v) / len(v))}" for (name, _), v in ((one, right), (other, rival))]
    points = f"{100 * gap.value:+.0f} points{_between(gap.low, gap.high)}"
    return f"{what}, the same {len(shared)} items: {', '.join(shares)}; difference {points}."


def trained(done: Trained, held: int, learned: int, refit: bool) -> str:
    """How many steps, what chose them, and when and why the training that chose was ended.

    Args:
        held: samples of the inner hold-out.
        learned: samples that the saved graft learned from.
        refit: whether it was trained again on all of them.
    """
    if not done.marks:
        return f"Trained for {done.steps} steps, as the recipe says; nothing chose the number."
    tried = ", ".join(str(mark.step) for mark in done.marks)
    again = f"then trained again on all {learned}" if refit else "with those weights"
    said = f"Trained for {done.steps} steps: {held} inner held-out samples chose it of {tried}, {again}."
    if done.tried < done.limit:
        later = sum(mark.step > done.steps for mark in done.marks)
        return (
            f"{said} The search was stopped early, at step {done.tried} of {done.limit} at most: {later} evaluations "
            f"in a row were no better than that of step {done.steps}."
        )
    return f"{said} It was not stopped before the last of {done.limit} steps."


def _headline(score: Score) -> str:
    share = f"{_percent(score.value)} right{_between(score.low, score.high)}"
    rivals = [f"the bare LLM without the picture {_percent(score.base)}"] if score.base is not None else []
    rivals += [f"{name} {_percent(value)}" for name, value in score.yardsticks.items()]
    tail = f"; {', '.join(rivals)}" if rivals else ""
    return f"{score.task}{HEADLINES[score.metric]}: {share} on {score.n} held-out items{tail}."


def _rivals(score: Score, scores: Sequence[Score]) -> Iterator[str]:
    """A simpler learner is better, or the model is not shown to be better than no model."""
    minus = {s.metric.removeprefix(f"{score.metric} minus "): s for s in scores if s.task == score.task}
    simple = {name: value for name, value in score.yardsticks.items() if name in SIMPLE and value > score.value}
    if simple:
        name = max(simple, key=simple.__getitem__)
        lead = (
            f"{score.task}: {SIMPLE[name]} is better than the graft by {100 * (simple[name] - score.value):.1f} points"
        )
        paired = minus.get(name)
        if paired is not None and paired.high is not None and paired.low is not None and paired.high < 0:
            lead += f", paired 95 % interval {-100 * paired.high:.1f} to {-100 * paired.low:.1f}"
        elif paired is not None:
            lead += f", though these {score.n} items do not tell the two apart"
        yield f"{lead}. {ADVICE}"
    elif (even := _even(score, minus)) is not None:
        yield even
    constant = minus.get("constant")
    if constant is not None and constant.low is not None and constant.low <= 0:
        yield f"{score.task}: it is not shown to be better than always giving the commonest answer."


def _even(score: Score, minus: Mapping[str, Score]) -> str | None:
    """The graft is ahead of the best simpler learner, but not by more than the interval."""
    simple = {name: value for name, value in score.yardsticks.items() if name in SIMPLE and name in minus}
    if not simple:
        return None
    name = max(simple, key=simple.__getitem__)
    gap = minus[name]
    if gap.low is None or gap.high is None or gap.low > 0:
        return None
    ahead = f"{100 * gap.value:+.1f} points, paired 95 % interval {100 * gap.low:+.1f} to {100 * gap.high:+.1f}"
    return f"{score.task}: these {score.n} items do not tell the graft and {SIMPLE[name]} apart ({ahead})."


def _proven(proof: Proof) -> str:
    if not proof.holds:
        failed = ", ".join(c.name for c in proof.checks if not c.holds)
        return f"The guarantee does NOT hold ({failed}): do not use this model in place of its base."
    if proof.guarantee == "bounded":
        return "The LLM's weights were trained: measure what its text lost with `tsugiki eval --task retention`."
    tested = f"{proof.prompts} prompts and {proof.answers} whole answers"
    return f"Text without a picture is the bare LLM's own: proven, and compared on {tested}."


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _between(low: float | None, high: float | None) -> str:
    if low is None or high is None or math.isinf(low) or math.isinf(high):  # none, or of a single item
        return ""
    return f" [{100 * low:.0f} to {100 * high:.0f}]"
