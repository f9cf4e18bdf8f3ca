"""Samples -> one Batch: encode, pad left or right, put all pictures of the batch into one flat list.

Shapes: B rows, T positions, N pictures of the batch, S pixels of a side, P positions of a tower's grid, V its width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from tsugiki.data.boxes import BoxCodec
from tsugiki.data.branch import branch_of, number
from tsugiki.data.demos import plain
from tsugiki.data.images import MAX_PIXELS, image_size, open_image
from tsugiki.data.prompt import IGNORE, Encoded, encode
from tsugiki.data.said import ASKED, Reader, tensors
from tsugiki.data.steps import marked, turns, weights
from tsugiki.errors import ImageError, InputError, PromptError
from tsugiki.types import BRANCHES, DEMO, IMAGE, PAD, Batch, ImageSource, Message, Sample

Side = Literal["left", "right"]


@dataclass(frozen=True, slots=True)
class Item:
    """An encoded conversation and its pictures, for callers that encode by themselves."""

    encoded: Encoded
    images: tuple[ImageSource, ...] = ()
    where: str = ""
    branch: str = "image"


@dataclass(frozen=True)
class Collator:
    """Makes batches from samples (or from items that are encoded already).

    Pictures come as cached `features` where they are given, else as pixels through `transform`.
    """

    tokenizer: Any
    _: KW_ONLY
    tokens_per_image: int
    placeholder_id: int
    tokens_of: Callable[[tuple[int, int]], int] | None = None
    """(width, height) of a picture -> its visual tokens, where not all have `tokens_per_image`."""
    transform: Callable[[Image.Image], Tensor] | None = None
    """An open RGB picture -> float [3, S, S], or one row for several towers or views."""
    features: Callable[[ImageSource], Tensor] | None = None
    """A picture's source -> float [P, V], what the tower gives for it, or one row for several towers or views."""
    codec: BoxCodec = field(default_factory=BoxCodec)
    labels: bool = True
    add_generation_prompt: bool = False
    padding_side: Side = "right"
    """Right for training, left for generation."""
    max_length: int | None = None
    """Longest conversation in tokens; a longer one is an error, nothing is cut."""
    image_kind: int = IMAGE
    max_pixels: int = MAX_PIXELS
    kinds: bool = False
    """Give token kinds also where no row has a picture."""
    branches: tuple[str, ...] = ()
    """Those that the model tells apart: with any beside "image", a batch with pictures says which each row takes."""
    question: bool = False
    """The model decides on the branch by the question's words: batches mark them and name no branch."""
    reader: Reader | None = None
    """Of the words that a hub reads beside each picture."""

    def __call__(self, samples: Sequence[Sample | Item]) -> Batch:
        """One batch.

        Raises:
            PromptError: as `prompt.encode`, naming the sample.
            ImageError: a picture can't be read, naming the sample.
        """
        items = [self.item(s) if isinstance(s, Sample) else s for s in samples]
        batch = pad([i.encoded for i in items], pad_id=self.pad_id, side=self.padding_side, kinds=self.kinds)
        sources = [(source, item.where) for item in items for source in item.images]
        if not sources:
            return batch
        if len(self.branches) > 1 and not self.question:
            rows = [number(i.branch, self.branches) if i.images else BRANCHES["text"] for i in items]
            batch = replace(batch, branch=torch.tensor(rows))
        if self.features is not None:
            return replace(batch, vision_features=torch.stack([self._features(*s) for s in sources]))
        return replace(batch, pixel_values=torch.stack([self._pixels(*s) for s in sources]))

    def item(self, sample: Sample) -> Item:
        """One sample, encoded.

        Raises:
            PromptError, UnknownNameError: as `encode` and `branch_of`.
        """
        return Item(self.encode(sample), sample.images, _where(sample), branch_of(sample))

    def encode(self, sample: Sample) -> Encoded:
        """One sample's tokens; pictures are opened only for their size, and only where it is needed.

        Raises:
            PromptError: as `prompt.encode`, naming the sample.
            DataError: with labels, marks of steps that do not fit the answer.
        """
        where = _where(sample)
        needed = bool(sample.boxes) or self.tokens_of is not None
        sizes = [image_size(source, where=where) for source in sample.images] if needed else []
        steps = marked(sample, where=where) if self.labels else ()
        messages = sample.messages if self.reader is not None else plain(sample.messages)
        encoded = encode(
            messages,
            self.tokenizer,
            **self._pictures(messages, sizes),
            placeholder_id=self.placeholder_id,
            sizes=sizes,
            codec=self.codec,
            labels=self.labels,
            steps=steps,
            question=self.question,
            add_generation_prompt=self.add_generation_prompt,
            max_length=self.max_length,
            where=where,
        )
        if self.reader is not None and sample.images:
            encoded = replace(encoded, said=self.reader(messages))
        return replace(encoded, step_weights=weights(sample, where=where)) if self.labels else encoded

    def _pictures(self, messages: Sequence[Message], sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """How many tokens each picture takes, and of which kind."""
        if self.reader is None or self.image_kind != IMAGE:
            each = self.tokens_per_image if self.tokens_of is None else list(map(self.tokens_of, sizes))
            return {"tokens_per_image": each, "image_kind": self.image_kind}
        said, queries = self.reader(messages), self.reader.queries
        kinds = [IMAGE if one.form == ASKED else DEMO for one in said]
        return {"tokens_per_image": [one.tokens(queries) for one in said], "image_kind": kinds}

    @property
    def pad_id(self) -> int:
        """Id at padding; any will do, for it is masked."""
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        return int(pad if pad is not None else end if end is not None else 0)

    def _pixels(self, source: ImageSource, where: str) -> Tensor:
        if self.transform is None:
            raise PromptError(
                "a picture, but the collator has neither transform nor features",
                expected="one of the two",
                fix="Pass transform=frontend.transform.",
                where=where,
            )
        return self.transform(open_image(source, max_pixels=self.max_pixels, where=where))

    def _features(self, source: ImageSource, where: str) -> Tensor:
        assert self.features is not None
        try:
            return self.features(source)
        except ImageError as error:
            raise named(error, where) from error


def pad(encoded: Sequence[Encoded], *, pad_id: int, side: Side = "right", kinds: bool = False) -> Batch:
    """Encoded conversations as tensors of one length, without pictures.

    `image_index` counts on through the batch. Where no row has a picture, kinds and indices are None, unless `kinds`
    asks for them. Padding has kind PAD, index -1, label -100, step -1 and attention 0. `steps` is None where no
    row marks any.

    Raises:
        PromptError: no row at all, or rows with and without labels together.
    """
    if not encoded or len({e.labels is None for e in encoded}) > 1:
        raise PromptError(
            "no sample in the batch" if not encoded else "rows with and without labels in one batch",
            expected="at least one row, and labels in all or none",
            fix="Leave empty batches out and encode all rows in one way.",
        )
    length = max(map(len, encoded))

    def rows(columns: Sequence[Sequence[int]], fill: int) -> Tensor:  # [B, T]
        table = torch.full((len(columns), length), fill, dtype=torch.int64)
        for row, column in zip(table, columns, strict=True):
            if column:
                row[slice(0, len(column)) if side == "right" else slice(-len(column), None)] = torch.tensor(column)
        return table

    labels = rows([e.labels or [] for e in encoded], IGNORE) if encoded[0].labels is not None else None
    steps = _steps(encoded, labels, rows) if labels is not None else None
    pictures, packed = [e.images for e in encoded], any(e.positions for e in encoded)
    if packed and (any(pictures) or side == "left"):
        raise PromptError(
            "packed rows beside a picture, or padded on the left",
            expected="text alone, padded on the right",
            fix="Keep text and pictures in batches of their own.",
        )
    told = kinds or any(pictures)
    first = [sum(pictures[:row]) for row in range(len(encoded))]
    said = [one for e in encoded for one in e.said]
    text, forms = tensors(said) if said else (None, None)
    shifted = [[i if i < 0 else i + at for i in e.image_index] for e, at in zip(encoded, first, strict=True)]
    return Batch(
        input_ids=rows([e.input_ids for e in encoded], pad_id),
        attention_mask=rows([[1] * len(e) for e in encoded], 0),
        token_kind=rows([e.token_kind for e in encoded], PAD) if told else None,
        image_index=rows(shifted, -1) if told else None,
        labels=labels,
        image_text=text,
        image_form=forms,
        steps=steps,
        step_weights=_weights(encoded, steps) if steps is not None else None,
        question=rows([e.question or [] for e in encoded], 0) if any(e.question for e in encoded) else None,
        # Padding is at position 0, like a document of one token: nothing sees it, and it sees nothing.
        position_ids=rows([e.positions or list(range(len(e))) for e in encoded], 0) if packed else None,
    )


def _steps(
    encoded: Sequence[Encoded], labels: Tensor, rows: Callable[[Sequence[Sequence[int]], int], Tensor]
) -> Tensor | None:
    """Rows that have no marks beside those that do: every answer is one step."""
    if all(e.steps is None for e in encoded):
        return None
    told = torch.tensor([e.steps is not None for e in encoded])
    return torch.where(told[:, None], rows([e.steps or [] for e in encoded], -1), turns(labels))


def _weights(encoded: Sequence[Encoded], steps: Tensor) -> Tensor | None:
    """float32 [B, K], 1 where a row gives none."""
    given = [e.step_weights or () for e in encoded]
    if not any(given):
        return None
    most = max(int(steps.max()) + 1, *map(len, given))
    return torch.tensor([[*row, *[1.0] * (most - len(row))] for row in given])


def named(error: InputError, where: str) -> InputError:
    """The same error with a place, if it has none."""
    if error.where or not where:
        return error
    return type(error)(error.found, expected=error.expected, fix=error.fix, where=where)


def _where(sample: Sample) -> str:
    return sample.where or f"sample {sample.id!r}"
