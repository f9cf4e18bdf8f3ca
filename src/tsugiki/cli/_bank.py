"""`tsugiki bank`: labelled pictures that stand in front of questions, so that a class is added without training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from tsugiki.cli._app import Base, Model, app, counting, example, out, say, show
from tsugiki.errors import InputError

bank = typer.Typer(no_args_is_help=True, help="Labelled pictures that add a class without training.")
app.add_typer(bank, name="bank", epilog=example("tsugiki bank build runs/a/graft photos --out bank"))

Folder = Annotated[Path, typer.Argument(help="The bank.", show_default=False)]
Note = Annotated[str, typer.Option(help="Kept with the entries.")]
Keep = Annotated[
    Literal["copy", "thumbnail", "reference"],
    typer.Option(help="What the bank keeps of a picture: its file, one as small as the tower's view, or its path."),
]
BankOption = Annotated[
    Path | None, typer.Option("--bank", help="A demo bank: its nearest pictures stand in front of each question.")
]
Neighbours = Annotated[int, typer.Option(help="Pictures of the bank for each question.", min=1)]
Form = Annotated[
    Literal["pictures", "words"], typer.Option(help="Show the bank's pictures with their labels, or say the labels.")
]
Calibrate = Annotated[
    bool, typer.Option("--calibrate", help="Take out of closed-set answers what the bank's entries alone make likely.")
]


def demos(model: Any, folder: Path | None, k: int, form: Any, *, apart: bool = False) -> Any:
    """What stands in front of questions; None without a bank."""
    from tsugiki.studies.neighbours import BankDemos

    return None if folder is None else BankDemos(model, folder, k=k, form=form, apart=apart)


@bank.command(epilog=example("tsugiki bank build runs/a/graft photos --out bank"))
def build(
    model: Model,
    data: Annotated[Path, typer.Argument(help="One folder per class, CSV or JSONL.", show_default=False)],
    folder: Annotated[Path, typer.Option("--out", "-o", help="The bank, a new folder.")] = Path("bank"),
    option: Annotated[
        list[str] | None, typer.Option(help="A label that entries may have; several times. Default: those of the data.")
    ] = None,
    keep: Keep = "copy",
    note: Note = "",
    base: Base = None,
) -> None:
    """Make a bank of labelled pictures, for the vision tower of a model."""
    from tsugiki.cli._models import load_model
    from tsugiki.studies import bank as banks

    loaded = load_model(model, base)
    with counting() as tell:
        done = banks.build(
            loaded, data, folder, answers=option or None, keep=keep, note=note,
            progress=lambda n, total: tell("pictures", n, total),
        )  # fmt: skip
    _tell(folder, done)


@bank.command(epilog=example("tsugiki bank add bank runs/a/graft new.jpg --label scratch --new-class"))
def add(
    folder: Folder,
    model: Model,
    data: Annotated[
        Path, typer.Argument(help="As `build`; with --label a picture or a folder of them.", show_default=False)
    ],
    label: Annotated[str | None, typer.Option(help="Of all these pictures.")] = None,
    new_class: Annotated[bool, typer.Option("--new-class", help="Take labels that the bank has not had yet.")] = False,
    keep: Keep = "copy",
    note: Note = "",
    base: Base = None,
) -> None:
    """Add labelled pictures, all or none. They are used from the next question on, also by a process that runs."""
    from tsugiki.cli._models import load_model
    from tsugiki.studies import bank as banks

    loaded = load_model(model, base)
    with counting() as tell:
        done = banks.add(
            loaded, folder, data, label=label, new_classes=new_class, keep=keep, note=note,
            progress=lambda n, total: tell("pictures", n, total),
        )  # fmt: skip
    _tell(folder, done)


@bank.command(epilog=example("tsugiki bank withdraw bank 12 13 --note 'wrong label'"))
def withdraw(
    folder: Folder,
    entry: Annotated[list[int], typer.Argument(help="Ids of entries, as `query` and answers show them.")],
    note: Note = "",
) -> None:
    """Take entries out of use, at once, also for a process that runs; they stay in the bank as withdrawn."""
    from tsugiki.data.bank import Bank

    with Bank.open(folder) as opened:
        show(f"{folder}: {opened.withdraw(entry, note)} withdrawn, {len(opened)} in use")


@bank.command(epilog=example("tsugiki bank query bank --model runs/a/graft --image photo.jpg"))
def query(
    folder: Folder,
    model: Annotated[str | None, typer.Option(help="A saved graft, for --image.")] = None,
    image: Annotated[Path | None, typer.Option(help="List the entries that are nearest to this picture.")] = None,
    k: Annotated[int, typer.Option("-k", help="How many.", min=1)] = 10,
    base: Base = None,
) -> None:
    """How many entries of each label there are; with a picture, the nearest ones."""
    from tsugiki.data.bank import Bank

    if image is None:
        with Bank.open(folder) as opened:
            table = Table("label", "entries")
            for label in opened.answers:
                table.add_row(escape(label), str(opened.counts().get(label, 0)))
            out.print(table)
            show(f"{len(opened)} in use, {len(opened.entries())} in all, of the tower {opened.tower}")
        return
    if model is None:
        raise InputError("a picture without a model", expected="--model, whose tower the bank is of", where="--model")
    from tsugiki.cli._models import load_model
    from tsugiki.studies import bank as banks

    table = Table("id", "label", "distance", "source", "added", "note")
    for n in banks.query(load_model(model, base), folder, image, k):
        e = n.entry
        table.add_row(str(e.id), *map(escape, (e.label, f"{n.distance:.4f}", e.source, e.added, e.note)))
    out.print(table)


@bank.command(epilog=example("tsugiki bank report bank --model runs/a/graft --data test.jsonl --out bias.json"))
def report(
    folder: Folder,
    model: Annotated[str | None, typer.Option(help="A saved graft, for --data.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Labelled pictures, as `build` takes them: how entries turn answers about them.")
    ] = None,
    question: Annotated[str | None, typer.Option(help="Asked about pictures that have a label only.")] = None,
    limit: Annotated[int, typer.Option(help="At most so many questions, drawn at random.", min=1)] = 100,
    orders: Annotated[int, typer.Option(help="Other orders of the entries of a question.", min=1)] = 4,
    neighbours: Neighbours = 4,
    form: Form = "pictures",
    file: Annotated[Path | None, typer.Option("--out", "-o", help="Write it as JSON.")] = None,
    base: Base = None,
) -> None:
    """Bias of a bank: balance of classes and sources; with --data, answers that another order of the entries, or one
    entry less, changes, and what calibration does."""
    import json

    from tsugiki.data.bank import Bank
    from tsugiki.data.files import atomic_write
    from tsugiki.evals import demo_bias
    from tsugiki.evals.tables import records, table

    if data is None:
        with Bank.open(folder) as opened:
            found = demo_bias.of_bank(opened)
    elif model is None:
        raise InputError("questions without a model", expected="--model, whose tower the bank is of", where="--model")
    else:
        from tsugiki.cli._models import load_model
        from tsugiki.studies import bank as banks

        loaded = load_model(model, base)
        shown = demos(loaded, folder, neighbours, form, apart=True)
        asked = banks.questions(data, shown.bank, question=question, limit=limit)
        with counting() as tell:
            found = demo_bias.measure(
                loaded, asked, shown, orders=orders, progress=lambda n, total: tell("questions", n, total)
            )
    counts = Table("", "", "n", "share", "as many as")
    for name, balance in found.balances.items():
        for i, (what, share) in enumerate(balance.shares.items()):
            told = (name, f"{balance.effective:.1f} equal ones") if not i else ("", "")
            counts.add_row(told[0], escape(what), str(balance.counts[what]), f"{share:.2f}", told[1])
    out.print(counts)
    if found.scores:
        out.print(table(found.scores))
    if file is not None:
        content = {"balances": found.plain(), "scores": records(found.scores)}
        atomic_write(file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _tell(folder: Path, done: Any) -> None:
    for names in done.alike:
        say(f"nearly the same: {', '.join(names)}")
    for problem in done.left_out:
        say(problem)
    parts = [f"{done.added} added"]
    parts += [f"{done.known} were there already"] if done.known else []
    parts += [f"{len(done.left_out)} can't be read"] if done.left_out else []
    show(f"{folder}: {', '.join(parts)}")
