"""Mixed front-ends: against the equations written out, the published counts of tokens, and what can't be mixed."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from tests.vision._mixed import FORM, frontend, ribbon, tower
from torch.nn import functional as F

from tsugiki.errors import InputError, UnknownNameError, UnsupportedError
from tsugiki.testing import TinyTower, tiny_images
from tsugiki.vision.config import FrontEndConfig
from tsugiki.vision.frontend import FrontEnd
from tsugiki.vision.mix import Mix, Source, aligned, resized
from tsugiki.vision.packing import Packing
from tsugiki.vision.presets import FRONT_ENDS
from tsugiki.vision.projector import build_projector
from tsugiki.vision.tower import build_tower

PICTURES = [*tiny_images(2), ribbon(), ribbon(24, 96)]


def _pixels(front: FrontEnd, pictures: Any = PICTURES) -> torch.Tensor:
    return torch.stack([front.transform(picture) for picture in pictures])


def _parts(front: FrontEnd, pictures: Any = PICTURES) -> tuple[torch.Tensor, list[torch.Tensor]]:
    return front.packing.unpack(front.encode(_pixels(front, pictures)), "features")


def _span(front: FrontEnd, parts: list[torch.Tensor], image: int, view: int) -> torch.Tensor:
    """t = [s; LN(d W + b); LN(e W + b); e] of one view in float64, every row by itself."""
    mix, projector = copy.deepcopy(front.mix).double(), copy.deepcopy(front.projector).double()
    a, b, c, d = (part[image, view].double() for part in parts)
    norm, linear = projector.out_norm, projector.linear_2
    rows = []
    for cell in range(-1, 16):
        if cell < 0:
            e = torch.cat([a[0], b[0], c[0]])
        else:
            y, x = divmod(cell, 4)
            e = torch.cat([a[1 + cell], b[1 + 2 * (y // 2) + x // 2], c[1 + cell]])
        rows.append(e)
    if view and mix.crop_raster != mix.raster:
        halved = [rows[0]]
        for y in range(2):
            for x in range(2):
                block = [rows[1 + 4 * (2 * y + i) + 2 * x + j] for i in (0, 1) for j in (0, 1)]
                halved.append(sum(block) / 4)
        rows = halved
    z = [norm.weight * _normed(linear.weight @ e + linear.bias) + norm.bias for e in rows]
    own = mix.queries[0]
    q = [own.out_norm.weight * _normed(own.linear_2.weight @ r + own.linear_2.bias) for r in d]
    return torch.stack([mix.start, *q, *z, mix.end])


def _normed(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()


@pytest.mark.parametrize(
    ("views", "reduce_crops"),
    [("global", False), ("global+2x2", False), ("global+2x2", True), ("global+3x3", False)],
)
def test_tokens_are_those_of_the_equations(views: str, reduce_crops: bool) -> None:
    front = frontend(views=views, reduce_crops=reduce_crops)
    seen, parts = _parts(front)
    out = front(pixel_values=_pixels(front))
    for image, picture in enumerate(PICTURES):
        spans = []
        for view, there in enumerate(seen[image].tolist()):
            spans.append(_span(front, parts, image, view) if there else front.mix.skip[None].double())
        expected = torch.cat(spans)
        assert len(expected) == int(out.counts[image]) == front.tokens_of(picture.size)
        torch.testing.assert_close(out.tokens[image, : len(expected)].double(), expected, rtol=2e-3, atol=2e-4)
    assert out.per_image == front.tokens_per_image or views == "global"


def test_a_crop_of_padding_alone_is_one_vector() -> None:
    front = frontend(views="global+3x3")
    seen, _ = _parts(front, [ribbon()])
    assert seen[0].tolist() == [True, *[False] * 3, *[True] * 3, *[False] * 3]
    whole, crop = front.mix.lengths(front.projector)
    tokens = front(pixel_values=_pixels(front, [ribbon()])).each[0]
    skip = front.mix.skip
    assert len(tokens) == whole + 3 * crop + 6 and torch.equal(tokens[whole : whole + 3], skip.expand(3, -1))
    assert torch.equal(tokens[-3:], skip.expand(3, -1)) and not torch.equal(tokens[-4], skip)


def _published(name: str) -> int:
    """Tokens of a picture by the mix of a preset, on the published towers' grids."""
    grids = {"clip": ((16, 16), 1024), "dinov2": ((16, 16), 1536), "convnext": ((8, 8), 3072), "blip2": ((1, 32), 768)}
    config = FrontEndConfig.from_dict(FRONT_ENDS[name])
    sources = []
    for one in config.towers:
        key = next(k for k in grids if k in one.tower and not (k == "clip" and "convnext" in one.tower))
        grid, width = grids[key]
        if key == "convnext":
            assert one.input_size is not None
            grid = (one.input_size // 32,) * 2
        sources.append(Source(one.tower, grid, width, key == "blip2"))
    mix = Mix(config, sources, 8)
    projector = build_projector(config.projector_config(), mix.raster, mix.width, 8)
    whole, crop = mix.lengths(projector)
    assert mix.width == {4: 5632, 2: 4608, 1: 1536}[len(sources)]
    return whole + crop * (mix.views.count - 1)


def test_published_counts_of_tokens() -> None:
    names = ["sphinx", "sphinx-1k", "sphinx-1k-reduced", "sphinx-2k", "sphinx-x", "sphinx-x-1k", "sphinx-one"]
    assert [_published(name) for name in names] == [291, 1455, 687, 2910, 259, 1295, 259]


def test_one_painted_cell_lights_up_at_the_same_place_of_the_raster() -> None:
    """Towers without attention: what a cell shows must stay in its cell, in each tower's part of the channels."""
    towers = [TinyTower((4, 4), 6, 64), TinyTower((2, 2), 5, 64, seed=1), TinyTower((8, 8), 7, 64, seed=2)]
    front = FrontEnd.build({"towers": towers, "projector": "linear"}, 16, 0.1)
    plain = tiny_images(1, size=64)[0].resize((64, 64))
    for y, x in [(0, 0), (2, 1), (3, 3), (1, 2)]:  # cells of 16 px, the coarsest grid's are of 32
        painted = plain.copy()
        painted.paste((255, 0, 128), (32 * (x // 2), 32 * (y // 2), 32 * (x // 2) + 32, 32 * (y // 2) + 32))
        before, after = (front.cells(front.encode(_pixels(front, [p])))[0].float() for p in (plain, painted))
        change = (after - before).abs().unflatten(0, (8, 8))
        for channels in (slice(0, 6), slice(6, 11), slice(11, 18)):
            lit = change[..., channels].sum(-1) > 1e-2
            rows, columns = slice(4 * (y // 2), 4 * (y // 2) + 4), slice(4 * (x // 2), 4 * (x // 2) + 4)
            inside = torch.zeros(8, 8, dtype=torch.bool)
            inside[rows, columns] = True
            assert lit[rows, columns].float().mean() > 0.9 and not lit[~inside].any()


def test_real_classes_light_up_most_where_a_cell_is_painted() -> None:
    front = frontend()
    plain = tiny_images(1, size=64)[0].resize((64, 64))
    painted = plain.copy()
    painted.paste((255, 0, 128), (32, 0, 64, 32))  # the upper right quarter
    before, after = (front.cells(front.encode(_pixels(front, [p])))[0].float() for p in (plain, painted))
    change = (after - before).abs().unflatten(0, (4, 4))
    for channels in (slice(0, 16), slice(16, 36), slice(36, 52)):
        quarters = F.avg_pool2d(change[..., channels].sum(-1)[None], 2)[0]
        assert quarters.flatten().argmax() == 1


def test_padding_is_nothing_after_normalisation() -> None:
    front = frontend(views="global+2x2")
    _, pixels = front.transform.packing.unpack(_pixels(front, [ribbon()]), "pixels")
    for views in pixels:
        assert views[0, 0][:, 0].abs().max() < 0.012 and views[0, 1][:, 0].abs().max() < 0.012


@pytest.mark.parametrize(
    ("views", "pictures", "calls"),
    [("global", 1, 1), ("global+2x2", 1, 5), ("global+3x3", 1, 10), ("global+3x3", 2, 20)],
)
def test_cost_is_linear_in_views(views: str, pictures: int, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    front, counted = frontend(views=views), _counted(monkeypatch)
    front(pixel_values=_pixels(front, tiny_images(1, size=48) * pictures))
    assert counted == [calls] * 4


def test_padding_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    front, counted = frontend(views="global+3x3"), _counted(monkeypatch)
    front(pixel_values=_pixels(front, [ribbon()]))
    assert counted == [4] * 4  # the whole square and one row of crops
    assert front.tokens_of((400, 100)) < 0.5 * front.tokens_per_image


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pictures that each tower encodes, in order of the calls."""
    from tsugiki.vision.tower import Tower

    counted: list[int] = []
    encode = Tower.encode
    monkeypatch.setattr(Tower, "encode", lambda self, pixels: counted.append(len(pixels)) or encode(self, pixels))
    return counted


def test_alone_is_as_in_any_batch() -> None:
    front = frontend(views="global+3x3", reduce_crops=True)
    together = front(pixel_values=_pixels(front)).each
    for picture, tokens in zip(PICTURES, together, strict=True):
        torch.testing.assert_close(front(pixel_values=_pixels(front, [picture])).each[0], tokens)


@pytest.mark.parametrize("projector", ["linear", "mlp", "linear_norm", "pixel_unshuffle"])
@pytest.mark.parametrize("positions", ["none", "learned", "sincos"])
def test_visual_tokens_have_the_words_size(projector: str, positions: str) -> None:
    form: dict[str, Any] = {"projector": projector, "cls_token": projector != "pixel_unshuffle", "positions": positions}
    front = frontend(rms=0.07, views="global+2x2", **form)
    front.calibrate(0.07, front.encode(_pixels(front)))
    for tokens in front(pixel_values=_pixels(front)).each:
        assert 0.5 < tokens.pow(2).mean().sqrt() / 0.07 < 1.6
    state = front.trainable_state()
    for name in ("start", "end", "skip"):
        assert abs(float(state[f"mix.{name}"].pow(2).mean().sqrt()) / 0.07 - 1) < 1e-4


def test_a_crop_has_the_position_vectors_of_its_part_of_the_square() -> None:
    front = frontend(views="global+2x2", positions="sincos")
    table = front.projector.positions.unflatten(0, (4, 4))
    crops = front.mix._positions(front.projector, [1, 2, 3, 4])
    for crop, (y, x) in zip(crops, [(0, 0), (0, 2), (2, 0), (2, 2)], strict=True):
        pooled = crop.unflatten(0, (2, 2, 2, 2)).mean(dim=(1, 3))
        inner = pooled - table[y : y + 2, x : x + 2]
        assert inner.pow(2).mean() < 0.2 * (pooled - table[2 - y : 4 - y, 2 - x : 4 - x]).pow(2).mean()


@pytest.mark.parametrize("align", ["repeat", "bilinear"])
def test_alignment_against_a_loop(align: str) -> None:
    cells = torch.randn(2, 4, 3)
    found = aligned(cells, (2, 2), (6, 6), align).unflatten(1, (6, 6))
    source = cells.unflatten(1, (2, 2))
    for y in range(6):
        for x in range(6):
            if align == "repeat":
                expected = source[:, y // 3, x // 3]
            else:
                v, u = (min(max((i + 0.5) / 3 - 0.5, 0.0), 1.0) for i in (y, x))
                top = (1 - u) * source[:, 0, 0] + u * source[:, 0, 1]
                expected = (1 - v) * top + v * ((1 - u) * source[:, 1, 0] + u * source[:, 1, 1])
            torch.testing.assert_close(found[:, y, x], expected)
    assert resized(torch.zeros(0, 16, 3), (4, 4), (2, 2)).shape == (0, 4, 3)


def test_what_can_not_be_aligned_names_the_tower_and_the_grids() -> None:
    odd = [TinyTower((4, 4)), TinyTower((3, 3), input_size=33)]
    with pytest.raises(InputError, match=r"tiny-tower-3x3-24-0 has a grid of 3x3 .* 4x4; .* align to 'bilinear'"):
        FrontEnd.build(odd, 16, projector="linear")
    assert FrontEnd.build(odd, 16, projector="linear", align="bilinear").mix.raster == (4, 4)
    with pytest.raises(InputError, match=r"tiny-tower-4x2-24-0 has a grid of 4x2 .* 4x4; .*aspect"):
        FrontEnd.build([TinyTower((4, 4)), TinyTower((4, 2))], 16, projector="linear", align="bilinear")
    with pytest.raises(InputError, match="queries alone"):
        FrontEnd.build([tower("qformer")], 16, projector="linear")
    with pytest.raises(InputError, match="3x3 cells; expected even"):
        FrontEnd.build(odd[1], 16, projector="linear", views="global+2x2", reduce_crops=True)


def test_settings_that_do_not_go_together() -> None:
    with pytest.raises(InputError, match="one of the two"):
        FrontEndConfig(tower="x", towers=("y",))
    with pytest.raises(InputError, match="no tower"):
        FrontEndConfig()
    with pytest.raises(InputError, match="pixel_unshuffle.*linear_norm"):
        FrontEndConfig(tower="x", cls_token=True)
    with pytest.raises(InputError, match="stay frozen"):
        FrontEndConfig(tower="x", views="global+2x2", train_tower=True)
    with pytest.raises(UnknownNameError, match=r"global\+2x2"):
        FrontEndConfig(tower="x", views="global+2x3")
    with pytest.raises(UnknownNameError, match="bilinear"):
        FrontEndConfig(tower="x", align="bilinar")
    with pytest.raises(UnknownNameError, match="input_size"):
        FrontEndConfig.from_dict({"towers": [{"tower": "x", "input_sise": 3}]})
    with pytest.raises(InputError, match="each of `towers`"):
        FrontEndConfig.from_dict({"towers": ["x", "y"], "input_size": 3})
    with pytest.raises(UnsupportedError, match="CLIP"):
        FrontEnd.build({"towers": [{"tower": tower("dinov2"), "post_norm": True}]}, 16)


def test_configs_of_one_tower_are_written_as_ever() -> None:
    """A graft's hash covers its config: of one tower it must not change, and older ones must load."""
    written = json.dumps(FrontEnd.build(TinyTower(), 32, 1.0).config.to_dict())
    assert written == (
        '{"tower": "tiny-tower-4x4-24-0", "input_size": 32, "layer": -1, "projector": "pixel_unshuffle",'
        ' "hidden": null, "factor": 2, "positions": "none", "position_gain": 0.3, "train_tower": false,'
        ' "encode_batch": 4, "seed": 0, "grid": [4, 4], "width": 24, "licence": "Apache-2.0", "tower_sha256":'
        ' "2d80940200a924ca7fe6b9b1479cb045cc1e813d482d7635b4cb32e2900fe534", "fingerprint":'
        ' "2d53f8300e731fe8684b88544c81dfc8cf3ce8d24e94a359568a9e9318931c11"}'
    )
    assert json.dumps(FrontEndConfig.from_dict(json.loads(written)).to_dict()) == written


def test_configs_of_a_mix_survive_json() -> None:
    config = frontend(views="global+2x2").config
    again = FrontEndConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config and again.mixed and again.marked
    assert [one.grid for one in again.towers] == [(4, 4), (2, 2), (4, 4), (1, 5)]
    assert all(len(one.fingerprint) == len(one.tower_sha256) == 64 for one in again.towers)


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_presets_are_configs(name: str) -> None:
    config = FrontEndConfig.from_dict(FRONT_ENDS[name])
    assert config.mixed and config.marked and config.cls_token and all("/" in one.tower for one in config.towers)


def test_cls_is_the_first_token_or_the_mean_over_cells() -> None:
    pixels = torch.randn(2, 3, 32, 32)
    model = tower("dinov2")
    one = build_tower(model)
    one.cls = True
    with torch.no_grad():
        assert torch.equal(one(pixels), model(pixels).last_hidden_state)
    flat = build_tower(TinyTower())
    cells = flat(pixels)
    flat.cls = True
    torch.testing.assert_close(flat(pixels), torch.cat([cells.mean(1, keepdim=True), cells], dim=1))


def test_clip_s_last_norm_on_all_tokens() -> None:
    model: Any = tower("clip")
    pixels = torch.randn(2, 3, 32, 32)
    front = FrontEnd.build({"towers": [{"tower": model, "post_norm": True}], **FORM}, 16)
    with torch.no_grad():
        norm = next(m for name, m in model.named_modules() if name.endswith("post_layernorm"))
        expected = norm(model(pixels).last_hidden_state)
    assert torch.equal(front.tower(pixels), expected)
    assert front.tower.fingerprint() != FrontEnd.build({"towers": [model], **FORM}, 16).tower.fingerprint()


def test_a_tower_object_may_serve_two_front_ends() -> None:
    one = build_tower(TinyTower())
    plain = FrontEnd.build(one, 16, 0.1)
    mixed = FrontEnd.build([one], 16, 0.1, projector="linear", cls_token=True)
    assert plain.tower.rows == 16 and mixed.tower.rows == 17
    assert plain(pixel_values=_pixels(plain)).per_image == 4


def test_rows_of_another_form_are_refused() -> None:
    front = frontend()
    with pytest.raises(InputError, match=r"pixel_values of shape \[2, 3, 32, 32\].*\[N, "):
        front(pixel_values=torch.zeros(2, 3, 32, 32))
    with pytest.raises(InputError, match="vision_features.*4 towers"):
        front(features=torch.zeros(2, 16, 24))
    with pytest.raises(InputError, match="2 tower objects"):
        FrontEnd.build(front.config, 24, tower=[tower("clip"), tower("dinov2")])


def test_packing_round_trip() -> None:
    packing = Packing(3, ((2, 5), (4,)))
    seen = torch.tensor([[True, False, True], [True, True, True]])
    parts = [torch.randn(2, 3, 2, 5), torch.randn(2, 3, 4)]
    rows = packing.pack(seen, parts)
    assert rows.shape == (2, packing.size)
    again, found = packing.unpack(rows, "rows")
    assert torch.equal(again, seen) and all(torch.equal(a, b) for a, b in zip(parts, found, strict=True))


def test_what_trains_and_what_is_saved() -> None:
    front = frontend(views="global+2x2").train()
    front(pixel_values=_pixels(front, [ribbon(96, 30), *tiny_images(1)])).tokens.pow(2).sum().backward()
    own = [*front.projector.parameters(), *front.mix.parameters()]
    state = front.trainable_state()
    skip = front.mix.skip
    assert all(p.grad is not None for p in own if p is not skip)
    assert not any(p.requires_grad for one in front.towers for p in one.parameters())
    assert {name.split(".")[0] for name in state} == {"projector", "mix"} and "mix.skip" in state
    again = FrontEnd.build(front.config, 24, tower=[one.backbone.model for one in front.towers])
    again.load_trainable_state({name: tensor.clone() for name, tensor in state.items()})
    pixels = _pixels(front)
    assert torch.equal(again(pixel_values=pixels).tokens, front(pixel_values=pixels).tokens)


def test_places_stand_behind_the_last_token() -> None:
    front = frontend(views="global+3x3", places=2)
    places = front.places
    assert places is not None
    places.weight.normal_()
    places.glyphs.normal_()
    out, tail = front(pixel_values=_pixels(front)), places.tokens
    assert [len(t) for t in out.each] == [front.tokens_of(p.size) for p in PICTURES]
    features = front.encode(_pixels(front))
    bare = frontend(views="global+3x3")
    bare.load_trainable_state({k: v for k, v in front.trainable_state().items() if not k.startswith("places")})
    for i, tokens in enumerate(out.each):
        assert torch.equal(tokens[:-tail], bare(features=features).each[i])
    cells, boxes = places.find(front.cells(features))
    torch.testing.assert_close(out.each[2][-len(places.text) :], places.glyphs[places.characters(boxes)[2, 1]])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"towers": "clip"}, "a list of towers"),
        ({"tower": "a", "raster": 8}, "two numbers"),
        ({"tower": "a", "raster": (0, 0)}, "two numbers"),
        ({"tower": "a", "reduce_crops": True}, "reduce_crops without crops"),
    ],
)
def test_settings_that_say_nothing_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        FrontEndConfig(**fields)
