"""PEFT's file format of a LoRA: `adapter_config.json` and `adapter_model.safetensors`, without PEFT."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tsugiki.data.files import atomic_folder, atomic_write
from tsugiki.errors import StoreError, UnsupportedError

SETTINGS, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
Pairs = Mapping[str, tuple[Tensor, Tensor]]
"""Full name of a module in the LLM -> A [r, I] and B [O, r]."""

_KEY = re.compile(rf"{re.escape(PREFIX)}(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_OWN = {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "use_rslora": "use_rslora"}
# Settings that say where the tensors are (which their names say too), how they began, or where the file comes from.
_NEUTRAL = {
    *_OWN, "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
    "inference_mode", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out",
    "init_lora_weights", "runtime_config", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "megatron_core", "qalora_group_size", "ensure_weight_tying",
}  # fmt: skip
_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the LLM's weights as they are."""


def write(folder: str | Path, settings: Mapping[str, Any], pairs: Pairs) -> Path:
    """Write the two files, whole or not at all.

    Raises:
        StoreError: the disk is full or can't be written; older files stay.
    """
    path = Path(folder)
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "bias": "none",
        "init_lora_weights": True,
        **settings,
    }
    tensors = {}
    for module, pair in pairs.items():
        for side, tensor in zip("AB", pair, strict=True):
            tensors[f"{PREFIX}{module}.lora_{side}.weight"] = tensor.detach().cpu().contiguous()
    with atomic_folder(path, replaces=(SETTINGS, WEIGHTS)) as work:
        save_file(tensors, work / WEIGHTS, metadata={"format": "pt"})
        atomic_write(work / SETTINGS, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    return path


def read(folder: str | Path) -> tuple[dict[str, Any], dict[str, tuple[Tensor, Tensor]]]:
    """The settings and the pairs of a folder that PEFT saved.

    Raises:
        StoreError: no such folder, a pickle, a damaged file.
        UnsupportedError: something else than a plain LoRA of a causal LM.
    """
    path = Path(folder)
    settings = _settings(path)
    _refuse_other_kinds(settings, str(path / SETTINGS))
    for name in ("r", "lora_alpha"):
        value = settings.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise StoreError(
                f"{name} = {value!r}", expected="a number", fix="Save the adapter again.", where=str(path / SETTINGS)
            )
    return settings, _pairs(path)


def own_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the graft's config."""
    return {own: settings[theirs] for theirs, own in _OWN.items() if theirs in settings}


def _settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads((path / SETTINGS).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StoreError(
            f"no {SETTINGS}", expected="a folder that PEFT's save_pretrained wrote", where=str(path)
        ) from error
    except (OSError, ValueError) as error:
        raise StoreError(f"can't be read ({error})", fix="Save it again.", where=str(path / SETTINGS)) from error
    if not isinstance(settings, dict) or "peft_type" not in settings:
        raise StoreError("no settings of an adapter", fix="Save it again.", where=str(path / SETTINGS))
    return settings


def _refuse_other_kinds(settings: Mapping[str, Any], where: str) -> None:
    """One clear refusal for all that a plain LoRA can't say."""
    if settings["peft_type"] != "LORA":
        raise _other("peft_type", settings["peft_type"], "LORA", where)
    if settings.get("task_type") not in (None, "CAUSAL_LM"):
        raise _other("task_type", settings["task_type"], "CAUSAL_LM", where)
    if settings.get("init_lora_weights", True) not in _STARTS:  # PiSSA and the like: the LLM is not the base any more
        fix = "Save it with path_initial_model_for_weight_conversion, then its weights are those of a plain LoRA."
        raise _other("init_lora_weights", settings["init_lora_weights"], "a start that keeps the LLM", where, fix)
    if settings.get("bias", "none") != "none":
        raise _other("bias", settings["bias"], "'none'", where)
    for name, value in settings.items():
        if value and name not in _NEUTRAL and name != "bias":
            raise _other(name, value, "a plain LoRA without it", where)


def _other(
    name: str, value: Any, expected: str, where: str, fix: str = "Keep it a PeftModel and attach to that."
) -> UnsupportedError:
    return UnsupportedError(f"{name} = {value!r}", expected=expected, fix=fix, where=where)


def _pairs(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    file = path / WEIGHTS
    if not file.is_file():
        pickled = (path / PICKLE).is_file()
        raise StoreError(
            f"{PICKLE} is a pickle, which can run code when it is read" if pickled else f"no {WEIGHTS}",
            expected=WEIGHTS,
            fix="Convert it where you trust it." if pickled else "Save the adapter again.",
            where=str(path),
        )
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {k: opened.get_tensor(k) for k in opened.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise StoreError(f"not a safetensors file ({error})", fix="Save it again.", where=str(file)) from error
    sides: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise UnsupportedError(
                f"{key} is no A or B of a linear module",
                expected="the tensors of a plain LoRA",
                fix="Keep it a PeftModel and attach to that.",
                where=str(file),
            )
        sides.setdefault(match["module"], {})[match["side"]] = tensor
    single = sorted(module for module, found in sides.items() if len(found) != 2)
    if single or not sides:
        found = f"{single[0]} has only one of A and B" if single else "no tensor"
        raise StoreError(found, expected="A and B of every module", fix="Save it again.", where=str(file))
    return {module: (found["A"], found["B"]) for module, found in sides.items()}
