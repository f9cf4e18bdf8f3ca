"""What every benchmark writes: a Markdown table, the same numbers as JSON, the machine and the command."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

import tsugiki
from tsugiki.evals.tables import between, number
from tsugiki.types import Score

RESULTS = Path(__file__).parents[1] / "docs" / "results"


def machine() -> dict[str, Any]:
    """Versions and size of this machine; no names."""
    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processor": platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tsugiki": tsugiki.__version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def write(
    name: str,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    notes: Sequence[str] = (),
    *,
    folder: Path = RESULTS,
    **facts: Any,
) -> None:
    """Write <folder>/<name>.md and .json; rows are dicts of the same keys."""
    about = machine()
    command = f"python benchmarks/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}".strip()
    header = list(rows[0])
    lines = [f"# {title}", "", f"`{command}`", "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(_cell(row[key]) for key in header) + " |" for row in rows]
    lines += ["", *(f"* {note}" for note in notes), ""]
    lines += [
        f"{about['date']}; {about['cores']} cores, {about['threads']} thread(s), GPU: {about['gpu'] or 'none'}; Python"
        f" {about['python']}, torch {about['torch']}, transformers {about['transformers']}.",
        "",
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text("\n".join(lines), encoding="utf-8")
    content = {"command": command, "machine": about, "rows": list(rows), "notes": list(notes), **facts}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print("\n".join(lines))


def by_size(scores: Sequence[Score], rivals: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a learning curve's scores; differences with their sign."""
    rows = []
    for score in scores:
        size = score.task.removesuffix(" pictures").rpartition(" ")[2].rpartition("/")[2]
        sign = " minus " in score.metric
        rows.append(
            {
                "pictures": size,
                "figure": score.metric,
                "model [95 %]": f"{number(score.value, sign=sign)} {between(score.low, score.high, sign=sign)}",
                "folds": score.note.removeprefix("folds "),
                "bare LLM": number(score.base),
                **{name: number(score.yardsticks.get(name)) for name in rivals},
            }
        )
    return rows


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
