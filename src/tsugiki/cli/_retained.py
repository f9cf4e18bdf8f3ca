"""What `tsugiki eval` asks of retention: its suites by name, own prompts, int8; and what the items can show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tsugiki.errors import InputError, UnknownNameError
from tsugiki.evals import _known

if TYPE_CHECKING:
    from rich.table import Table

    from tsugiki.types import Score

RETENTION = "retention"

Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        "--suite",
        help="A task or a suite; several times. Default: what the data can score. "
        f"Tasks: {', '.join(_known.tasks())}. "
        f"Suites, about text, together the task retention: {', '.join(_known.SUITES)}. "
        f"Suites from a hub, by name only: {', '.join(_known.published())}.",
    ),
]

OwnFile = Annotated[
    Path | None,
    typer.Option(
        "--own",
        help="Own prompts as JSONL: prompt, options, answer; prompt and answer; or prompt. Asked beside the suites of "
        "retention, and alone where no task is named.",
    ),
]
Int8 = Annotated[
    bool, typer.Option("--int8", help="Measure retention again with int8 weights, against the base with int8 weights.")
]


def asked(tasks: Sequence[str], own: Path | None, int8: bool) -> tuple[list[str], dict[str, Any]]:
    """Tasks, and the settings of retention: the names of its suites stand for it among the tasks.

    Raises:
        DataError: a wrong line of own prompts.
        UnknownNameError: neither a task nor a suite.
        InputError: int8 where retention is not asked.
    """
    from tsugiki.evals import own as own_prompts

    suites, known = (*_known.SUITES, *_known.published()), _known.tasks()
    named = [name for name in tasks if name in suites]
    others = [name for name in tasks if name not in suites]
    if unknown := [name for name in others if name not in known]:
        raise UnknownNameError("task", unknown[0], [*known, *suites])
    settings: dict[str, Any] = {} if own is None else {"own": own_prompts.read(own)}
    if RETENTION in others:
        settings["suites"] = list(dict.fromkeys([*_known.SUITES, *named]))
    elif named or own is not None:
        settings["suites"] = named
        others.append(RETENTION)
    if int8 and RETENTION not in others:
        raise InputError("--int8 without a suite of retention", expected="--task retention, or one of its suites")
    return others, settings | ({"int8": True} if int8 else {})


def check(budget: Mapping[str, float] | None, settings: Mapping[str, Any]) -> None:
    """Refuse, before the long run, a budget with lines that would judge nothing.

    Args:
        settings: as `asked` gives them.

    Raises:
        DataError: there is one.
    """
    from tsugiki.evals.budget import OWN, check_lines

    if budget is not None:
        own = {item.suite for item in settings.get("own", ())}
        suites = [*settings.get("suites", ()), *(name for name in OWN if name in own)]
        check_lines(budget, suites, after_picture=True, int8=bool(settings.get("int8")))


def held() -> str:
    """How int8 weights are held, in words."""
    from tsugiki.evals import quantised

    return quantised.how()


def power(scores: Sequence[Score], budget: Mapping[str, float] | None) -> Table:
    """The smallest drop that each score's items can show, and how many show one as small as the budget."""
    from rich.table import Table

    from tsugiki.evals.budget import items_needed, line_of
    from tsugiki.evals.tables import number

    def drop(smallest: float) -> str:
        return "none" if smallest == float("inf") else number(smallest)

    table = Table(title="What these items can show", title_justify="left")
    for heading in ("figure", "smallest detectable drop", "budget", "n", "n for the budget"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    for score in scores:
        if score.detectable is None:
            continue
        limit = None if budget is None else line_of(score, budget)
        needed = None if limit is None or score.detectable <= limit else items_needed(score, limit)
        told = "" if needed is None else number(needed) if needed == float("inf") else f"{needed:.0f}"
        table.add_row(
            f"{score.task}.{score.metric}", drop(score.detectable), number(limit), str(score.n), told,
            style=None if score.informative else "dim",
        )  # fmt: skip
    return table
