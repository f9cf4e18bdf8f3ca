"""`tsugiki compare`: methods side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tsugiki.cli._app import app, example, say, show


@app.command(epilog=example("tsugiki compare compare.yaml --only wings:0 --out runs/compare"))
def compare(
    plan: Annotated[
        Path, typer.Argument(help="YAML: base, data, budget, seeds, arms, comparisons.", show_default=False)
    ],
    folder: Annotated[
        Path, typer.Option("--out", "-o", help="Arms and page; a comparison that stopped goes on.")
    ] = Path("runs/compare"),
    only: Annotated[list[str] | None, typer.Option(help="An arm, or arm:seed; several times. Default: all.")] = None,
    anew: Annotated[
        bool,
        typer.Option("--anew", help="Run arms of another plan, also unfinished ones, again; the old are kept aside."),
    ] = False,
) -> None:
    """Train methods on one base, one data set and one budget, and say what differs beyond noise.

    Exit code 1 where an arm failed or is of another plan; the others are on the page.
    """
    from tsugiki.evals.tables import number
    from tsugiki.studies import _compare_figures as figures
    from tsugiki.studies.compare import compare as run

    found = run(plan, folder, only=only or (), anew=anew, say=say)
    for name, runs in found.found.items():
        vision, text = figures.vision(runs), figures.text(runs)
        told = f"pictures {vision.value}" if vision is not None else "no pictures asked"
        show(f"{name}: {told}" + (f"; text {number(text.value.value, sign=True)} nats" if text is not None else ""))
    for line in figures.findings(found.tests, found.found):
        show(line)
    if found.waiting:
        show(f"not run yet: {', '.join(found.waiting)}")
    show(f"report: {found.report}")
    if found.failed or found.left_out:
        raise typer.Exit(1)
