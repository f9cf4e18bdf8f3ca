"""Pictograms and photographs that tests make themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tsugiki.synth.pictograms import table

SVG = """<svg id="emoji" viewBox="0 0 72 72" xmlns="http://www.w3.org/2000/svg">
<g id="color"><path fill="#{fill:06x}" d="M14,20 h{wide} v{high} h-{wide} Z"/>
<circle cx="40" cy="34" r="{r}" fill="#b1cc33"/></g>
<g id="line"><path fill="none" stroke="#000" stroke-width="2" d="M14,20 h{wide} v{high} h-{wide} Z"/></g></svg>"""
FEW = 30
"""So many pictograms, the first of the table, have a drawing in `svg_folder`."""


@pytest.fixture(scope="session")
def svg_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Boxes of different sizes and colours in place of the first 30 pictograms."""
    folder = tmp_path_factory.mktemp("svg")
    for i, pictogram in enumerate(table()[:FEW]):
        text = SVG.format(fill=(i * 987_653) % 2**24, wide=12 + i, high=42 - i, r=4 + i % 5)
        (folder / f"{pictogram.code}.svg").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three grey photographs of 100x90."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    files = [folder / f"{i}.png" for i in range(3)]
    for file in files:
        Image.fromarray(rng.integers(60, 200, (90, 100), dtype=np.uint8)).save(file)
    return files
