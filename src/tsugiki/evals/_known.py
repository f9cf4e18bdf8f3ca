"""What can be measured, by name: looked up without importing any of it, so that a command's help can list it."""

from __future__ import annotations

import pkgutil
from pathlib import Path

HERE = Path(__file__).parent
LM_SUITES = HERE / "lm_suites"
"""A YAML file for each published benchmark."""
SUITES = ("wiki", "title_choice", "next_sentence", "definition_choice", "arithmetic", "instructions", "answers")
"""Suites of retention that come with the library."""


def tasks() -> list[str]:
    """Names of the tasks: the files of `tasks/`."""
    return sorted(m.name for m in pkgutil.iter_modules([str(HERE / "tasks")]) if not m.name.startswith("_"))


def published() -> list[str]:
    """Names of the suites of retention that are fetched from a hub: the files of `lm_suites/`."""
    return sorted(file.stem for file in LM_SUITES.glob("*.yaml"))
