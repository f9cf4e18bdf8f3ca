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
            if hasattr(importlib.import_module(type(decoder.blocks[0].attention).__module__), "apply_rotary_pos_emb"):
                raise UnsupportedError(
                    f"{decoder.name} rotates inside its attention, by tables of its own",
                    expected="a rotary embedding outside the layers, or none",
                    fix="Use the projector or cross_attention graft.",
                )
            return
        home = importlib.import_module(type(decoder.blocks[0].attention).__module__)
        self._apply = getattr(home, "apply_rotary_pos_emb", None)
        if self._apply is None:
            raise UnsupportedError(
                f"{decoder.name} rotates queries and keys in a way that is not found",
                expected="a function apply_rotary_pos_emb beside its attention",
                fix="Use the projector or cross_attention graft.",
            )
        self._half = _turns_halves(self._apply)
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

    def turn(self, x: Tensor, tables: Tables, tail: Tensor) -> Tensor:
        """Rotate heads by their positions, and widen them.

        Args:
            x: [..., B, T, H, K].
            tail: broadcasts to [..., B, H, T, E], the further channels; it takes no gradient.

        Returns:
            [..., B, H, T, K + E].
        """
        if self._half:
            return widen(x, tail, tables)
        assert self._apply is not None
        x = x.transpose(-2, -3)
        # The LLM's function takes a query and a key; the second one is as small as it may be.
        turned, _ = self._apply(x, x[..., :1, :, :], *tables)
        return _appended(turned, tail)


def widen(x: Tensor, tail: Tensor, tables: Tables | None = None) -> Tensor:
    """x [..., B, T, H, K] -> [..., B, H, T, K + E]: halves of heads rotated where there are tables, `tail` appended."""
    if torch.compiler.is_compiling():  # a compiler fuses the separate operators by itself
        return _appended(_rotated(x.transpose(-2, -3), tables), tail)
    widened: Tensor = _Widen.apply(x, tail, *(tables or (None, None)))  # type: ignore[no-untyped-call]
    return widened


def narrow(x: Tensor, width: int) -> Tensor:
    """The reverse without rotation: x [B, H, T, K + E] -> [B, T, H * K] with `width` = K."""
    if torch.compiler.is_compiling():
        return x[..., :width].transpose(1, 2).flatten(2)
    narrowed: Tensor = _Narrow.apply(x, width)  # type: ignore[no-untyped-call]
    return narrowed


def _appended(x: Tensor, tail: Tensor) -> Tensor:
    return torch.cat([x, tail.expand(*x.shape[:-1], tail.shape[-1])], -1)


def _rotated(x: Tensor, tables: Tables | None) -> Tensor:
    """x [..., B, H, T, K] by tables [B, T, R] whose halves are alike."""
    if tables is None:
        return x
    cos, sin = (t[:, None].to(x.dtype) for t in tables)
    half, rest = cos.shape[-1] // 2, x[..., cos.shape[-1] :]
    a, b = x[..., :half], x[..., half : 2 * half]
    c, s = cos[..., :half], sin[..., :half]
    return torch.cat([a * c - b * s, b * c + a * s, rest], -1)


class _Widen(torch.autograd.Function):
    """One pass over the memory where separate operators would make six, and twelve backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tail: Tensor, cos: Tensor | None, sin: Tensor | None) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.tail = tail.shape[-1]
        heads, width = x.transpose(-2, -3), x.shape[-1]
        out = x.new_empty(*heads.shape[:-1], width + tail.shape[-1])
        _rotate(heads, out, cos, sin)
        out[..., width:] = tail
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  #
        cos, sin = ctx.saved_tensors
        width = grad.shape[-1] - ctx.tail
        back = grad.new_empty(*grad.shape[:-3], grad.shape[-2], grad.shape[-3], width)
        _rotate(grad[..., :width], back.transpose(-2, -3), cos, None if sin is None else -sin)
        return back, None, None, None


class _Narrow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, width: int) -> Tensor:
        ctx.heads, ctx.extra = x.shape[1], x.shape[-1] - width
        return x[..., :width].transpose(1, 2).flatten(2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  #
        heads = grad.unflatten(-1, (ctx.heads, -1)).transpose(1, 2)
        back = grad.new_empty(*heads.shape[:-1], heads.shape[-1] + ctx.extra)
        back[..., : heads.shape[-1]] = heads
        back[..., heads.shape[-1] :] = 0
        return back, None


def _rotate(x: Tensor, out: Tensor, cos: Tensor | None, sin: Tensor | None) -> None:
    """Write the rotated x [..., B, H, T, K] into the first K channels of `out`; tables [B, T, R], halves alike."""
    width, rotated = x.shape[-1], 0
    if cos is not None and sin is not None:
        half, rotated = cos.shape[-1] // 2, cos.shape[-1]
        c, s = (t[:, None, :, :half].to(x.dtype) for t in (cos, sin))  # [B, 1, T, R / 2]
        for mine, other, sign in (
            (slice(0, half), slice(half, rotated), -1),
            (slice(half, rotated), slice(0, half), 1),
        ):
            torch.mul(x[..., mine], c, out=out[..., mine]).addcmul_(x[..., other], s, value=sign)
    if rotated < width:
        out[..., rotated:width] = x[..., rotated:]


def _turns_halves(apply: Callable[..., Any]) -> bool:
    """Whether a rotation function pairs a head's channel i with i + R / 2, as most do (and not with i + 1)."""
    x, angle = torch.arange(1.0, 9.0).reshape(1, 1, 1, 8), torch.tensor([[[0.1, 0.2, 0.3]]])
    cos, sin = (torch.cat([f(angle), f(angle)], -1) for f in (torch.cos, torch.sin))
    try:
        theirs, _ = apply(x, x, cos, sin)
    except (RuntimeError, TypeError):  # it takes no partial rotation
        angle = torch.tensor([[[0.1, 0.2, 0.3, 0.4]]])
        cos, sin = (torch.cat([f(angle), f(angle)], -1) for f in (torch.cos, torch.sin))
        try:
            theirs, _ = apply(x, x, cos, sin)
        except (RuntimeError, TypeError) as error:
            raise UnsupportedError(
                "the LLM rotates queries and keys by tables of another shape",
                expected="cosines and sines of a head's width",
                fix="Use the projector or cross_attention graft.",
            ) from error
    ours = widen(x, x.new_zeros(0), (cos, sin))
    return theirs.shape == ours.shape and torch.allclose(theirs, ours, atol=1e-6)


def _find(decoder: DecoderSpec) -> nn.Module | None:
    """The module outside the layers that holds inverse frequencies."""
    inside = {id(m) for m in decoder.layers.modules()}
    for module in decoder.body.modules():
        if id(module) not in inside and any(n.endswith("inv_freq") for n, _ in module.named_buffers(recurse=False)):
            return module
    return None
