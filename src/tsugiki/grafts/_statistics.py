"""What attention did, read from a fused kernel: extra value channels come out as weighted sums over the keys.

No attention matrix is ever made. Shapes: B rows, H heads, T queries, S keys, C channels, K width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def attend(
    call: Callable[..., Any], query: Tensor, key: Tensor, value: Tensor, channels: Tensor, scaling: float
) -> tuple[Any, Tensor]:
    """Run attention, and sum each channel over keys, weighted by the attention to them, and over heads.

    Args:
        call: the attention function of the layer, `call(query, key, value, scaling=...)` -> (output [B, T, H, K], ...).
        query: [B, H, T, K]. key, value: [B, H or fewer, S', K].
        channels: [B, S, C], of all positions so far. A static cache has columns beyond them (S' > S), a sliding
            one only the last of them (S' < S).
        scaling: of the scores.

    Returns:
        The attention function's own output, and float [B, T, C]: sum over h and s of attention[b, h, t, s] *
        channels[b, s, c].
    """
    extra = _aligned(channels, key.shape[2]).to(value.dtype)[:, None].expand(-1, value.shape[1], -1, -1)
    width, count = value.shape[-1], channels.shape[-1]
    if query.shape[2] == 1 or query.dtype != torch.float32 or query.device.type != "cpu":
        # The output keeps its bits, which a wider head would change by the order of sums; on a CPU in float32 it does
        # not, but for a single query.
        padded = F.pad(extra, (0, width - count))
        output = call(query, key, value, scaling=scaling)
        return output, call(query, key, padded, scaling=scaling)[0][..., :count].sum(2)
    # Equal widths, in eights, are what the fused kernels take; zeros add nothing to a score.
    common = -(-max(query.shape[-1], width + count) // 8) * 8
    wide_value = F.pad(_joined(value, extra), (0, common - width - count))
    output = call(_widened(query, common), _widened(key, common), wide_value, scaling=scaling)
    attended = output[0]
    return (attended[..., :width], *output[1:]), attended[..., width : width + count].sum(2)


def _aligned(channels: Tensor, columns: int) -> Tensor:
    """Channels [B, S, C] for the keys that the cache holds: [B, columns, C]."""
    missing = columns - channels.shape[1]
    return F.pad(channels, (0, 0, 0, missing)) if missing >= 0 else channels[:, -missing:]


def _widened(x: Tensor, width: int) -> Tensor:
    return F.pad(x, (0, width - x.shape[-1]))


def _joined(value: Tensor, extra: Tensor) -> Tensor:
    return torch.cat([value, extra], dim=-1)
