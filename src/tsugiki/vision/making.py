"""From what a user names as vision to a config and ready towers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from tsugiki.errors import BaseMismatchError, InputError
from tsugiki.vision import _qformer, presets
from tsugiki.vision.config import FrontEndConfig, TowerConfig, known_fields
from tsugiki.vision.hub_projector import HubProjector, HubStart
from tsugiki.vision.mix import Mix, Source
from tsugiki.vision.tower import Tower, build_tower

Start = TypeVar("Start", bound=HubStart)


def config_of(
    source: Any, objects: nn.Module | Sequence[nn.Module | None] | None = None, **options: Any
) -> tuple[FrontEndConfig, list[nn.Module | None]]:
    """A config, and for each of its towers the object to build it from, None where the name will do.

    Args:
        source: see `FrontEnd.build`.
        objects: of towers that can't be found by name; they go before those in `source`.
        options: fields of the config that replace those of `source`.

    Raises:
        UnknownNameError: a field that does not exist.
        InputError: more or fewer objects than towers.
    """
    options = known_fields(FrontEndConfig, options)
    own: list[nn.Module | None]
    if isinstance(source, FrontEndConfig):
        config, own = replace(source, **options), [None] * len(source.all_towers)
    else:
        values, own = _values(source)
        config = FrontEndConfig.from_dict({**values, **options})
    if isinstance(objects, nn.Module) or objects is None:
        objects = [objects] * (objects is not None)
    if objects and len(objects) != len(config.all_towers):
        raise InputError(
            f"{len(objects)} tower objects", expected=f"{len(config.all_towers)}, one for each tower of the front-end"
        )
    return config, list(objects) or own


def _values(source: Any) -> tuple[dict[str, Any], list[nn.Module | None]]:
    """Fields of a config, and the objects among its towers."""
    if isinstance(source, Mapping):
        values = dict(source)
        if "towers" in values:
            listed, objects = _listed(values["towers"])
            return {**values, "towers": listed}, objects
        given: Any = values.get("tower", "")
        return {**values, "tower": _name(given)}, [_object(given)]
    if isinstance(source, Sequence) and not isinstance(source, str):
        listed, objects = _listed(source)
        return {"towers": listed}, objects
    if (named := presets.FRONT_ENDS.get(str(source))) and not isinstance(source, nn.Module):
        return dict(named), [None] * len(named.get("towers", [None]))
    return {"tower": _name(source)}, [_object(source)]


def _listed(towers: Sequence[Any]) -> tuple[list[Any], list[nn.Module | None]]:
    listed: list[Any] = []
    objects: list[nn.Module | None] = []
    for given in towers:
        inner = given.get("tower", "") if isinstance(given, Mapping) else given
        objects.append(_object(inner))
        if isinstance(given, Mapping):
            listed.append({**given, "tower": _name(inner)})
        else:
            listed.append(given if isinstance(given, TowerConfig) else _name(given))
    return listed, objects


def _object(source: Any) -> nn.Module | None:
    return source if isinstance(source, nn.Module) else None


def _name(source: str | Path | nn.Module) -> str:
    return str(getattr(source, "name", type(source).__name__)) if isinstance(source, nn.Module) else str(source)


def make_towers(
    config: FrontEndConfig, objects: Sequence[nn.Module | None]
) -> tuple[FrontEndConfig, tuple[Tower, ...]]:
    """The towers of a config, frozen unless one trains; and the config with what they say of themselves.

    Raises:
        BaseMismatchError: the config was made for a tower with other weights.
        UnsupportedError, AssetError, StoreError: see `build_tower`.
    """
    towers: list[Tower] = []
    found: list[dict[str, Any]] = []
    for wanted, given in zip(config.all_towers, objects, strict=True):
        tower = build_tower(
            wanted.tower if given is None else given, wanted.input_size, layer=wanted.layer, post_norm=wanted.post_norm
        )
        if tower.cls != (config.cls_token and not tower.queries):
            tower = copy.copy(tower)  # the given object may serve another front-end
            tower.cls = not tower.cls
        tower.encode_batch, tower.frozen = config.encode_batch, not config.train_tower
        if wanted.tower_sha256 and wanted.tower_sha256 != tower.weights_sha256():
            raise BaseMismatchError(
                f"the vision tower {tower.name} has weights {tower.weights_sha256()[:12]}",
                expected=f"{wanted.tower_sha256[:12]}, those that the projector was trained with",
                fix="Use the same version of the tower.",
            )
        facts = {
            "tower": tower.name,
            "input_size": tower.input_size,
            "grid": tower.grid,
            "width": tower.width,
            "licence": tower.licence,
            "tower_sha256": tower.weights_sha256(),
            "fingerprint": tower.fingerprint(),
        }
        towers.append(tower)
        found.append(facts)
    if config.towers:
        described = tuple(replace(one, **facts) for one, facts in zip(config.towers, found, strict=True))
        return replace(config, towers=described), tuple(towers)
    return replace(config, **found[0]), tuple(towers)


def make_hub(
    config: FrontEndConfig, width: int, hidden_size: int, *, fresh: bool
) -> tuple[FrontEndConfig, HubProjector]:
    """The hub of a config, and the config with all of its settings.

    Args:
        width: V.
        hidden_size: D.
        fresh: start from a Q-Former's weights where they are named; False = saved ones come next.

    Raises:
        AssetError, StoreError: the Q-Former can't be read, see `_qformer`.
        InputError: sizes that are not the Q-Former's.
    """
    settings, state = _started(config.hub_settings(), config.hub, fresh=fresh)
    projector = HubProjector(settings.sizes, width, hidden_size)
    if state is not None:
        filled = _qformer.fill(projector.hub, state)
        if any(name.startswith("words.") for name in filled.started):  # BLIP-2 has no text branch
            _qformer.fill(projector.hub, state, text=_qformer.read_text(settings.words))
    return replace(config, hub=settings.to_dict()), projector


def make_mix(
    config: FrontEndConfig, towers: Sequence[Tower], hidden_size: int, *, fresh: bool
) -> tuple[FrontEndConfig, Mix]:
    """The mix of a config, and the config with all settings of its query branch.

    Args:
        hidden_size: D.
        fresh: as for `make_hub`.

    Raises:
        InputError: as `Mix`, or sizes that are not the Q-Former's.
        AssetError, StoreError: the Q-Former can't be read, or does not fit what it is to read.
    """
    asked, state = config.query_settings(), None
    if asked is not None:
        asked, state = _started(asked, config.query_branch, fresh=fresh)
        config = replace(config, query_branch=asked.to_dict())
    mix = Mix(config, [Source.of(one) for one in towers], hidden_size)
    if state is not None and mix.branch is not None:
        _qformer.fill(mix.branch.hub, state)
    return config, mix


def _started(settings: Start, given: Mapping[str, Any], *, fresh: bool) -> tuple[Start, dict[str, Tensor] | None]:
    """The settings with the sizes of the Q-Former that is named in them, and its tensors.

    Args:
        given: what the settings are of.
    """
    if not (fresh and settings.weights):
        return settings, None
    sizes, state = _qformer.read(settings.weights)
    for name in given.keys() & vars(sizes).keys() - {"form", "seed"}:
        if getattr(sizes, name) != given[name]:
            raise InputError(
                f"{name}={given[name]}", expected=f"{getattr(sizes, name)}, as {settings.weights} has it",
                fix="Leave it out.", where=settings.WHERE,
            )  # fmt: skip
    return replace(settings, sizes=replace(sizes, seed=settings.sizes.seed)), state
