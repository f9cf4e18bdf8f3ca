"""Augmentation by fixed variants: batches take them in turn, encoded once, and a continued run takes the same ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tsugiki.data.mixture import Mixture
from tsugiki.errors import RecipeError
from tsugiki.testing import tiny_images, tiny_model
from tsugiki.training.stream import Encoder, Stream
from tsugiki.training.trainer import train
from tsugiki.types import Message, Sample
from tsugiki.vision.cache import FeatureCache


def samples(folder: Path, n: int = 6) -> list[Sample]:
    out = []
    for i, picture in enumerate(tiny_images(n)):
        picture.save(folder / f"{i}.png")
        messages = (Message.of("user", "what?", (folder / f"{i}.png",)), Message.of("assistant", f"thing {i}"))
        out.append(Sample(id=str(i), messages=messages))
    return out


def test_batches_take_the_variants_in_turn_and_go_on_where_they_were(tmp_path: Path) -> None:
    seen: list[int] = []

    def collate(batch: list[Sample], variant: int = 0) -> int:
        seen.append(variant)
        return variant

    def stream() -> Stream:
        mixture = Mixture({"a": samples(tmp_path)}, {"a": 1}, seed=0)
        return Stream(mixture, batch_size=2, collate=collate, length=None, seed=0, variants=2)

    first = stream()
    batches = iter(first)
    whole = [next(batches) for _ in range(9)]
    assert sorted(set(whole)) == [0, 1, 2]
    again = iter(first)
    state = first.state_dict()
    want = [next(again) for _ in range(4)]
    continued = stream()
    continued.load_state_dict(state)
    resumed = iter(continued)
    assert [next(resumed) for _ in range(4)] == want


def test_a_variant_changes_the_features_and_nothing_else(tmp_path: Path) -> None:
    model, data = tiny_model(), samples(tmp_path)
    cache = FeatureCache(model.frontend, tmp_path / "features", variants=2)
    encoder = Encoder(model.processor.collator(cache, labels=True))
    plain, varied = encoder(data), encoder(data, 2)
    assert torch.equal(plain["input_ids"], varied["input_ids"])
    assert not torch.equal(plain["vision_features"], varied["vision_features"])
    assert torch.equal(varied["vision_features"], cache.get([s.images[0] for s in data], 2))


def test_a_recipe_asks_for_variants_and_a_limit_bounds_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TSUGIKI_CACHE", str(tmp_path / "cache"))
    model, data = tiny_model(), samples(tmp_path)
    stage = {"name": "one", "train": {"projector": 1e-3}, "data": {"a": 1}, "batch_size": 2, "steps": 4, "variants": 2}
    result = train(model, {"stages": [stage]}, tmp_path / "run", data={"a": data}, progress=False)
    assert result.steps == 4
    whole = sum(f.stat().st_size for f in (tmp_path / "cache" / "features").rglob("*") if f.is_file())
    one = whole // (3 * len(data))
    monkeypatch.setenv("TSUGIKI_CACHE", str(tmp_path / "small"))
    train(
        tiny_model(), {"stages": [stage]}, tmp_path / "bounded", data={"a": data}, progress=False, cache_limit=4 * one
    )
    left = sum(f.stat().st_size for f in (tmp_path / "small" / "features").rglob("*") if f.is_file())
    assert left <= 4 * one < whole
    with pytest.raises(RecipeError, match="variants"):
        train(model, {"stages": [{**stage, "variants": -1}]}, tmp_path / "wrong", data={"a": data}, progress=False)
