"""The same scores for the terminal, for Markdown and as plain values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from tsugiki.types import Score

FEWEST = 2
"""Items without which there is no interval; pictures, where items of one picture are drawn together."""

HEADINGS = ("task", "figure", "model [95 %]", "bare LLM", "difference [95 %]", "yardsticks", "n")


def number(value: float | None, *, sign: bool = False) -> str:
    """Three decimals; a real minus sign; nothing for None."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞" if value < 0 else "?"
    return f"{value:{'+' if sign else ''}.3f}".replace("-", "−")


def between(low: float | None, high: float | None, *, sign: bool = False) -> str:
    """An interval in brackets, nothing without one; an infinite one, that of a single item, is none."""
    if low is None or high is None or math.isinf(low) or math.isinf(high):
        return ""
    return f"[{number(low, sign=sign)}, {number(high, sign=sign)}]"


def too_few(score: Score) -> bool:
    """Whether there are too few items for an interval of the value or of the difference."""
    ends = (score.low, score.high, score.difference_low, score.difference_high)
    return any(end is not None and math.isinf(end) for end in ends)


def without_interval(scores: Sequence[Score]) -> str:
    """The sentence about scores of too few items; empty where there are none."""
    named = [f"{s.task}.{s.metric} ({s.n})" for s in scores if too_few(s)]
    if not named:
        return ""
    return (
        f"Too few items for an interval, which takes {FEWEST} or more (of {FEWEST} or more pictures, where they are "
        f"about pictures); the value stands alone, and no budget judges it: {', '.join(named)}."
    )


def cells(score: Score) -> tuple[str, ...]:
    """One row, in the order of HEADINGS."""
    signed = " minus " in score.metric
    interval = between(score.low, score.high, sign=signed)
    if not interval and math.isfinite(score.stderr):
        interval = f"± {number(score.stderr)}"
    change = f"{number(score.difference, sign=True)} {between(score.difference_low, score.difference_high, sign=True)}"
    rivals = ", ".join(f"{name} {number(value)}" for name, value in score.yardsticks.items())
    own = f"{number(score.value, sign=signed)} {interval}".strip()
    return (
        score.task,
        score.metric + ("" if score.informative else " (uninformative: the base is not clearly above chance)"),
        own,
        number(score.base),
        change.strip(),
        rivals,
        str(score.n),
    )


def table(scores: Sequence[Score], title: str | None = None) -> Table:
    """For a rich console."""
    out = Table(title=title, title_justify="left")
    for i, heading in enumerate(HEADINGS):
        out.add_column(heading, justify="right" if i == len(HEADINGS) - 1 else "left", no_wrap=i in (3, 6))
    previous = ""
    for score in scores:
        row = cells(score)
        if previous and row[0] != previous:
            out.add_section()
        shown = ("" if row[0] == previous else row[0], *row[1:])
        out.add_row(*(_plain(c) for c in shown), style=None if score.informative else "dim")
        previous = row[0]
    return out


def markdown(scores: Sequence[Score]) -> str:
    """A GitHub table, ending with a newline."""
    rows = [HEADINGS, ("---",) * len(HEADINGS), *map(cells, scores)]
    return "".join("| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in row) + " |\n" for row in rows)


def records(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Plain JSON values, without fields that are not set; infinities become None."""
    plain = [asdict(score) for score in scores]
    return [{k: finite(v) for k, v in record.items() if v not in (None, "", {})} for record in plain]


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def finite(value: Any) -> Any:
    """What JSON can hold: None for an infinite number."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
