"""How far a check is, by a clock that is turned by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tsugiki.evals import _pace


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in its only item."""
    time = [100.0]
    monkeypatch.setattr(_pace, "time", SimpleNamespace(monotonic=lambda: time[0]))
    return time


def test_items_are_counted_and_the_rest_is_estimated(now: list[float]) -> None:
    told: list[str] = []
    for item in _pace.counted("abcd", "logits", told.append):
        now[0] += 6 if item == "a" else 2
    assert told == [f"logits: {k} of 4, about {left} s left" for k, left in ((1, 18), (2, 8), (3, 3), (4, 0))]
    assert list(_pace.counted([], "logits", told.append)) == [] and len(told) == 4


def test_lines_that_come_too_soon_are_dropped(now: list[float]) -> None:
    told: list[str] = []
    tell = _pace.paced(told.append)
    for seconds in (1, 8.9, 0.2, 9.9, 0.1, 30):
        now[0] += seconds
        tell(f"{now[0]:.1f}")
    assert told == ["110.1", "120.1", "150.1"]
