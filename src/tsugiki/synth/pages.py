"""What text stands on: loose words, labels, nameplates, gauges and small tables. One function draws one kind of page.

A page is drawn for one language. Words, codes and dates belong to one split, by their hash: what the test asks for was
never shown in training. Numbers of gauges, voltages and the like are few, and both splits have them all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import cos, pi, sin
from types import MappingProxyType

import numpy as np

from tsugiki.synth.backgrounds import Split
from tsugiki.synth.layout import one
from tsugiki.synth.lettering import RGB, SMALLEST, Sheet, mixed
from tsugiki.synth.phrases.texts import Texts
from tsugiki.synth.pictograms import table

PAGES = ("words", "label", "nameplate", "gauge", "table")
TEST_SHARE = 5
"""One word in so many belongs to the test."""
_INNER = 0.76
"""Share of the picture's side that a page takes, so that a turned one stays inside."""
_LETTERS, _DIGITS = "ABCDEFGHKLMNPRSTUVWXYZ", "0123456789"
_PAPERS: Mapping[str, tuple[RGB, ...]] = MappingProxyType(
    {
        "train": ((250, 250, 246), (236, 236, 228), (210, 214, 220), (246, 232, 190), (40, 44, 52)),
        "test": ((244, 248, 252), (224, 232, 222), (202, 196, 186), (240, 214, 214), (26, 48, 70)),
    }
)
_INKS: tuple[RGB, ...] = ((16, 16, 20), (26, 34, 96), (92, 20, 24), (20, 66, 36))
_WHITE: RGB = (246, 246, 246)
FAINT = 0.28
"""What is left of the contrast between ink and paper where it is low."""


@dataclass(frozen=True, slots=True)
class Gauge:
    """A needle over a scale."""

    value: str
    unit: str
    low: float
    high: float
    step: float
    """Between two numbers of the scale."""


@dataclass(slots=True)
class Maker:
    """What a page is drawn with: the sheet, the words of its language and split, and random numbers of its own."""

    sheet: Sheet
    texts: Texts
    split: Split
    rng: np.random.Generator
    faint: bool = False
    gauge: Gauge | None = None
    """Filled in by the page "gauge"."""

    @property
    def low(self) -> float:
        return (1 - _INNER) / 2 * self.sheet.size

    @property
    def side(self) -> float:
        return _INNER * self.sheet.size

    def word(self, width: float | None = None) -> str:
        """The name of a pictogram, of the split, of at most 12 letters, that can be written in `width` pixels."""
        language = self.texts.language
        names = [w for w in dict.fromkeys(p.name(language) for p in table()) if len(w) <= 12 and belongs(w, self.split)]
        return one([w for w in names if width is None or self.sheet.width(w, SMALLEST) <= width], self.rng)

    def code(self) -> str:
        """A made-up number of letters and digits of the split, such as "KV-2041"."""
        while True:
            letters = "".join(one(list(_LETTERS), self.rng) for _ in range(int(self.rng.integers(1, 4))))
            digits = "".join(one(list(_DIGITS), self.rng) for _ in range(int(self.rng.integers(3, 6))))
            code = f"{letters}{one(['-', '', '/'], self.rng)}{digits}"
            if belongs(code, self.split):
                return code

    def date(self) -> str:
        """A date of the split."""
        while True:
            year, month, day = (int(self.rng.integers(*span)) for span in ((1998, 2030), (1, 13), (1, 29)))
            date = self.texts.date.format(year=year, month=month, day=day)
            if belongs(date, self.split):
                return date

    def colours(self) -> tuple[RGB, RGB]:
        """Paper and ink."""
        paper = _colour(_PAPERS[self.split], self.rng)
        ink = _WHITE if sum(paper) < 300 else _colour(_INKS, self.rng)
        return paper, self.ink(ink, paper)

    def ink(self, ink: RGB, paper: RGB) -> RGB:
        """The ink, or what is left of it where the contrast is low."""
        return mixed(paper, ink, FAINT) if self.faint else ink


def belongs(text: str, split: Split) -> bool:
    """Whether a word, code or date is one of the split."""
    test = hashlib.sha256(text.encode()).digest()[0] % TEST_SHARE == 0
    return test == (split == "test")


def draw(page: str, maker: Maker, ground: RGB) -> None:
    """Draw a page of `PAGES` on the maker's sheet; `ground` is the mean colour of what is behind it."""
    _DRAWN[page](maker, ground)


def _words(maker: Maker, ground: RGB) -> None:
    """One to three words on the bare background, each in a band of its own."""
    ink = maker.ink(_WHITE if sum(ground) < 330 else _colour(_INKS, maker.rng), ground)
    count = int(maker.rng.integers(1, 4))
    band = maker.side / count
    for number, text in enumerate(_different(maker, maker.word, count)):
        size = maker.sheet.fitting(text, maker.side, min(band, 0.3 * maker.side) * float(maker.rng.uniform(0.6, 1)))
        if size is None:
            continue
        spare = max(0.0, maker.side - maker.sheet.width(text, size))
        x = maker.low + float(maker.rng.uniform(0, spare))
        maker.sheet.write(text, (x, maker.low + (number + 0.5) * band), size, ink, anchor="lm", role="word")


def _label(maker: Maker, ground: RGB) -> None:
    """A frame with a word and lines of codes and dates below it."""
    paper, ink = maker.colours()
    height = maker.side * float(maker.rng.uniform(0.6, 0.9))
    top = (maker.sheet.size - height) / 2
    _plate(maker, top, height, paper, ink)
    lines = [maker.word(), maker.code()]
    if maker.rng.random() < 0.5:
        lines.append(maker.date())
    share = height / (len(lines) + 0.8)
    for number, text in enumerate(lines):
        wanted = share * (0.95 if number == 0 else 0.7)
        size = maker.sheet.fitting(text, 0.88 * maker.side, wanted) or 0.0
        y = top + (number + 0.9) * share
        maker.sheet.write(text, (maker.sheet.size / 2, y), size, ink, role="line")


def _nameplate(maker: Maker, ground: RGB) -> None:
    """Three to five fields, the name on the left and the value on the right."""
    paper, ink = maker.colours()
    keys = list(maker.texts.fields)
    count = int(maker.rng.integers(3, 6))
    chosen = sorted(maker.rng.permutation(len(keys))[:count].tolist())
    height = maker.side * (0.3 + 0.12 * count)
    top = (maker.sheet.size - height) / 2
    _plate(maker, top, height, paper, ink)
    step = height / (count + 0.4)
    left, right = maker.low + 0.05 * maker.side, maker.low + 0.95 * maker.side
    size = min(0.62 * step, 0.085 * maker.side)
    for number, index in enumerate(chosen):
        key, value = keys[index], _value(keys[index], maker)
        y = top + (number + 0.7) * step
        maker.sheet.write(maker.texts.fields[key], (left, y), size, ink, anchor="lm", role="key", key=key)
        maker.sheet.write(value, (right, y), size, ink, anchor="rm", role="value", key=key)


def _value(key: str, maker: Maker) -> str:
    if key in ("model", "serial", "lot"):
        return maker.code()
    if key == "date":
        return maker.date()
    numbers, unit = _RATINGS[key]
    return f"{one(numbers, maker.rng)} {unit}"


_RATINGS: Mapping[str, tuple[tuple[str, ...], str]] = MappingProxyType(
    {
        "voltage": (("12", "24", "48", "100", "110", "200", "220", "230", "400"), "V"),
        "power": (("15", "40", "75", "150", "250", "370", "550", "750"), "W"),
        "current": (("0.5", "1.2", "2.0", "3.5", "6.3", "10", "16", "25"), "A"),
        "weight": (("1.4", "3.8", "7.5", "12", "18", "26", "45"), "kg"),
    }
)
_SCALES = ((0.0, 10.0, 2.0, "bar"), (0.0, 100.0, 20.0, "°C"), (0.0, 1.0, 0.2, "MPa"), (0.0, 60.0, 10.0, "V"))


def _gauge(maker: Maker, ground: RGB) -> None:
    """A dial of 270 degrees with numbers; the needle stands on a number or half-way between two."""
    paper, ink = maker.colours()
    low, high, step, unit = _SCALES[int(maker.rng.integers(len(_SCALES)))]
    steps = round((high - low) / step)
    half = int(maker.rng.integers(2 * steps + 1))
    maker.gauge = Gauge(f"{low + half * step / 2:g}", unit, low, high, step)
    middle, radius = maker.sheet.size / 2, maker.side / 2
    pen, thick = maker.sheet.pen, max(1, round(maker.side / 90))
    rim = (middle - radius, middle - radius, middle + radius, middle + radius)
    pen.ellipse(rim, fill=(*paper, 255), outline=(*ink, 255), width=2 * thick)

    def at(share: float, length: float) -> tuple[float, float]:
        angle = (0.75 + 1.5 * share) * pi  # from the bottom left clockwise to the bottom right
        return middle + length * radius * cos(angle), middle + length * radius * sin(angle)

    for tick in range(2 * steps + 1):
        inner = 0.8 if tick % 2 == 0 else 0.87
        pen.line([at(tick / (2 * steps), inner), at(tick / (2 * steps), 0.94)], fill=(*ink, 255), width=thick)
    for number in range(steps + 1):
        text = f"{low + number * step:g}"
        maker.sheet.write(text, at(number / steps, 0.64), 0.09 * maker.side, ink, role="scale")
    maker.sheet.write(unit, (middle, middle + 0.5 * radius), 0.09 * maker.side, ink, role="unit")
    needle = maker.ink((200, 32, 32), paper)
    pen.line([at(half / (2 * steps), -0.12), at(half / (2 * steps), 0.5)], fill=(*needle, 255), width=2 * thick)
    hub = 0.06 * radius
    pen.ellipse((middle - hub, middle - hub, middle + hub, middle + hub), fill=(*needle, 255))


def _table(maker: Maker, ground: RGB) -> None:
    """Two or three columns of numbers for two to four things."""
    paper, ink = maker.colours()
    columns = [maker.texts.columns[i] for i in maker.rng.permutation(len(maker.texts.columns))[:2]]
    width = maker.side / 3
    rows = _different(maker, lambda: maker.word(0.94 * width), int(maker.rng.integers(2, 5)))
    height = min(maker.side / (len(rows) + 1), 0.2 * maker.side)
    top = (maker.sheet.size - height * (len(rows) + 1)) / 2
    _plate(maker, top, height * (len(rows) + 1), paper, ink)
    for number in range(1, len(rows) + 1):
        y = top + number * height
        maker.sheet.pen.line([(maker.low, y), (maker.low + maker.side, y)], fill=(*ink, 255))
    for number in (1, 2):
        x = maker.low + number * width
        maker.sheet.pen.line([(x, top), (x, top + height * (len(rows) + 1))], fill=(*ink, 255))
    heads = [maker.texts.item, *columns]
    size = min(maker.sheet.fitting(t, 0.94 * width, 0.6 * height) or 0.0 for t in (*heads, *rows))
    for column, head in enumerate(heads):
        place = (maker.low + (column + 0.5) * width, top + 0.5 * height)
        maker.sheet.write(head, place, size, ink, role="head", key=head)
    for number, row in enumerate(rows):
        for column, head in enumerate(heads):
            text = row if column == 0 else str(int(maker.rng.integers(2, 1000)))
            place = (maker.low + (column + 0.5) * width, top + (number + 1.5) * height)
            maker.sheet.write(text, place, size, ink, role="cell", key=head, row=row)


def _plate(maker: Maker, top: float, height: float, paper: RGB, ink: RGB) -> None:
    box = (maker.low, top, maker.low + maker.side, top + height)
    radius = 0.03 * maker.side if maker.rng.random() < 0.5 else 0.0
    maker.sheet.pen.rounded_rectangle(box, radius, fill=(*paper, 255), outline=(*ink, 255), width=1)


def _colour(colours: Sequence[RGB], rng: np.random.Generator) -> RGB:
    return colours[int(rng.integers(len(colours)))]


def _different(maker: Maker, make: Callable[[], str], count: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[make()] = None
    return list(found)


_DRAWN: Mapping[str, Callable[[Maker, RGB], None]] = MappingProxyType(
    {"words": _words, "label": _label, "nameplate": _nameplate, "gauge": _gauge, "table": _table}
)
