"""Tiny random towers of the four kinds that SPHINX mixes, of transformers' classes, and front-ends of them."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from PIL import Image
from torch import nn

from tsugiki.vision.frontend import FrontEnd

_VIT: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
FORM: dict[str, Any] = {"projector": "linear_norm", "cls_token": True}


def tower(kind: str, seed: int = 0) -> nn.Module:
    """clip and dinov2: 4x4 cells at 32 px, with CLS; convnext: 2x2 at 64 px; qformer: 5 queries."""
    torch.manual_seed(seed)
    model: nn.Module
    if kind == "qformer":
        reader = {"num_hidden_layers": 2, "hidden_size": 12, "num_attention_heads": 2, "intermediate_size": 16}
        config = hf.Blip2Config(
            vision_config=_VIT,
            qformer_config={**reader, "encoder_hidden_size": 16, "vocab_size": 20},
            text_config={"model_type": "opt", "vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1},
            num_query_tokens=5,
        )
        model = hf.Blip2VisionModelWithProjection(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:  # as transformers starts them, queries would hardly depend on the picture
                nn.init.normal_(parameter, std=0.3)
    else:
        configs = {
            "clip": lambda: hf.CLIPVisionConfig(**_VIT),
            "dinov2": lambda: hf.Dinov2Config(**_VIT),
            "convnext": lambda: hf.ConvNextConfig(hidden_sizes=[4, 6, 8, 20], depths=[1, 1, 1, 1], image_size=64),
        }
        model = hf.AutoModel.from_config(configs[kind]())
    model.mean, model.std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)  # type: ignore[assignment]
    return model.eval()


def four() -> list[nn.Module]:
    """In SPHINX's order."""
    return [tower("clip"), tower("convnext"), tower("dinov2"), tower("qformer")]


def frontend(width: int = 24, rms: float = 0.1, **fields: Any) -> FrontEnd:
    """The four towers as SPHINX mixes them."""
    return FrontEnd.build({"towers": four(), **FORM, **fields}, width, rms)


def ribbon(width: int = 96, height: int = 24, seed: int = 0) -> Image.Image:
    """A picture of 4:1 in soft random colours: of its 3 x 3 crops, the upper and lower rows are padding."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randint(0, 256, (4, 12, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(cells.numpy()).resize((width, height), Image.Resampling.BICUBIC)
