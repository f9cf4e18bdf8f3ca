"""Places: the reader against a loop, what it writes against the codec, which cells it keeps, how it is fitted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tsugiki.data.boxes import BoxCodec, PaddedSquare
from tsugiki.errors import InputError, UnknownNameError, UnsupportedError
from tsugiki.evals._boxes import iou
from tsugiki.testing import TinyTower, tiny_images, tiny_llm, tiny_tokenizer
from tsugiki.types import Box
from tsugiki.vision.frontend import FrontEnd, FrontEndConfig
from tsugiki.vision.place_fit import background, components, fit, found, neighbourhoods, targets
from tsugiki.vision.places import CHARACTERS, Places, as_tensor, overlaps

SHORT = BoxCodec(decimals=0, scale=99, whole=2)


def _places(count: int = 2, grid: tuple[int, int] = (4, 5), codec: BoxCodec = SHORT, **options: Any) -> Places:
    places = Places(count, codec, grid, 6, 8, **options)
    generator = torch.Generator().manual_seed(0)
    for buffer in (places.weight, places.bias, places.centre, places.glyphs):
        buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
    return places


def _boxes(n: int, seed: int = 0) -> torch.Tensor:
    low = torch.rand(n, 2, generator=torch.Generator().manual_seed(seed)) * 0.7
    return torch.cat([low, low + 0.05 + 0.25 * torch.rand(n, 2, generator=torch.Generator().manual_seed(seed + 1))], 1)


def test_the_reader_is_a_convolution_written_out() -> None:
    places, (h, w) = _places(), (4, 5)
    features = torch.randn(3, h * w, 6)
    score, boxes = places.read(features)
    x, weight, bias, centre = (t.double() for t in (features, places.weight, places.bias, places.centre))
    for n in range(3):
        for row in range(h):
            for column in range(w):
                out = bias.clone()
                for dy in (-1, 0, 1):
                    for dx in (-1, 0, 1):
                        if 0 <= row + dy < h and 0 <= column + dx < w:
                            tap = 3 * (dy + 1) + dx + 1
                            out += (x[n, (row + dy) * w + column + dx] - centre) @ weight[tap]
                at = torch.tensor([(column + 0.5) / w, (row + 0.5) / h] * 2, dtype=torch.float64)
                cell = row * w + column
                assert abs(float(score[n, cell]) - float(out[0])) < 1e-5
                assert torch.allclose(boxes[n, cell].double(), (at + out[1:]).clamp(0, 1), atol=1e-5)


@pytest.mark.parametrize("codec", [BoxCodec(), BoxCodec(decimals=2), SHORT, BoxCodec(0, 100, 3)])
def test_it_writes_what_the_codec_writes(codec: BoxCodec) -> None:
    places, square = _places(codec=codec), PaddedSquare(1, 1)
    boxes = torch.cat([_boxes(40), torch.tensor([[0.0, 0.0, 1.0, 1.0]])])
    for box, signs in zip(boxes.double(), places.characters(boxes), strict=True):
        expected = codec.encode(Box(*box.tolist()), square)
        assert "".join(CHARACTERS[i] for i in signs.tolist()) == expected
        assert len(expected) == len(places.text)


def test_a_box_without_area_is_written_one_step_long() -> None:
    signs = _places().characters(torch.tensor([[0.5, 1.0, 0.5, 1.0], [0.9, 0.2, 0.1, 0.3]]))
    assert ["".join(CHARACTERS[i] for i in row) for row in signs.tolist()] == ["[50,98,51,99]", "[89,20,90,30]"]


def test_a_codec_of_unequal_lengths_is_refused() -> None:
    with pytest.raises(InputError, match=r"\[0,0,0,0\] and \[100,100,100,100\].*whole: 2"):
        _places(codec=BoxCodec(decimals=0, scale=100))
    with pytest.raises(InputError, match="1 to 20, the cells"):
        _places(count=21)


def test_the_best_cell_of_each_place() -> None:
    places = _places(3)
    features = torch.randn(5, 20, 6)
    score, boxes = places.read(features)
    cells, chosen = places.find(features)
    for n in range(5):
        left = list(range(20))
        for cell, box in zip(cells[n].tolist(), chosen[n], strict=True):
            fresh = [c for c in left if all(_iou(boxes[n, c], o) < 0.3 for o in chosen[n, : 20 - len(left)])]
            # Where every cell overlaps a chosen one, the best of those.
            assert cell == max(fresh or left, key=lambda c: float(score[n, c]))
            assert torch.equal(box, boxes[n, cell])
            left.remove(cell)


def _iou(a: torch.Tensor, b: torch.Tensor) -> float:
    return iou(Box(*a.tolist()), Box(*b.tolist()))


def test_overlaps_as_a_loop() -> None:
    a, b = _boxes(12), _boxes(9, seed=4)
    both = overlaps(a[:, None], b[None])
    assert all(abs(float(both[i, k]) - _iou(a[i], b[k])) < 1e-6 for i in range(12) for k in range(9))


def test_a_place_is_its_visual_token_and_its_text() -> None:
    places = _places(2, factor=2)  # 4 x 5 cells, 2 x 3 tokens
    features, tokens = torch.randn(3, 20, 6), torch.randn(3, 6, 8, requires_grad=True)
    out = places(features, tokens)
    assert out.shape == (3, places.tokens, 8) and places.tokens == 2 * 14
    cells, boxes = places.find(features)
    for n in range(3):
        for k in range(2):
            row, column = divmod(int(cells[n, k]), 5)
            assert torch.equal(out[n, 14 * k], tokens[n, row // 2 * 3 + column // 2])
            signs = places.characters(boxes[n, k])
            assert torch.equal(out[n, 14 * k + 1 : 14 * (k + 1)], places.glyphs[signs])
    out.sum().backward()
    assert tokens.grad is not None and not list(places.parameters())


def test_a_picture_alone_and_among_others() -> None:
    places, features, tokens = _places(), torch.randn(4, 20, 6), torch.randn(4, 20, 8)
    whole = places(features, tokens)
    assert all(torch.allclose(places(features[i : i + 1], tokens[i : i + 1]), whole[i : i + 1]) for i in range(4))


def test_glyphs_are_the_llms_own() -> None:
    llm, tokenizer, places = tiny_llm("gemma2"), tiny_tokenizer(), Places(1, SHORT, (4, 4), 6, 32)
    places.take_glyphs(tokenizer, llm.get_input_embeddings())
    ids = tokenizer(CHARACTERS, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        assert torch.equal(places.glyphs, llm.get_input_embeddings()(torch.tensor(ids)))

    class Lacks:
        unk_token_id = 0

        def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]:
            return [0 if t == "[" else 1 for t in tokens]

    with pytest.raises(UnsupportedError, match=r"no token '\['"):
        places.take_glyphs(Lacks(), llm.get_input_embeddings())


def test_the_front_end_puts_places_behind_its_tokens_and_saves_them() -> None:
    plain = FrontEnd.build(TinyTower(), 16, 0.1)
    frontend = FrontEnd.build(TinyTower(), 16, 0.1, places=2, box_text={"decimals": 2})
    pixels = torch.stack([frontend.transform(picture) for picture in tiny_images(3)])
    assert frontend.tokens_per_image == plain.tokens_per_image + 2 * (1 + len("[0.00,0.00,0.00,0.00]"))
    out = frontend(pixel_values=pixels).tokens
    assert out.shape[1] == frontend.tokens_per_image
    assert torch.equal(out[:, : plain.tokens_per_image], plain(pixel_values=pixels).tokens)
    assert frontend.places is not None
    frontend.places.weight.normal_()
    frontend.places.glyphs.normal_()
    again = FrontEnd.build(FrontEndConfig.from_dict(frontend.config.to_dict()), 16, tower=TinyTower())
    again.load_trainable_state({k: v.clone() for k, v in frontend.trainable_state().items()})
    assert torch.equal(again(pixel_values=pixels).tokens, frontend(pixel_values=pixels).tokens)


def test_settings_of_boxes() -> None:
    config = FrontEndConfig(tower="x")
    assert config.codec() == BoxCodec() and not {"places", "box_text"} & config.to_dict().keys()  # as saved before
    assert FrontEndConfig(tower="x", box_text={"scale": 99, "decimals": 0, "whole": 2}).codec() == SHORT
    with pytest.raises(UnknownNameError, match="Did you mean 'decimals'"):
        FrontEndConfig(tower="x", box_text={"decimal": 2})
    with pytest.raises(InputError, match="places=-1"):
        FrontEndConfig(tower="x", places=-1)


# -- the fit -----------------------------------------------------------------------------------------------------------


def _scenes(n: int, seed: int = 0) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A 6 x 6 map on which one or two things light up the cells that they cover, by how much of it, in noise."""
    generator = torch.Generator().manual_seed(seed)
    features, boxes = 0.02 * torch.randn(n, 36, 6, generator=generator), []
    edges = torch.arange(7) / 6
    for i in range(n):
        things = []
        for side in range(1 + i % 2):  # one in each half
            size = 0.2 + 0.2 * torch.rand(2, generator=generator)
            low = torch.rand(2, generator=generator) * (torch.tensor([0.5, 1.0]) - size)
            low[0] += 0.5 * side
            things.append(torch.cat([low, low + size]))
            covered = [
                (torch.minimum(edges[1:], things[-1][k + 2]) - torch.maximum(edges[:-1], things[-1][k])).clamp(min=0)
                for k in (1, 0)
            ]
            features[i, :, :3] += 36 * torch.outer(*covered).flatten()[:, None] * torch.tensor([1.0, 0.5, -0.5])
        boxes.append(torch.stack(things))
    return features, boxes


def test_the_fit_finds_things_on_new_pictures() -> None:
    features, boxes = _scenes(400)
    places = Places(2, SHORT, (6, 6), 6, 8)
    report = fit(places, features, boxes)
    assert report["things"] == 600 and report["found"] > 0.8 and report["r2_edges"] > 0.5 < report["r2_score"]
    new, there = _scenes(100, seed=1)
    assert found(places, new, there) > 0.8
    assert found(Places(2, SHORT, (6, 6), 6, 8), new, there) < 0.3


def test_the_fit_is_two_ridge_regressions_put_into_one_convolution() -> None:
    features, boxes = _scenes(20)
    places = Places(1, SHORT, (6, 6), 6, 8)
    report = fit(places, features, boxes)
    assert "found" not in report  # too few pictures for a hold-out
    centre, basis = components(features)
    inputs = neighbourhoods((features - centre) @ basis, (6, 6))
    middle, edges = targets(boxes, places.middles)
    used = middle | background(middle, 0)
    from tsugiki.vision.ridge import ridge

    read = [ridge(inputs[used], middle[used].float()[:, None]), ridge(inputs[middle], edges[middle])]
    score, at = places.read(features)
    expected = [(inputs - r.input_mean) @ r.matrix + r.target_mean for r in read]
    assert torch.allclose(score, expected[0][..., 0], atol=1e-4)
    assert torch.allclose(at, (places.middles.repeat(1, 2) + expected[1]).clamp(0, 1), atol=1e-4)


def test_targets_as_a_loop() -> None:
    boxes, middles = [_boxes(3), as_tensor([]), _boxes(1, seed=7)], Places(1, SHORT, (4, 5), 6, 8).middles
    middle, edges = targets(boxes, middles)
    for i, things in enumerate(boxes):
        for cell, (x, y) in enumerate(middles.tolist()):
            mine = []
            for x1, y1, x2, y2 in things.tolist():
                cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
                near = min(range(len(middles)), key=lambda c: (middles[c, 0] - cx) ** 2 + (middles[c, 1] - cy) ** 2)
                if cell == near or (abs(x - cx) < 0.25 * (x2 - x1) and abs(y - cy) < 0.25 * (y2 - y1)):
                    mine.append([x1 - x, y1 - y, x2 - x, y2 - y])
            assert bool(middle[i, cell]) == bool(mine)
            if mine:
                assert torch.allclose(edges[i, cell], torch.tensor(mine[-1]), atol=1e-6)
    chosen = background(middle, 0)
    assert not (chosen & middle).any() and int(chosen.sum()) == 2 * int(middle.sum())


def test_pictures_without_boxes_are_refused() -> None:
    places = Places(1, SHORT, (6, 6), 6, 8)
    for features, boxes in ((torch.randn(2, 36, 6), [as_tensor([])] * 2), (torch.randn(2, 36, 6), [_boxes(1)])):
        with pytest.raises(InputError, match="set places to 0"):
            fit(places, features, boxes)
