"""Small folders of pictures in two or three classes that a tiny tower can tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = ((220, 40, 40), (40, 60, 220), (40, 200, 60))


def picture(label: int, number: int, size: int = 40) -> Image.Image:
    """A ground in the colour of the class with coarse noise, so that no two pictures look alike."""
    rng = np.random.default_rng([label, number])
    noise = np.kron(rng.integers(-110, 110, (5, 5, 1)), np.ones((size // 5, size // 5, 1)))
    return Image.fromarray(np.clip(noise + COLOURS[label], 0, 255).astype(np.uint8))


def folder(root: Path, each: Sequence[int] = (12, 12), names: Sequence[str] = ("良品", "不良", "third")) -> Path:
    """One folder for each class."""
    for label, (n, name) in enumerate(zip(each, names, strict=False)):
        (root / name).mkdir(parents=True)
        for i in range(n):
            picture(label, i).save(root / name / f"写真 {i}.png")
    return root
