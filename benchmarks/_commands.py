"""Command lines that benchmarks share: arms that are kept when they are finished, and parts measured one by one."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from _results import RESULTS

from tsugiki import assets
from tsugiki.studies._build import fetch_tower


def arms(doc: str | None, form: str, run: Callable[..., None], table: Callable[[], None], name: str) -> None:
    """`--only <form> ...` runs arms; without it, the table of all that are finished.

    Args:
        doc: of the benchmark.
        form: names of an arm's parts, between colons, as in "task:arm:seed"; the last one is a number.
        run: called with these parts and the folder for the arm's files.
        name: of the benchmark, and of that folder.
    """
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--only", nargs="*", help=f"{form} of the arms to run; no table")
    given = parser.parse_args()
    if given.only is None:
        table()
        return
    assets.fetch("smollm2-135m-instruct")
    fetch_tower("efficientnet-lite0")
    for one in given.only:
        *words, seed = one.split(":")
        run(*words, int(seed), assets.cache_dir() / "runs" / name)


def parts(
    doc: str | None,
    name: str,
    measured: Mapping[str, Callable[[int], dict[str, Any]]],
    table: Callable[[dict[str, Any], int], None],
    peak: Callable[..., None],
) -> None:
    """`--only <part> ...` measures some parts and leaves the others as they were.

    Args:
        doc: of the benchmark.
        name: of its results.
        measured: part -> a function of the number of rounds.
        table: writes what is measured so far.
        peak: what a fresh process runs to tell its memory, with the arguments that `--peak` has as JSON.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", nargs="+", choices=list(measured))
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        peak(*json.loads(options.peak))
        return
    file: Path = RESULTS / f"{name}.json"
    known = json.loads(file.read_text())["parts"] if options.only and file.is_file() else {}
    for part in options.only or measured:
        known[part] = measured[part](options.rounds)
        table(known, options.rounds)
