"""The report is one readable file that loads nothing and lets nothing in; the tables say the same."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image
from rich.console import Console

from tsugiki import testing
from tsugiki.data.boxes import BoxCodec, PaddedSquare
from tsugiki.errors import StoreError
from tsugiki.evals import _charts, report, tables
from tsugiki.evals._boxes import Reply
from tsugiki.evals._charts import Point
from tsugiki.evals._html import Html, h
from tsugiki.evals.report import Report
from tsugiki.evals.task import Answer, shown_text
from tsugiki.types import Box, BoxPart, Check, ImagePart, Message, Proof, Sample, Score, TextPart

VOID = {"meta"}


class Checker(HTMLParser):
    """Every element is closed in order; collects text, sources and tags."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v or "" for k, v in attrs if k in {"src", "href"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def score(metric: str = "accuracy", **fields: object) -> Score:
    known = {"value": 0.75, "stderr": 0.02, "n": 400, "low": 0.71, "high": 0.79, "base": 0.33}
    known |= {"difference": 0.42, "difference_low": 0.36, "difference_high": 0.47, "yardsticks": {"probe": 0.73}}
    return Score(task="decisions/defect", metric=metric, **{**known, **fields})  # type: ignore[arg-type]


def answer(i: int, *, text: str = "a hole", kind: str = "defect", boxes: tuple[Box, ...] = ()) -> Answer:
    picture = testing.tiny_images(3)[i % 3]
    messages = (Message.of("user", f"What is wrong <here> {i}?", (picture,)), Message.of("assistant", "a hole"))
    return Answer(
        task="decisions",
        sample=Sample(id=str(i), messages=messages, task=kind),
        text=text,
        gold="a hole",
        correct=text == "a hole",
        base_text="穴",
        probabilities={"a hole": 0.9, "a stain": 0.08, "ok": 0.015, "dirt": 0.005},
        boxes=boxes,
        gold_boxes=(Box(4, 4, 20, 20),),
    )


def proof(**fields: object) -> Proof:
    known = {
        "holds": True,
        "guarantee": "exact",
        "how": "untouched",
        "prefix_exact": True,
        "prompts": 64,
        "answers": 20,
    }
    known |= {"base": {"name": "SmolLM2"}, "graft_sha256": "ab", "environment": {}, "sha256": "cd" * 32}
    known |= {"checks": (Check(name="tensors", holds=True, detail="all 272 equal"),)}
    return Proof(**{**known, **fields})  # type: ignore[arg-type]


def whole() -> Report:
    return Report(
        title="Fabric & scenes",
        findings=("Text kept.", "違いは <b>小さい</b>"),
        scores=[
            score(note="two | folds"),
            score("macro-F1", base=None, difference=None),
            score("accuracy minus probe", value=-0.02),
        ],
        answers=[answer(i, text="ok" if i % 2 else "a hole", boxes=(Box(5, 5, 21, 21),)) for i in range(6)],
        losses={
            "stage 1": [(i, 3 / (i + 1)) for i in range(50)],
            "stage 2": [(50 + i, float("nan")) for i in range(3)],
        },
        proof=proof(),
        facts={"base": "SmolLM2-135M", "seconds": 182.44444, "steps": 150},
    )


def parse(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    return checker


def test_one_file_that_loads_nothing(tmp_path: Path) -> None:
    path = report.write(whole(), tmp_path / "report.html")
    page = path.read_text(encoding="utf-8")
    checker = parse(page)
    assert page.startswith("<!doctype html>") and 'name="viewport"' in page and "default-src 'none'" in page
    assert all(link.startswith("data:image/") for link in checker.links) and len(checker.links) == 6
    assert "script" not in checker.tags and "@import" not in page and "url(" not in page
    assert list(tmp_path.iterdir()) == [path]
    for expected in (
        "Fabric & scenes",
        "違いは <b>小さい</b>",
        "0.750",
        "[0.710,\u00a00.790]",
        "What is wrong <here>",
        "182.444",
    ):
        assert expected in checker.text
    assert "<here>" not in page and "<b>小" not in page


def test_sections_that_are_empty_are_left_out() -> None:
    text = parse(report.render(Report(title="Nothing"))).text
    assert "Nothing" in text
    assert not any(heading in text for heading in ("Scores", "Answers", "Training", "Proof", "What was run"))


def test_answers_are_taken_in_turn_from_every_kind() -> None:
    answers = [answer(i) for i in range(9)] + [answer(i, kind="box") for i in range(2)]
    shown = report.choose(answers, 5)
    assert [a.sample.task for a in shown] == ["defect", "box", "defect", "box", "defect"]
    assert len(report.choose(answers, 50)) == 11


def test_a_picture_that_has_gone_does_not_stop_the_report() -> None:
    sample = Sample(id="x", messages=(Message.of("user", "?", ("gone.png",)), Message.of("assistant", "a")))
    lost = Answer(task="vqa", sample=sample, text="", gold="a", correct=False)
    page = report.render(Report(title="t", answers=[lost]))
    assert "no picture" in page and "(nothing)" in page


def test_boxes_are_drawn_in_pixels_of_the_original() -> None:
    drawn = _charts.picture(Image.new("RGB", (1000, 500)), [Box(100, 50, 300, 250)], [Box(0, 0, 10, 10)])
    assert 'viewBox="0 0 1000 500"' in drawn and 'x="100" y="50" width="200" height="200"' in drawn
    assert drawn.count("<rect") == 2 and drawn.count("stroke-dasharray") == 1
    stored = re.search(r"base64,([^\"]+)", drawn)
    assert stored is not None and len(stored[1]) < 20_000


STEPS = (
    "The cup is at [0.100,0.100,0.400,0.400].\n\n<b>The dog</b> is at [0.500,0.500,0.900,0.900].\nSo | it is *left*."
)


def stepwise() -> Answer:
    reply = Reply.read(STEPS, BoxCodec(), PaddedSquare(48, 48))
    return replace(answer(0, text=STEPS, boxes=reply.boxes), numbers=reply.numbers)


def test_boxes_of_steps_bear_the_number_of_their_line() -> None:
    page = report.render(Report(title="t", answers=[stepwise()]))
    drawn = page[page.index("<figure") : page.index("</figure>")]
    assert re.findall(r'font-weight="bold">(\d+)</text>', drawn) == ["1", "2"]
    assert drawn.count('stroke="#e8590c"') == 2 and drawn.count("stroke-dasharray") == 1
    assert drawn.count("<li>") == 3 and "&lt;b&gt;The dog" in drawn and "<b>The" not in page
    parse(page)


def test_numbers_and_boxes_stay_in_the_picture_and_are_few() -> None:
    edge = Box(47, 47, 48, 48)
    drawn = _charts.picture(Image.new("RGB", (48, 40)), [edge] * 100, numbers=range(1, 101))
    plates = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)" fill="#e8590c"', drawn)
    assert len(plates) == _charts.MOST_BOXES
    assert all(float(x) + float(w) <= 48.1 and float(y) + float(h) <= 40.1 for x, y, w, h in plates)


def test_a_markdown_page_has_its_pictures_inside(tmp_path: Path) -> None:
    path = report.write(replace(whole(), answers=[stepwise(), *whole().answers]), tmp_path / "report.md")
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# Fabric & scenes\n".replace("&", "&amp;")) and "* 違いは &lt;b&gt;小さい&lt;/b&gt;" in text
    for heading in ("## Scores", "## Answers", "## Training", "## Proof about the text", "## What was run"):
        assert heading in text
    assert "* decisions/defect, accuracy: two \\| folds\n" in text
    assert "1. The cup is at \\[0.100" in text and "3. So \\| it is \\*left\\*." in text and "<" not in text
    drawings = [base64.b64decode(d).decode() for d in re.findall(r"\(data:image/svg\+xml;base64,([^)]+)\)", text)]
    assert len(drawings) == 7 + 1 and all(len(d) < 30_000 for d in drawings)  # answers and losses
    for drawing in drawings:
        assert ElementTree.fromstring(drawing).tag == "{http://www.w3.org/2000/svg}svg" and "var(" not in drawing
    gone = Sample(id="x", messages=(Message.of("user", "?", ("gone.png",)), Message.of("assistant", "a")))
    lost = Answer(task="vqa", sample=gone, text="", gold="a", correct=False)
    assert "(nothing)" in report.render_markdown(Report(title="t", answers=[lost]))
    assert report.render_markdown(Report(title="t")) == "# t\n\n"


def test_figures_by_amount_of_data() -> None:
    line = [Point(20, 0.3, 0.1, 0.5, (0.2, 0.4)), Point(100, 0.6, 0.5, float("inf"))]
    drawn = _charts.points({"model": line, "nothing": []})
    assert drawn.count('r="5"') == 2 and drawn.count('fill="none"') == 2 and "nan" not in drawn and "inf" not in drawn
    x = [float(v) for v in re.findall(r'<circle cx="([\d.]+)" cy="[\d.]+" r="5"', drawn)]
    y = [float(v) for v in re.findall(r'<circle cx="[\d.]+" cy="([\d.]+)" r="5"', drawn)]
    assert x[0] < x[1] and y[0] > y[1]
    many = {f"arm number {i}": line for i in range(7)}
    drawn = _charts.points(many)
    x = [float(v) for v in re.findall(r'<circle cx="([\d.]+)" cy="[\d.]+" r="5"', drawn)]
    assert max(x[0::2]) < min(x[1::2])  # the arms of 20 pictures stand apart from those of 100
    places = re.findall(r'<text x="([\d.]+)" y="([\d.]+)"[^>]*>arm number', drawn)
    assert len(set(places)) == 7 and all(float(v) > 100 for v, _ in places)
    assert _charts.points({}) == "" and "By amount of data" in report.render(Report(title="t", amounts={"m": line}))


def test_the_proof_in_plain_words() -> None:
    kept = " ".join(report.proof_in_words(proof()))
    assert "SmolLM2, token for token" in kept and "64 prompts" in kept and "measured, not proven" in kept
    failed = report.proof_in_words(proof(holds=False, checks=(Check(name="tensors", holds=False, detail="1 differs"),)))
    assert "NOT" in failed[0]
    changed = report.proof_in_words(proof(guarantee="bounded", prefix_exact=False))
    assert "were changed by training" in changed[0] and len(changed) == 2
    page = parse(report.render(Report(title="t", proof=proof(holds=False))))
    assert "all 272 equal" in page.text and "cd" * 32 in page.text


def test_several_models_have_several_proofs() -> None:
    page = parse(report.render(Report(title="t", proofs={"scenes": proof(), "fabric": proof(holds=False)})))
    assert "scenes" in page.text and "fabric" in page.text and page.text.count("SHA-256 of this proof") == 2


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.0, 150.0), (2.31, 2.32), (5.0, 5.0), (0.0, 0.0), (-3.0, 1e6), (1e-9, 2e-9)]
)
def test_ticks_are_round_and_cover(low: float, high: float) -> None:
    found = _charts.ticks(low, high)
    assert 2 <= len(found) <= 9 and found == sorted(found)
    assert found[0] <= low + 1e-9 * abs(low) and found[-1] >= high - 1e-9 * abs(high)


def test_curves_leave_out_what_is_no_number() -> None:
    assert _charts.curves({"a": [(0, float("nan"))]}) == "" and _charts.curves({}) == ""
    drawn = _charts.curves({"a": [(0, 1.0), (1, float("inf")), (2, 0.5)]})
    assert drawn.count("<polyline") == 2 and "inf" not in drawn
    assert _charts.smooth([(0, 1.0), (1, 3.0)]) == [(0, 1.0), (1, 3.0)]


def test_elements_escape_what_is_not_html() -> None:
    assert h("p", "<b>", Html("<i></i>"), data_label='"x"') == '<p data-label="&quot;x&quot;">&lt;b&gt;<i></i></p>'
    assert h("p", class_="a", title=None) == '<p class="a"></p>'


def test_the_same_table_in_the_terminal_and_in_markdown() -> None:
    scores = [score(), score("a|b [x]", informative=False, yardsticks={}, low=None, high=None)]
    buffer = io.StringIO()
    Console(file=buffer, width=200).print(tables.table(scores, "Scores"))
    text = buffer.getvalue()
    assert "0.750 [0.710, 0.790]" in text and "+0.420 [+0.360, +0.470]" in text and "probe 0.730" in text
    assert "a|b [x]" in text and text.count("decisions/defect") == 1
    markdown = tables.markdown(scores).splitlines()
    assert len(markdown) == 4 and "a\\|b" in markdown[3] and "uninformative" in markdown[3]
    assert "0.750 ± 0.020" in markdown[3]


def test_records_are_plain_json() -> None:
    (record,) = tables.records([score(stderr=float("inf"), detectable=None)])
    assert json.loads(json.dumps(record, allow_nan=False))["yardsticks"] == {"probe": 0.73}
    assert record["stderr"] is None and "detectable" not in record


@pytest.mark.parametrize(("value", "text"), [(None, ""), (-0.5, "−0.500"), (float("inf"), "∞"), (float("nan"), "?")])
def test_numbers(value: float | None, text: str) -> None:
    assert tables.number(value) == text


def test_a_folder_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError):
        report.write(Report(title="t"), tmp_path / "file" / "report.html")


def test_boxes_of_question_and_answer_are_shown() -> None:
    box, picture = BoxPart(Box(1, 2, 9, 9)), testing.tiny_images(1)[0]
    question = Message("user", (ImagePart(picture), TextPart("What is in "), box, TextPart("?")))
    sample = Sample(id="x", messages=(question, Message("assistant", (TextPart("a cat at "), box))))
    lost = Answer(task="grounding", sample=sample, text="no", gold=shown_text(sample.answer), correct=False)
    page = report.render(Report(title="t", answers=[lost]))
    assert "What is in ▭?" in page and "a cat at ▭" in page and page.count("<rect") == 2


def test_headline_figures_come_first() -> None:
    scores = [score(), score("recall of ok"), score("accuracy minus k-NN"), score("accuracy minus probe")]
    assert [report.is_detail(s) for s in scores] == [False, True, True, False]
    page = report.render(Report(title="t", scores=scores))
    assert page.index("accuracy minus probe") < page.index("2 more figures") < page.index("recall of ok")
    assert "Choosing among given answers: defect" in page
    assert report.heading("own") == "own"
