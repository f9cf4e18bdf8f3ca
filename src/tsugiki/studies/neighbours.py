"""The labelled pictures of a demo bank in front of questions about others: tuning in context, without the tuning.

Shapes: P positions of a tower's grid, V its width.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeGuard

import numpy as np
import numpy.typing as npt
from torch import Tensor

from tsugiki.data.bank import Bank, Entry, Neighbour
from tsugiki.data.demos import in_front
from tsugiki.data.detail import language
from tsugiki.data.images import content_key, open_image, pixel_key
from tsugiki.data.schema import message_text
from tsugiki.data.splits import near_duplicate_groups
from tsugiki.errors import DataError, InputError, UnknownNameError, UnsupportedError
from tsugiki.evals import yardsticks
from tsugiki.types import DemoPart, ImagePart, ImageSource, Message, Part, Sample, TextPart

logger = logging.getLogger("tsugiki")

Form = Literal["pictures", "words"]
FORMS: tuple[Form, ...] = ("pictures", "words")
SPARE = 8
"""Neighbours more than asked for, where some may have to be left out."""
REMEMBERED = 256
"""Pictures whose tower outputs stay in memory: the same entries are shown again and again."""
_SAID = {"en": ("Similar pictures: ", ", ", ".\n"), "ja": ("似た写真：", "、", "。\n")}


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A sample as the model gets it, and the entries that stand in it."""

    sample: Sample
    neighbours: tuple[Neighbour, ...] = ()
    """Nearest first."""


def open_bank(model: Any, folder: str | Path) -> Bank:
    """The bank, if it is of the model's tower.

    Raises:
        BaseMismatchError: another tower, naming both.
        StoreError: no bank there.
    """
    tower = single_tower(model)
    return Bank.open(folder, fingerprint=tower.fingerprint(), tower=tower.name)


def single_tower(model: Any) -> Any:
    """The tower whose features a bank keeps.

    Raises:
        UnsupportedError: a front-end of several towers or views.
    """
    if model.frontend.mix is not None:
        raise UnsupportedError(
            "a bank for a front-end of several towers or views",
            expected="one tower with one view",
            fix="Build the bank for a model that has one.",
        )
    return model.frontend.tower


def pooled(features: Tensor) -> npt.NDArray[np.float32]:
    """What a bank keeps of a picture: the mean over the positions, [P, V] -> [V]."""
    vector: npt.NDArray[np.float32] = features.detach().float().mean(0).cpu().numpy()
    return vector


class BankDemos:
    """Puts the k nearest entries in front of questions about pictures.

    Args:
        bank: a folder, or an open bank of the model's tower.
        k: how many.
        form: "pictures" shows each with its label, the nearest last, next to the question: as text (plain tuning in
            context), or through the model's hub, as the answer to the same question and in the form of the hub's
            settings; "words" only says their labels and likenesses.
        apart: leave out what shows nearly the same as the query, for scores; the query's own picture never is shown.
        features: cached tower outputs, picture -> [P, V]; None encodes, and remembers the last pictures.

    Raises:
        BaseMismatchError, StoreError: as `open_bank`.
        DataError: an empty bank.
    """

    def __init__(
        self,
        model: Any,
        bank: Bank | str | Path,
        *,
        k: int = 4,
        form: Form = "pictures",
        apart: bool = False,
        features: Any = None,
    ) -> None:
        if form not in FORMS:
            raise UnknownNameError("form of demonstrations", form, FORMS)
        if k < 1:
            raise InputError(f"k={k}", expected="at least 1 neighbour")
        self.bank = bank if isinstance(bank, Bank) else open_bank(model, bank)
        if not len(self.bank):
            raise DataError(
                "the bank is empty",
                expected="entries",
                fix="Add some: `tsugiki bank add`.",
                where=str(self.bank.folder),
            )
        self.k, self.form, self.apart = k, form, apart
        self.features = features if features is not None else Recent(model) if model.frontend.tower.frozen else None
        self._through = form_of(model)
        self._encode = self.features if self.features is not None else Recent(model)
        self._told = False

    @property
    def key(self) -> str:
        """Of what answers depend on beside the model."""
        return f"{self.bank.state} {self.k} {self.form} {self.apart}"

    def __call__(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples with demonstrations."""
        return [shown.sample for shown in self.show(samples)]

    def show(self, samples: Sequence[Sample]) -> list[Shown]:
        """The samples with demonstrations, and the entries that these are.

        Raises:
            ImageError: a picture can't be read.
            InputError: the bank has none of a sample's options.
        """
        found = []
        for sample in samples:
            neighbours = self.neighbours(sample)
            found.append(Shown(sample=self.placed(sample, neighbours), neighbours=neighbours))
        return found

    def placed(self, sample: Sample, neighbours: Sequence[Neighbour]) -> Sample:
        """The sample with these entries in front, the first one next to the question."""
        return replace(sample, messages=in_front(sample.messages, self._parts(sample.messages, neighbours)))

    def front(self, messages: Sequence[Message]) -> Shown:
        """As `show`, for a conversation: `chat` takes the messages of its sample as `demos`."""
        return self.show([Sample(id="request", messages=tuple(messages))])[0]

    def neighbours(self, sample: Sample) -> tuple[Neighbour, ...]:
        """The entries for a sample, nearest first; () without a picture."""
        picture = _asked_about(sample.prompt)
        if picture is None:
            return ()
        vector = pooled(self._encode(picture))
        spare = SPARE if self.apart or self.form == "pictures" else 0
        found, kept = self._found(picture, vector, self.k + spare, sample)
        if not found and sample.options and not set(sample.options) & set(self.bank.counts()):
            raise InputError(
                f"a bank of {', '.join(map(repr, self.bank.counts()))}",
                expected=f"entries of {', '.join(map(repr, sample.options))}",
                fix="Use options that the bank has, or add entries.",
                where=str(self.bank.folder),
            )
        kept = kept[: self.k]
        if len(kept) < self.k and not self._told:
            self._told = True
            logger.warning("%d demonstrations of %d asked for: the bank has no more.", len(kept), self.k)
        return tuple(kept)

    def _found(
        self, picture: Any, vector: npt.NDArray[np.float32], wanted: int, sample: Sample
    ) -> tuple[Sequence[Neighbour], list[Neighbour]]:
        """The nearest entries, and those of them that may be shown: more are looked at until there are enough."""
        while True:
            found = self.bank.search(vector, wanted, labels=sample.options or None, without=[pixel_key(picture)])
            kept = [n for n in found if self._shows(n.entry)]
            kept = self._unlike(picture, kept) if self.apart else kept
            if len(kept) >= self.k or len(found) < wanted:
                return found, kept
            wanted *= 2

    def vote(self, samples: Sequence[Sample]) -> list[str]:
        """The yardstick: what the same neighbours say without an LLM, see `yardsticks.bank_vote`."""
        near = [[(n.entry.label, n.distance) for n in self.neighbours(s)] for s in samples]
        return yardsticks.bank_vote(near, [s.options for s in samples])

    def _shows(self, entry: Entry) -> bool:
        return self.form != "pictures" or self.bank.picture(entry) is not None

    def _unlike(self, picture: ImageSource, found: Sequence[Neighbour]) -> list[Neighbour]:
        pictures = [(n, path) for n in found if (path := self.bank.picture(n.entry)) is not None]
        groups = near_duplicate_groups([picture, *(path for _, path in pictures)])
        alike = {id(pictures[i - 1][0]) for group in groups if 0 in group for i in group if i}
        return [n for n in found if id(n) not in alike]

    def _parts(self, messages: Sequence[Message], neighbours: Sequence[Neighbour]) -> list[Part]:
        if not neighbours:
            return []
        if self.form == "words":
            asked = "".join(p.text for m in messages for p in m.parts if isinstance(p, TextPart))
            begin, between, end = _SAID[language(asked)]
            said = between.join(f"{n.entry.label} ({1 - n.distance:.2f})" for n in neighbours)
            return [TextPart(begin + said + end)]
        shown = [(p, n.entry.label) for n in neighbours if (p := self.bank.picture(n.entry)) is not None]
        return labelled(messages, shown, self._through)


def labelled(messages: Sequence[Message], shown: Sequence[tuple[ImageSource, str]], form: str | None) -> list[Part]:
    """Pictures and their labels as they stand in front of a question, the first one next to it.

    Args:
        messages: with the question, which is asked about each of these pictures, too.
        shown: picture and label, nearest first.
        form: how a hub hands them to the LLM, one of `DEMO_FORMS`; None = as pictures and text, for a model without.
    """
    parts: list[Part] = []
    for source, label in reversed(shown):
        if form is None:
            parts += [ImagePart(source), TextPart(f"{label}\n")]
        else:  # all that is said of it, which is no text of the message that asks
            parts.append(DemoPart(source, f"{_question(messages)}\n{label}".strip(), form))
    return parts


def form_of(model: Any) -> str | None:
    """The `form` of `labelled` that the model reads: of its hub's settings, None without a hub."""
    return None if model.frontend.hub is None else model.frontend.config.hub_settings().demos


class Recent:
    """Tower outputs of the last pictures, [P, V] fp16 each: entries that are shown again are not encoded again."""

    def __init__(self, model: Any, most: int = REMEMBERED) -> None:
        self.model, self.most = model, most
        self._known: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, source: ImageSource) -> Tensor:
        key = content_key(source)  # a file may have changed under its name
        if key not in self._known:
            frontend = self.model.frontend
            pixels = frontend.transform(open_image(source))[None].to(self.model.device)
            self._known[key] = frontend.encode(pixels)[0].cpu()
        self._known.move_to_end(key)
        if len(self._known) > self.most:
            self._known.popitem(last=False)
        return self._known[key]


def _asked_about(messages: Sequence[Message]) -> ImageSource | None:
    """The first picture of the last message that asks about one."""
    asking = _asking(messages)
    return None if asking is None else next(p.source for p in asking.parts if _is_query(p))


def _question(messages: Sequence[Message]) -> str:
    """The words of that message."""
    asking = _asking(messages)
    return "" if asking is None else message_text(asking).strip()


def _asking(messages: Sequence[Message]) -> Message | None:
    return next((m for m in reversed(messages) if any(map(_is_query, m.parts))), None)


def _is_query(part: Part) -> TypeGuard[ImagePart]:
    return isinstance(part, ImagePart) and not isinstance(part, DemoPart)
