"""Save the graft alone, load it onto its base, and refuse another one.

A saved graft is a folder: `model.safetensors` (what was trained), `config.json` (how to build it, whose base it needs),
and a generated `README.md`. It is written under a temporary name and renamed when it is whole.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tsugiki import assets, build, grafts, identity, starter
from tsugiki.card import card
from tsugiki.data.files import atomic_folder, atomic_write, sha256_file
from tsugiki.decoder import DecoderSpec, is_peft
from tsugiki.errors import BaseMismatchError, InputError, StoreError, UnsupportedError
from tsugiki.model import TsugikiForConditionalGeneration
from tsugiki.vision.frontend import FrontEnd, FrontEndConfig

logger = logging.getLogger("tsugiki")

FORMAT = 1
WEIGHTS, CONFIG, CARD, BASE, TOWER = "model.safetensors", "config.json", "README.md", "base", "tower"
SEAL = "settings_sha256"
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def trained_state(model: TsugikiForConditionalGeneration) -> dict[str, Tensor]:
    """What a saved graft holds: the front-end's trainable parts, all grafts, and the LLM if it was trained."""
    state = {f"frontend.{k}": v for k, v in model.frontend.trainable_state().items()}
    state |= {f"grafts.{k}": v for k, v in model.grafts.state_dict().items()}
    if model.guarantee == "bounded" and model.config.llm_trained:
        state |= {f"language_model.{k}": v for k, v in identity.llm_tensors(model.language_model).items()}
    return state


def graft_sha256(model: TsugikiForConditionalGeneration) -> str:
    """One hash over every trained tensor, as it is saved, and the settings that give them their meaning."""
    return _sha256(model, trained_state(model))


def _sha256(model: TsugikiForConditionalGeneration, state: Mapping[str, Tensor]) -> str:
    hashes = {k: identity.hash_tensor(v) for k, v in _untied(state).items()}
    settings = {"frontend": model.config.frontend, "grafts": model.config.grafts}
    return identity.digest({**hashes, "(settings)": identity.hash_json(settings)})


def save(model: TsugikiForConditionalGeneration, folder: str | Path, *, dtype: torch.dtype | None = None) -> Path:
    """Write the graft alone.

    Args:
        dtype: of the file's real numbers, such as float16 for half the size; None = as they are. What is loaded has the
            model's own dtype and the rounded values, whose hash is saved.

    Raises:
        StoreError: the disk is full or can't be written; an older graft in `folder` stays whole.
    """
    path = Path(folder)
    with atomic_folder(path, replaces=replaced(path)) as work:
        _write(model, work, dtype=dtype)
    return path


def replaced(path: Path) -> tuple[str, ...]:
    """What of an existing folder a saved graft takes the place of; whatever else is in it stays.

    Raises:
        StoreError: another model is in the folder.
    """
    try:
        there = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        kind = there.get("model_type") if isinstance(there, dict) else None
    except FileNotFoundError:
        kind = None if any((path / name).exists() for name in (WEIGHTS, BASE, TOWER)) else "tsugiki"
    except (OSError, ValueError):
        kind = None
    if kind != "tsugiki":
        raise StoreError(
            f"holds another model ({kind or 'of no known type'})",
            expected="a new folder, or that of a saved graft",
            fix="Choose another folder.",
            where=str(path),
        )
    return (WEIGHTS, CONFIG, CARD, BASE, TOWER)


def _write(
    model: TsugikiForConditionalGeneration,
    work: Path,
    exported: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    own = {k: v.detach().cpu().contiguous() for k, v in trained_state(model).items()}
    state = {k: v if dtype is None or not v.is_floating_point() else v.to(dtype) for k, v in own.items()}
    model.config.format_version = FORMAT
    facts = {
        "graft_sha256": _sha256(model, {k: v.to(own[k].dtype) for k, v in state.items()}),
        "guarantee": model.guarantee,
        "processor": model.processor.facts(model.frontend),
    }
    try:
        save_file(_untied(state), work / WEIGHTS, metadata={"format": "pt"})
        settings = model.config.to_dict() | {"tsugiki": facts, "architectures": [type(model).__name__]}
        settings["base_identity"] = model.base_identity
        if exported:
            settings["tsugiki"]["exported"] = dict(exported)
        settings["tsugiki"]["weights_sha256"] = sha256_file(work / WEIGHTS)
        atomic_write(work / CONFIG, config_text(settings))
        atomic_write(work / CARD, card(model, settings, (work / WEIGHTS).stat().st_size))
    except (OSError, SafetensorError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(
            f"the graft can't be written ({error})", expected="room on a writable disk", fix="Nothing was changed."
        ) from error


def config_text(settings: Mapping[str, Any]) -> str:
    """The text of config.json: the settings, with a hash over all of them, so that a changed one is noticed."""
    plain: dict[str, Any] = json.loads(json.dumps(settings, ensure_ascii=False, default=str))
    plain["tsugiki"][SEAL] = _seal(plain)
    return json.dumps(plain, indent=1, ensure_ascii=False) + "\n"


def _seal(settings: Mapping[str, Any]) -> str:
    facts = {k: v for k, v in settings["tsugiki"].items() if k != SEAL}
    return identity.hash_json({**settings, "tsugiki": facts})


def _untied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """safetensors refuses shared memory: a tied tensor is written under its first name only."""
    seen: set[tuple[int, torch.Size]] = set()
    out = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.shape)
        if tensor.numel() == 0 or key not in seen:
            out[name] = tensor
        seen.add(key)
    return out


def export(model: TsugikiForConditionalGeneration, folder: str | Path, *, full: bool = True) -> Path:
    """Write a folder that needs nothing else: the graft, and with `full` its base, tokenizer and tower.

    Raises:
        StoreError: as `save`.
        UnsupportedError: the base is a PeftModel, whose own files are an adapter without its LLM.
    """
    if full and is_peft(model.language_model):
        raise UnsupportedError(
            "the base is a PeftModel, whose files are an adapter without its LLM",
            expected="a plain LLM, for a folder that needs nothing else",
            fix="Save the graft alone, or attach to peft_model.merge_and_unload().",
        )
    path = Path(folder)
    with atomic_folder(path, replaces=replaced(path)) as work:
        exported: dict[str, Any] = {}
        if full:
            model.language_model.save_pretrained(work / BASE)
            model.tokenizer.save_pretrained(work / BASE)
            _export_tower(model, work / TOWER)
            # Written in the LLM's present dtype, without tied copies: these are other files than the source's.
            hashes = identity.tensor_hashes(work / BASE)
            short = {name: value[: identity.SHORT] for name, value in sorted(hashes.items())}
            exported = {"tensors_sha256": identity.digest(hashes), "count": len(hashes), "tensors": short}
        _write(model, work, exported)
    return path


def _export_tower(model: TsugikiForConditionalGeneration, folder: Path) -> None:
    """A transformers tower is written beside the graft; an asset stays a name, it comes from a package registry."""
    for number, tower in enumerate(model.frontend.towers):
        own = folder / str(number) if model.frontend.config.towers else folder
        inner = getattr(tower.backbone, "model", None)
        if isinstance(inner, PreTrainedModel):
            inner.save_pretrained(own)
            mean, std = tower.normalise
            size = {"height": tower.input_size, "width": tower.input_size}
            atomic_write(
                own / "preprocessor_config.json", json.dumps({"image_mean": mean, "image_std": std, "size": size})
            )


def load(
    folder: str | Path,
    base: str | Path | nn.Module | None = None,
    *,
    tokenizer: Any = None,
    vision: Any = None,
    **options: Any,
) -> TsugikiForConditionalGeneration:
    """Find the base, build, and put the saved parts in.

    Args:
        folder: a saved graft or an export; "starter", where there is no such folder, is the one in the package.
        base: an LLM (a PeftModel too), a folder, a hub id or an asset's name; else the stored one, else `TSUGIKI_BASE`.
        tokenizer: needed only where the base is an object without source files.
        vision: a tower object, where the graft was made with one; a list of them for several towers.
        options: for the base's `from_pretrained`, such as dtype or device_map.

    Raises:
        BaseMismatchError: the base is another one; says both names and the first difference.
        StoreError: no graft there, a newer version, a pickle, a damaged file.
    """
    path = _folder(folder)
    settings = _settings(path)
    wanted: dict[str, Any] = settings.get("base_identity") or {}
    llm, tokenizer = _base(path, base, wanted, tokenizer, options)
    found = identity.source_identity(llm, tokenizer)
    inside = base is None and (path / BASE).is_dir()
    exported = (settings.get("tsugiki") or {}).get("exported") or {} if inside else {}
    _same_base({**wanted, **exported}, found, path)
    frontend_config, names, configs = _parts(path, settings)
    if (path / TOWER).is_dir() and frontend_config.towers:
        there = [(path / TOWER / str(i), one) for i, one in enumerate(frontend_config.towers)]
        own = tuple(dataclasses.replace(one, tower=str(p)) if p.is_dir() else one for p, one in there)
        if frontend_config.site:  # the hashes are those of their start
            own = tuple(dataclasses.replace(one, tower_sha256="") for one in own)
        frontend_config = dataclasses.replace(frontend_config, towers=own)
    elif (path / TOWER).is_dir():
        frontend_config = dataclasses.replace(frontend_config, tower=str(path / TOWER))
        # Exported as it was trained or adapted; the hash is that of its start.
        if frontend_config.train_tower or frontend_config.site:
            frontend_config = dataclasses.replace(frontend_config, tower_sha256="")
    decoder = DecoderSpec(llm)
    frontend = FrontEnd.build(
        frontend_config,
        hidden_size=decoder.embedding_size,
        embedding_rms=decoder.embedding_rms(),
        tower=vision,
    )
    trained = bool(settings.get("llm_trained"))
    model = build.build(llm, tokenizer, frontend, names, configs, wanted, llm_trained=trained)
    _put(model, path, settings)
    model.config.name_or_path = str(folder)
    return model


def _folder(folder: str | Path) -> Path:
    path = Path(folder)
    if (path / CONFIG).is_file():
        return path
    if str(folder) == starter.NAME:
        return starter.folder()
    if path.exists() or os.sep in str(folder) and str(folder).count("/") != 1:
        raise StoreError(
            f"no {CONFIG} in {folder}" if path.exists() else f"no folder {folder}",
            expected="a saved graft",
            fix="Name the folder that model.save wrote.",
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(folder), allow_patterns=["*.safetensors", "*.json", "*.md"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise StoreError(
            f"no graft {folder}", expected="a folder that model.save wrote, or a hub id", fix="Check the name."
        ) from error


def _settings(path: Path) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise StoreError(f"not readable as JSON ({error})", fix="Save it again.", where=str(path / CONFIG)) from error
    if not isinstance(settings, dict) or settings.get("model_type") != "tsugiki":
        kind = settings.get("model_type") if isinstance(settings, dict) else None
        raise StoreError(
            f"model_type is {kind!r}", expected="'tsugiki'", fix="Name a folder that model.save wrote.", where=str(path)
        )
    version = settings.get("format_version", 1)
    if not isinstance(version, int) or version > FORMAT:
        raise StoreError(
            f"this graft has format version {version}",
            expected=f"{FORMAT} or older",
            fix="Update with: pip install -U tsugiki",
            where=str(path),
        )
    if not (path / WEIGHTS).is_file():
        pickles = [p.name for p in path.iterdir() if p.suffix in _PICKLES]
        if pickles:
            raise StoreError(
                f"{pickles[0]} is a pickle, which can run code when it is read",
                expected=WEIGHTS,
                fix="Convert it to safetensors where you trust it; Tsugiki never opens pickles.",
                where=str(path),
            )
        raise StoreError(f"no {WEIGHTS}", expected="the graft's weights", fix="Save it again.", where=str(path))
    facts = settings.get("tsugiki") or {}
    if not isinstance(facts, dict) or SEAL in facts and facts[SEAL] != _seal(settings):
        raise StoreError(
            "the settings are not those that were saved",
            expected=f"what {SEAL} in it says",
            fix="Change settings by attach and save; bring this file back from a copy, or save the graft again.",
            where=str(path / CONFIG),
        )
    return settings


def _parts(path: Path, settings: Mapping[str, Any]) -> tuple[FrontEndConfig, list[str], list[Any]]:
    """The front-end's config, and the names and configs of the grafts."""
    try:
        names = [str(g["name"]) for g in settings["grafts"]]
        configs = [grafts.load(g["name"]).Config(**g["config"]) for g in settings["grafts"]]
        return FrontEndConfig.from_dict(settings["frontend"]), names, configs
    except (KeyError, TypeError, AttributeError, InputError) as error:
        raise StoreError(
            f"its settings can't be used ({type(error).__name__}: {error})",
            expected="those that model.save wrote",
            fix="Save the graft again.",
            where=str(path / CONFIG),
        ) from error


def settings_of(folder: str | Path) -> dict[str, Any]:
    """The settings of a saved graft.

    Raises:
        StoreError: no graft there, a newer version, a pickle.
    """
    return _settings(_folder(folder))


def base_tokenizer(folder: str | Path, base: Any = None) -> Any:
    """The tokenizer of a saved graft's base, without loading the base.

    Raises:
        StoreError: the base is not found.
    """
    path = _folder(folder)
    name = _base_name(path, base, _settings(path).get("base_identity") or {})
    try:
        return AutoTokenizer.from_pretrained(assets.resolve(name))
    except (OSError, ValueError) as error:
        raise _no_base(name, path, error) from error


def _base_name(path: Path, base: Any, wanted: Mapping[str, Any]) -> str:
    inside = path / BASE
    stored = wanted.get("asset") or wanted.get("source")
    name = base or (inside if inside.is_dir() else None) or stored or os.environ.get("TSUGIKI_BASE")
    if name is None:
        raise StoreError(
            f"the base {wanted.get('name', '?')} has no source to load it from",
            expected="base=, the LLM that the graft was made for, or TSUGIKI_BASE",
            fix="Pass base=.",
            where=str(path),
        )
    return str(name)


def _no_base(name: str, path: Path, error: Exception) -> StoreError:
    return StoreError(
        f"the base {name} can't be loaded ({str(error).splitlines()[0]})",
        expected="the LLM that the graft was made for",
        fix="Pass base=, a folder, hub id or asset, or set TSUGIKI_BASE.",
        where=str(path),
    )


def _base(
    path: Path, base: Any, wanted: Mapping[str, Any], tokenizer: Any, options: Mapping[str, Any]
) -> tuple[PreTrainedModel, Any]:
    """The base LLM and its tokenizer, from the first of: argument, export, stored name, TSUGIKI_BASE."""
    if isinstance(base, nn.Module):
        return cast(PreTrainedModel, base), tokenizer if tokenizer is not None else build.tokenizer_of(
            cast(PreTrainedModel, base)
        )
    name = _base_name(path, base, wanted)
    keywords = {
        "use_safetensors": True,
        "dtype": getattr(torch, str(wanted.get("dtype", "float32")).removeprefix("torch."), "auto"),
        **options,
    }
    source = assets.resolve(name)
    try:
        llm = cast(PreTrainedModel, AutoModelForCausalLM.from_pretrained(source, **keywords))
        return llm, tokenizer if tokenizer is not None else AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise _no_base(name, path, error) from error


def _same_base(wanted: Mapping[str, Any], found: Mapping[str, Any], path: Path) -> None:
    if not wanted:
        return
    difference = identity.first_difference(wanted, found)
    if difference:
        raise BaseMismatchError(
            f"this graft was made for {wanted.get('name')} and the base given is {found.get('name')}: {difference}",
            expected="the same base",
            fix="Pass the base it was made for, or train the graft again on this one.",
            where=str(path),
        )
    if said := identity.notice(wanted, found):
        logger.warning("%s: %s.", path, said)


def _put(model: TsugikiForConditionalGeneration, path: Path, settings: Mapping[str, Any]) -> None:
    file = path / WEIGHTS
    check_weights(path, settings)
    state = _tensors(file)
    own = trained_state(model)
    missing = sorted(set(_untied(own)) - set(state))
    unknown = sorted(set(state) - set(own))
    if missing or unknown:
        first = f"{missing[0]} is missing" if missing else f"{unknown[0]} is unknown"
        raise StoreError(f"the weights do not fit the settings: {first}", fix="Save the graft again.", where=str(file))
    with torch.no_grad():
        for name, tensor in state.items():
            if own[name].shape != tensor.shape:
                raise StoreError(
                    f"{name} has shape {list(tensor.shape)}", expected=str(list(own[name].shape)), where=str(file)
                )
            own[name].copy_(tensor)


def check_weights(path: Path, settings: Mapping[str, Any]) -> None:
    """Compare the weights' file with the hash in its settings; one that was saved without a hash is taken as it is.

    Raises:
        StoreError: another file.
    """
    wanted = (settings.get("tsugiki") or {}).get("weights_sha256")
    if wanted and sha256_file(path / WEIGHTS) != wanted:
        raise StoreError(
            "the weights are not those that were saved",
            expected=f"SHA-256 {str(wanted)[:12]}...",
            fix="Bring the file back from a copy, or save the graft again.",
            where=str(path / WEIGHTS),
        )


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            return {k: opened.get_tensor(k) for k in opened.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise StoreError(f"not a safetensors file ({error})", fix="Save the graft again.", where=str(file)) from error


def read_state(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and tensors of a saved graft, without its base.

    Raises:
        StoreError: no graft there, a newer version, a pickle, a damaged or changed file.
    """
    path = _folder(folder)
    settings = _settings(path)
    check_weights(path, settings)
    return settings, _tensors(path / WEIGHTS)
