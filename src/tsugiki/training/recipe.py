"""Recipes: a YAML list of stages. Every key is a field below; any other key is an error that names the nearest one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from tsugiki.errors import RecipeError, UnknownNameError
from tsugiki.training._demos import Demos
from tsugiki.training._settings import apply_overrides, read_yaml, told
from tsugiki.training.limits import Retention
from tsugiki.training.schedule import Schedule

FOLDER = Path(__file__).with_name("recipes")
# What may change between a run and its continuation: it alters no number of the training.
FREE = ("name", "description", "model", "parallel", "save_seconds", "save_steps", "keep")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Source(_Strict):
    """One source of a stage's mixture."""

    weight: Annotated[float, Field(gt=0)] | Literal["size"] = 1.0
    """Its share of the samples, relative to the other sources' weights; `size`: the number of its samples."""
    path: Path | None = None
    """A JSONL file; relative to the recipe's file. None = given by name in `train(data={name: samples})`."""
    replay: Literal["none", "in_picture", "packed"] = "none"
    """What becomes of text-only samples. `in_picture`: the question is asked after an unrelated picture. `packed`: put
    together to rows of `pack_length` tokens, none of which sees another sample's; a sample that is an assistant message
    alone is a document: its bare words, all of which are learned. Such a source is text only."""
    pack_length: int = Field(default=512, gt=1)
    """Tokens of a packed row."""
    answers: Literal["base", "given"] = "base"
    """What `in_picture` trains on: the base LLM's own greedy answer (made once and kept), or the sample's."""
    answer_tokens: int = Field(default=64, gt=0)
    """Longest answer that the base LLM is asked for, in tokens."""
    order: Literal["shuffled", "staged"] = "shuffled"
    """`staged`: by difficulty, the level in the samples' `meta`, lowest first, shuffled within a level. Each level gets
    its share of the stage's steps, so that the samples are drawn as often as shuffled ones."""
    demos: Demos | None = None
    """Demonstrations before each sample, such as `{most: 4}`. Every sample then has one picture and an answer."""

    @model_validator(mode="after")
    def _labelled(self) -> Source:
        if self.demos is not None and self.replay != "none":
            raise ValueError("demos are labelled pictures: give the text of `replay` a source of its own")
        return self


class WarmStart(_Strict):
    """The projector's closed-form start, before the first step of a stage; it runs no LLM."""

    samples: int = Field(default=2000, gt=0)
    """Pictures that it looks at, at most; the first ones of the stage's sources."""
    caption: str = "caption"
    """Key in the `meta` of a sample under which it says what its picture shows; without one, its answers count."""
    objects: str = "objects"
    """Key in the `meta` of a sample under which it lists the things on its picture, each with its `box` in pixels;
    without one, the boxes of its messages count. Only looked at where the front-end has `places`."""
    exclude: tuple[str, ...] = ("absent", "presence", "count", "place")
    """Tasks whose answers do not name what is in the picture."""
    options: dict[str, Any] = {}
    """Further keywords of `tsugiki.vision.warm_start.warm_start`."""


def _source(value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        return {"weight": value}
    return {"path": value} if isinstance(value, (str, Path)) else value


def _sources(value: Any) -> Any:
    return {value: {}} if isinstance(value, str) else value


def _warm(value: Any) -> Any:
    return ({} if value else None) if isinstance(value, bool) else value


class Stage(_Strict):
    """One training: what trains, on what, for how long. Give `steps` or `minutes`."""

    name: str = ""
    """For logs and overrides; the stage's number if empty."""
    train: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Part -> peak learning rate. Parts: `projector`, `graft.<name>` or its own parts (`graft.wings.visual`), `llm`;
    0 leaves a part frozen."""
    llm: str = Field(default="trainable", pattern=r"^(frozen|trainable|lora|last_[1-9]\d*)$")
    """What the rate of `llm` in `train` is for: `trainable`, all of the LLM; `last_4`, its last 4 layers and the norm
    after them; `lora`, the graft of that name in its place, which text does not see; `frozen`, nothing."""
    settings: dict[str, dict[str, Any]] = {}
    """Graft -> settings that hold from this stage on, such as `{wings: {active: visual}}`."""
    data: Annotated[dict[str, Annotated[Source, BeforeValidator(_source)]], BeforeValidator(_sources)]
    """Name -> weight, path, or the fields of a source."""
    loss: str = "per_token"
    """A function of `tsugiki.training.losses`."""
    batch_size: int = Field(default=16, gt=0)
    """Samples of one forward pass, in all processes together."""
    steps: int | None = Field(default=None, ge=0)
    """Optimiser steps; such a run continues exactly as if it had never been interrupted."""
    minutes: float | None = Field(default=None, gt=0)
    """Time by the clock instead of steps: from the first step on, pauses between runs not counted."""
    warmup: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps, or of the time, over which the learning rate rises from 0."""
    scheduler: Schedule = "linear"
    """What the learning rate does after the warm-up."""
    decay: float = Field(default=0.2, ge=0, le=1)
    """Share of the training over which `constant_decay` falls to 0."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's, on matrices only (not on norms, biases and gates)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are scaled down to this norm; 0 = never."""
    gradient_accumulation: int = Field(default=1, gt=0)
    """Batches of one step."""
    gradient_checkpointing: bool = False
    """Recompute the LLM's layers in the backward pass: less memory, about a third more time."""
    length_grouping: bool = True
    """Put samples of like length into one batch, so that less is padded."""
    homogeneous: bool = False
    """A batch is all text or all pictures; it always is where a source is packed."""
    temperature: float = Field(default=1.0, gt=0)
    """T: a source's share goes with its weight to the power of 1/T. Above 1, rare sources come more often."""
    retention: Retention | None = None
    """Measures meanwhile what the text has lost, and stops the stage, or draws the LLM back to its base."""
    share_prefix: bool = True
    """Run what all samples of a batch begin with, before any picture, once instead of in each step: the same numbers to
    numeric noise. Only where the LLM is frozen and in one piece, the graft leaves it as the base has it, and nothing is
    recomputed."""
    max_length: int | None = Field(default=None, gt=0)
    """Longest sample in tokens; a longer one is an error. None = the LLM's own limit."""
    variants: int = Field(default=0, ge=0, le=64)
    """K fixed light and sharpness variants of each picture beside the plain one; batches take them in turn."""
    warm_start: Annotated[WarmStart | None, BeforeValidator(_warm)] = None
    """`true`, or the fields of a warm start of the projector."""

    @model_validator(mode="after")
    def _a_rate_for_the_llm(self) -> Stage:
        own = {"llm", "graft.lora"} if self.llm == "lora" else {"llm"}
        if self.llm not in ("trainable", "frozen") and not own & self.train.keys():
            raise ValueError(f"llm: {self.llm} without a rate: add llm to `train`, such as {{llm: 2.0e-5}}")
        return self

    @model_validator(mode="after")
    def _one_length(self) -> Stage:
        if (self.steps is None) == (self.minutes is None):
            found = "neither" if self.steps is None else "both"
            raise ValueError(f"give steps or minutes, one of the two; {found} is given")
        if not self.data:
            raise ValueError("data is empty; give at least one source")
        if self.llm == "lora" and {"llm", "graft.lora"} <= self.train.keys():
            raise ValueError("with llm: lora the rate of llm is that of graft.lora, which has one too; leave one out")
        if self.steps is None and any(source.order == "staged" for source in self.data.values()):
            raise ValueError("order: staged divides the stage's steps among the levels; give steps instead of minutes")
        return self

    @property
    def draws(self) -> int | None:
        """Samples of all its steps; None where the clock decides."""
        return None if self.steps is None else self.steps * self.batch_size * self.gradient_accumulation

    @property
    def parts(self) -> dict[str, float]:
        """The parts that train, with their learning rates."""
        names = {"trainable": "llm", "lora": "graft.lora", "frozen": ""}
        own = names.get(self.llm, f"llm.{self.llm}")
        named = {own if part == "llm" else part: rate for part, rate in self.train.items()}
        return {part: rate for part, rate in named.items() if part and rate > 0}

    @property
    def by_kind(self) -> bool:
        """Whether a batch is all text or all pictures."""
        return self.homogeneous or any(source.replay == "packed" for source in self.data.values())


class ModelSpec(_Strict):
    """The model that a recipe is meant for; used where no model is given (`tsugiki train`, presets)."""

    base: str | None = None
    """Asset name, hub id or folder of the LLM."""
    vision: str | dict[str, Any] | list[Any] | None = None
    """Asset name, hub id or folder of the vision tower, a name of `vision.presets`, or what `FrontEndConfig` takes."""
    input_size: int | None = Field(default=None, gt=0)
    """Side of the padded square that the tower sees, in pixels. None = the tower's own."""
    projector: str | None = None
    """Kind of the projector. None = the front-end's default."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the LLM's weights; float32 where they train. None = as stored, on a CPU float32."""
    grafts: tuple[str, ...] = ("projector",)
    """In the order in which they are attached."""
    options: dict[str, Any] = {}
    """Further keywords of `tsugiki.attach`."""


class Recipe(_Strict):
    """A whole training."""

    name: str = ""
    """The file's stem where it comes from a file."""
    description: str = ""
    """One sentence for people."""
    model: ModelSpec = ModelSpec()
    """What it is meant for."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of the order of the samples and of everything random."""
    precision: Literal["model", "bf16"] = "model"
    """`model`: as the weights are; `bf16`: autocast, which pays on a GPU and on a CPU that multiplies bf16 (AMX); on
    others it is slower."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How several processes (torchrun, accelerate launch) share the work: `ddp`, each holds the whole model; `fsdp`,
    each holds a piece (FSDP2): for an LLM that is too large. A batch is divided among them. Alone, of no meaning."""
    save_seconds: float = Field(default=120.0, gt=0)
    """A checkpoint is written this often, and at the end of each stage."""
    save_steps: int | None = Field(default=None, gt=0)
    """A checkpoint also every so many steps."""
    keep: int = Field(default=2, gt=0)
    """Checkpoints that are kept."""
    stages: tuple[Stage, ...] = Field(min_length=1)
    """Run one after the other."""

    @model_validator(mode="after")
    def _names(self) -> Recipe:
        names = [stage_name(self, i) for i in range(len(self.stages))]
        double = {n for n in names if names.count(n) > 1}
        if double:
            raise ValueError(f"two stages are called {min(double)!r}; give each its own name")
        return self

    def to_yaml(self) -> str:
        """All fields, defaults included, as YAML that `load` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def stage_name(recipe: Recipe, index: int) -> str:
    """The stage's name, or its number."""
    return recipe.stages[index].name or str(index)


def available() -> list[str]:
    """Names of the shipped recipes: `projector`, `demo/scenes`, ..."""
    return sorted(p.relative_to(FOLDER).with_suffix("").as_posix() for p in FOLDER.rglob("*.yaml"))


def load(recipe: str | Path | Mapping[str, Any] | Recipe, overrides: Sequence[str] = ()) -> Recipe:
    """Return a recipe by name, from a YAML file, from a dict, or as it is, with `key=value` overrides applied.

    Args:
        recipe: a shipped recipe's name, a path, the fields as a dict, or a Recipe.
        overrides: `seed=1`, `stages.scenes.train.projector=1e-3`; a stage's key alone (`steps=100`) is for all.

    Raises:
        UnknownNameError: no shipped recipe of that name, and no such file.
        RecipeError: not YAML, an unknown key, a wrong value, or a recipe that trains nothing.
    """
    where, fields = _fields(recipe)
    fields = apply_overrides(fields, overrides, Recipe, where)
    return _parse(fields, where)


def _fields(recipe: str | Path | Mapping[str, Any] | Recipe) -> tuple[str, dict[str, Any]]:
    if isinstance(recipe, Recipe):
        return "recipe", recipe.model_dump(mode="json", exclude_unset=True)
    if isinstance(recipe, Mapping):
        return "recipe", dict(recipe)
    path = Path(recipe)
    if isinstance(recipe, str) and recipe in available():
        path = FOLDER / f"{recipe}.yaml"
    elif not path.is_file():
        if path.suffix in {".yaml", ".yml"}:
            raise RecipeError(
                "there is no such file",
                expected="a recipe's YAML file",
                fix=f"Check the path, or name one of {', '.join(available())}",
                where=str(path),
            )
        raise UnknownNameError("recipe", str(recipe), available())
    fields = read_yaml(path)
    fields.setdefault("name", path.stem)
    _anchor_paths(fields, path.parent)
    return str(path), fields


def _anchor_paths(fields: dict[str, Any], folder: Path) -> None:
    """Paths of sources are relative to the recipe's file; wrong shapes are left to the validation."""
    stages = fields.get("stages")
    for stage in stages if isinstance(stages, list) else ():
        limits: Any = stage.get("retention") if isinstance(stage, dict) else None
        if isinstance(limits, dict) and isinstance(limits.get("texts"), str):
            limits["texts"] = str(folder / limits["texts"])
        sources: Any = stage.get("data") if isinstance(stage, dict) else None
        for name, source in list(sources.items()) if isinstance(sources, dict) else ():
            if isinstance(source, str):
                sources[name] = str(folder / source)
            elif isinstance(source, dict) and isinstance(source.get("path"), str):
                source["path"] = str(folder / source["path"])


def _parse(fields: Mapping[str, Any], where: str) -> Recipe:
    try:
        recipe = Recipe.model_validate(fields)
    except ValidationError as error:
        raise told(error, where, Recipe) from None
    for i, stage in enumerate(recipe.stages):
        if not stage.parts and stage.warm_start is None:
            raise RecipeError(
                f"stage {stage_name(recipe, i)!r} trains nothing",
                expected="at least one part with a learning rate above 0",
                fix="Add for example `train: {projector: 1e-3}`",
                where=f"{where}: stages.{i}.train",
            )
    return recipe
