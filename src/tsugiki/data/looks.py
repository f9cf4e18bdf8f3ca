"""What comparisons need of a picture, from one decoding: the key of its pixels and its small forms.

A photograph of a phone takes a tenth of a second to decode, and several rooms compare the same ones: who is like whom,
which are equal, which can be read at all. So what was seen of a file is remembered until the file changes.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tsugiki.data.images import image_size, open_image, rgb_key
from tsugiki.errors import ImageError
from tsugiki.types import ImageSource

Array = NDArray[Any]
State = tuple[str, int, int]

REMEMBERED = 4096
"""Pictures; 7 kB each."""
THREADS = min(4, os.cpu_count() or 1)
"""That decode at once: Pillow lets others run meanwhile."""
SMALL = 25_000_000
"""Pixels; larger pictures are decoded one at a time, for the sake of memory."""
_MARGIN = 3.0  # grey levels; flat areas would give bits of noise otherwise
_FLAT = 1.5  # standard deviation in grey levels below which there is nothing to correlate

_known: OrderedDict[State, Look] = OrderedDict()
_lock = threading.Lock()


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """Small forms of a picture."""

    key: str
    """As `data.images.pixel_key`."""
    bits: Array
    """Difference hash, bool [64]: cells of 8 x 8 that are brighter than their right neighbour."""
    cells: Array
    """The 16 x 16 colour picture in levels, its mean apart, float32 [768]."""
    grey: Array
    """The 32 x 32 grey picture, its mean apart, of length 1, float32 [1024]; 0 where it is flat."""


def look(source: ImageSource, *, where: str = "") -> Look:
    """Look at a picture, or remember it.

    Raises:
        ImageError: as `open_image`.
    """
    state = _state(source)
    if state is not None:
        with _lock:
            if state in _known:
                _known.move_to_end(state)
                return _known[state]
    found = _of(open_image(source, where=where))
    if state is not None:
        with _lock:
            _known[state] = found
            if len(_known) > REMEMBERED:
                _known.popitem(last=False)
    return found


def look_ahead(sources: Iterable[ImageSource]) -> None:
    """Look at many files in threads, so that `look` has them at hand. What can't be read is said there."""
    new = {state: s for s in sources if (state := _state(s)) is not None and state not in _known}
    if len(new) > 1:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(_try, list(new.values())[:REMEMBERED]))


def _try(source: ImageSource) -> None:
    with suppress(ImageError):
        width, height = image_size(source)
        if width * height <= SMALL:
            look(source)


def _state(source: ImageSource) -> State | None:
    """Of a file that is there; None for anything else."""
    if not isinstance(source, (str, Path)):
        return None
    try:
        stat = os.stat(source)  # noqa: PTH116  (a name that is too long, or holds a zero byte, is no exception here)
    except (OSError, ValueError):
        return None
    return os.path.abspath(source), stat.st_size, stat.st_mtime_ns  # noqa: PTH100


def _of(image: Image.Image) -> Look:
    def small(picture: Image.Image, size: tuple[int, int]) -> Array:
        return np.asarray(picture.resize(size, Image.Resampling.BOX), np.float32)

    light = image.convert("L")
    steps, cells, grey = small(light, (9, 8)), small(image, (16, 16)).ravel(), small(light, (32, 32)).ravel()
    flat = grey.std() < _FLAT
    grey = grey - grey.mean()
    length = 1.0 if flat else float(np.linalg.norm(grey))
    return Look(
        key=rgb_key(image),
        bits=(steps[:, :-1] > steps[:, 1:] + _MARGIN).ravel(),
        cells=cells - cells.mean(),
        grey=grey * 0 if flat else grey / length,
    )
