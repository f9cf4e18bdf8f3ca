"""The file of scores that `tsugiki eval --out` writes: figures beside what they were measured with.

{"version": 1, "environment": {"tsugiki": ..., "torch": ..., "date": ...}, "model": {"graft_sha256": ..., "base":
 {...}}, "data": [{"file": ..., "sha256": ...}], "settings": {...}, "scores": [{"task": ..., "value": ...}],
 "budget": [{"figure": "wiki.loss", "limit": ..., "holds": ..., "items_needed": ...}]}
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tsugiki import store
from tsugiki.data.files import atomic_write, sha256_file
from tsugiki.errors import DataError
from tsugiki.evals.budget import Verdict
from tsugiki.evals.proof import environment
from tsugiki.evals.tables import records
from tsugiki.types import Score

VERSION = 1
"""Of the file's form; a score has the version of its task's definition."""


def write(
    path: str | Path,
    scores: Sequence[Score],
    model: Any,
    *,
    data: Sequence[Path] = (),
    settings: Mapping[str, Any] | None = None,
    verdicts: Sequence[Verdict] = (),
) -> None:
    """Write scores with versions and hashes.

    Args:
        model: what was measured.
        data: the files that were read; their hashes are kept.
        settings: what was asked for, as plain values.
        verdicts: which scores a budget judges, and how.

    Raises:
        StoreError: the file can't be written.
    """
    content = {
        "version": VERSION,
        "environment": environment(model),
        "model": {
            "guarantee": model.guarantee,
            "graft_sha256": store.graft_sha256(model),
            "base": {k: v for k, v in model.base_identity.items() if k != "tensors"},  # their common hash is enough
        },
        "data": [{"file": file.name, "sha256": sha256_file(file)} for file in data],
        "settings": dict(settings or {}),
        "scores": records(scores),
        "budget": [verdict.record() for verdict in verdicts],
    }
    atomic_write(path, json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")


def read(path: str | Path) -> list[Score]:
    """The scores of a file.

    Raises:
        DataError: not such a file, or one of another version.
    """
    try:
        content: Any = json.loads(Path(path).read_text(encoding="utf-8"))
        found = content["version"] if isinstance(content, dict) else "none"
    except (OSError, ValueError, KeyError) as error:
        raise _other(f"not a file of scores ({type(error).__name__}: {error})", path) from error
    if found != VERSION:
        raise _other(f"a file of scores of version {found}", path)
    try:
        return [score(record) for record in content["scores"]]
    except (TypeError, KeyError) as error:
        raise _other(f"not a file of scores ({type(error).__name__}: {error})", path) from error


def score(record: Mapping[str, Any]) -> Score:
    """A score from its plain values (`tables.records`), in which an infinite number was written as null."""
    ends = {"low": -math.inf, "difference_low": -math.inf}
    fields: dict[str, Any] = {k: ends.get(k, math.inf) if v is None else v for k, v in record.items()}
    return Score(**fields)


def _other(found: str, path: str | Path) -> DataError:
    return DataError(
        found,
        expected=f"version {VERSION}, as `tsugiki eval --out` writes it",
        fix="Measure again.",
        where=str(path),
    )
