"""The app, its errors, and the options that several commands have."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from typer.core import TyperGroup

from tsugiki.errors import InputError, TsugikiError, UnknownNameError

# A file or a pipe has no width: tables get room there.
out = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160)
err = Console(stderr=True)

Base = Annotated[str | None, typer.Option(help="The LLM: an asset, a folder or a hub id. Default: the stored one.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value changes, such as steps=100", show_default=False)]
Model = Annotated[str, typer.Argument(help="A saved graft: its folder, or a hub id.", show_default=False)]


class Commands(TyperGroup):
    """Ends every mistake of the user in one line; `--debug`, anywhere on the line, shows the traceback instead."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        debug = "--debug" in args
        parsed: list[str] = super().parse_args(ctx, [a for a in args if a != "--debug"])
        ctx.obj = {"debug": debug}
        return parsed

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            err.print("Stopped.")
            raise typer.Exit(130) from None
        except (TsugikiError, OSError) as error:
            if ctx.obj["debug"] or getattr(error, "errno", None) == errno.EPIPE:
                raise
            complain(error)
            raise typer.Exit(2) from None


app = typer.Typer(
    name="tsugiki",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Gives a language model eyes, and proves that it kept its words.",
)


@app.callback(epilog="Example: tsugiki demo")
def _start(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error. May stand anywhere.")] = False,
) -> None:
    # Their bars and notes would stand between our lines: by the environment where transformers is not imported yet.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if "transformers" in sys.modules:
        from transformers.utils import logging as theirs

        theirs.set_verbosity_error()
        theirs.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    logging.basicConfig(format="%(message)s")


def main() -> None:
    """The console script."""
    app()


def example(command: str) -> str:
    """The last line of a command's help."""
    return f"Example: {escape(command)}"


def complain(error: object) -> None:
    """One red line on standard error."""
    text = " ".join(str(error).split()) or type(error).__name__
    err.print(f"[red]Error: {escape(text)}[/red]", soft_wrap=True, highlight=False)


def say(text: object) -> None:
    """A line of what goes on, on standard error; results go to standard output."""
    err.print(escape(str(text)), soft_wrap=True, highlight=False)


def show(text: object) -> None:
    """A result, as it is."""
    out.print(escape(text) if isinstance(text, str) else text, soft_wrap=True, highlight=False)


@contextmanager
def counting() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each name that is told with its count and total."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:
        known: dict[str, Any] = {}

        def tell(name: str, done: int, total: int) -> None:
            if name not in known:
                known[name] = bars.add_task(escape(name))
            bars.update(known[name], completed=done, total=total or None)

        yield tell


def sources(given: list[str] | None) -> dict[str, str] | str | None:
    """`--data name=file` as a mapping; one `--data file` as it is.

    Raises:
        InputError: several without a name.
    """
    if not given:
        return None
    if len(given) == 1 and ("=" not in given[0] or Path(given[0]).exists()):
        return given[0]
    named = {}
    for item in given:
        name, equals, file = item.partition("=")
        if not equals or not name or not file:
            raise InputError(repr(item), expected="name=file where there are several", where="--data")
        named[name] = file
    return named


def keywords(pairs: list[str] | None, known: Iterable[str] | None = None) -> dict[str, Any]:
    """`key=value` pairs; numbers, true and false are read as such.

    Raises:
        InputError: no "=" in one.
        UnknownNameError: a key that is not among the `known` ones.
    """
    values: dict[str, Any] = {}
    for pair in pairs or []:
        key, equals, text = pair.partition("=")
        if not equals:
            raise InputError(repr(pair), expected="key=value", fix="Write for example question='Is it clean?'")
        if known is not None and key not in known:
            raise UnknownNameError("setting", key, known)
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        values[key] = value if isinstance(value, int | float) else text
    return values
