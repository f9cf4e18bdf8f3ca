"""What every graft is: its own weights, and the places of the LLM where they act.

A graft never changes the LLM's module tree or state-dict keys; attaching puts hooks, detaching takes them away again.
Shapes: B rows, T positions, D width of the LLM.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from tsugiki.decoder import Block, DecoderSpec
from tsugiki.errors import UnknownNameError
from tsugiki.grafts._context import Context
from tsugiki.grafts._sites import Site, install
from tsugiki.types import Guarantee, How


class Graft(nn.Module):
    """Base of all grafts: owns every new weight of the LLM side."""

    SPLICES: ClassVar[bool] = False
    """Whether visual tokens take the place of the prompt's placeholders."""
    STARTS_AS_IDENTITY: ClassVar[bool] = True
    """Whether a fresh graft changes nothing, also on a request with an image."""
    PREFIX_EXACT: ClassVar[bool] = True
    """Whether tokens before the first image have the base's logits."""
    GUARANTEE: ClassVar[Guarantee] = "exact"
    HOW: ClassVar[How] = "untouched"
    ADJUSTABLE: ClassVar[frozenset[str]] = frozenset()
    """Fields of the config that a stage of a recipe may set: they change no shape of any weight."""

    def __init__(self, config: Any, decoder: DecoderSpec) -> None:
        super().__init__()
        self.config = config
        self._removers: list[Callable[[], None]] = []

    @property
    def name(self) -> str:
        return type(self).__module__.rpartition(".")[2]

    @property
    def guarantee(self) -> Guarantee:
        return self.GUARANTEE

    @property
    def how(self) -> How:
        return self.HOW

    @property
    def prefix_exact(self) -> bool:
        return self.PREFIX_EXACT

    @property
    def image_exact(self) -> bool:
        """Whether requests of the branch "image" come out, bit for bit, as without it."""
        return False

    @property
    def on_text(self) -> bool:
        """Whether the graft also acts on requests without an image."""
        return False

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches that it tells apart beside "image"; a row of a request takes one."""
        return ()

    @property
    def chooses_branch(self) -> bool:
        """Whether `choose_branch` decides for requests that name no branch."""
        return False

    def choose_branch(self, question: Tensor) -> Tensor:
        """The branch of each request that names none, before its forward.

        Args:
            question: float [B, D], mean word embedding of the last user turn.

        Returns:
            int64 [B], numbers of `BRANCHES`.
        """
        raise NotImplementedError("abstract")

    def learn_branch(self, question: Tensor, branch: Tensor) -> None:
        """Fit what `choose_branch` decides by.

        Args:
            question: float [n, D], as there.
            branch: int64 [n], the right answers.
        """
        raise NotImplementedError("abstract")

    def added_layers(self) -> tuple[Block, ...]:
        """Decoder layers that it adds to the LLM's; a graft behind it may act inside them."""
        return ()

    def adjusted(self, decoder: DecoderSpec, **changes: Any) -> Any:
        """The config with settings changed that alter no shape.

        Raises:
            UnknownNameError: not a setting that can change.
            InputError: a wrong value.
        """
        for name in changes:
            if name not in self.ADJUSTABLE:
                known = sorted(self.ADJUSTABLE) or ["(none)"]
                raise UnknownNameError("setting that can change", name, known, where=self.name)
        before = self.config
        self.config = dataclasses.replace(before, **changes)
        try:
            self.check(decoder)
            return self.config
        finally:
            self.config = before

    def begin_stage(self, changes: Mapping[str, Any], trained: Sequence[str]) -> None:
        """Called once when a stage of a recipe begins, and not when it is continued.

        Args:
            changes: what the stage sets of its settings.
            trained: those of its parts that train in the stage, all where it trains as a whole.
        """

    def teaches_text(self, parts: Sequence[str]) -> bool:
        """Whether training the named parts of it (all of it if none is named) has a gradient on text alone."""
        return False

    def taught_by(self, parts: Sequence[str], known: Sequence[str]) -> frozenset[str]:
        """Branches, of those that the model knows, whose samples give its named parts (all where none is named)
        a gradient."""
        return frozenset(known)

    def penalty(self, context: Context) -> Tensor | None:
        """What it adds to the loss of a label token in training; None where it has nothing to add.

        Args:
            context: of the forward, with what its sites left in `notes`.
        """
        return None

    def idle_parts(self) -> list[str]:
        """Those of its parts that have no gradient under its present settings."""
        return []

    def check(self, decoder: DecoderSpec) -> None:
        """Whether the config fits itself and the LLM.

        Raises:
            InputError: a wrong value.
            UnsupportedError: the family has no place for the graft, with the reason.
        """

    def parts(self) -> dict[str, list[str]]:
        """Sub-parts that may train at their own rate: name -> the names of their parameters."""
        return {}

    def sites(self, decoder: DecoderSpec) -> Iterator[Site]:
        """Yield the places where this graft acts.

        Raises:
            UnsupportedError: the family has no such place, with the reason.
        """
        raise NotImplementedError("abstract")

    @property
    def attached(self) -> bool:
        return bool(self._removers)

    def attach(self, decoder: DecoderSpec) -> None:
        """Hook the graft into the LLM."""
        if self.attached:
            raise RuntimeError(f"the graft {self.name!r} is attached already")
        try:
            for site in self.sites(decoder):
                self._removers.append(install(site))
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        """Take every hook away: the LLM is what it was before."""
        while self._removers:
            self._removers.pop()()


def claims(graft: Graft) -> dict[str, Any]:
    """Where a graft comes from, as its file states it: paper, code, licence."""
    module = sys.modules[type(graft).__module__]
    return {name.lower(): getattr(module, name, None) for name in ("PAPER", "CODE", "LICENSE")}
