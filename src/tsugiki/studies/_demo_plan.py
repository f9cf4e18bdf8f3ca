"""Which grafts the demo trains and compares, and what is found about each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tsugiki import starter
from tsugiki.evals import task as tasks
from tsugiki.training import recipe as recipes
from tsugiki.training.trainer import TrainResult
from tsugiki.types import Proof, Score


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One of the grafts, before it is trained."""

    name: str
    """Of its folder and of its lines in the report."""
    data: str
    """`scenes` or `fabric`; grafts with the same data are compared."""
    recipe: str = ""
    """How it is trained; "" leaves it as it is."""
    share: float = 1.0
    """Of the training time that its data has."""
    start: str = ""
    """A saved graft to begin with; "" begins with a new one."""
    like: str = ""
    """The recipe whose model it is; "" = that of its training."""
    label: str = ""
    """What its scores are told apart by; "" = its graft's name."""

    @property
    def told(self) -> str:
        """What it is called among those of the same data."""
        return self.label or str(self.made.model.grafts[-1])

    @property
    def eyes(self) -> str:
        """Its tower, for people."""
        return f"{self.made.model.vision} at {self.made.model.input_size} px"

    @property
    def made(self) -> recipes.Recipe:
        """The recipe that says of what it is made, and which parts of it learn at which rates."""
        return recipes.load(self.like or self.recipe)


PLANS = (
    Plan(name="scenes-projector", data="scenes", recipe="demo/scenes", share=0.5),
    Plan(name="scenes-wings", data="scenes", recipe="demo/scenes-wings", share=0.5),
    Plan(name="fabric", data="fabric", recipe="demo/fabric"),
)


def plans() -> tuple[Plan, ...]:
    """With the starter where the package has one."""
    if not starter.is_packaged():
        return PLANS
    like, fabric = str(starter.FOLDER / "recipe.yaml"), PLANS[-1]
    return (
        Plan(name="starter", data="scenes", start=starter.NAME, like=like, label="starter"),
        replace(fabric, name="fabric-adapted", start=starter.NAME, like=like, label="adapted"),
        replace(fabric, name="fabric-new", like=like, label="from scratch"),
    )


@dataclass(frozen=True, kw_only=True)
class Part:
    """One of the grafts, and what was found about it."""

    plan: Plan
    graft: Path
    training: TrainResult | None
    """None of one that was left as it is."""
    proof: Proof
    results: Mapping[str, tasks.Result]

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def scores(self) -> list[Score]:
        return [s for r in self.results.values() for s in r.scores]

    @property
    def told(self) -> str:
        """Which it is, and how long it learned."""
        return self.plan.told if self.training is None else f"{self.plan.told} after {self.training.steps} steps"
