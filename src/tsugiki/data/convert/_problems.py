"""What converters do with items that are wrong: stop with one line that counts them, or hand them all to the caller."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tsugiki.errors import DataError, ImageError, InputError
from tsugiki.types import Sample


class Problems:
    """Collects errors while the good items are converted.

    Args:
        collect: the caller's list; with one, wrong items are left out and their errors put into it.
    """

    def __init__(self, collect: list[InputError] | None) -> None:
        self.collect = collect
        self.errors: list[InputError] = []

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Keep an error of the block for later."""
        try:
            yield
        except InputError as error:
            self.errors.append(error)

    def close(self, samples: list[Sample], where: str) -> list[Sample]:
        """The samples, if all is well or the caller collects.

        Raises:
            InputError: the first error, with the number of others; DataError where there is no sample at all.
        """
        if self.collect is not None:
            self.collect.extend(self.errors)
        elif self.errors:
            first, others = self.errors[0], len(self.errors) - 1
            more = f" (and {others} more errors)" if others else ""
            raise type(first)(first.found + more, expected=first.expected, fix=first.fix, where=first.where) from first
        if not samples and not self.errors:
            raise DataError("no sample in it", expected="at least one", fix="Fill it or correct the path.", where=where)
        return samples


def picture(folder: Path, name: str, where: str) -> Path:
    """The path of a picture that exists.

    Raises:
        ImageError: it does not, or it is a folder.
    """
    path = folder / name
    if not name.strip() or not is_there(path):
        raise ImageError(
            f"the picture {str(path)!r} does not exist", expected="a picture file", fix="Correct the path.", where=where
        )
    return path


def is_there(path: Path) -> bool:
    """Whether it is a file; a name that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or with a zero byte
        return False
