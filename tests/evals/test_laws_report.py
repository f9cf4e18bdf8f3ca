"""The files that show where attention goes."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tsugiki.errors import MissingExtraError
from tsugiki.evals import laws, laws_report
from tsugiki.evals.laws import Laws
from tsugiki.testing import tiny_images
from tsugiki.types import Message, Sample


@pytest.fixture
def found() -> Laws:
    rng = np.random.default_rng(0)
    own = rng.dirichlet(np.ones(3), size=(4, 6))
    base = rng.dirichlet(np.ones(2), size=(4, 6))
    samples = tuple(Sample(id=str(i), messages=(Message.of("user", "?", (p,)),)) for i, p in enumerate(tiny_images(4)))
    return Laws(own, np.stack([base[..., 0], np.zeros((4, 6)), base[..., 1]], -1), samples)


def test_what_is_written(found: Laws, tmp_path: Path) -> None:
    suggestion = laws.suggest(found, 2)
    page = laws_report.write(found, suggestion, tmp_path / "a", {"model": "<graft>"})
    assert sorted(f.name for f in page.parent.iterdir()) == ["attention.html", "attention.json", "attention.png"]
    image = Image.open(io.BytesIO((page.parent / "attention.png").read_bytes()))
    assert image.format == "PNG" and len(image.convert("L").getcolors(1 << 16) or []) > 20
    record = json.loads((page.parent / "attention.json").read_text(encoding="utf-8"))
    assert record["wings"] == {"layers": list(suggestion.layers)} and record["conversations"] == 4
    assert record["layers"][3]["model"]["image"] == pytest.approx(found.own[:, 3, 1].mean())
    assert record["layers"][3]["bare LLM"]["after"] == pytest.approx(found.base[:, 3, 2].mean())
    assert record["rule"] == laws.RULE and len(record["scores"]) == 4 and record["run"] == {"model": "<graft>"}
    text = page.read_text(encoding="utf-8")
    assert text.count("<svg") == 4 and "http" not in text.replace("http-equiv", "") and "<script" not in text
    assert {s.metric for s in laws.scores(found)} == set(laws_report.MEANINGS)
    assert all(re.search("(Lower|Higher) is closer to the bare LLM", told) for told in laws_report.MEANINGS.values())
    assert all(told in text for told in laws_report.MEANINGS.values())
    assert "&lt;graft&gt;" in text and f"Layers for learners: {suggestion.layers[0]}, {suggestion.layers[1]}." in text


def test_nothing_is_written_without_matplotlib(found: Laws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str, *, extra: str) -> None:
        raise MissingExtraError(f"{module} is not installed", fix=f"Run: pip install 'tsugiki[{extra}]'")

    monkeypatch.setattr(laws_report, "require", missing)
    with pytest.raises(MissingExtraError, match=r"tsugiki\[eval\]"):
        laws_report.write(found, laws.suggest(found), tmp_path / "a")
    assert not (tmp_path / "a").exists()
