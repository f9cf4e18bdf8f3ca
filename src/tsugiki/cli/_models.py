"""Models for commands: a saved graft, or a new one on an LLM."""

from __future__ import annotations

from typing import Any

from tsugiki.errors import InputError


def load_model(folder: str, base: str | None = None, *, device: str | None = None) -> Any:
    """A saved graft on its base, on `device`, by default the GPU where there is one.

    Raises:
        StoreError, BaseMismatchError, AssetError: as `tsugiki.load`.
    """
    import torch

    from tsugiki.cli._app import say
    from tsugiki.studies._build import load_graft, quiet_bars

    with quiet_bars():
        model: Any = load_graft(folder, base=base, say=say)
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def new_model(spec: Any, base: str | None, vision: str | None, *, device: str | None = None) -> Any:
    """What a recipe is meant for (`spec`, its ModelSpec), on another LLM and vision tower where they are given.

    Raises:
        InputError: no LLM, neither given nor in the recipe.
        UnknownNameError, UnsupportedError, AssetError: as `build_model`.
    """
    from tsugiki.cli._app import say
    from tsugiki.studies._build import VISION, build_model

    name = base or spec.base
    if name is None:
        raise InputError("the recipe names no LLM", expected="--base, an asset, a folder or a hub id", where="--base")
    settings = {"input_size": spec.input_size, "projector": spec.projector, "dtype": spec.dtype, **spec.options}
    given = {key: value for key, value in settings.items() if value is not None}
    return build_model(name, spec.grafts, vision or spec.vision or VISION, say=say, device=device, **given)
