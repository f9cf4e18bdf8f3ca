"""The README's first table, cut from docs/results/compare.json.

python benchmarks/readme_table.py            # writes it between two comments of README.md
python benchmarks/readme_table.py --check    # exit code 1 where the README has another one
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "compare.json"
README = Path(__file__).parents[1] / "README.md"
START, END = "<!-- the table of docs/results/compare.json: python benchmarks/readme_table.py -->", "<!-- end -->"


def table(found: Mapping[str, Any]) -> str:
    """Markdown of a comparison's JSON: a caption, then a row an arm. Columns without a figure are left out, and the
    number of seeds where all arms have the same ones.

    Raises:
        KeyError: it was written by an older version.
    """
    rows = [row(arm) for arm in found["arms"]]
    heads = [head for head in rows[0] if any(each[head] for each in rows)]
    if len({tuple(arm["seeds"]) for arm in found["arms"]}) == 1:
        heads.remove("seeds")
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(each[head] for head in heads) + " |" for each in rows]
    return "\n".join([caption(found), "", *lines])


def row(arm: Mapping[str, Any]) -> dict[str, str]:
    """What an arm shows."""
    timed = arm["first_token"]
    return {
        "method": arm["arm"].replace("|", "\\|") + (" (as published)" if arm["published"] else ""),
        "pictures right": interval(arm["pictures"]),
        "text lost, nats a token": "0, proven" if arm["proven"] else interval(arm["text"], sign=True),
        "change of answers about words after a picture": interval(arm["words after a picture"], sign=True),
        "trained": f"{arm['trainable'] / 1e6:.2f} M",
        "first token": f"{timed:.2f} ×" if timed is not None else "",
        "seeds": str(len(arm["seeds"])),
    }


def interval(figure: Mapping[str, Any] | None, *, sign: bool = False) -> str:
    """Value and 95 % interval; two decimals, three of a difference."""
    if figure is None:
        return ""
    value, low, high = (f"{figure[key]:{'+.3f' if sign else '.2f'}}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def caption(found: Mapping[str, Any]) -> str:
    """What was run, and how to run it again."""
    plan, about = found["plan"], found["environment"]
    budget = plan["budget"]
    seeds = sorted({seed for arm in found["arms"] for seed in arm["seeds"]})
    shared = f"{plan['shared']['steps']} steps of the projector alone, then {budget['steps']} of {budget['batch_size']}"
    shared += " in bf16" if budget["precision"] == "bf16" else ""
    gpu = found["machine"]["gpu"]
    place = gpu if about["device"].startswith("cuda") and gpu else f"{found['machine']['cores']} cores, no GPU"
    return (
        f"Every method on {plan['base']}: {shared}, the same samples in the same order, seeds "
        f"{', '.join(map(str, seeds))}, {place} (`{found['command']}`, "
        "[compare.md](docs/results/compare.md)); 95 % intervals over pictures or texts, first token against the bare "
        "LLM's on as many tokens:"
    )


def placed(readme: str, text: str) -> str:
    """The README with the table between its two comments.

    Raises:
        ValueError: they are not there, once each and in order.
    """
    head, start, rest = readme.partition(START)
    _, end, tail = rest.partition(END)
    if not start or not end or START in tail or END in tail:
        raise ValueError(f"README.md: {START!r} and {END!r} have to stand there once, in this order")
    return f"{head}{START}\n{text}\n{END}{tail}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    if not RESULTS.is_file():
        raise SystemExit("docs/results/compare.json is missing: run benchmarks/compare.py first")
    old = README.read_text(encoding="utf-8")
    new = placed(old, table(json.loads(RESULTS.read_text(encoding="utf-8"))))
    if given.check and new != old:
        raise SystemExit("README.md has another table than docs/results/compare.json: run this without --check")
    if not given.check:
        README.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
