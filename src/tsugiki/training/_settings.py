"""YAML that reports its line, and `key=value` overrides that are checked against the models they set."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from tsugiki.errors import RecipeError

# Setting the one takes the other back, so that `steps=100` works on a recipe that counts minutes.
RIVALS = {"steps": "minutes", "minutes": "steps"}

MOST = 100_000
"""Values of a recipe."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key that is given twice instead of keeping the last one."""


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, (str, int, float)) and key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", key_node.start_mark)
        seen.add(key if isinstance(key, (str, int, float)) else id(key))
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        RecipeError: not YAML, or no mapping; with file and line.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(
            error.problem or "this is not YAML", expected="YAML", fix="Correct this line", where=f"{path}:{line}"
        ) from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:  # an impossible date, a thousand brackets
        raise RecipeError(f"this is not YAML ({error})", expected="YAML in UTF-8", where=str(path)) from None
    if not isinstance(content, dict):
        found = type(content).__name__ if content is not None else "nothing"
        raise RecipeError(f"found {found}", expected="keys and values", where=str(path))
    if not _is_small(content):
        raise RecipeError(
            f"more than {MOST:,} values", expected="a recipe", fix="Take out the aliases (*name).", where=str(path)
        )
    return content


def _is_small(content: Any) -> bool:
    """Whether it has few values once aliases are written out: ten lines of them can stand for billions, or for
    something that holds itself."""
    rest, count = [content], 0
    while rest and count <= MOST:
        value = rest.pop()
        count += 1
        rest += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return count <= MOST


def _inner(annotation: Any) -> type[BaseModel] | None:
    """The model inside `tuple[Model, ...]`, `dict[str, Model]`, `Model | None`, `Annotated[Model, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _inner(part)) is not None), None)


def model_at(root: type[BaseModel], keys: Iterable[str | int]) -> type[BaseModel]:
    """The model whose fields stand at `keys`, numbers and names of a dict's entries skipped."""
    model = root
    for key in keys:
        if isinstance(key, str) and key in model.model_fields:
            model = _inner(model.model_fields[key].annotation) or model
    return model


def fields_at(root: type[BaseModel], keys: Iterable[str | int]) -> list[str]:
    """Names of the fields at `keys`."""
    return list(model_at(root, keys).model_fields)


def apply_overrides(
    fields: dict[str, Any], overrides: Sequence[str], root: type[BaseModel], where: str
) -> dict[str, Any]:
    """Return `fields` with each `dotted.key=value` set; values are YAML.

    `stages.0.steps=5`, `stages.<name>.steps=5`, and `steps=5` for every stage.

    Raises:
        RecipeError: no `=`, a value that is not YAML, or a stage that does not exist. Unknown keys are found by the
            validation that follows.
    """
    fields = {k: _copied(v) for k, v in fields.items()}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise RecipeError(
                f"{override!r}", expected="key=value", fix="Write for example steps=100", where="override"
            )
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise RecipeError(f"{text!r} is not YAML", expected="a value", where=f"override {key}") from None
        for path in _targets(_keys(key.strip()), fields, root, where):
            _set(fields, path, value, f"override {key}")
    return fields


def _keys(text: str) -> list[str]:
    """A dotted key's pieces; the name of a part that trains (`graft.lora`) is one piece."""
    keys = text.split(".")
    at = 2 if keys[0] == "stages" else 0  # behind a stage's name; a source may be called train, too
    if keys[at : at + 1] == ["train"] and len(keys) > at + 1:
        keys = [*keys[: at + 1], ".".join(keys[at + 1 :])]
    return keys


def _copied(value: Any) -> Any:
    """A copy without shared parts: what stands at two places through a YAML anchor is set at one."""
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    return [_copied(v) for v in value] if isinstance(value, list) else value


def _targets(keys: list[str], fields: dict[str, Any], root: type[BaseModel], where: str) -> list[list[str | int]]:
    """Where an override goes: one place, or one in each stage."""
    stages = fields.get("stages")
    stages = stages if isinstance(stages, list) else []
    stage_fields = fields_at(root, ["stages"])
    if keys[0] != "stages":
        if keys[0] not in root.model_fields and keys[0] in stage_fields:
            return [["stages", i, *keys] for i in range(len(stages))]
        if keys[0] not in root.model_fields:
            known = sorted({*root.model_fields, *stage_fields})
            near = difflib.get_close_matches(keys[0], known, n=1, cutoff=0.5)
            raise RecipeError(
                f"unknown key {keys[0]!r}",
                expected=f"one of {', '.join(known)}",
                fix=f"Did you mean {near[0]!r}?" if near else "Choose one of these.",
                where=f"override of {where}",
            )
        return [list(keys)]
    names = [s.get("name") or str(i) if isinstance(s, dict) else str(i) for i, s in enumerate(stages)]
    if len(keys) < 3 or not (keys[1] in names or (keys[1].isdigit() and int(keys[1]) < len(stages))):
        raise RecipeError(
            f"no stage {'.'.join(keys[1:2])!r}",
            expected=f"stages.<one of {', '.join(names)}>.<key>=value",
            fix="Name the stage or its number",
            where=f"override of {where}",
        )
    index = names.index(keys[1]) if keys[1] in names else int(keys[1])
    return [["stages", index, *keys[2:]]]


def _set(fields: dict[str, Any], path: Sequence[str | int], value: Any, where: str) -> None:
    target: Any = fields
    for i, key in enumerate(path[:-1]):
        if isinstance(key, int):
            target = target[key]
            continue
        below = target.get(key)
        if not isinstance(below, dict) and not isinstance(path[i + 1], int):
            # `data: name` or `data: {name: 1}` becomes the long form when one of its fields is set.
            below = {below: {}} if key == "data" and isinstance(below, str) else _long_form(below)
            target[key] = below
        target = below
    if not isinstance(target, dict):
        raise RecipeError(f"found {type(target).__name__}", expected="keys and values", where=where)
    leaf = path[-1]
    target[leaf] = value
    if leaf in RIVALS and len(path) == 3:
        target.pop(RIVALS[leaf], None)


def _long_form(value: Any) -> dict[str, Any]:
    if value is None or isinstance(value, bool):
        return {}
    if isinstance(value, (int, float)):
        return {"weight": value}
    return {"path": value} if isinstance(value, str) else {}


def told(error: ValidationError, where: str, root: type[BaseModel]) -> RecipeError:
    """The first finding of pydantic about a `root`, in our words."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(key) for key in first["loc"])
    place = f"{where}: {place}" if place else where
    if first["type"] == "extra_forbidden":
        name, known = str(first["loc"][-1]), sorted(fields_at(root, first["loc"][:-1]))
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        fix = f"Did you mean {near[0]!r}?" if near else "Remove it, or choose one of these."
        return RecipeError(f"unknown key {name!r}", expected=f"one of {', '.join(known)}", fix=fix, where=place)
    if first["type"] == "missing":
        return RecipeError("the key is missing", expected="a value", fix="Add it", where=place)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return RecipeError(message, fix="Correct it", where=place)
    if first["type"] in ("model_type", "model_attributes_type"):
        keys = ", ".join(fields_at(root, first["loc"]))
        return RecipeError(f"found {first['input']!r}", expected=f"keys: {keys}", fix="Correct the value", where=place)
    message = message.removeprefix("Input should be ")
    return RecipeError(f"found {first['input']!r}", expected=message, fix="Correct the value", where=place)
