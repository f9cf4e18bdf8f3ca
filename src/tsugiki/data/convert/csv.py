"""CSV: one row = one picture, with a header."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from tsugiki.data._fields import unreadable
from tsugiki.data.convert._problems import Problems
from tsugiki.data.convert._rows import PATH_NAMES, Wording, sample_from_row, with_options
from tsugiki.errors import DataError, InputError
from tsugiki.types import Sample

DESCRIPTION = "CSV with a header: path and label, or path, question and answer; optional id, split, options (a|b)"


def convert(
    path: str | Path,
    *,
    encoding: str = "utf-8-sig",
    delimiter: str = ",",
    problems: list[InputError] | None = None,
    **wording: str,
) -> list[Sample]:
    """Samples of a CSV; other columns go into `meta`. Paths are relative to the CSV.

    Args:
        encoding: of the file; spreadsheets in Japanese often write cp932.
        delimiter: one character.
        problems: a list that takes the errors of wrong rows, which are then left out.
        wording: question, answer, caption_question, task; see `Wording`.

    Raises:
        DataError: not readable, no header, or a wrong row (its number is that of the line in the file).
        UnknownNameError: an unknown option.
        ImageError: a picture does not exist.
    """
    path, form = Path(path), Wording.of(wording)
    found, wrong = [], Problems(problems)
    for where, row in rows(path, encoding=encoding, delimiter=delimiter):
        with wrong.caught():
            found.append(sample_from_row(row, path.parent, where, form))
    return wrong.close(with_options(found, form), str(path))


def rows(path: Path, *, encoding: str = "utf-8-sig", delimiter: str = ",") -> list[tuple[str, dict[str, Any]]]:
    """(file:line, row) of every row.

    Raises:
        DataError: as `convert`.
    """
    found: list[tuple[str, dict[str, Any]]] = []
    try:
        with path.open(encoding=encoding, newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            _check_header(reader.fieldnames or (), path, delimiter)
            for row in reader:
                where = f"{path}:{reader.line_num}"
                if None in row:
                    raise DataError(
                        f"{len(row[None]) + len(row) - 1} columns",
                        expected=f"{len(row) - 1} as in the header",
                        fix="Put values with a comma into quotes.",
                        where=where,
                    )
                found.append((where, {k.strip(): v.strip() if v else v for k, v in row.items()}))
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeError as error:
        raise DataError(
            f"bytes that are not {encoding.removesuffix('-sig').upper()}",
            expected="a CSV in UTF-8",
            fix="Save it as 'CSV UTF-8', or give its encoding (encoding=cp932 for Japanese spreadsheets).",
            where=str(path),
        ) from error
    except (csv.Error, LookupError, TypeError) as error:
        raise DataError(
            f"not CSV ({error})", expected="rows of one table", fix="Correct it.", where=str(path)
        ) from error
    return found


def _check_header(names: Any, path: Path, delimiter: str) -> None:
    if not {n.strip() for n in names} & set(PATH_NAMES):
        raise DataError(
            f"the header {delimiter.join(names)!r}",
            expected=f"a column {PATH_NAMES[0]!r}, and 'label' or 'question' and 'answer'",
            fix="Name the columns in the first line; give delimiter= if it is not a comma.",
            where=f"{path}:1",
        )
