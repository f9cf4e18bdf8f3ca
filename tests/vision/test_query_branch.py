"""A hub's queries beside the cells of a mix: against the equations, alone and cached, trained, saved, and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.vision._mixed import FORM, four, frontend, ribbon
from tests.vision.test_hub_projector import qformer

import tsugiki
from tsugiki.errors import InputError, StoreError, UnknownNameError
from tsugiki.processor import TsugikiProcessor
from tsugiki.testing import TinyTower, tiny_images, tiny_llm, tiny_tokenizer
from tsugiki.types import Message, Sample
from tsugiki.vision.cache import FeatureCache
from tsugiki.vision.config import FrontEndConfig
from tsugiki.vision.frontend import FrontEnd
from tsugiki.vision.hub import Hub, HubConfig
from tsugiki.vision.query_branch import QueryBranchSettings
from tsugiki.vision.warm_start import warm_start

BRANCH = {"queries": 3, "width": 8, "heads": 2, "hidden": 12, "layers": 3}
PICTURES = [ribbon(), *tiny_images(1)]


def _pixels(front: FrontEnd, pictures: Any = PICTURES) -> torch.Tensor:
    return torch.stack([front.transform(picture) for picture in pictures])


def _parts(front: FrontEnd) -> list[torch.Tensor]:
    return front.packing.unpack(front.encode(_pixels(front)), "features")[1]


def _model(llm: Any = None, **branch: Any) -> Any:
    vision = {"towers": four(), **FORM, "views": "global+3x3", "query_branch": BRANCH | branch}
    return tsugiki.attach(
        llm or tiny_llm(max_position_embeddings=2048), "projector", vision=vision, tokenizer=tiny_tokenizer()
    )


def _sample(picture: Any, number: int = 0) -> Sample:
    messages = (Message.of("user", "what is it?", (picture,)), Message.of("assistant", f"thing {number}"))
    return Sample(id=str(number), messages=messages)


def _logits(model: Any, samples: list[Sample], **options: Any) -> torch.Tensor:
    batch = model.encode_samples(samples, **options)
    with torch.no_grad():
        return model(**batch.inputs()).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("tower", [None, 1])
def test_its_queries_stand_behind_a_towers_and_before_the_cells(tower: int | None) -> None:
    front = frontend(query_branch=BRANCH | {"tower": tower})
    bare = frontend()
    state = front.trainable_state()
    bare.load_trainable_state({k: v for k, v in state.items() if ".queries.1." not in k})
    found, without = (one(pixel_values=_pixels(one)).tokens for one in (front, bare))
    # [start; 5 of the Q-Former; 3 of the branch; CLS and 16 cells; end]
    assert found.shape[1] == without.shape[1] + 3 == front.tokens_per_image == 1 + 5 + 3 + 17 + 1
    torch.testing.assert_close(torch.cat([found[:, :6], found[:, 9:]], 1), without)
    branch, parts = front.mix.branch.double(), [part[:, 0].double() for part in _parts(front)]
    norm, linear = branch.out_norm, branch.hub.project
    for image in range(len(PICTURES)):
        a, b, c, _ = (part[image] for part in parts)
        if tower is None:
            blocks = [b[1 + 2 * (y // 2) + x // 2] for y in range(4) for x in range(4)]
            seen = torch.stack([torch.cat(cell) for cell in zip(a, [b[0], *blocks], c, strict=True)])
        else:
            seen = b
        for query, state_of_it in enumerate(branch.hub.states(seen[None])[0][0]):
            q = linear.weight @ state_of_it + linear.bias
            q = norm.weight * (q - q.mean()) / (q.var(unbiased=False) + norm.eps).sqrt() + norm.bias
            torch.testing.assert_close(found[image, 6 + query].double(), q, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("form", ["light", "published"])
def test_without_its_text_branch_a_hub_reads_a_picture_as_with_it(form: Any) -> None:
    config = HubConfig(form=form, **BRANCH, vocabulary=9, longest=4)
    whole, pictures = Hub(config, 6, 10), Hub(config, 6, 10, text=False)
    own = pictures.state_dict()
    pictures.load_state_dict({k: v for k, v in whole.state_dict().items() if k in own})
    left = {k.split(".")[-3 if "ffn" in k else 0] for k in whole.state_dict().keys() - own.keys()}
    assert left == ({"text_ffn", "text_in", "gate"} if form == "light" else {"text_ffn", "words", "positions"})
    features = torch.randn(2, 5, 6)
    assert torch.equal(pictures(features).visual, whole(features).visual)


@pytest.mark.parametrize("views", ["global", "global+3x3"])
def test_a_picture_alone_is_as_in_any_batch_and_takes_the_places_that_are_counted(views: str) -> None:
    front = frontend(views=views, query_branch=BRANCH)
    out = front(pixel_values=_pixels(front))
    for picture, tokens in zip(PICTURES, out.each, strict=True):
        torch.testing.assert_close(front(pixel_values=_pixels(front, [picture])).each[0], tokens)
        assert len(tokens) == front.tokens_of(picture.size)
    bare = frontend(views=views)
    seen = int(front.packing.unpack(_features(front), "features")[0][0].sum())
    assert front.tokens_of(PICTURES[0].size) - bare.tokens_of(PICTURES[0].size) == 3 * seen


def _features(front: FrontEnd) -> torch.Tensor:
    return front.encode(_pixels(front))


def test_one_tower_alone_may_have_one() -> None:
    front = FrontEnd.build(TinyTower(), 32, 0.1, query_branch={"form": "light"})
    tokens = front(pixel_values=_pixels(front)).tokens
    assert front.mix.branch.tokens == 32 and tokens.shape == (2, 32 + 4, 32) and front.hub is None
    assert abs(float(tokens[:, :32].detach().pow(2).mean().sqrt()) / 0.1 - 1) < 0.5


def test_all_of_it_trains_and_it_comes_back(tmp_path: Path) -> None:
    paths = []
    for i, picture in enumerate(PICTURES):
        picture.save(path := tmp_path / f"{i}.png")
        paths.append(path)
    llm = tiny_llm(max_position_embeddings=2048)
    model, samples = _model(llm), [_sample(path, i) for i, path in enumerate(paths)]
    before = {k: v.clone() for k, v in model.frontend.trainable_state().items()}
    plan = {"stages": [{"train": {"projector": 0.01}, "data": "own", "batch_size": 2, "steps": 2}]}
    cache = FeatureCache(model.frontend, tmp_path / "cache")
    tsugiki.train(model, plan, tmp_path / "run", data=samples, progress=False, features=cache)
    after = model.frontend.trainable_state()
    assert all(not torch.equal(after[k], before[k]) for k in before if not k.endswith("bias"))
    assert torch.equal(_logits(model, samples), _logits(model, samples, features=cache))
    model.save(tmp_path / "graft")
    again = tsugiki.load(tmp_path / "graft", base=llm, tokenizer=tiny_tokenizer(), vision=four())
    assert torch.equal(_logits(again, samples), _logits(model, samples))
    saved = TsugikiProcessor.from_pretrained(tmp_path / "graft", tokenizer=tiny_tokenizer())
    mine, theirs = (p.encode([Message.of("user", "hm", (PICTURES[0],))]) for p in (saved, model.processor))
    assert all(torch.equal(mine[k], theirs[k]) for k in theirs)
    ids = torch.tensor([[5, 9, 30]])
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, tiny_llm(max_position_embeddings=2048)(ids).logits)


def test_a_warm_start_brings_its_tokens_to_the_words() -> None:
    front = frontend(32, cls_token=False, query_branch=BRANCH)
    colours = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 200, 60)}
    names = list(colours) * 20
    features = front.encode(
        _pixels(front, [Image.new("RGB", (40 + i % 7, 40), colours[n]) for i, n in enumerate(names)])
    )
    table = 0.1 * torch.randn(4, 32, generator=torch.Generator().manual_seed(0)) + 0.02

    def tokenizer(texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[["thing", *colours].index(w) for w in text.split()] for text in texts]}

    report = warm_start(front, features, [f"{name} thing" for name in names], tokenizer, table)
    own = report["queries"][1]
    assert own["r2"] > 0.5 and abs(own["rms"] / float(table.pow(2).mean().sqrt()) - 1) < 0.05
    words = table[1:] - table[1:].mean(0)
    with torch.no_grad():
        tokens = front(features=features[:3]).tokens[:, 6:9].mean(1)
    near = torch.nn.functional.normalize(tokens - table[1:].mean(0), dim=-1) @ words.T
    assert near.argmax(1).tolist() == [0, 1, 2]


def test_it_starts_from_a_q_former_and_is_built_again_without_it(tmp_path: Path) -> None:
    weights = qformer(tmp_path / "blip2")
    towers = [TinyTower(), TinyTower(seed=1)]
    asked = {"form": "published", "weights": str(weights), "tower": 1}
    front = FrontEnd.build({"towers": towers, "projector": "linear", "query_branch": asked}, 32, 0.1)
    from safetensors.torch import load_file

    state = load_file(weights / "model.safetensors")
    own = front.mix.branch.hub
    assert torch.equal(own.queries, state["query_tokens"][0])
    assert torch.equal(
        own.layers[1].query_ffn.up.weight, state["qformer.encoder.layer.1.intermediate_query.dense.weight"]
    )
    values = json.loads(json.dumps(front.config.to_dict()))
    with pytest.raises(StoreError, match="cross.key.weight has shape"):  # it read one tower, not both side by side
        FrontEnd.build({"towers": towers, "projector": "linear", "query_branch": asked | {"tower": None}}, 32, 0.1)
    (weights / "model.safetensors").unlink()
    again = FrontEnd.build(FrontEndConfig.from_dict(values), 32, tower=towers)
    again.load_trainable_state(front.trainable_state())
    assert torch.equal(again(pixel_values=_pixels(again)).tokens, front(pixel_values=_pixels(front)).tokens)


@pytest.mark.parametrize(
    ("branch", "error", "said"),
    [
        ({"querys": 3}, UnknownNameError, "Did you mean 'queries'"),
        ({"demos": "both"}, UnknownNameError, "demos"),
        ({"weights": "somewhere"}, InputError, "form: published"),
        ({"tower": "clip"}, InputError, "tower='clip'"),
        ({"tower": 4}, InputError, "0 .*CLIP.* 2 .*Dinov2"),
        ({"tower": 3}, InputError, "a tower with patches"),
    ],
)
def test_wrong_settings(branch: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        frontend(query_branch=branch)


def test_settings_are_plain_values_and_come_back() -> None:
    settings = QueryBranchSettings.of(BRANCH | {"tower": 0})
    assert QueryBranchSettings.of(json.loads(json.dumps(settings.to_dict()))) == settings
    assert "query_branch" not in FrontEndConfig(tower="x").to_dict()
    with pytest.raises(InputError, match="the hub as `query_branch`"):
        FrontEndConfig(tower="x", projector="hub", query_branch={"queries": 2})
