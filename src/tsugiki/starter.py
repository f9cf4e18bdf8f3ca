"""The starter graft: general eyes for a small LLM, in the package, to talk to at once or to adapt to own pictures.

`tsugiki chat --image photo.jpg` and `tsugiki.load("starter")` find it here; `benchmarks/starter.py` makes it.
"""

from __future__ import annotations

from pathlib import Path

from tsugiki.errors import StoreError

NAME = "starter"
"""Stands for it wherever a saved graft is named."""
FOLDER = Path(__file__).with_name("starter_graft")


def is_packaged() -> bool:
    """Whether this installation holds it."""
    return (FOLDER / "config.json").is_file()


def folder() -> Path:
    """Its folder.

    Raises:
        StoreError: this installation has none.
    """
    if not is_packaged():
        raise StoreError(
            "this installation has no starter graft",
            expected="one in the package, or the folder of a graft of your own",
            fix="Install tsugiki again, or make a graft from your pictures (tsugiki fit photos/) and name its folder.",
            where=str(FOLDER),
        )
    return FOLDER
