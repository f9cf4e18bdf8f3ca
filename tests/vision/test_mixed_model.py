"""A mixed front-end with views under a tiny LLM, end to end: prompt, cache, training, saving, export, chat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.vision._mixed import FORM, four, frontend, ribbon, tower

import tsugiki
from tsugiki.errors import BaseMismatchError, PromptError, UnsupportedError
from tsugiki.processor import TsugikiProcessor
from tsugiki.testing import TinyTower, tiny_images, tiny_llm, tiny_tokenizer
from tsugiki.types import Message, Sample
from tsugiki.vision._workers import each_done
from tsugiki.vision.cache import FeatureCache
from tsugiki.vision.frontend import FrontEnd
from tsugiki.vision.warm_start import warm_start

MIX: dict[str, Any] = {**FORM, "views": "global+3x3", "reduce_crops": True}
PICTURES = [ribbon(), tiny_images(1)[0], ribbon(24, 96, seed=1)]


def _model(graft: str = "projector", **options: Any) -> Any:
    vision = {"towers": four(), **MIX}
    return tsugiki.attach(
        tiny_llm(max_position_embeddings=2048), graft, vision=vision, tokenizer=tiny_tokenizer(), **options
    )


@pytest.fixture(scope="module")
def model() -> Any:
    return _model()


def _sample(picture: Image.Image, number: int = 0) -> Sample:
    messages = (Message.of("user", "what is it?", (picture,)), Message.of("assistant", f"thing {number}"))
    return Sample(id=str(number), messages=messages)


def _logits(model: Any, samples: list[Sample], **options: Any) -> torch.Tensor:
    batch = model.encode_samples(samples, **options)
    with torch.no_grad():
        return model(**batch.inputs()).logits


def test_placeholders_follow_the_picture(model: Any) -> None:
    for picture in PICTURES:
        batch = model.encode_samples([_sample(picture)])
        assert int((batch.image_index == 0).sum()) == model.frontend.tokens_of(picture.size)
    sizes = [(picture.height, picture.width) for picture in PICTURES]
    counts = model.processor._get_num_multimodal_tokens(sizes)["num_image_tokens"]
    assert counts == [model.frontend.tokens_of(p.size) for p in PICTURES] and counts[0] < counts[1]
    text = model.processor(images=PICTURES[:2], text=["<image>a", "<image>b"])
    assert (text["image_index"] == 0).sum() == counts[0] and (text["image_index"] == 1).sum() == counts[1]
    features = model.get_image_features(batch.pixel_values).pooler_output
    assert [len(f) for f in features] == counts[2:]


def test_one_placeholder_too_few_is_refused(model: Any) -> None:
    inputs = model.encode_samples([_sample(PICTURES[0])]).inputs()
    inputs["image_index"][0, 30], inputs["token_kind"][0, 30] = -1, 0
    with pytest.raises(PromptError, match=f"expected {model.frontend.tokens_of(PICTURES[0].size)}"):
        model(**inputs)


@pytest.mark.parametrize("graft", ["projector", "cross_attention"])
def test_a_sample_alone_is_as_in_a_batch(graft: str) -> None:
    model = _model(graft)
    for block in getattr(model.graft(graft), "blocks", ()):
        torch.nn.init.constant_(block.gate, 0.5)
    samples = [_sample(picture, i) for i, picture in enumerate(PICTURES)]
    together = model.encode_samples(samples)
    logits = _logits(model, samples)
    for row, sample in enumerate(samples):
        alone = _logits(model, [sample])[0]
        real = together.attention_mask[row].bool()
        torch.testing.assert_close(logits[row][real], alone, rtol=1e-4, atol=1e-5)


def test_cached_is_live(model: Any, tmp_path: Path) -> None:
    paths = []
    for i, picture in enumerate(PICTURES):
        picture.save(path := tmp_path / f"{i}.png")
        paths.append(path)
    cache = FeatureCache(model.frontend, tmp_path / "cache", variants=1)
    live = model.frontend.encode(torch.stack([model.frontend.transform(p) for p in PICTURES]))
    seen: list[Any] = []
    assert cache.fill(paths[:2], seen.append) == 4 and seen[-1].done == seen[-1].total == 4
    files = len(list(cache.folder.glob("??/*.features")))
    assert files == 2 * 4 * (4 + 10)  # variants, towers, views of the ribbon and of the other one
    assert torch.equal(cache.get(paths), live) and cache.cells(paths).shape == (3, 16, 52)
    for entry in sorted(cache.folder.glob("??/*"))[::3]:
        entry.unlink()
    assert torch.equal(cache.get(list(reversed(paths))).flip(0), live)
    assert cache.size() < cache.estimate(3)
    samples = [_sample(path) for path in paths]  # type: ignore[arg-type]
    assert torch.equal(_logits(model, samples), _logits(model, samples, features=cache))
    shifted = model.frontend.encode(torch.stack([model.frontend.transform(p, 1) for p in PICTURES]))
    assert torch.equal(cache.get(paths, variant=1), shifted) and not torch.equal(shifted, live)


def test_front_ends_that_share_a_tower_share_its_entries(tmp_path: Path) -> None:
    towers = [TinyTower(seed=1), TinyTower(seed=2)]
    FeatureCache(FrontEnd.build(towers[1], 16), tmp_path).fill(PICTURES)
    mixed = FeatureCache(FrontEnd.build(towers, 16), tmp_path)
    mixed.fill(PICTURES)
    assert len(list(tmp_path.glob("??/*.features"))) == 2 * len(PICTURES)


def test_worker_processes_fill_the_same_cache(tmp_path: Path) -> None:
    front, seen = frontend(views="global+2x2"), []
    alone, shared = FeatureCache(front, tmp_path / "a"), FeatureCache(front, tmp_path / "b")
    pictures = tiny_images(9)
    assert shared.fill(pictures, seen.append, workers=2) == alone.fill(pictures) == 9
    names = [sorted(p.name for p in cache.folder.glob("??/*")) for cache in (alone, shared)]
    assert names[0] == names[1] and torch.equal(alone.get(pictures), shared.get(pictures))
    assert [p.done for p in seen][-1] == 9 and seen[-1].images_per_second > 0
    front.tower.to("meta")
    with pytest.raises(UnsupportedError, match="workers=2"):
        next(each_done(len, [[1]], 2, front.towers))


def test_train_save_load(tmp_path: Path) -> None:
    model, llm = _model(), tiny_llm(max_position_embeddings=2048)
    samples = [_sample(picture, i) for i, picture in enumerate(PICTURES)]
    before = {k: v.clone() for k, v in model.frontend.trainable_state().items()}
    plan = {"stages": [{"train": {"projector": 0.01}, "data": "own", "batch_size": 2, "steps": 2}]}
    features = FeatureCache(model.frontend, tmp_path / "cache")
    tsugiki.train(model, plan, tmp_path / "run", data=samples, progress=False, features=features)
    after = model.frontend.trainable_state()
    assert all(not torch.equal(after[k], before[k]) for k in before if not k.endswith("bias"))
    folder = model.save(tmp_path / "graft")
    again = tsugiki.load(folder, base=llm, tokenizer=tiny_tokenizer(), vision=four())
    assert torch.equal(_logits(again, samples), _logits(model, samples))
    card = (folder / "README.md").read_text()
    assert card.count("| vision tower |") == 4 and "3 x 3 crops" in card
    with pytest.raises(BaseMismatchError, match="vision tower"):
        tsugiki.load(folder, base=llm, tokenizer=tiny_tokenizer(), vision=[tower("clip", 1), *four()[1:]])


def test_a_saved_processor_sees_as_the_model_does(model: Any, tmp_path: Path) -> None:
    folder = model.save(tmp_path / "graft")
    saved = TsugikiProcessor.from_pretrained(folder, tokenizer=tiny_tokenizer())
    for picture in PICTURES:
        assert torch.equal(saved.transform(picture), model.processor.transform(picture))
    mine, theirs = (p.encode([Message.of("user", "hm", (PICTURES[0],))]) for p in (saved, model.processor))
    assert all(torch.equal(mine[k], theirs[k]) for k in theirs)


def test_an_export_needs_no_tower_objects(tmp_path: Path) -> None:
    model = _model()
    again = tsugiki.load(model.export(tmp_path / "whole"))
    assert (tmp_path / "whole" / "tower" / "3" / "model.safetensors").is_file()
    samples = [_sample(picture) for picture in PICTURES]
    assert torch.equal(_logits(again, samples), _logits(model, samples))


def test_chat_and_a_second_picture(model: Any) -> None:
    answer = model.chat("what?", images=PICTURES[:2], max_new_tokens=3)
    history = [Message.of("user", "what?", tuple(PICTURES[:2])), Message.of("assistant", answer)]
    assert isinstance(model.chat("and this?", images=PICTURES[2:], history=history, max_new_tokens=2), str)
    assert "CLIPVisionModel + ConvNextModel + Dinov2Model + Blip2" in str(model)


def test_text_stays_the_base_s(model: Any) -> None:
    ids = torch.tensor([[5, 9, 30]])
    with torch.no_grad():
        bare = tiny_llm(max_position_embeddings=2048)(ids).logits
        assert torch.equal(model(input_ids=ids).logits, bare)


@pytest.mark.parametrize("projector", ["linear_norm", "pixel_unshuffle"])
def test_warm_start_of_a_mix(projector: str) -> None:
    """Pictures of two colours named in their captions: tokens come to lie at the names, queries' tokens too."""
    fields = {"cls_token": False, "projector": projector, "views": "global+2x2"}
    front = frontend(32, **fields)
    colours = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 200, 60)}
    names = list(colours) * 20
    pictures = [Image.new("RGB", (40 + i % 7, 40), colours[name]) for i, name in enumerate(names)]
    features = front.encode(torch.stack([front.transform(p) for p in pictures]))
    tokenizer, table = _Words(), 0.1 * torch.randn(8, 32) + 0.02
    report = warm_start(front, features, [f"a {name} thing" for name in names], tokenizer, table)
    assert report["matched"] and report["r2"] > 0.8 and report["queries"][0]["r2"] > 0.5
    rms = float(table.pow(2).mean().sqrt())
    assert abs(report["rms"] / rms - 1) < 0.05 and abs(report["queries"][0]["rms"] / rms - 1) < 0.05
    words = table[[tokenizer.ids[name] for name in colours]]
    with torch.no_grad():
        tokens = front(features=features[:3]).tokens
    near = torch.nn.functional.normalize(tokens - words.mean(0), dim=-1) @ (words - words.mean(0)).T
    asked, cells = near[:, 1:6].mean(1), near[:, 6 : front.mix.lengths(front.projector)[0] - 1].mean(1)
    assert asked.argmax(1).tolist() == cells.argmax(1).tolist() == [0, 1, 2]


class _Words:
    """One id for each word between spaces."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[self.ids.setdefault(w, len(self.ids)) for w in t.split()] for t in texts]}
