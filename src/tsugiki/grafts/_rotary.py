"""The LLM's own rotary embedding, for grafts that attend with their own queries and keys.

Shapes: B rows, T positions, H heads, K width of a head, R rotated width of it.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tsugiki.decoder import DecoderSpec
from tsugiki.errors import UnsupportedError

Tables = tuple[Tensor, Tensor]  # cosines and sines [B, T, R]


class Rotary:
    """Tables and rotation as the LLM's attention has them; `exists` is False where it uses none.

    Raises:
        UnsupportedError: the LLM has a rotary embedding, but its rotation function is not found.
    """

    def __init__(self, decoder: DecoderSpec) -> None:
        self._module = _find(decoder)
        self._apply: Callable[..., Any] | None = None
        self._types: list[str] | None = None
        if self._module is None:
            return
        home = importlib.import_module(type(decoder.blocks[0].attention).__module__)
        self._apply = getattr(home, "apply_rotary_pos_emb", None)
        if self._apply is None:
            raise UnsupportedError(
                f"{decoder.name} rotates queries and keys in a way that is not found",
                expected="a function apply_rotary_pos_emb beside its attention",
                fix="Use the projector or cross_attention graft.",
            )
        if "layer_type" in inspect.signature(self._module.forward).parameters:
            self._types = list(decoder.config.layer_types)

    @property
    def exists(self) -> bool:
        return self._module is not None

    def kind(self, layer: int) -> str:
        """Layers of one kind share their tables."""
        return "" if self._types is None else self._types[layer]

    def kinds(self) -> list[str]:
        return sorted(set(self._types)) if self._types is not None else [""]

    def width(self) -> int:
        """R, the number of rotated channels of a head; 0 without a rotary embedding."""
        if self._module is None:
            return 0
        device = next(self._module.buffers()).device
        position = torch.zeros(1, 1, dtype=torch.long, device=device)
        return max(
            int(self.tables(torch.zeros(1, device=device), position, kind)[0].shape[-1]) for kind in self.kinds()
        )

    def tables(self, like: Tensor, positions: Tensor, kind: str) -> Tables:
        """Cosines and sines for `positions` [B, T], in the dtype of `like`."""
        assert self._module is not None
        cos, sin = self._module(like, positions, kind) if self._types is not None else self._module(like, positions)
        return cos, sin

    def turn(self, x: Tensor, tables: Tables) -> Tensor:
        """Rotate x [..., B, H, T, K] by its positions' tables."""
        assert self._apply is not None
        # The LLM's function takes a query and a key; the second one is as small as it may be.
        turned, _ = self._apply(x, x[..., :1, :, :], *tables)
        return turned  # type: ignore[no-any-return]


def _find(decoder: DecoderSpec) -> nn.Module | None:
    """The module outside the layers that holds inverse frequencies."""
    inside = {id(m) for m in decoder.layers.modules()}
    for module in decoder.body.modules():
        if id(module) not in inside and any(n.endswith("inv_freq") for n, _ in module.named_buffers(recurse=False)):
            return module
    return None
