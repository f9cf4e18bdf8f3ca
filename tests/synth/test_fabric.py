from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tsugiki.errors import AssetError, DataError, UnknownNameError
from tsugiki.synth import backgrounds, fabric
from tsugiki.types import Sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Empty files in the places of the 2,000 photographs."""
    root = tmp_path_factory.mktemp("fabric")
    for label, count in (("nominal", 1000), ("local", 500), ("global", 500)):
        (root / label).mkdir()
        for i in range(1, count + 1):
            (root / label / f"textile_{i:04d}.jpg").touch()
    return root


def names(samples: list[Sample]) -> set[str]:
    return {str(s.meta["photo"]) for s in samples}


def test_photographs(folder: Path) -> None:
    photos = fabric.photographs(folder)
    assert Counter(p.label for p in photos) == {"nominal": 1000, "local": 500, "global": 500}
    assert [p.index for p in photos] == list(range(2000))
    assert photos[1000].name == "local/textile_0001.jpg"


def test_manifests_are_disjoint(folder: Path) -> None:
    """All that says which photograph is used where: the list of backgrounds, the pools, the draws."""
    listed = backgrounds.listed()
    behind = {*listed["train"], *listed["test"]}
    pools = {use: {p.name for p in photos} for use, photos in fabric.pools(folder).items()}
    assert pools["backgrounds"] == behind
    assert len(behind) == 150
    assert len(pools["decisions"]) == 1850
    assert not pools["decisions"] & behind
    for seed in range(5):
        train, rest = fabric.draw(seed, folder=folder)
        assert (len(train), len(rest)) == (200, 1650)
        assert not names(train) & names(rest)
        assert names(train) | names(rest) == pools["decisions"]


def test_draws(folder: Path) -> None:
    train, _ = fabric.draw(0, 200, folder=folder)
    assert train == fabric.draw(0, 200, folder=folder)[0]
    assert sorted(Counter(s.meta["label"] for s in train).values()) == [66, 67, 67]
    assert names(fabric.draw(0, 50, folder=folder)[0]) <= names(train)
    assert len(names(train) & names(fabric.draw(1, 200, folder=folder)[0])) < 60
    as_is = Counter(s.meta["label"] for s in fabric.draw(3, 600, balanced=False, folder=folder)[0])
    assert 220 < as_is["nominal"] < 330  # 850 of 1,850
    assert len({s.meta["label"] for s in train[:12]}) == 3  # in random order
    with pytest.raises(DataError, match="up to 1500"):
        fabric.draw(0, 1501, folder=folder)
    with pytest.raises(DataError, match="seed"):
        fabric.draw(-1, folder=folder)


@pytest.mark.parametrize("language", ["en", "ja"])
def test_samples(folder: Path, language: str) -> None:
    train, rest = fabric.draw(0, 9, language=language, folder=folder)
    for sample in train + rest:
        assert sample.task == "decision"
        assert sample.answer is not None
        answer = sample.answer.parts[0].text  # type: ignore[union-attr]
        assert sample.options.index(answer) == fabric.LABELS.index(str(sample.meta["label"]))
        assert all(option in fabric.QUESTIONS[language] for option in sample.options)
        assert Path(str(sample.images[0])).parent.name == sample.meta["label"]
    assert len({s.id for s in train + rest}) == 1850
    with pytest.raises(UnknownNameError, match="language"):
        fabric.draw(0, 9, language="de", folder=folder)


def test_missing_photographs(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="tsugiki assets fetch fabric"):
        fabric.photographs(tmp_path)


@pytest.mark.assets("fabric")
def test_the_asset_is_what_the_manifests_say() -> None:
    pools = fabric.pools()
    assert (len(pools["backgrounds"]), len(pools["decisions"])) == (150, 1850)
