"""What one forward knows of its request: an immutable value, passed as a keyword through the LLM.

Nothing of a request is stored on a module. Shapes: B rows, T positions of this forward, S of past and present,
N images of the batch, K images of a row at most.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from threading import local
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from tsugiki.errors import PromptError
from tsugiki.types import DEMO, IMAGE, PAD, TEXT, VisualTokens

KEYWORD = "tsugiki"
"""Name of the keyword under which the context goes through the LLM's forward."""


@dataclass(frozen=True)
class Context:
    """One forward's request. Grafts read it; nothing writes it."""

    visual: VisualTokens | None
    """Visual tokens [N, M, D] of all images so far; None = no image in the request: only sites `on_text` run."""
    token_kind: Tensor | None = None  # int64 [B, T]
    image_index: Tensor | None = None  # int64 [B, T], row of `visual` at image positions, else -1
    image_offset: Tensor | None = None  # int64 [B, T], which of an image's visual tokens, 0 elsewhere
    row_images: Tensor | None = None  # int64 [B, K], rows of `visual` that a row holds, in order, -1 = none
    visible: Tensor | None = None  # bool [B, T, K], True where the image begins at or before the position
    kinds: Tensor | None = None  # int64 [B, S], of past and present; None = a text request that no graft sees
    positions: Tensor | None = None  # int64 [B, S], position ids of past and present
    image_tokens: tuple[int, int] = (0, 0)  # fewest and most image and demo positions of a row, past and present
    image_span: tuple[int, int] = (0, 0)  # from the first such position of any row to behind the last
    text_from: int = 0  # the first place at which any row has text after an image; S = nowhere
    cache: TsugikiCache | None = None
    branch: str = "image"
    rows: Tensor | None = None  # bool [B, 1, 1], rows with an image, which alone take the branch; None = all of them
    keep: Tensor | None = None  # int64 [L], positions of the flattened [B * T] that the head has to score; None = all
    notes: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """What one site of a graft leaves for another within this forward, under names that begin with the graft's."""

    @property
    def has_image(self) -> bool:
        return self.visual is not None


_CURRENT: ContextVar[Context | None] = ContextVar("tsugiki_context", default=None)


class _Traced(local):
    """The same for torch.compile, which can't trace a ContextVar and guards what it reads here."""

    context: Context | None = None


_TRACED = _Traced()


def current() -> Context | None:
    """The context of the forward that runs in this thread."""
    return _TRACED.context if torch.compiler.is_compiling() else _CURRENT.get()


@contextmanager
def running(context: Context | None) -> Iterator[None]:
    """Make `context` the current one inside."""
    token, before = _CURRENT.set(context), _TRACED.context
    _TRACED.context = context
    try:
        yield
    finally:
        _CURRENT.reset(token)
        _TRACED.context = before


def bound(function: Callable[..., Any], context: Context | None) -> Callable[..., Any]:
    """`function`, always run under `context`: a layer recomputed in the backward pass finds its request again."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with running(context):
            return function(*args, **kwargs)

    return call


class TsugikiCache(Cache):
    """An LLM's cache and the state of a request with images: kinds and images of past positions, visual tokens, branch.

    It shares the layers of the cache it is made from: dynamic, static and sliding layers all work. `slots` is where a
    graft keeps what it knows of past positions (codes of learners, say): tensors [B, P, ...] of the last P positions.
    """

    def __init__(self, inner: Cache, *, branch: str = "image", inserted: Sequence[tuple[int, int]] = ()) -> None:
        # The layers stay the inner cache's own: whoever holds it sees the same keys and values.
        self.__dict__.update(inner.__dict__)
        self.branch = branch
        for index, like in inserted:
            if len(self.layers) == index:  # a cache without a config grows by itself
                self.layers.append(copy.deepcopy(self.layers[like]))
        self.rows: Tensor | None = None  # bool [B], rows that have had an image
        self.token_kind: Tensor | None = None  # int64 [B, S]
        self.image_index: Tensor | None = None  # int64 [B, S]
        self.positions: Tensor | None = None  # int64 [B, S]
        self.visual: VisualTokens | None = None
        self.slots: dict[str, Tensor] = {}
        self._added: list[tuple[VisualTokens, int]] = []

    @property
    def has_image(self) -> bool:
        return self.visual is not None

    def add_images(self, visual: VisualTokens) -> int:
        """Append new images; returns the number of images that were there before.

        `generate` passes the same tokens with every step of a prompt that it reads in parts: they are added once.
        """
        for added, before in self._added:
            if added is visual:
                return before
        before = 0 if self.visual is None else len(self.visual)
        self._added.append((visual, before))
        if self.visual is None:
            self.visual = visual
            return 0
        tokens = torch.cat([self.visual.tokens, visual.tokens])
        mask = None
        if self.visual.mask is not None or visual.mask is not None:
            mask = torch.cat([_mask(self.visual), _mask(visual)])
        self.visual = VisualTokens(tokens, mask)
        return before

    def append(self, token_kind: Tensor, image_index: Tensor, positions: Tensor | None = None) -> None:
        """Remember the kinds, images and position ids of the positions of this forward, [B, T] each."""
        if positions is None:
            positions = positions_of(token_kind, self.positions)
        if self.token_kind is None or self.image_index is None or self.positions is None:
            self.token_kind, self.image_index, self.positions = token_kind, image_index, positions
        else:
            self.token_kind = torch.cat([self.token_kind, token_kind], dim=1)
            self.image_index = torch.cat([self.image_index, image_index], dim=1)
            self.positions = torch.cat([self.positions, positions], dim=1)

    def extend(self, slot: str, new: Tensor) -> Tensor:
        """Append what a graft knows of this forward's positions [B, T, ...]; returns all it knows, [B, P, ...]."""
        past = self.slots.get(slot)
        self.slots[slot] = new if past is None else torch.cat([past.to(new.dtype), new], dim=1)
        return self.slots[slot]

    def take_rows(self, rows: Tensor, *, prefix_exact: bool) -> None:
        """Remember which rows have an image, bool [B].

        Raises:
            PromptError: a row gets its first one, and its text was computed on another path.
        """
        if self.rows is not None and not prefix_exact and bool((rows & ~self.rows).any()):
            raise PromptError(
                "a row of this cache was computed without an image and gets its first one",
                expected="a graft that leaves the text before an image alone, or rows with images from the start",
                fix="Encode the conversation again from its start.",
            )
        self.rows = rows

    def refuse_other_branch(self, branch: str) -> None:
        """Hidden states differ by branch, so their keys and values are not interchangeable.

        Raises:
            PromptError: the cache was computed under another branch.
        """
        if self.token_kind is None:
            self.branch = branch
        if branch != self.branch:
            raise PromptError(
                f"this cache was computed under the branch {self.branch!r}",
                expected=f"a cache of the branch {branch!r}",
                fix="Encode the conversation again from its start.",
            )

    def _rows(self, change: Callable[[Tensor], Tensor]) -> None:
        if self.token_kind is not None and self.image_index is not None and self.positions is not None:
            self.token_kind, self.image_index = change(self.token_kind), change(self.image_index)
            self.positions = change(self.positions)
        self.rows = None if self.rows is None else change(self.rows)
        self.slots = {name: change(tensor) for name, tensor in self.slots.items()}

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        self._rows(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._rows(lambda t: t.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._rows(lambda t: t[indices])

    def crop(self, *args: Any, **kwargs: Any) -> None:
        super().crop(*args, **kwargs)
        # The meaning of the argument changed between transformers versions; the length after the crop did not.
        length = int(self.get_seq_length())
        if self.token_kind is not None and self.image_index is not None and self.positions is not None:
            gone = self.token_kind.shape[1] - length
            self.token_kind, self.image_index = self.token_kind[:, :length], self.image_index[:, :length]
            self.positions = self.positions[:, :length]
            self.slots = {name: tensor[:, : max(tensor.shape[1] - gone, 0)] for name, tensor in self.slots.items()}

    def reset(self) -> None:
        super().reset()  # type: ignore[no-untyped-call]
        self.token_kind = self.image_index = self.positions = self.visual = self.rows = None
        self.slots, self._added = {}, []


def _mask(visual: VisualTokens) -> Tensor:
    if visual.mask is not None:
        return visual.mask
    return torch.ones(visual.tokens.shape[:2], dtype=torch.bool, device=visual.tokens.device)


def positions_of(token_kind: Tensor, past: Tensor | None = None) -> Tensor:
    """Position ids that padding does not shift: kinds [B, T], past position ids [B, S - T] -> [B, T]."""
    real = token_kind != PAD
    before = real.new_zeros((len(real), 1), dtype=torch.long) if past is None else past.amax(1, keepdim=True) + 1
    return (before + real.long().cumsum(1) - 1).clamp(min=0)


def build(
    token_kind: Tensor,
    image_index: Tensor,
    visual: VisualTokens | None,
    *,
    position_ids: Tensor | None = None,
    cache: TsugikiCache | None = None,
    keep: Tensor | None = None,
    branch: str = "image",
    rows: Tensor | None = None,
) -> Context:
    """The context of a forward, past positions taken from `cache`.

    Args:
        token_kind: int64 [B, T] of this forward.
        image_index: int64 [B, T] into `visual`, -1 for none.
        visual: all images so far, [N, M, D]; None for a text request.
        position_ids: int64 [B, T] or [1, T]; counted from the kinds where they are not given.
        rows: bool [B], those with an image.

    Raises:
        PromptError: the image placeholders and the visual tokens differ in number.
    """
    positions = None if position_ids is None else position_ids.expand_as(token_kind)
    if cache is not None:
        cache.refuse_other_branch(branch)
        cache.append(token_kind, image_index, positions)
        kinds, images, positions = cache.token_kind, cache.image_index, cache.positions
        assert kinds is not None and images is not None
    else:
        kinds, images = token_kind, image_index
        positions = positions if positions is not None else positions_of(token_kind)
    image_tokens, image_span, text_from = _extent(kinds)
    whole = Context(
        visual=visual,
        token_kind=token_kind,
        image_index=image_index,
        kinds=kinds,
        positions=positions,
        image_tokens=image_tokens,
        image_span=image_span,
        text_from=text_from,
        cache=cache,
        branch=branch,
        rows=None if rows is None or bool(rows.all()) else rows[:, None, None],
        keep=keep,
    )
    if visual is None:
        return whole
    if (last := int(images.max())) >= len(visual):
        raise PromptError(
            f"the prompt speaks of image number {last + 1}",
            expected=f"at most {len(visual)}, as many as came with it",
            fix="Pass on everything that the processor returned.",
        )
    new = token_kind.shape[1]
    first = first_positions(images, len(visual))  # [B, N]
    row_images, start = _row_images(first, images.shape[1])
    places = torch.arange(kinds.shape[1] - new, kinds.shape[1], device=kinds.device)
    visible = (start[:, None, :] <= places[None, :, None]) & (row_images >= 0)[:, None, :]  # [B, T, K]
    offsets = _offsets(kinds, images, first, visual.per_image)[:, -new:]
    return replace(whole, image_offset=offsets, row_images=row_images, visible=visible)


def _extent(kinds: Tensor) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Kinds [B, S] -> `image_tokens`, `image_span` and `text_from` of the context, in one transfer."""
    image = (kinds == IMAGE) | (kinds == DEMO)
    text = (kinds == TEXT) & (image.long().cumsum(1) > 0)
    places = torch.arange(kinds.shape[1], device=kinds.device)
    nowhere = torch.full_like(places, kinds.shape[1])
    first, after = (torch.where(x.any(0), places, nowhere).amin() for x in (image, text))
    stop = torch.where(image.any(0), places + 1, 0).amax()
    few, many, start, end, text_from = torch.stack([*image.sum(1).aminmax(), first, stop, after]).tolist()
    return (few, many), (start, end), text_from


def first_positions(images: Tensor, n: int) -> Tensor:
    """Position of each image's first token in each row, S where the row does not hold it: [B, S] -> [B, N]."""
    b, s = images.shape
    positions = torch.arange(s, device=images.device).expand(b, s)
    first = torch.full((b, n + 1), s, device=images.device, dtype=torch.long)
    return first.scatter_reduce(1, images + 1, positions, reduce="amin")[:, 1:]


def _row_images(first: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Images of each row in order of appearance: first [B, N] -> row_images [B, K] and their starts [B, K]."""
    start, order = first.sort(dim=1, stable=True)
    k = max(1, int((first < length).sum(1).max())) if first.numel() else 1
    start, order = start[:, :k], order[:, :k]
    return torch.where(start < length, order, torch.full_like(order, -1)), start


def _offsets(kinds: Tensor, images: Tensor, first: Tensor, per_image: int) -> Tensor:
    """Which of its image's visual tokens each image position stands for, [B, S] -> [B, S].

    Raises:
        PromptError: an image has more or fewer placeholders than visual tokens.
    """
    spliced = kinds == IMAGE
    rank = spliced.long().cumsum(1) - 1  # [B, S] number of the image token within its row
    at_first = rank.gather(1, first.clamp(max=kinds.shape[1] - 1))  # [B, N]
    start = at_first.gather(1, images.clamp(min=0))
    offsets = torch.where(spliced, rank - start, torch.zeros_like(rank))
    counts = torch.zeros_like(first).scatter_add(1, images.clamp(min=0), spliced.long())
    # The image at the end of a prompt that is read in parts may still be going on.
    ends = torch.zeros_like(first).scatter_add(1, images[:, -1:].clamp(min=0), spliced[:, -1:].long()) > 0
    wrong = (counts > per_image) | ((counts > 0) & (counts < per_image) & ~ends)
    if bool(wrong.any()):
        found = int(counts[wrong][0])
        raise PromptError(
            f"the prompt holds {found} placeholders for an image",
            expected=f"{per_image}, one for each of its visual tokens",
            fix="Prepare inputs with this model's processor.",
        )
    return offsets
