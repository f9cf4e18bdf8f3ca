"""Weights of a released Q-Former (BLIP-2, InstructBLIP as transformers stores them) for a published hub."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from tsugiki.errors import AssetError, StoreError
from tsugiki.vision.hub import Hub, HubConfig

_INSIDE = (
    ("attention.attention.", "attention."),
    ("attention.output.dense", "attention.output"),
    ("attention.output.LayerNorm", "attention.norm"),
    ("crossattention.attention.", "cross."),
    ("crossattention.output.dense", "cross.output"),
    ("crossattention.output.LayerNorm", "cross.norm"),
    ("intermediate_query.dense", "query_ffn.up"),
    ("output_query.dense", "query_ffn.down"),
    ("output_query.LayerNorm", "query_ffn.norm"),
    ("intermediate.dense", "text_ffn.up"),
    ("output.dense", "text_ffn.down"),
    ("output.LayerNorm", "text_ffn.norm"),
)
_OUTSIDE = {
    "query_tokens": "queries",
    "embeddings.word_embeddings.weight": "words.weight",
    "embeddings.position_embeddings.weight": "positions.weight",
    **{f"{norm}.{end}": f"input_norm.{end}" for norm in ("embeddings.layernorm", "layernorm", "embeddings.LayerNorm")
       for end in ("weight", "bias")},
    **{f"vision_model.post_layernorm.{end}": f"vision_norm.{end}" for end in ("weight", "bias")},
    **{f"language_projection.{end}": f"project.{end}" for end in ("weight", "bias")},
}  # fmt: skip
_TEXT = re.compile(r"words\.|positions\.|layers\.\d+\.text_ffn\.")


@dataclass(frozen=True)
class Filled:
    """Which of a hub's tensors a checkpoint gave; the others are as they started."""

    given: tuple[str, ...]
    started: tuple[str, ...]


def key_of(name: str) -> str | None:
    """The hub's name of a tensor of a checkpoint; None for what a hub does not have (the LLM, the tower, heads)."""
    name = re.sub(r"^(model\.)?(qformer|bert)\.(bert\.)?|^model\.", "", name)
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    layer = re.match(r"encoder\.layer\.(\d+)\.(.+)", name)
    if layer is None:
        return None
    number, rest = layer.groups()
    rest = rest.replace("attention.self.", "attention.attention.")  # BERT's own name of it
    for theirs, ours in _INSIDE:
        if rest.startswith(theirs):
            return f"layers.{number}.{ours}{rest.removeprefix(theirs)}"
    return None


def fill(hub: Hub, state: Mapping[str, Tensor], *, text: Mapping[str, Tensor] | None = None) -> Filled:
    """Put a released Q-Former into a published hub.

    BLIP-2 stores no text branch: as MMICT and InstructBLIP do, word and position embeddings and the text's FFNs are
    then BERT's, from `text`, or stay as they started and are named in the answer. The norm behind the tower and the
    projection to the LLM are taken where the checkpoint has them in this hub's size.

    Args:
        hub: of the published form.
        state: the checkpoint's tensors, with or without "qformer." before their names.
        text: those of a BERT.

    Raises:
        StoreError: the hub is of the light form, a tensor of the queries' path is missing or has another shape.
    """
    if hub.config.form != "published":
        raise StoreError("a light hub", expected="the published form: a Q-Former has its sizes", where="hub")
    own = hub.state_dict()
    found: dict[str, Tensor] = {}
    for source, wanted in ((text or {}, _TEXT.match), (state, lambda key: True)):
        for name, tensor in source.items():
            key = key_of(name)
            if key is not None and key in own and wanted(key):
                found[key] = tensor[0] if key == "queries" and tensor.ndim == 3 else tensor
    for key, tensor in list(found.items()):
        if tensor.shape != own[key].shape:
            if key.startswith(("project.", "vision_norm.")):  # of another LLM or tower
                del found[key]
                continue
            raise StoreError(
                f"{key} has shape {list(tensor.shape)}",
                expected=str(list(own[key].shape)),
                fix="Build the hub from this checkpoint's config.",
                where="Q-Former",
            )
    needed = [k for k in own if not _TEXT.match(k) and not k.startswith(("project.", "vision_norm."))]
    missing = [k for k in needed if k not in found]
    if missing:
        raise StoreError(
            f"{len(missing)} tensors are missing, the first is {missing[0]}",
            expected="a whole Q-Former",
            fix="Use a BLIP-2 or InstructBLIP checkpoint.",
            where="Q-Former",
        )
    with torch.no_grad():
        for key, tensor in found.items():
            own[key].copy_(tensor)
    return Filled(tuple(found), tuple(k for k in own if k not in found))


def config_of(values: Mapping[str, Any]) -> HubConfig:
    """The published hub of a BLIP-2 or InstructBLIP config.json, or of its `qformer_config`."""
    inner = values.get("qformer_config") or values
    return HubConfig(
        form="published",
        layers=int(inner.get("num_hidden_layers", 12)),
        width=int(inner.get("hidden_size", 768)),
        heads=int(inner.get("num_attention_heads", 12)),
        hidden=int(inner.get("intermediate_size", 3072)),
        queries=int(values.get("num_query_tokens", 32)),
        cross_every=int(inner.get("cross_attention_frequency", 2)),
        vocabulary=int(inner.get("vocab_size", 30522)),
        longest=int(inner.get("max_position_embeddings", 512)),
        eps=float(inner.get("layer_norm_eps", 1e-12)),
    )


def read(name: str | Path) -> tuple[HubConfig, dict[str, Tensor]]:
    """Config and Q-Former tensors of a hub id or a folder; only safetensors, and only the tensors that a hub has.

    Raises:
        AssetError: nothing is found under this name.
        StoreError: no safetensors there.
    """
    folder = _folder(name)
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config_of(values), _tensors(folder, name)


def read_text(name: str | Path) -> dict[str, Tensor]:
    """Tensors of a BERT, by hub id or folder, that a hub's text branch may have.

    Raises:
        AssetError, StoreError: as `read`.
    """
    return _tensors(_folder(name), name)


def _tensors(folder: Path, name: str | Path) -> dict[str, Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise StoreError("no safetensors", expected="a checkpoint as safetensors", where=str(name))
    state: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            state |= {k: opened.get_tensor(k) for k in opened.keys() if key_of(k) is not None}  # noqa: SIM118
    return state


def _folder(name: str | Path) -> Path:
    if (Path(name) / "config.json").is_file():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name), allow_patterns=["config.json", "*.safetensors"]))
    except (OSError, ValueError) as error:
        raise AssetError(
            f"the Q-Former {str(name)!r} can't be loaded ({type(error).__name__})",
            expected="a hub id, or a folder with config.json and safetensors",
            fix="Check the name and, for a hub id, the connection.",
        ) from error
