"""An LLM and a model by names: assets are fetched, hub ids and folders are loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from tsugiki import assets, build, store
from tsugiki.errors import InputError, UnknownNameError
from tsugiki.vision import efficientnet
from tsugiki.vision.making import config_of

VISION = "efficientnet-lite0"
Say = Callable[[str], None]


@contextmanager
def quiet_bars() -> Iterator[None]:
    """Without transformers' own bars, which would stand between our lines."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@quiet_bars()
def load_llm(
    base: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    say: Say | None = None,
) -> tuple[PreTrainedModel, Any]:
    """A causal LM and its tokenizer.

    Args:
        base: an asset's name, a folder or a hub id.
        dtype: None = float32 on a CPU, else as stored.
        device: None = the GPU where there is one.
        say: told about downloads.

    Raises:
        InputError: nothing there that transformers loads as a causal LM.
        AssetError, UnknownNameError: as `assets.resolve`.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    source = assets.resolve(str(base), say)
    try:
        kind = dtype or (torch.float32 if place.type == "cpu" else "auto")
        llm: Any = AutoModelForCausalLM.from_pretrained(source, dtype=kind, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"no causal LM {str(base)!r} ({(str(error).splitlines() or [type(error).__name__])[0]})",
            expected="an asset, a folder or a hub id of an LLM and its tokenizer",
            fix="Check the name; `tsugiki assets list` shows the assets.",
            where="base",
        ) from error
    return cast(PreTrainedModel, llm.to(place).eval()), tokenizer


@quiet_bars()
def build_model(
    base: str | Path | PreTrainedModel,
    method: str | Sequence[str] = "projector",
    vision: Any = VISION,
    *,
    tokenizer: Any = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    say: Say | None = None,
    **options: Any,
) -> Any:
    """A new model on an LLM: `tsugiki.attach` with everything found by name.

    Args:
        base: an LLM by name (see `load_llm`), or the object.
        method: one of `tsugiki.methods()`, or several, stacked in their order.
        vision: an asset's name, a folder, a hub id, a tower object, or several of them; see `tsugiki.attach`.
        tokenizer: for an LLM given as an object.
        options: settings of the front-end and of the first method.

    Raises:
        InputError, UnknownNameError, UnsupportedError, AssetError: as `load_llm` and `tsugiki.attach`.
    """
    first, *others = [method] if isinstance(method, str) else list(method)
    for name in (first, *others):
        if name not in build.methods():  # before anything is fetched
            raise UnknownNameError("method", name, build.methods(), where="method")
    config, objects = config_of(vision)
    for tower, given in zip(config.all_towers, objects, strict=True):
        if given is None:
            fetch_tower(tower.tower, say)
    if isinstance(base, PreTrainedModel):
        llm = base
    else:
        llm, found = load_llm(base, dtype=dtype, device=device, say=say)
        tokenizer = tokenizer if tokenizer is not None else found
    model: Any = build.attach(llm, first, vision=vision, tokenizer=tokenizer, **options)
    for name in others:
        model = build.attach(model, name)
    return model.to(llm.device)


@quiet_bars()
def load_graft(folder: str | Path, base: Any = None, *, say: Say | None = None, **options: Any) -> Any:
    """A saved graft on its base, as `tsugiki.load`; assets that it is made of are fetched where they are missing.

    Raises:
        StoreError, BaseMismatchError, AssetError: as `tsugiki.load` and `fetch_tower`.
    """
    settings = store.settings_of(folder)
    stored = (settings.get("base_identity") or {}).get("asset")
    if base is None and stored and "exported" not in (settings.get("tsugiki") or {}):
        assets.resolve(stored, say)  # tells of the download, which `load` would make in silence
    if options.get("vision") is None:
        fetch_tower(str((settings.get("frontend") or {}).get("tower")), say)
    model: Any = store.load(folder, base=base, **options)
    return model.to(model.language_model.device)


def fetch_tower(name: str, say: Say | None = None) -> None:
    """Everything that a tower of assets is built from; a hub id or a folder is left alone.

    Raises:
        AssetError, UnknownNameError: as `assets.resolve`.
    """
    assets.resolve(name, say)
    if name in efficientnet.NAMES:
        assets.resolve(efficientnet.CODE, say)
