"""Pretrained vision models behind one face: pixels [N, 3, S, S] -> patch features [N, P, V].

Shapes: N pictures, S input size in pixels, grid (h, w), P = h * w patches in row-major order, V width of the tower.
A tower sees the whole padded square (views.py): centre crops and aspect ratios of image processors are not used.
Tokens that stand for no place (CLS, registers) are dropped by structure: what comes before the last h * w tokens. A
front-end may ask for the CLS token, which is then the first of 1 + P rows. What the queries of a Q-Former give is no
grid: all Q of them are rows, P = Q.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from tsugiki.errors import InputError, TsugikiError, UnsupportedError
from tsugiki.vision._outputs import channels_first, grid_of
from tsugiki.vision.views import TRANSFORM_VERSION, Transform, mean_colour, padded_square

# Measured on one CPU core with EfficientNet-Lite0, pictures/s: 75 at 2 or 4, 54 at 8, 44 at 16 (what is in flight
# fits the CPU cache).
ENCODE_BATCH = 4
_FP16_MAX = float(torch.finfo(torch.float16).max)


class Tower(nn.Module):
    """One vision model with its transform. Frozen and in eval mode unless `frozen` is set to False.

    Args:
        backbone: pixels [N, 3, S, S] -> a map [N, V, h, w] (or [N, h, w, V]), or tokens [N, prefix + h * w, V].
        name: asset, hub id or folder; what `build_tower` finds it by.
        input_size: S.
        mean: of the three channels, in [0, 1].
        std: of the three channels, in [0, 1].
        licence: of the weights, for the card.
        patch_size: pixels per token where the backbone says it; else the grid is the largest square of tokens.
        grid: (h, w) where it is known.
        queries: the tokens are those of queries, which have no place.
        version: of the backbone's code, where the same weights may come to mean something else.

    Raises:
        UnsupportedError: the backbone can't take this size, or what it returns is no grid.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        name: str,
        input_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        licence: str = "unknown",
        patch_size: int | None = None,
        grid: tuple[int, int] | None = None,
        queries: bool = False,
        version: str = "",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.name, self.input_size, self.licence, self.version = name, input_size, licence, version
        self.normalise = (_triple("mean", mean, name), _triple("std", std, name))
        self.encode_batch = ENCODE_BATCH
        self.queries, self.cls = queries, False
        self._frozen = True
        self._hash: tuple[tuple[Any, ...], str] | None = None
        self._parts = tuple(backbone.modules())
        self.channels_last = False
        self.frozen = True
        output = self._probe()
        self.grid = (1, int(output.shape[1])) if queries else grid or grid_of(output, input_size, patch_size, name)
        self.width = int(self._flatten(output).shape[-1])
        # Patches that do not divide S leave a rest on the right and below unseen: the picture must not reach into it.
        cut = (
            patch_size is not None and not queries and output.ndim == 3 and self.grid == (input_size // patch_size,) * 2
        )
        self.view_size = input_size - input_size % patch_size if cut and patch_size else input_size
        if output.ndim == 4:  # a convolutional network: this memory layout is the fast one on CPUs and GPUs
            self.channels_last = True
            self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def frozen(self) -> bool:
        """A frozen tower stays in eval mode, has no gradient, and its features may be cached."""
        return self._frozen

    @frozen.setter
    def frozen(self, frozen: bool) -> None:
        self._frozen = frozen
        self.requires_grad_(not frozen)
        self.train(self.training and not frozen)

    def train(self, mode: bool = True) -> Tower:
        return super().train(mode and not self._frozen)

    @property
    def patches(self) -> int:
        """P."""
        return self.grid[0] * self.grid[1]

    @property
    def rows(self) -> int:
        """Rows of the features: P, and one more where the CLS token is kept."""
        return self.patches + self.cls

    @property
    def transform(self) -> Transform:
        """An RGB picture (and the number of a fixed augmentation, 0 = none) -> pixels, float32 [3, S, S]."""
        return Transform(*self.normalise, self.input_size, self.view_size)

    def view(self, image: Image.Image) -> Image.Image:
        """The padded square that the tower sees of a picture, before any augmentation."""
        return padded_square(image, self.view_size, mean_colour(self.normalise[0]))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Pixels [N, 3, S, S] -> features [N, P (+ 1), V] in the tower's dtype; no gradient where it is frozen."""
        self._check_pixels(pixel_values)
        pixel_values = pixel_values.to(self._like())
        if self.channels_last:
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._frozen):
            return self._flatten(self.backbone(pixel_values))

    def encode(self, pixel_values: Tensor) -> Tensor:
        """What is cached, and what a live picture of a frozen tower gives: features in fp16 [N, P (+ 1), V].

        Every call of the backbone sees `encode_batch` pictures (the last ones are padded with zeros), so that a
        picture's features do not depend on how many came with it. Values beyond fp16 are clamped. Autocast is off: a
        trainer's setting must not change features.
        """
        self._check_pixels(pixel_values)
        batch, parts = self.encode_batch, []
        empty = torch.zeros(0, self.rows, self.width, dtype=torch.float16, device=self.device)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            for part in pixel_values.split(batch) if len(pixel_values) else ():
                padding = part.new_zeros(batch - len(part), *part.shape[1:])
                features = self(torch.cat([part, padding]) if len(padding) else part)[: len(part)]
                parts.append(features.clamp(-_FP16_MAX, _FP16_MAX).half())
            return torch.cat(parts) if parts else empty

    @property
    def device(self) -> torch.device:
        return self._like().device

    def _like(self) -> Tensor:
        """A tensor of the dtype and device that pixels need."""
        floating = (p for p in self.backbone.parameters() if p.is_floating_point())
        return next(floating, torch.zeros(()))

    def weights_sha256(self) -> str:
        """SHA-256 of all weights and buffers: names, dtypes, shapes, bytes. Kept until one of them changes."""
        # Asked for at every cached picture: state_dict() would cost a millisecond.
        tensors = (t for m in self._parts for t in (*m._parameters.values(), *m._buffers.values()) if t is not None)
        key = tuple((t.data_ptr(), t._version, t.dtype) for t in tensors)
        if self._hash is None or self._hash[0] != key:
            state = self.backbone.state_dict()
            digest = hashlib.sha256()
            for name in sorted(state):
                tensor = state[name].detach().cpu().contiguous()
                digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
                digest.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
            self._hash = key, digest.hexdigest()
        return self._hash[1]

    def fingerprint(self) -> str:
        """SHA-256 of all that features depend on but the picture: weights, transform, input size, code version."""
        backbone = getattr(self.backbone, "identity", type(self.backbone).__name__)
        parts = [TRANSFORM_VERSION, self.weights_sha256(), backbone, self.version, self.input_size, *self.normalise]
        parts += ["cls"] if self.cls else []
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def extra_repr(self) -> str:
        frozen = "frozen" if self.frozen else "trainable"
        return f"{self.name!r}, input_size={self.input_size}, grid={self.grid}, width={self.width}, {frozen}"

    def _flatten(self, output: Tensor) -> Tensor:
        if output.ndim == 4:
            cells = output.flatten(2).transpose(1, 2) if channels_first(output) else output.flatten(1, 2)
            cells = cells.contiguous()
        elif not hasattr(self, "grid"):
            return output
        else:
            cells = output[:, -self.patches :]
        if not self.cls:
            return cells
        has_one = output.ndim == 3 and output.shape[1] > self.patches
        return torch.cat([output[:, :1] if has_one else cells.mean(dim=1, keepdim=True), cells], dim=1)

    def _check_pixels(self, pixel_values: Tensor) -> None:
        expected = (3, self.input_size, self.input_size)
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != expected:
            raise InputError(
                f"pixel_values of shape {list(pixel_values.shape)}",
                expected=f"[N, {', '.join(map(str, expected))}] for {self.name}",
                fix="Make them with the front-end's transform.",
            )

    def _probe(self) -> Tensor:
        blank = torch.zeros(1, 3, self.input_size, self.input_size).to(self._like())
        try:
            with torch.no_grad():
                output = self.backbone(blank)
        except TsugikiError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise UnsupportedError(
                f"{self.name} does not run on {self.input_size}x{self.input_size} pixels ({reason})",
                expected="a size that the model takes",
                fix="Leave input_size out to use the model's own.",
            ) from error
        if not isinstance(output, Tensor) or output.ndim not in (3, 4):
            shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise UnsupportedError(
                f"{self.name} returns {shape}",
                expected="a map [N, V, h, w] or tokens [N, T, V]",
                fix="Use another tower.",
            )
        return output


def build_tower(
    source: str | Path | nn.Module, input_size: int | None = None, *, layer: int = -1, post_norm: bool = False
) -> Tower:
    """A tower from an asset's name, a hub id, a folder, a transformers model, or any module with attributes.

    A module needs `input_size`, `mean` and `std`, and may have `name`, `licence`, `patch_size`, `grid`, `queries`,
    `version`.

    Args:
        source: see above; a `Tower` is returned as it is.
        input_size: S; None = the model's own.
        layer: which hidden states of a transformers model are the features; -1 = its last output, -2 = those before
            the last layer.
        post_norm: CLIP's last LayerNorm on all of its tokens.

    Raises:
        UnsupportedError: no vision model, or one that can't take `input_size`.
        AssetError: the weights can't be found.
    """
    from tsugiki.vision import efficientnet, hf

    if isinstance(source, Tower):
        if input_size not in (None, source.input_size):
            raise InputError(
                f"input_size={input_size}",
                expected=f"{source.input_size}, that of the tower object",
                fix="Leave it out.",
            )
        return source
    if isinstance(source, nn.Module):
        return (
            hf.from_model(source, input_size, layer, post_norm)
            if hf.is_hf(source)
            else _from_module(source, input_size)
        )
    if str(source) in efficientnet.NAMES:
        return efficientnet.load(str(source), input_size)
    return hf.from_name(str(source), input_size, layer, post_norm)


def _from_module(module: nn.Module, input_size: int | None) -> Tower:
    missing = [name for name in ("input_size", "mean", "std") if not hasattr(module, name)]
    if missing:
        raise UnsupportedError(
            f"the tower {type(module).__name__} has no {' and no '.join(missing)}",
            expected="a module with the attributes input_size, mean and std",
            fix="Set them, or name a transformers model.",
        )
    own: Any = module
    optional = {k: getattr(own, k) for k in ("licence", "patch_size", "grid", "queries", "version") if hasattr(own, k)}
    name = str(getattr(own, "name", type(module).__name__))
    if input_size not in (None, own.input_size):
        optional.pop("grid", None)
    return Tower(module, name=name, input_size=input_size or own.input_size, mean=own.mean, std=own.std, **optional)


def _triple(field: str, values: Sequence[float], name: str) -> tuple[float, float, float]:
    numbers = tuple(float(v) for v in values)
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3 or (field == "std" and min(numbers) <= 0):
        raise InputError(
            f"{field}={list(values)} of {name}", expected="three numbers" + (" > 0" if field == "std" else "")
        )
    return numbers[0], numbers[1], numbers[2]
