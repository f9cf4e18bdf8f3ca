from __future__ import annotations

import json
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from tsugiki.data.mixture import Mixture, length_groups
from tsugiki.errors import DataError, UnknownNameError
from tsugiki.types import Message, Sample


def _samples(name: str, n: int) -> list[Sample]:
    return [Sample(id=f"{name}{i}", messages=(Message.of("user", "q"),)) for i in range(n)]


SOURCES = {"a": _samples("a", 7), "b": _samples("b", 3), "c": []}


def _ids(mixture: Mixture, n: int) -> list[str]:
    return [s.id for s in islice(mixture, n)]


def test_seeded() -> None:
    weights = {"a": 1.0, "b": 1.0}
    assert _ids(Mixture(SOURCES, weights, seed=1), 50) == _ids(Mixture(SOURCES, weights, seed=1), 50)
    assert _ids(Mixture(SOURCES, weights, seed=1), 50) != _ids(Mixture(SOURCES, weights, seed=2), 50)


def test_weights_are_shares() -> None:
    mixture = Mixture(SOURCES, {"a": 1, "b": 3, "c": 0}, seed=0)
    counts = Counter(mixture.draw()[0] for _ in range(2000))
    assert set(counts) == {"a", "b"}
    assert chisquare([counts["a"], counts["b"]], [500, 1500]).pvalue > 0.001
    by_size = Mixture({k: v for k, v in SOURCES.items() if v}).weights
    assert by_size == {"a": 7, "b": 3}


def test_every_epoch_is_whole_and_shuffled_anew() -> None:
    ids = _ids(Mixture({"a": _samples("a", 20)}, {"a": 2.5}), 60)
    epochs = [ids[i : i + 20] for i in (0, 20, 40)]
    assert all(sorted(e) == sorted(epochs[0]) for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@given(st.integers(0, 60), st.integers(0, 3))
def test_resumed_is_uninterrupted(at: int, seed: int) -> None:
    weights = {"a": 2.0, "b": 1.0}
    whole = _ids(Mixture(SOURCES, weights, seed), 100)
    first = Mixture(SOURCES, weights, seed)
    _ids(first, at)
    state = json.loads(json.dumps(first.state_dict()))
    second = Mixture(SOURCES, weights, seed)
    _ids(second, 5)
    second.load_state_dict(state)
    assert _ids(second, 100 - at) == whole[at:]
    assert second.epochs == pytest.approx(
        {k: sum(i[0] == k for i in whole) / max(len(v), 1) for k, v in SOURCES.items()}
    )


def test_a_state_of_something_else_is_refused() -> None:
    state = Mixture(SOURCES, {"a": 1}, seed=0).state_dict()
    for other in (
        Mixture(SOURCES, {"a": 1}, seed=1),
        Mixture(SOURCES, {"a": 1, "b": 1}),
        Mixture({"a": SOURCES["a"][1:], "b": SOURCES["b"], "c": []}, {"a": 1}),
    ):
        with pytest.raises(DataError, match="mixture state: a state of"):
            other.load_state_dict(state)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"a": -1}, "weight -1 of source 'a'"),
        ({"a": float("nan")}, "weight nan"),
        ({"a": 0}, "no source with a weight above 0"),
        ({}, "no source with a weight above 0"),
        ({"c": 1}, "source 'c' has no sample"),
    ],
)
def test_wrong_weights(weights: dict[str, float], words: str) -> None:
    with pytest.raises(DataError, match=words):
        Mixture(SOURCES, weights)


def test_unknown_source() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'scenes'"):
        Mixture({"scenes": SOURCES["a"]}, {"scene": 1})


@given(st.lists(st.integers(1, 200), max_size=120), st.integers(1, 9))
def test_length_groups_hold_every_sample_once(lengths: list[int], batch_size: int) -> None:
    batches = length_groups(lengths, batch_size, seed=3)
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    assert all(1 <= len(b) <= batch_size for b in batches)
    assert sum(len(b) < batch_size for b in batches) <= 1


def test_length_groups_save_padding_and_stay_random() -> None:
    lengths = [(i * 7919) % 200 + 1 for i in range(640)]

    def padding(batches: list[list[int]]) -> int:
        return sum(max(lengths[i] for i in b) * len(b) - sum(lengths[i] for i in b) for b in batches)

    plain = [list(range(i, i + 8)) for i in range(0, 640, 8)]
    grouped = length_groups(lengths, 8, seed=0)
    assert padding(grouped) < 0.2 * padding(plain)
    assert grouped != length_groups(lengths, 8, seed=1)
    assert grouped == length_groups(lengths, 8, seed=0)


# --- by levels ---


def _leveled(counts: dict[int, int], name: str = "s") -> list[Sample]:
    """Mixed in their order, so that a stage has to sort them."""
    rows = [(level, i) for level, n in counts.items() for i in range(n)]
    rows.sort(key=lambda row: row[1])
    return [
        Sample(id=f"{name}{level}.{i}", messages=(Message.of("user", "q"),), meta={"level": level}) for level, i in rows
    ]


def test_levels_come_in_order_each_with_its_share() -> None:
    content = _leveled({3: 10, 1: 20, 2: 30})
    ids = _ids(Mixture({"s": content}, seed=2, staged=["s"], draws=180), 180)
    assert [i[1] for i in ids] == ["1"] * 60 + ["2"] * 90 + ["3"] * 30
    assert all(Counter(ids)[s.id] == 3 for s in content)  # the budget of three shuffled passes
    rounds = [ids[i : i + 20] for i in (0, 20, 40)]
    assert rounds[0] != rounds[1] != rounds[2]
    assert ids != _ids(Mixture({"s": content}, seed=3, staged=["s"], draws=180), 180)


def test_a_staged_source_beside_a_shuffled_one() -> None:
    sources = {"s": _leveled({1: 5, 2: 5}), "a": SOURCES["a"]}
    mixed = Mixture(sources, {"s": 1, "a": 1}, staged=["s"], draws=200)
    drawn = [mixed.draw() for _ in range(200)]
    assert [name for name, _ in drawn] == [name for name, _ in _draws(Mixture(sources, {"s": 1, "a": 1}), 200)]
    own = [sample.meta["level"] for name, sample in drawn if name == "s"]
    assert own == sorted(own) and set(own) == {1, 2}
    assert all(s.meta["level"] == 1 for name, s in drawn[:100] if name == "s")
    assert mixed.epochs["s"] == len(own) / 10


def _draws(mixture: Mixture, n: int) -> list[tuple[str, Sample]]:
    return [mixture.draw() for _ in range(n)]


@given(st.integers(0, 90), st.integers(1, 80))
def test_a_staged_stream_continues_exactly(at: int, draws: int) -> None:
    def make() -> Mixture:
        return Mixture({"s": _leveled({1: 4, 2: 7, 3: 2}), "a": SOURCES["a"]}, seed=1, staged=["s"], draws=draws)

    whole = _ids(make(), 100)
    first = make()
    _ids(first, at)
    second = make()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert _ids(second, 100 - at) == whole[at:]
    with pytest.raises(DataError, match="mixture state"):
        Mixture(first.sources, seed=1, staged=["s"], draws=draws + 1).load_state_dict(first.state_dict())
    with pytest.raises(DataError, match="mixture state"):
        Mixture(first.sources, seed=1).load_state_dict(first.state_dict())


@pytest.mark.parametrize("level", [None, "2", 1.5, True])
def test_a_level_is_a_whole_number(level: object) -> None:
    sample = Sample(id="x", messages=(Message.of("user", "q"),), meta={"level": level}, where="a.jsonl:3")
    with pytest.raises(DataError, match=r"a\.jsonl:3: sample 'x' has"):
        Mixture({"s": [sample]}, staged=["s"], draws=4)


def test_what_staged_needs() -> None:
    with pytest.raises(DataError, match="None draws for a source that is staged"):
        Mixture({"s": _leveled({1: 1})}, staged=["s"])
    with pytest.raises(UnknownNameError, match="Did you mean 's'"):
        Mixture({"s": _leveled({1: 1})}, staged=["ss"], draws=4)
