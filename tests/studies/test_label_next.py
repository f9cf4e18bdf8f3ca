"""label_next: the three figures as loops, their fusion, what is left out, and what is written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.studies._pictures import folder, picture

from tsugiki.data import schema
from tsugiki.errors import DataError, ImageError, InputError, UnknownNameError
from tsugiki.studies import _own, _ranking
from tsugiki.studies._reasons import APART, NEAR, RARE, Reasons
from tsugiki.studies.label_next import READ, label_next
from tsugiki.studies.predict import predict
from tsugiki.testing import tiny_model
from tsugiki.types import Message, Sample


@pytest.fixture(scope="module")
def model() -> Any:
    built = tiny_model()
    with torch.no_grad():  # so that pictures matter
        built.frontend.projector.linear_2.weight.mul_(30)
    return built


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSUGIKI_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    return folder(tmp_path / "labelled", (8, 5))


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Twelve new pictures of two classes."""
    place = tmp_path / "新しい"
    place.mkdir()
    for label in range(2):
        for i in range(6):
            picture(label, 100 + i).save(place / f"写真 {label}-{i}.png")
    return place


def probabilities(n: int = 40, c: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(c), n)


# -- the figures -------------------------------------------------------------------------------------------------------


def test_figures_are_those_of_loops() -> None:
    p, q = probabilities(), probabilities(seed=1)
    q[3] = p[3]
    options, counts = ["a", "b", "c", "d"], {"a": 9, "b": 1, "c": 3}
    weights = _ranking.class_weights(counts, options, {"a"})
    assert weights.tolist() == [1, 1 / 2, 1 / 4, 1]
    for row, near in zip(p, _ranking.nearness(p), strict=True):
        first, second = sorted(row, reverse=True)[:2]
        assert near == pytest.approx(1 - (first - second))
    for row, rare in zip(p, _ranking.rarity(p, weights), strict=True):
        assert rare == pytest.approx(sum(v * w for v, w in zip(row, weights, strict=True)))
    for mine, theirs, apart in zip(p, q, _ranking.disagreement(p, q), strict=True):
        own, other = list(mine).index(max(mine)), list(theirs).index(max(theirs))
        assert apart == pytest.approx(((max(mine) - mine[other]) + (max(theirs) - theirs[own])) / 2, abs=1e-12)
    assert _ranking.disagreement(p, p).tolist() == [0] * 40
    assert _ranking.disagreement(np.eye(2), np.eye(2)[::-1]).tolist() == [1, 1]


def test_ranks_and_their_fusion() -> None:
    assert _ranking.ranks(np.array([0.1, 0.9, 0.5, 0.5])).tolist() == [4, 1, 2.5, 2.5]
    assert _ranking.ranks(np.array([0.5, 0.5 + 1e-12])).tolist() == [1.5, 1.5]
    lists = [np.array([1.0, 2, 3]), np.array([3.0, 1, 2])]
    wanted = [sum(1 / (60 + each[i]) for each in lists) for i in range(3)]
    assert _ranking.fused(lists).tolist() == pytest.approx(wanted)
    assert int(_ranking.fused(lists).argmax()) == 1


def test_the_choice_is_spread_over_clusters() -> None:
    rng = np.random.default_rng(0)
    features = np.repeat([[0.0, 0], [9, 0], [0, 9]], [20, 2, 2], axis=0) + 0.1 * rng.standard_normal((24, 2))
    scores = np.linspace(1, 0, 24)  # the twenty of one kind are all better than the four others
    chosen = _ranking.spread(scores, features, 6)
    assert list(chosen) == sorted(chosen) and len(chosen) == 6 and 0 in chosen
    assert any(i >= 20 for i in chosen)
    assert sum(chosen.values()) + len(chosen) == 24
    assert _ranking.spread(scores, features, 6) == chosen
    assert list(_ranking.spread(scores, features, 30)) == list(range(24))
    same = _ranking.spread(scores, np.ones((24, 2)), 3)  # one cluster: the best ones
    assert same == {0: 11, 1: 0, 2: 0}
    assert 23 not in _ranking.spread(scores, features, 2)  # not among the 8 best


def test_reasons_name_what_put_a_picture_first() -> None:
    p, q = np.array([[0.5, 0.4, 0.1], [0.1, 0.1, 0.8]]), np.array([[0.1, 0.8, 0.1], [0.1, 0.1, 0.8]])
    ranks = {NEAR: np.array([1.0, 2]), RARE: np.array([2.0, 1]), APART: np.array([1.0, 2])}
    say = Reasons(
        options=("良品", "キズ", "穴"),
        p=p,
        q=q,
        counts={"良品": 4, "キズ": 1},
        severe=frozenset({"穴"}),
        ranks=ranks,
        n=1,
    )
    assert say(0, 0) == (
        "close between '良品' and 'キズ': 0.50 to 0.40", "model says '良品' (0.50), linear probe says 'キズ' (0.80)"
    )  # fmt: skip
    assert say(1, 3) == (
        "may be '穴' (0.80): a severe class, no labels so far", "stands for 3 more that look similar"
    )  # fmt: skip
    every = replace(say, n=2)
    assert every(0, 1)[1:] == (
        "may be 'キズ' (0.40): 1 label so far", "model says '良品' (0.50), linear probe says 'キズ' (0.80)",
        "stands for 1 more that looks similar",
    )  # fmt: skip
    sure = "among the least sure here, between '穴' and '良品': 0.80 to 0.10"
    assert every(1, 0) == (sure, "may be '穴' (0.80): a severe class, no labels so far")  # the probe says the same
    assert replace(say, counts={}, severe=frozenset(), n=2)(1, 0) == (sure,)  # no class is rarer than another
    alike = replace(say, ranks={NEAR: np.array([1.0, 9]), RARE: np.array([2.0, 8]), APART: np.array([1.0, 3])})
    assert alike(1, 0) == ("may be '穴' (0.80): a severe class, no labels so far",)


# -- the command's function --------------------------------------------------------------------------------------------


def test_what_is_chosen_and_written(model: Any, pool: Path, labelled: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    result = label_next(
        model, pool, train=labelled, n=4, out=tmp_path / "out", progress=lambda *told: seen.append(told), batch_size=5
    )
    assert (result.ranked, len(result.chosen), result.notes) == (12, 4, ())
    assert [w.score for w in result.chosen] == sorted((w.score for w in result.chosen), reverse=True)
    assert seen == [("pictures", 5, 12), ("pictures", 10, 12), ("pictures", 12, 12)]
    asked = {p.id: p for p in predict(model, pool, question=None, options=["不良", "良品"])}
    samples = schema.load(tmp_path / "out" / "next.jsonl")
    assert not schema.check(tmp_path / "out" / "next.jsonl")
    for worth, sample in zip(result.chosen, samples, strict=True):
        assert sample.answer is None and sample.options == ("不良", "良品") and worth.reasons
        assert Path(str(sample.images[0])).samefile(pool / sample.id)
        assert sample.meta["reasons"] == list(worth.reasons)
        graft = sample.meta["graft"]
        assert sum(sample.meta["probe"].values()) == pytest.approx(1, abs=1e-3)
        assert graft == pytest.approx(dict(asked[sample.id].probabilities), abs=1e-3)
        assert worth.answer == max(graft, key=graft.__getitem__)
        assert set(worth.ranks) == {NEAR, RARE, APART}
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.width > 4 * 280
    lines = (tmp_path / "out" / "next.md").read_text(encoding="utf-8").splitlines()
    assert (
        len(lines) == 8
        and lines[7] == f"* {READ}"
        and lines[2].startswith(f"| 1 | {result.chosen[0].sample.id} | {result.chosen[0].answer} | ")
    )
    again = label_next(model, pool, train=schema_of(labelled, tmp_path), n=4)
    assert [w.sample.id for w in again.chosen] == [w.sample.id for w in result.chosen] and again.out is None
    assert again.table.row_count == 4


def schema_of(labelled: Path, tmp_path: Path) -> Path:
    schema.write(tmp_path / "train.jsonl", _own.read(labelled).samples)
    return tmp_path / "train.jsonl"


def test_what_is_alike_is_left_out(model: Any, pool: Path, labelled: Path) -> None:
    for name in ("a.jpg", "b.jpg"):  # the same twice, and one of the labelled
        picture(0, 100).save(pool / name, quality=95)
    picture(1, 2).save(pool / "known.png")
    (pool / "broken.png").write_bytes(b"no picture")
    result = label_next(model, pool, train=labelled, n=50)
    names = [w.sample.id for w in result.chosen]
    assert len(names) == 12 and "known.png" not in names
    assert len({"a.jpg", "b.jpg", "写真 0-0.png"} & set(names)) == 1
    assert [note.split(" ", 1)[0] for note in result.notes] == ["1", "1", "2", "With"]
    assert "--fixed-camera" in result.notes[3]
    assert "broken.png" in result.notes[0]
    fixed = label_next(model, pool, train=labelled, n=50, near=None)
    assert len(fixed.chosen) == 13 and "--fixed-camera" not in " ".join(fixed.notes)  # b.jpg equals a.jpg


def test_a_severe_class_comes_first(model: Any, pool: Path, labelled: Path) -> None:
    plain = label_next(model, pool, train=labelled, n=12)
    raised = label_next(model, pool, train=labelled, n=12, severe=["良品"])
    order = [w.ranks[RARE] for w in sorted(raised.chosen, key=lambda w: -w.sample.meta["graft"]["良品"])]
    assert order == sorted(order)
    assert {w.sample.id: w.ranks[NEAR] for w in plain.chosen} == {w.sample.id: w.ranks[NEAR] for w in raised.chosen}
    assert any("severe" in reason for w in raised.chosen for reason in w.reasons)


def test_few_labels_have_no_probe(model: Any, pool: Path, tmp_path: Path) -> None:
    result = label_next(model, [*pool.iterdir()], train=folder(tmp_path / "few", (2, 1)), n=3)
    assert set(result.chosen[0].ranks) == {NEAR, RARE} and result.chosen[0].probe == ""
    assert result.notes == ("Too few labels for a probe (3 of 2 classes): ranked without it.",)


def test_mistakes(model: Any, pool: Path, labelled: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="n=0"):
        label_next(model, pool, train=labelled, n=0)
    with pytest.raises(UnknownNameError, match="Did you mean '良品'"):
        label_next(model, pool, train=labelled, severe=["良"])
    with pytest.raises(DataError, match=r"show nearly the same as labelled ones.*--fixed-camera"):
        label_next(model, labelled, train=labelled)
    with pytest.raises(DataError, match="as labelled ones") as caught:
        label_next(model, labelled, train=labelled, near=None)
    assert "--fixed-camera" not in str(caught.value)
    with pytest.raises(DataError, match="it does not exist"):
        label_next(model, tmp_path / "none", train=labelled)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"a\.png"):
        label_next(model, tmp_path / "bad", train=labelled)
    free = [
        Sample(id=str(i), messages=(Message.of("user", q, (picture(0, i),)), Message.of("assistant", "yes")))
        for i, q in enumerate("ab")
    ]
    with pytest.raises(DataError, match="several questions"):
        label_next(model, pool, train=free)
    with pytest.raises(DataError, match="0 options"):
        label_next(model, pool, train=free[:1])
    assert not list(tmp_path.glob("**/next.jsonl"))


def test_the_list_can_be_labelled_and_learned_from(model: Any, pool: Path, labelled: Path, tmp_path: Path) -> None:
    label_next(model, pool, train=labelled, n=3, out=tmp_path / "out")
    path = tmp_path / "out" / "next.jsonl"
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for record in records:
        record["messages"].append({"role": "assistant", "content": "良品"})
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    more = _own.read(path).samples
    assert len(more) == 3 and {s.prompt[0].parts[1] for s in more} == {
        _own.read(labelled).samples[0].prompt[0].parts[1]
    }
