"""Front-ends of published models by name, as fields of `FrontEndConfig`. Towers are found by hub id.

SPHINX: 2311.07575; SPHINX-X: 2402.05935. Layer, LayerNorm and pixel sizes as in the released code; hub ids are those
of the same weights in transformers' and timm's form. One thing differs: timm has ConvNeXt's last LayerNorm in the head,
so that the map comes without it.
"""

from __future__ import annotations

from typing import Any

CLIP = {"tower": "openai/clip-vit-large-patch14", "input_size": 224, "post_norm": True}
CONVNEXT = {"tower": "timm/convnext_xxlarge.clip_laion2b_soup", "input_size": 256}  # needs timm
DINOV2 = {"tower": "facebook/dinov2-giant", "input_size": 224}
QFORMER = {"tower": "Salesforce/blip2-opt-2.7b", "input_size": 224}
_FORM: dict[str, Any] = {"projector": "linear_norm", "cls_token": True, "marks": True, "align": "repeat"}
_FOUR: dict[str, Any] = {"towers": [CLIP, CONVNEXT, DINOV2, QFORMER], **_FORM}
_TWO: dict[str, Any] = {"towers": [{**CONVNEXT, "input_size": 512}, DINOV2], **_FORM}

FRONT_ENDS: dict[str, dict[str, Any]] = {
    "sphinx": _FOUR,
    "sphinx-1k": {**_FOUR, "views": "global+2x2"},
    "sphinx-1k-reduced": {**_FOUR, "views": "global+2x2", "reduce_crops": True},
    "sphinx-2k": {**_FOUR, "views": "global+3x3"},
    "sphinx-x": _TWO,
    "sphinx-x-1k": {**_TWO, "views": "global+2x2"},
    "sphinx-x-2k": {**_TWO, "views": "global+3x3"},
    "sphinx-one": {"towers": [DINOV2], **_FORM},
}
"""Name -> fields. Tokens of a picture without padding: 291, 1455, 687, 2910; 259, 1295, 2590; 259."""
