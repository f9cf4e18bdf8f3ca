"""Photographs without a defect, divided once and for all into those of training and those of the test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tsugiki import assets
from tsugiki.data.images import content_key, image_files, image_size
from tsugiki.errors import DataError
from tsugiki.synth.backgrounds import FABRIC, Split, listed

SMALLEST, LONGEST = 64, 3
"""Pixels of the shorter side; the longer side in shorter ones."""


@dataclass(frozen=True, slots=True)
class Nominal:
    """The photographs of one split."""

    folder: Path
    names: tuple[str, ...]
    """Relative to the folder."""
    attribution: str

    @classmethod
    def of(cls, split: Split, folder: Path | None = None, test_share: float = 0.2) -> Nominal:
        """Those of `folder`, or of the asset "fabric": the backgrounds of the scenes' same split, which are in no split
        of `fabric.draw`.

        Which photographs of a folder are for the test is a matter of their files' content alone: a copy under another
        name is in the same split.

        Args:
            split: "train" or "test".
            folder: with all folders in it.
            test_share: of the different photographs, between 0 and 1; at least one is in either split.

        Raises:
            DataError: no folder, fewer than two different photographs, or one that is too small.
            ImageError: a file is no picture.
            AssetError: the asset is not fetched.
        """
        if folder is None:
            asset, place = assets.ASSETS["fabric"], assets.path("fabric") / FABRIC
            return cls(place, listed()[split], f"Photographs: {asset.package} {asset.version}, {asset.licence}.")
        if not 0 < test_share < 1:
            raise DataError(f"{test_share}", expected="a share between 0 and 1", where="test_share")
        files = _usable(folder)
        keys = {file: content_key(file) for file in files}
        order = sorted(set(keys.values()))
        if len(order) < 2:
            raise DataError(
                f"{len(order)} different photographs",
                expected="two or more: one for training, one for the test",
                fix="Add photographs without a defect.",
                where=str(folder),
            )
        test = set(order[: min(max(1, round(test_share * len(order))), len(order) - 1)])
        mine = [file for file in files if (keys[file] in test) == (split == "test")]
        names = tuple(file.relative_to(folder).as_posix() for file in mine)
        return cls(folder, names, f"Photographs: from {folder.name}; their licence is that of their owner.")


def _usable(folder: Path) -> list[Path]:
    files = image_files(folder) if folder.is_dir() else []
    if not files:
        raise DataError(
            "no picture in it" if folder.is_dir() else "no such folder",
            expected="a folder of photographs without a defect",
            fix="Correct the path.",
            where=str(folder),
        )
    for file in files:
        width, height = image_size(file, where="photos")
        if min(width, height) < SMALLEST or max(width, height) > LONGEST * min(width, height):
            raise DataError(
                f"{width}x{height} pixels",
                expected=f"at least {SMALLEST} on either side, and no longer than {LONGEST} to 1",
                fix="Leave it out.",
                where=str(file),
            )
    return files
