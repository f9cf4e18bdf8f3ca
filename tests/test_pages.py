"""Every page that Tsugiki writes, in a real browser: it loads nothing, it is whole, and anyone can read it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from tests import _browser
from tests._browser import Browser
from tests.evals.test_report import proof, score, whole
from tests.studies import _compared

from tsugiki.evals import laws, laws_report, report
from tsugiki.evals._charts import Point
from tsugiki.evals.laws import Laws
from tsugiki.studies import _amounts, _pareto
from tsugiki.studies import _compare_plan as plans
from tsugiki.studies._points import Measured
from tsugiki.studies._points import Point as Weights
from tsugiki.studies.compare import write
from tsugiki.studies.search import Found
from tsugiki.testing import tiny_images
from tsugiki.types import Message, Sample, Score

WIDTHS = (1280, 390)
"""A desk and a phone."""
if (_MISSING := _browser.missing()) and os.environ.get("TSUGIKI_TEST_BROWSER") != "required":
    pytest.skip(_MISSING, allow_module_level=True)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert not _MISSING
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """One of each kind, with long names, several alphabets, and whatever a page can hold."""
    root = tmp_path_factory.mktemp("pages")
    out = root / "compare"
    plan = plans.load(_compared.finished(root, out))
    (out / "arms" / "iaa-2.failed.txt").write_text("out of memory: " + "0x7f" * 40)
    line = [Point(20, 0.3, 0.1, 0.5, (0.2, 0.4)), Point(100, 0.6, 0.5, float("inf"))]
    several = {"scenes, wings": proof(), "fabric": proof(holds=False)}
    curves = {name: [(i, 3 / (i + 1)) for i in range(90)] for name in ("scenes, projector", "scenes, wings", "fabric")}
    _amounts.write(root, "What labels are worth", [score()], {f"arm number {i}": line for i in range(5)}, {"seed": 0})
    return {
        "compare": write(plan, out).report,
        "report": report.write(whole(), root / "report.html"),
        "demo": report.write(
            report.Report(
                title="Eyes", findings=("a",), answers=whole().answers, losses=curves, proofs=several,
                scores=[score(), score("recall of ok"), score("F1", informative=False, note="three | folds " * 9)],
            ),
            root / "demo.html",
        ),
        "curve": root / "curve.html",
        "search": _search(root),
        "attention": _attention(root),
    }  # fmt: skip


def _search(folder: Path) -> Path:
    """A search that found weights."""
    points = []
    for beta in (0.0, 0.3, 1.0):
        vision = Score(task="naming", metric="accuracy", value=beta, stderr=0.01, n=50, low=beta - 0.1, high=beta + 0.1)
        lost = {"difference": beta, "difference_low": beta, "difference_high": beta, "base": 3.0}
        text = Score(task="wiki", metric="loss", value=3 + beta, stderr=0.0, n=50, **lost)
        points.append(Measured.of(Weights(beta), (vision, text), "naming.accuracy", {"wiki.loss": 0.4}))
    found = Found(
        folder=folder, objective="naming.accuracy", points=tuple(points), chosen=points[1], nearest=points[0],
        unseen={"chosen": points[1], "first alone": points[2]}, ablation={"llm.layers.0-14": (points[0], points[2])},
    )  # fmt: skip
    page = folder / "search.html"
    page.write_text(_pareto.page_of(found), encoding="utf-8")
    return page


def _attention(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    own, text = rng.dirichlet(np.ones(3), size=(4, 6)), rng.dirichlet(np.ones(2), size=(4, 6))
    samples = tuple(Sample(id=str(i), messages=(Message.of("user", "?", (p,)),)) for i, p in enumerate(tiny_images(4)))
    found = Laws(own, np.stack([text[..., 0], np.zeros((4, 6)), text[..., 1]], -1), samples)
    return laws_report.write(found, laws.suggest(found, 2), folder, {"model": "runs/<a>"})


@pytest.mark.parametrize("name", ["compare", "report", "demo", "curve", "search", "attention"])
def test_a_page_can_be_read_by_anyone_anywhere(browser: Browser, pages: Mapping[str, Path], name: str) -> None:
    for width in WIDTHS:
        for dark in (False, True):
            seen = browser.look(pages[name], width, dark=dark)
            assert seen == _browser.Seen((), (), (), ()), f"{name}, {width} pixels, {'dark' if dark else 'light'}"


BAD = """<!doctype html><html><head><title>x</title></head><body>
<img src="https://example.com/a.png"><img src="data:image/png;base64,AAAA" alt="nothing">
<p style="width: 2000px">wide</p><p style="font-size: 9px">small</p><p style="color: #ddd">pale</p>
<p style="position: absolute; left: -40px">gone</p><p style="width: 2em; overflow-wrap: anywhere">projector</p>
<svg viewBox="0 0 800 80" width="200"><text font-size="16" y="20">shrunk</text></svg>
<script>throw new Error("oh")</script></body></html>"""


def test_a_bad_page_is_told(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text(BAD)
    seen = browser.look(tmp_path / "bad.html", 390)
    assert "https://example.com/a.png" in seen.requests
    assert any("Uncaught" in line for line in seen.console)
    told = "\n".join(seen.faults)
    for fault in (
        "broken picture data:",
        "the body is 2",
        "9.0 pixels: small",
        "4.0 pixels: shrunk",
        "screen: gone",
        "apart: proj",
    ):
        assert fault in told
    assert {"html-has-lang", "image-alt", "color-contrast"} <= {line.partition(":")[0] for line in seen.axe}
