"""What `tsugiki data check` does: every line, every picture, every box, and a sheet to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tsugiki.data.boxes import BoxCodec
from tsugiki.data.collate import Collator
from tsugiki.data.images import MAX_PIXELS
from tsugiki.data.schema import scan_checked
from tsugiki.data.sheet import View, draw_sheet
from tsugiki.errors import InputError
from tsugiki.types import Sample


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found in a JSONL file."""

    path: Path
    samples: int
    """Lines that are right."""
    pictures: int
    boxes: int
    tasks: Mapping[str, int] = field(default_factory=dict)
    longest: int | None = None
    """Tokens of the longest conversation, where a tokenizer was given."""
    errors: tuple[InputError, ...] = ()
    """At most one for each line, in order of lines."""
    sheet: Path | None = None

    @property
    def ok(self) -> bool:
        return not self.errors

    def __str__(self) -> str:
        tasks = ", ".join(f"{name} {n}" for name, n in self.tasks.items())
        longest = f"; longest {self.longest} tokens" if self.longest is not None else ""
        counts = f"{self.samples} samples ({tasks or 'none'}), {self.pictures} pictures, {self.boxes} boxes"
        lines = [f"{self.path}: {counts}{longest}; {len(self.errors)} errors", *map(str, self.errors)]
        return "\n".join([*lines, f"sheet: {self.sheet}"] if self.sheet else lines)


def check_file(
    path: str | Path,
    *,
    sheet: str | Path | None = None,
    codec: BoxCodec | None = None,
    view: View | None = None,
    limit: int = 24,
    tokenizer: Any = None,
    tokens_per_image: int = 0,
    tokens_of: Callable[[tuple[int, int]], int] | None = None,
    max_length: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Report:
    """Check a JSONL file and its pictures; never raises for what is wrong in them.

    Args:
        sheet: write a PNG of right samples there (nothing is written where there is none with a picture).
        codec: of boxes, as the model uses it.
        view: the tower's geometry for the sheet; see `sheet.draw_sheet`.
        limit: pictures on the sheet.
        tokenizer: the LLM's; with it every conversation is encoded, so that those too long are found.
        tokens_per_image: visual tokens of a picture.
        tokens_of: (width, height) to that number, where it depends on them.
        max_length: the LLM's context, in tokens.
        max_pixels: larger pictures are refused.

    Raises:
        StoreError: the sheet can't be written.
    """
    path, codec = Path(path), codec or BoxCodec()
    samples: list[Sample] = []
    errors: list[InputError] = []
    longest = None if tokenizer is None else 0
    collator = Collator(
        tokenizer,
        tokens_per_image=tokens_per_image,
        tokens_of=tokens_of,
        placeholder_id=0,
        codec=codec,
        max_length=max_length,
    )
    for item in scan_checked(path, max_pixels=max_pixels):
        if isinstance(item, InputError):
            errors.append(item)
            continue
        try:
            if longest is not None:
                longest = max(longest, len(collator.encode(item)))
        except InputError as error:
            errors.append(error)
        else:
            samples.append(item)
    drawn = None
    if sheet is not None and any(s.images for s in samples):
        draw_sheet(samples, sheet, codec=codec, view=view, limit=limit)
        drawn = Path(sheet)
    return Report(
        path=path,
        samples=len(samples),
        pictures=len({str(source) for s in samples for source in s.images}),
        boxes=sum(len(s.boxes) for s in samples),
        tasks=dict(Counter(s.task for s in samples).most_common()),
        longest=longest,
        errors=tuple(errors),
        sheet=drawn,
    )
