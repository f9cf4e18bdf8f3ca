"""What one forward knows of its request: an immutable value, passed as a keyword through the LLM.

Nothing of a request is stored on a module. Shapes: B rows, T positions of this forward, S of past and present,
N images of the batch, K images of a row at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from threading import local
from typing import Any

import torch
from torch import Tensor

from tsugiki.errors import PromptError
from tsugiki.grafts._cache import TsugikiCache, positions_of
from tsugiki.types import DEMO, IMAGE, TEXT, VisualTokens

KEYWORD = "tsugiki"
"""Name of the keyword under which the context goes through the LLM's forward."""


@dataclass(frozen=True)
class Context:
    """One forward's request. Grafts read it; what sites leave in `notes` is all that is written."""

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

    def for_rows(self, y: Tensor, other: Tensor) -> Tensor:
        """[B, T, ...]: y for the rows with an image, `other` for those without."""
        return y if self.rows is None else torch.where(self.rows, y, other)


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
    offsets = _offsets(kinds, images, first, visual.counts.to(kinds.device))[:, -new:]
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


def _offsets(kinds: Tensor, images: Tensor, first: Tensor, wanted: Tensor) -> Tensor:
    """Which of its image's visual tokens each image position stands for, [B, S] -> [B, S]; an image has `wanted`, [N].

    Raises:
        PromptError: an image has more or fewer placeholders than visual tokens.
    """
    spliced = (kinds == IMAGE) | (kinds == DEMO)
    rank = spliced.long().cumsum(1) - 1  # [B, S] number of the image token within its row
    at_first = rank.gather(1, first.clamp(max=kinds.shape[1] - 1))  # [B, N]
    start = at_first.gather(1, images.clamp(min=0))
    offsets = torch.where(spliced, rank - start, torch.zeros_like(rank))
    counts = torch.zeros_like(first).scatter_add(1, images.clamp(min=0), spliced.long())
    # The image at the end of a prompt that is read in parts may still be going on.
    ends = torch.zeros_like(first).scatter_add(1, images[:, -1:].clamp(min=0), spliced[:, -1:].long()) > 0
    wrong = (counts > wanted) | ((counts > 0) & (counts < wanted) & ~ends)
    if bool(wrong.any()):
        found, expected = int(counts[wrong][0]), int(wanted.expand_as(counts)[wrong][0])
        raise PromptError(
            f"the prompt holds {found} placeholders for an image",
            expected=f"{expected}, one for each of its visual tokens",
            fix="Prepare inputs with this model's processor.",
        )
    return offsets
