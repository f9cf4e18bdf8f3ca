"""The cache of a request with images: an LLM's own, and what the grafts have to know of past positions.

Shapes: B rows, T positions of this forward, S of past and present.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from tsugiki.errors import PromptError
from tsugiki.types import PAD, VisualTokens


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
