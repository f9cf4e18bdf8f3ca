"""Commands that use a model: chat, predict, eval, verify."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from tsugiki.cli._app import Base, Model, app, complain, counting, err, example, out, say, show
from tsugiki.cli._bank import BankOption, Calibrate, Form, Neighbours, demos
from tsugiki.cli._retained import RETENTION, Int8, OwnFile, Tasks, asked, check, held, power
from tsugiki.errors import DataError, ImageError, InputError, TsugikiError

if TYPE_CHECKING:
    from tsugiki.types import Message

Detail = Literal["short", "full", "boxes"]
HELP = "/image FILE adds a picture to the next question, /clear forgets the conversation, Ctrl-D ends."


@app.command(epilog=example("tsugiki chat runs/a/graft --image desk.jpg --ask 'What is on the desk?'"))
def chat(
    model: Annotated[
        str, typer.Argument(help="A saved graft: its folder, or a hub id. Default: the one in the package.")
    ] = "starter",
    image: Annotated[list[Path] | None, typer.Option(help="A picture for the first question; several times.")] = None,
    ask: Annotated[str | None, typer.Option(help="Ask this and end; otherwise questions are typed.")] = None,
    detail: Annotated[Detail, typer.Option(help="Of the answers about pictures.")] = "full",
    tokens: Annotated[int, typer.Option(help="Longest answer.", min=1)] = 256,
    bank: BankOption = None,
    neighbours: Neighbours = 4,
    form: Form = "pictures",
    calibrate: Calibrate = False,
    base: Base = None,
) -> None:
    """Talk in the terminal, with pictures or without; the answer is written as it comes.

    With --bank and --calibrate an answer about a picture is one of the bank's labels.
    """
    from tsugiki.cli._models import load_model
    from tsugiki.types import Message

    loaded = load_model(model, base)
    shown = demos(loaded, bank, neighbours, form)
    choose = _chooser(loaded, shown) if calibrate else None
    history: list[Message] = []
    images = tuple(image or ())
    if ask is None:
        say(HELP)
    while True:
        question = ask if ask is not None else _typed()
        if question is None:
            return
        command, _, rest = question.partition(" ")
        if command == "/clear":
            history, images = [], ()
        elif command == "/image":
            images += (Path(rest.strip()),)
        elif question.strip():
            try:
                if choose is not None and _pictured(images, history):
                    answer = choose(question, images, history)
                else:
                    answer = _answer(loaded, question, images, history, detail, tokens, shown)
            except TsugikiError as error:
                if ask is not None:
                    raise
                complain(error)
                images = ()
                continue
            history += [Message.of("user", question, images), Message.of("assistant", answer)]
            images = ()
        if ask is not None:
            return


def _pictured(images: tuple[Path, ...], history: Sequence[Message]) -> bool:
    from tsugiki.types import ImagePart

    return bool(images) or any(isinstance(part, ImagePart) for message in history for part in message.parts)


def _typed() -> str | None:
    """A line from the terminal, None at its end."""
    try:
        return err.input("[bold]> [/bold]")
    except EOFError:
        return None


def _answer(
    model: Any, text: str, images: tuple[Path, ...], history: list[Any], detail: str, tokens: int, shown: Any
) -> str:
    pieces = []
    options: dict[str, Any] = {"history": history, "detail": detail, "max_new_tokens": tokens, "stream": True}
    if shown is not None:
        options["demos"] = lambda messages: _told(shown, messages)
    for piece in model.chat(text, images, **options):
        pieces.append(piece)
        out.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
    out.print()
    return "".join(pieces).strip()


def _chooser(model: Any, shown: Any) -> Callable[[str, tuple[Path, ...], list[Any]], str]:
    """Questions about pictures to calibrated answers, which are labels of the bank."""
    from tsugiki.data.detail import instruct
    from tsugiki.studies._answers import Answerer
    from tsugiki.types import Message, Sample

    answerer = Answerer(model, 1, 1, ImageError, shown, calibrate=True)

    def choose(text: str, images: tuple[Path, ...], history: list[Any]) -> str:
        messages = (*history, Message.of("user", instruct(text, "short"), images))
        (found,) = answerer([Sample(id="request", messages=messages, options=shown.bank.answers)])
        if found.error:
            raise InputError(found.error)
        say("bank: " + ", ".join(f"{i} {label} ({distance:.3f})" for i, label, distance in found.neighbours))
        show(f"{found.answer} ({found.probability:.2f})")
        return found.answer

    return choose


def _told(shown: Any, messages: Sequence[Message]) -> Sequence[Message]:
    """Says which entries stand in front of the question."""
    found = shown.front(messages)
    if found.neighbours:
        say("bank: " + ", ".join(f"{n.entry.id} {n.entry.label} ({n.distance:.3f})" for n in found.neighbours))
    return tuple(found.sample.messages)


@app.command(epilog=example("tsugiki predict runs/a/graft photos --option good --option broken -o answers.csv"))
def predict(
    model: Model,
    folder: Annotated[Path, typer.Argument(help="Pictures.", show_default=False)],
    file: Annotated[Path, typer.Option("--out", "-o", help="A .jsonl or .csv file.")] = Path("predictions.jsonl"),
    question: Annotated[
        str | None, typer.Option(help="Asked about every picture. Default: that of the training.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="A possible answer; several times. Gives probabilities.")
    ] = None,
    detail: Annotated[Detail, typer.Option(help="Of the answers, where there are no options.")] = "short",
    batch_size: Annotated[int, typer.Option(help="Pictures at once.", min=1)] = 8,
    resume: Annotated[bool, typer.Option(help="Continue the file of a run that stopped; else it is made anew.")] = True,
    bank: BankOption = None,
    neighbours: Neighbours = 4,
    form: Form = "pictures",
    calibrate: Calibrate = False,
    base: Base = None,
) -> None:
    """Answer one question about every picture of a folder. A run that was stopped is continued by the same command."""
    import tsugiki
    from tsugiki.cli._models import load_model

    loaded = load_model(model, base)
    shown = demos(loaded, bank, neighbours, form)
    with counting() as tell:
        result = tsugiki.predict(
            loaded, folder, out=file, question=question, options=option or None, detail=detail, batch_size=batch_size,
            resume=resume, bank=shown, calibrate=calibrate,
            progress=lambda done, total: tell("pictures", done, total),
        )  # fmt: skip
    failed = sum(bool(p.error) for p in result)
    show(f"{file}: {len(result)} answers" + (f", {failed} pictures could not be read" if failed else ""))
    if failed and failed == len(result):
        raise typer.Exit(1)


@app.command("eval", epilog=example("tsugiki eval runs/a/graft --task decisions --data test.jsonl --train train.jsonl"))
def evaluate(
    model: Model,
    task: Tasks = None,
    data: Annotated[Path | None, typer.Option(help="Own JSONL. Default: the tasks' own data.")] = None,
    train: Annotated[Path | None, typer.Option(help="The training JSONL: the yardsticks learn from it.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many samples of a task.", min=1)] = None,
    seconds: Annotated[float | None, typer.Option(help="Stop a task after so long; n is printed.")] = None,
    budget: Annotated[Path | None, typer.Option(help="YAML of largest drops; exit code 1 where one is broken.")] = None,
    own: OwnFile = None,
    int8: Int8 = False,
    file: Annotated[Path | None, typer.Option("--out", "-o", help="Write the scores as JSON.")] = None,
    page: Annotated[
        Path | None, typer.Option("--report", help="Write scores and answers on their pictures, as .html or .md.")
    ] = None,
    bank: BankOption = None,
    neighbours: Neighbours = 4,
    form: Form = "pictures",
    calibrate: Calibrate = False,
    base: Base = None,
) -> None:
    """Score a model on tasks; every figure with its error, and the bare LLM's in the same run."""
    from tsugiki.cli._models import load_model
    from tsugiki.data import schema
    from tsugiki.evals import report
    from tsugiki.evals import results as results_file
    from tsugiki.evals import task as tasks
    from tsugiki.evals.budget import apply_budget, judge, load_budget
    from tsugiki.evals.tables import table, without_interval

    limits = None if budget is None else load_budget(budget)
    names, settings = asked(task or ([] if own is not None and data is None else _scorable(data, limit)), own, int8)
    check(limits, settings)
    settings |= {} if train is None else {"train": schema.load(train)}
    settings |= {"calibrate": True} if calibrate else {}
    loaded = load_model(model, base)
    if bank is not None:  # apart: what shows nearly the same as a query would give its answer away
        shown = demos(loaded, bank, neighbours, form, apart=True)
        settings |= {"demos": shown, "features": shown.features}
    with counting() as tell:
        results = tasks.measure(loaded, names, data, limit=limit, seconds=seconds, progress=tell, **settings)
    scores = [score for result in results.values() for score in result.scores]
    out.print(table(scores))
    if few := without_interval(scores):
        show(few)
    if RETENTION in results:
        out.print(power(results[RETENTION].scores, limits))
        if int8:
            say(f"@int8: {held()}")
    if file is not None:
        told = {"tasks": list(names), "limit": limit, "seconds": seconds, "bank": None if bank is None else str(bank)}
        told |= {key: settings[key] for key in ("suites", "int8") if key in settings}
        read = [path for path in (data, train, budget, own) if path is not None]
        verdicts = [] if limits is None else judge(scores, limits)
        results_file.write(file, scores, loaded, data=read, settings=told, verdicts=verdicts)
    if page is not None:
        answers = [answer for result in results.values() for answer in result.answers]
        report.write(report.Report(title=f"Scores of {model}", scores=scores, answers=answers), page)
    broken = [] if limits is None else apply_budget(scores, limits)
    for violation in broken:
        complain(violation)
    if broken:
        raise typer.Exit(1)


def _scorable(data: Path | None, limit: int | None) -> list[str]:
    """Retention without data; with data, the tasks that can score any of it."""
    from tsugiki.data import schema
    from tsugiki.evals import task

    if data is None:
        return ["retention"]
    samples = schema.load(data)
    found = task.scorable(samples, limit)
    if not found:
        raise DataError(
            f"none of {len(samples)} samples can be scored",
            expected=f"samples with an answer, for one of {', '.join(task.available())}",
            fix="Fill in the answers.",
            where=str(data),
        )
    return found


@app.command(epilog=example("tsugiki verify runs/a/graft --out runs/a"))
def verify(
    model: Model,
    against: Annotated[str | None, typer.Option(help="A parent model instead of the base.")] = None,
    check: Annotated[Path | None, typer.Option(help="Prove the claims of this proof.json again.")] = None,
    file: Annotated[Path | None, typer.Option("--out", "-o", help="Write proof.json (and a text) there.")] = None,
    base: Base = None,
) -> None:
    """Prove the guarantee: the LLM's weights, words and answers are those of its source. Exit code 1 where it fails."""
    from tsugiki.cli._models import load_model
    from tsugiki.evals import proof

    loaded = load_model(model, base)
    if check is not None:
        found = proof.check(check, loaded, against=against)
    else:
        with err.status("verify") as status:
            found = proof.verify(loaded, against, out=file, progress=lambda text: status.update(escape(text)))
    show(proof.describe(found))
    if not found.holds:
        raise typer.Exit(1)
