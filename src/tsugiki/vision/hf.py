"""Any vision model of transformers as a tower: outputs are read by structure, image processors as files only."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from tsugiki.errors import AssetError, StoreError, TsugikiError, UnsupportedError
from tsugiki.vision import blip2
from tsugiki.vision.tower import Tower

# Parts of keys that may be missing in a checkpoint: heads and text parts are not read.
_UNREAD = ("pooler", "head", "text", blip2.HEAD)


class HFBackbone(nn.Module):
    """A transformers vision model as pixels -> tokens [N, T, V] or map [N, V, h, w].

    Args:
        model: a model whose forward takes pixel_values.
        layer: -1 = the model's last hidden state, else an index into its hidden states.
        post_norm: CLIP only, its last LayerNorm on all tokens.

    Raises:
        UnsupportedError: post_norm for a model without such a norm.
    """

    def __init__(self, model: nn.Module, layer: int = -1, post_norm: bool = False) -> None:
        super().__init__()
        self.model, self.layer = model, layer
        self.identity = f"{type(model).__name__}[{layer}]" + ("+norm" if post_norm else "")
        self._norm = _clip_norm(model) if post_norm else None
        parameters = inspect.signature(model.forward).parameters
        self._interpolates = "interpolate_pos_encoding" in parameters
        self._takes_patches = "spatial_shapes" in parameters
        config: Any = model.config
        self.patch_size = _square(getattr(config, "patch_size", None))
        self.trained_size = _square(getattr(config, "image_size", None))
        if self.trained_size is None and self._takes_patches and self.patch_size:
            self.trained_size = isqrt(getattr(config, "num_patches", 0)) * self.patch_size or None

    def forward(self, pixel_values: Tensor) -> Tensor:
        extra: dict[str, Any] = {}
        if self._takes_patches:
            pixel_values, extra = self._patches(pixel_values)
        elif self._interpolates and pixel_values.shape[-1] != self.trained_size:
            extra["interpolate_pos_encoding"] = True
        if self.layer == -1:
            states: Tensor = self.model(pixel_values, **extra).last_hidden_state
        else:
            states = self.model(pixel_values, output_hidden_states=True, **extra).hidden_states[self.layer]
        return states if self._norm is None else self.model.get_submodule(self._norm)(states)

    def _patches(self, pixel_values: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """[N, 3, S, S] -> [N, h * w, p * p * 3] for models with free aspect ratio (SigLIP 2 NaFlex)."""
        n, channels, height, width = pixel_values.shape
        p = self.patch_size or 16
        h, w = height // p, width // p
        cut = pixel_values[:, :, : h * p, : w * p].reshape(n, channels, h, p, w, p)
        patches = cut.permute(0, 2, 4, 3, 5, 1).reshape(n, h * w, p * p * channels)
        mask = torch.ones(n, h * w, dtype=torch.long, device=patches.device)
        shapes = torch.tensor([[h, w]], device=patches.device).expand(n, 2)
        return patches, {"pixel_attention_mask": mask, "spatial_shapes": shapes}


def _clip_norm(model: nn.Module) -> str:
    """Name of CLIP's last LayerNorm, which transformers applies to the CLS token alone."""
    config: Any = model.config
    found = [name for name, _ in model.named_modules() if name.rpartition(".")[2] == "post_layernorm"]
    if not found or not config.model_type.startswith("clip"):
        raise UnsupportedError(
            f"post_norm for {type(model).__name__}", expected="a CLIP vision model", fix="Leave post_norm out."
        )
    return str(found[0])


def is_hf(module: nn.Module) -> bool:
    """Whether a module is a transformers model."""
    from transformers import PreTrainedModel

    return isinstance(module, PreTrainedModel)


def from_name(name: str, input_size: int | None, layer: int = -1, post_norm: bool = False) -> Tower:
    """A tower from a hub id or a folder. Only safetensors are read.

    Raises:
        AssetError: nothing is found under this name.
        StoreError: only a pickle is there, or weights are missing.
    """
    try:
        model, info = _loader(name).from_pretrained(
            name, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise _not_loaded(name, error) from error
    vision = _vision_part(model, name)
    # Heads that pool are not read; a checkpoint without them is as good.
    missing = [key for key in info["missing_keys"] if not any(part in key for part in _UNREAD)]
    if missing:
        raise StoreError(
            f"{len(missing)} weights are missing, the first {missing[0]}",
            expected="a checkpoint that holds the whole vision model",
            fix="Use another one.",
            where=name,
        )
    # They start at random: as zeros, the tower has the same fingerprint whenever it is loaded.
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key in info["missing_keys"]:
                parameter.zero_()
    return _tower(vision, name, input_size, layer, post_norm)


def _loader(name: str) -> Any:
    """The class that reads a checkpoint's vision part: of BLIP-2, without its LLM."""
    from transformers import AutoConfig, AutoModel

    return blip2.loader() if AutoConfig.from_pretrained(name).model_type == blip2.MODEL_TYPE else AutoModel


def from_model(model: nn.Module, input_size: int | None, layer: int = -1, post_norm: bool = False) -> Tower:
    """A tower from a transformers model; mean and std from its source's image processor, or its attributes `mean`,
    `std`."""
    vision = _vision_part(model, type(model).__name__)
    for field in ("mean", "std", "licence"):
        if hasattr(model, field) and not hasattr(vision, field):
            setattr(vision, field, getattr(model, field))
    config: Any = model.config
    return _tower(
        vision, str(getattr(config, "_name_or_path", "") or type(model).__name__), input_size, layer, post_norm
    )


def _tower(model: nn.Module, name: str, input_size: int | None, layer: int, post_norm: bool) -> Tower:
    backbone: Any
    if queries := blip2.is_qformer(model):
        backbone = blip2.QFormerBackbone(model)
    else:
        backbone = HFBackbone(model, layer, post_norm)
    processor = _processor(name, model)
    size = input_size or processor["size"] or backbone.trained_size
    if size is None:
        raise UnsupportedError(f"{name} does not say its input size", fix="Give input_size, in pixels.")
    return Tower(
        backbone,
        name=name,
        input_size=size,
        mean=processor["mean"],
        std=processor["std"],
        licence=getattr(model, "licence", None) or _licence(name),
        patch_size=backbone.patch_size,
        queries=queries,
    )


def _vision_part(model: nn.Module, name: str) -> nn.Module:
    """The model itself, or the part of a two-tower model (CLIP, SigLIP) that carries its vision config."""
    if blip2.is_qformer(model):
        return blip2.without_llm(model)
    config: Any = model.config
    inner = getattr(config, "vision_config", None)
    if inner is not None:
        parts = [m for m in model.modules() if m is not model and getattr(m, "config", None) is inner]
        takes = [m for m in parts if "pixel_values" in inspect.signature(m.forward).parameters]
        if takes:
            return takes[0]
    elif "pixel_values" in inspect.signature(model.forward).parameters:
        return model
    raise UnsupportedError(
        f"{name} ({type(model).__name__}) takes no pixels",
        expected="a vision model",
        fix="Name a vision tower, such as a SigLIP or DINOv2.",
    )


def _processor(name: str, model: nn.Module) -> dict[str, Any]:
    """Mean, std and size of a model's image processor, read from its file; crops and resize rules are left alone.

    Raises:
        UnsupportedError: nothing says how pixels are normalised.
    """
    if hasattr(model, "mean") and hasattr(model, "std"):
        return {"mean": model.mean, "std": model.std, "size": None}
    config: Any = model.config
    timm = getattr(config, "pretrained_cfg", None)
    if isinstance(timm, Mapping) and "mean" in timm:
        return {"mean": timm["mean"], "std": timm["std"], "size": _square(timm.get("input_size"))}
    from transformers.image_processing_utils import BaseImageProcessor

    try:
        file: Mapping[str, Any] = BaseImageProcessor.get_image_processor_dict(name)[0]
    except (OSError, ValueError) as error:
        raise UnsupportedError(
            f"{name} has no preprocessor_config.json",
            expected="the mean and std that the model was trained with",
            fix="Load the model yourself, set its attributes mean and std, and pass it as the tower.",
        ) from error
    if file.get("do_flip_channel_order"):
        raise UnsupportedError(f"{name} wants BGR pixels", expected="RGB", fix="Use another tower.")
    plain = not file.get("do_normalize", True)  # pixels in [0, 1]
    if not plain and not ("image_mean" in file and "image_std" in file):
        raise UnsupportedError(
            "no image_mean and image_std in preprocessor_config.json", fix="Write them into the file.", where=name
        )
    mean, std = ([0.0] * 3, [1.0] * 3) if plain else _scaled(file)
    crop = file.get("crop_size") if file.get("do_center_crop") else None
    return {"mean": mean, "std": std, "size": _square(crop) or _square(file.get("size"))}


def _scaled(file: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Mean and std for pixels in [0, 1]: (255 r x - mean) / std = (x - mean / 255 r) / (std / 255 r), r = rescale
    factor."""
    rescale = 255 * float(file.get("rescale_factor", 1 / 255)) if file.get("do_rescale", True) else 255.0
    return [m / rescale for m in file["image_mean"]], [s / rescale for s in file["image_std"]]


def _square(size: Any) -> int | None:
    """The edge in pixels of a size as configs write it: a number, a pair, or by the name of an edge."""
    if isinstance(size, int):
        return size
    if isinstance(size, Mapping):
        return next((int(size[k]) for k in ("height", "shortest_edge") if size.get(k)), None)
    if isinstance(size, (list, tuple)) and size:
        return int(size[-1])
    return None


def _licence(name: str) -> str:
    """The licence in the model card's front matter, where the card is at hand."""
    from transformers.utils.hub import cached_file

    try:
        card = cached_file(name, "README.md", local_files_only=True, _raise_exceptions_for_missing_entries=False)
        text = Path(card).read_text(encoding="utf-8") if card else ""
        front = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else {}
    except (OSError, ValueError, IndexError, yaml.YAMLError):
        return "unknown"
    licence = front.get("license") if isinstance(front, Mapping) else None
    return str(licence) if licence else "unknown"


def _not_loaded(name: str, error: Exception) -> TsugikiError:
    folder = Path(name)
    pickles = sorted(folder.glob("*.bin")) if folder.is_dir() else []
    if pickles and not list(folder.glob("*.safetensors")):
        return StoreError(
            f"{pickles[0].name} is a pickle, which can run code when it is read",
            expected="safetensors",
            fix="Convert it where you trust it, with save_pretrained.",
            where=name,
        )
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return AssetError(
        f"the vision tower {name!r} can't be loaded ({reason})",
        expected="an asset of `tsugiki assets list`, a hub id, or a folder with config.json and safetensors",
        fix="Check the name and, for a hub id, the connection.",
    )
