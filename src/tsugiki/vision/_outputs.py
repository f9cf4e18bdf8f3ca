"""What a vision model returns, read by its shape."""

from __future__ import annotations

from math import isqrt

from torch import Tensor

from tsugiki.errors import UnsupportedError


def channels_first(output: Tensor) -> bool:
    """Whether a map is [N, V, h, w], not [N, h, w, V]."""
    return output.shape[2] == output.shape[3] or output.shape[1] != output.shape[2]


def grid_of(output: Tensor, input_size: int, patch_size: int | None, name: str) -> tuple[int, int]:
    """(h, w) of a map, or of tokens.

    Raises:
        UnsupportedError: tokens that are no square grid after a few others.
    """
    if output.ndim == 4:
        h, w = output.shape[2:] if channels_first(output) else output.shape[1:3]
        return int(h), int(w)
    tokens = int(output.shape[1])
    side = input_size // patch_size if patch_size else 0
    # Hierarchical transformers merge patches: there the patch size says nothing about the number of tokens.
    side = side if 0 < side * side <= tokens else isqrt(tokens)
    if side == 0 or 2 * side * side < tokens:
        raise UnsupportedError(
            f"{name} returns {tokens} tokens for {input_size} px", expected="a square grid after a few other tokens",
            fix="Use another tower.",
        )  # fmt: skip
    return side, side
