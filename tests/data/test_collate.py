from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from tsugiki.data import collate
from tsugiki.data.collate import Collator, Item, pad
from tsugiki.data.prompt import Encoded
from tsugiki.errors import ImageError, PromptError
from tsugiki.testing import tiny_images, tiny_tokenizer
from tsugiki.types import IMAGE, PAD, TEXT, Batch, Box, BoxPart, ImagePart, ImageSource, Message, Sample, TextPart

PICTURES = tiny_images(4)


def _transform(image: Image.Image) -> Tensor:
    return torch.tensor(image.getpixel((0, 0)), dtype=torch.float32)[:, None, None].expand(3, 2, 2)


def _features(source: ImageSource) -> Tensor:
    assert isinstance(source, Image.Image)
    return torch.full((4, 5), float(PICTURES.index(source)))


def _sample(id: str, text: str, *images: Image.Image, answer: str = "はい") -> Sample:
    return Sample(id=id, messages=(Message.of("user", text, images), Message.of("assistant", answer)))


SAMPLES = [
    _sample("none", "no picture here, but a long question"),
    _sample("two", "a", PICTURES[2], PICTURES[0]),
    _sample("one", "bb", PICTURES[3], answer="a much longer answer"),
]


def _collator(**options: Any) -> Collator:
    given = {"tokens_per_image": 3, "placeholder_id": 260, "transform": _transform, **options}
    return Collator(tiny_tokenizer(), **given)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("labels", [False, True])
def test_a_batch_as_a_loop_writes_it(side: Any, labels: bool) -> None:
    collator = _collator(padding_side=side, labels=labels)
    batch = collator(SAMPLES)
    rows = [collator.encode(s) for s in SAMPLES]
    length = max(map(len, rows))
    assert batch.input_ids.shape == (3, length)
    assert batch.token_kind is not None and batch.image_index is not None
    assert (batch.labels is not None) is labels
    first = [0, 0, 2]
    for b, row in enumerate(rows):
        shift = length - len(row) if side == "left" else 0
        for t in range(length):
            k = t - shift
            real = 0 <= k < len(row)
            assert batch.attention_mask[b, t] == int(real)
            assert batch.input_ids[b, t] == (row.input_ids[k] if real else 0)
            assert batch.token_kind[b, t] == (row.token_kind[k] if real else PAD)
            index = row.image_index[k] if real else -1
            assert batch.image_index[b, t] == (index + first[b] if index >= 0 else -1)
            if batch.labels is not None and row.labels is not None:
                assert batch.labels[b, t] == (row.labels[k] if real else -100)
    for tensor in batch.inputs().values():
        assert tensor.dtype == (torch.float32 if tensor.is_floating_point() else torch.int64)


def test_rows_without_a_picture_in_a_mixed_batch() -> None:
    batch = _collator()(SAMPLES)
    assert batch.token_kind is not None and batch.image_index is not None
    real = batch.attention_mask[0] == 1
    assert set(batch.token_kind[0, real].tolist()) == {TEXT}
    assert set(batch.image_index[0].tolist()) == {-1}
    assert [int((batch.token_kind[b] == IMAGE).sum()) for b in range(3)] == [0, 6, 3]
    assert batch.image_index[batch.token_kind == IMAGE].tolist() == [0] * 3 + [1] * 3 + [2] * 3


def test_a_batch_without_pictures_has_no_kinds() -> None:
    batch = _collator()([SAMPLES[0], _sample("b", "b")])
    assert batch.token_kind is None and batch.image_index is None
    assert batch.pixel_values is None and batch.vision_features is None
    assert set(batch.inputs()) == {"input_ids", "attention_mask", "labels"}


def test_pictures_are_flat_and_in_order() -> None:
    batch = _collator()(SAMPLES)
    expected = torch.stack([_transform(PICTURES[i]) for i in (2, 0, 3)])
    assert batch.pixel_values is not None and torch.equal(batch.pixel_values, expected)
    batch = _collator(features=_features)(SAMPLES)
    assert batch.pixel_values is None and batch.vision_features is not None
    assert batch.vision_features.shape == (3, 4, 5)
    assert batch.vision_features[:, 0, 0].tolist() == [2, 0, 3]


def test_items_that_are_encoded_already() -> None:
    collator = _collator()
    items = [Item(collator.encode(s), s.images) for s in SAMPLES]
    one, other = collator(items), collator(SAMPLES)
    for name, tensor in other.inputs().items():
        assert torch.equal(tensor, one.inputs()[name])


def test_generation_prompts() -> None:
    tokenizer = tiny_tokenizer()
    asked = Sample(id="1", messages=SAMPLES[1].prompt)
    batch: Batch = _collator(labels=False, add_generation_prompt=True, padding_side="left")([asked])
    assert tokenizer.decode(batch.input_ids[0]).endswith("<|im_start|>assistant\n")


def test_boxes_need_only_the_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (100, 50)).save(tmp_path / "a.png")
    sample = Sample(
        id="1",
        messages=(
            Message.of("user", "where?", (tmp_path / "a.png",)),
            Message("assistant", (BoxPart(Box(0, 0, 50, 50)),)),
        ),
    )
    monkeypatch.setattr(collate, "open_image", lambda *_, **__: pytest.fail("opened"))
    labels = _collator().encode(sample).labels
    assert labels is not None
    text = tiny_tokenizer().decode([i for i in labels if i != -100])
    assert text == "[0.000,0.250,0.500,0.750]<|im_end|>"


def test_errors_name_the_sample(tmp_path: Path) -> None:
    lost = Sample(id="7", messages=(Message("user", (ImagePart(tmp_path / "no.png"), TextPart("q"))),))
    placed = Sample(id="7", messages=lost.messages, where="data.jsonl:4")
    with pytest.raises(ImageError, match="^sample '7': the picture .* does not exist"):
        _collator()([lost])
    with pytest.raises(ImageError, match="^data.jsonl:4: the picture .* does not exist"):
        _collator()([placed])

    def failing(source: ImageSource) -> Tensor:
        raise ImageError("damaged")

    with pytest.raises(ImageError, match="^data.jsonl:4: damaged"):
        _collator(features=failing)([placed])
    with pytest.raises(PromptError, match="^data.jsonl:4: the conversation has .* expected at most 5"):
        _collator(max_length=5)([placed])
    with pytest.raises(ImageError, match="at most 1e-05 megapixels"):
        _collator(max_pixels=10)([SAMPLES[1]])
    with pytest.raises(PromptError, match="neither transform nor features"):
        _collator(transform=None)([SAMPLES[1]])


def test_rows_that_do_not_belong_together() -> None:
    with pytest.raises(PromptError, match="no sample in the batch"):
        _collator()([])
    with pytest.raises(PromptError, match="with and without labels"):
        pad([Encoded([1], [0], [-1]), Encoded([1], [0], [-1], [1])], pad_id=0)


def test_an_empty_row_is_all_padding() -> None:
    batch = pad([Encoded([], [], []), Encoded([1, 2], [0, 1], [-1, 0])], pad_id=9, side="left")
    assert batch.input_ids.tolist() == [[9, 9], [1, 2]]
    assert batch.attention_mask.tolist() == [[0, 0], [1, 1]]
    assert batch.image_index is not None and batch.image_index.tolist() == [[-1, -1], [-1, 0]]


def test_padding_ids() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    collator = Collator(tokenizer, tokens_per_image=1, placeholder_id=3)
    assert collator.pad_id == tokenizer.eos_token_id
    tokenizer.eos_token = None
    assert collator.pad_id == 0
