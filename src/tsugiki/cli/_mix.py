"""`tsugiki mix`: average models; and `mix search`, which looks for the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tsugiki.cli._app import Base, app, example, say, show
from tsugiki.errors import InputError

Part = Annotated[
    list[str] | None, typer.Option(help="Other weights for a part, as in llm.layers.0-9=0.2; several times.")
]


class _Mix(TyperGroup):
    """Without the name of a command it is `average`: `tsugiki mix A:0.3 B:0.7`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["average", *args]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


mix = typer.Typer(cls=_Mix, no_args_is_help=True, help="Average models of one base; search for the weights.")
app.add_typer(mix, name="mix", epilog=example("tsugiki mix runs/a/graft:0.7 runs/b/graft:0.3"))


@mix.command(epilog=example("tsugiki mix average runs/a/graft:0.7 runs/b/graft:0.3 --out runs/mixed"))
def average(
    folders: Annotated[
        list[str] | None,
        typer.Argument(help="Grafts, exports or LLMs, each with its weight or none; base is their base."),
    ] = None,
    weights: Annotated[
        list[str] | None, typer.Option(help="As the arguments: runs/a/graft:0.3; they stand before them.")
    ] = None,
    folder: Annotated[Path, typer.Option("--out", "-o", help="The new graft or LLM.")] = Path("runs/mixed"),
    weight: Annotated[
        list[float] | None, typer.Option(help="One for each folder, where they have none. Default: all alike.")
    ] = None,
    part: Part = None,
    parts: Annotated[Path | None, typer.Option(help="YAML of part: weight, or of a list of weights.")] = None,
    normalise: Annotated[bool, typer.Option("--normalise", help="Divide weights by their sum.")] = False,
    extrapolate: Annotated[bool, typer.Option("--extrapolate", help="Weights may leave 0 to 1.")] = False,
    base: Base = None,
) -> None:
    """Average models of one base, of all tensors or by part.

    A part is frontend, grafts.0 or grafts.NAME, llm, llm.layers.0-9, llm.layers.*.mlp: the first words of where tensors
    are. Of several that match, the last counts.
    """
    import tsugiki

    names, values = parents([*(weights or []), *(folders or [])], weight)
    given = {**_file(parts), **_parts(part)}
    made = tsugiki.mix(
        names, values, folder, parts=given or None, base=base, normalise=normalise, extrapolate=extrapolate
    )
    show(f"mixed: {made}")


def parents(given: Sequence[str], weight: Sequence[float] | None = None) -> tuple[list[str], list[float]]:
    """Folders and weights of `folder:weight`; of folders alone with `weight`, by default all alike.

    Raises:
        InputError: some have a weight and others none, or there are two for each.
    """
    if len(given) < 2:
        raise InputError(f"{len(given)} parents", expected="two or more", fix="Name their folders.", where="mix")
    split = [_pair(item) for item in given]
    names, values = [name for name, _ in split], [value for _, value in split if value is not None]
    if not values:
        return names, list(weight or [1 / len(names) for _ in names])
    if weight or len(values) < len(names):
        found = "--weight beside folder:weight" if weight else f"{len(values)} weights for {len(names)} folders"
        raise InputError(found, expected="folder:weight for each", where="--weights")
    return names, values


def _pair(item: str) -> tuple[str, float | None]:
    name, colon, number = item.rpartition(":")
    try:
        return (name, float(number)) if colon and name else (item, None)
    except ValueError:  # a colon of the path's own
        return item, None


def _parts(given: Sequence[str] | None) -> dict[str, float | list[float]]:
    """`part=0.2` or `part=0.2,0.8`."""
    found: dict[str, float | list[float]] = {}
    for item in given or ():
        name, _, text = item.rpartition("=")
        try:
            numbers = [float(number) for number in text.split(",")]
        except ValueError:
            numbers = []
        if not name or not numbers:
            raise InputError(repr(item), expected="part=weight, as in llm.layers.0-9=0.2", where="--part")
        found[name] = numbers[0] if len(numbers) == 1 else numbers
    return found


def _file(path: Path | None) -> Mapping[str, float | list[float]]:
    if path is None:
        return {}
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        message = " ".join(str(error).split())
        raise InputError(f"can't be read ({message})", expected="YAML: part: weight", where=str(path)) from error
    for name, value in found.items() if isinstance(found, dict) else [("", found)]:
        numbers = value if isinstance(value, list) else [value]
        if not name or not numbers or not all(type(v) in (int, float) for v in numbers):
            raise InputError(f"{name}: {value!r}", expected="part: weight, or part: [weights]", where=str(path))
    return {str(k): v for k, v in found.items()}


@mix.command(
    epilog=example(
        "tsugiki mix search runs/a/graft runs/b/graft --data tune.jsonl --unseen test.jsonl "
        "--objective decisions/defect.accuracy --budget budget.yaml"
    )
)
def search(
    first: Annotated[str, typer.Argument(help="A graft; the weight that is sought is its.", show_default=False)],
    second: Annotated[str, typer.Argument(help="Another of the same base, or base.", show_default=False)],
    data: Annotated[Path, typer.Option(help="JSONL that the search asks about.", show_default=False)],
    unseen: Annotated[Path, typer.Option(help="JSONL on which the result is scored again.", show_default=False)],
    objective: Annotated[str, typer.Option(help="task.metric that is raised, as eval prints it.", show_default=False)],
    budget: Annotated[Path, typer.Option(help="YAML of largest drops of text.", show_default=False)],
    task: Annotated[list[str] | None, typer.Option(help="Several times. Default: that of the objective.")] = None,
    folder: Annotated[Path, typer.Option("--out", "-o", help="Points, report, the chosen mix.")] = Path("runs/search"),
    trials: Annotated[int, typer.Option(help="Points after the sweep 0, 0.1, ..., 1.", min=0)] = 20,
    part: Annotated[list[str] | None, typer.Option(help="A part with a weight of its own; several times.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many samples of a task.", min=1)] = None,
    items: Annotated[int, typer.Option(help="Texts of each suite of the budget.", min=1)] = 100,
    seed: Annotated[int, typer.Option(help="Of the trials.")] = 0,
    base: Base = None,
) -> None:
    """Search for the weights of two grafts: the best score under a budget of what text may lose.

    The same command continues a search. Exit code 1 where no weights keep the budget.
    """
    from tsugiki.cli._models import load_model
    from tsugiki.evals.budget import load_budget
    from tsugiki.studies import search as searches
    from tsugiki.studies._graded import both
    from tsugiki.studies._pareto import findings

    limits = load_budget(budget)
    seen, other = both(
        task or [objective.rpartition(".")[0].partition("/")[0]], data, unseen,
        load=lambda mixed: load_model(str(mixed), base),
        budget=limits, items=items, limit=limit,
    )  # fmt: skip
    found = searches.search(
        [first, second], seen, folder, objective=objective, budget=limits, trials=trials, parts=part or (),
        unseen=other, base=base, seed=seed, say=say,
    )  # fmt: skip
    for line in findings(found):
        show(line)
    show(f"report: {found.folder / 'search.html'}")
    if found.chosen is None:
        raise typer.Exit(1)
    show(f"mixed: {found.folder / 'mixed'}")
