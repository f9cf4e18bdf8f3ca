"""What flows between the rooms: samples in, batches through, scores and proofs out.

Shapes: B rows of a batch, T positions, N images of a batch (flat over rows), M visual tokens of an image, D LLM width.
Units: boxes are pixels of the original image (after EXIF rotation), xyxy, x2 and y2 exclusive; losses are nats a token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

Role = Literal["system", "user", "assistant"]
Guarantee = Literal["exact", "bounded"]
How = Literal["untouched", "switched"]
Detail = Literal["short", "full", "boxes"]
ImageSource = str | Path | bytes | Image.Image

# Token kinds are an open registry: a number travels in `token_kind [B, T]`, the name is for people.
PAD, TEXT, IMAGE, DEMO, TAG = -1, 0, 1, 2, 3
TOKEN_KINDS: dict[str, int] = {"pad": PAD, "text": TEXT, "image": IMAGE, "demo": DEMO, "tag": TAG}


def register_token_kind(name: str) -> int:
    """Return the number of the token kind `name`, a new one if it is unknown."""
    if name not in TOKEN_KINDS:
        TOKEN_KINDS[name] = max(TOKEN_KINDS.values()) + 1
    return TOKEN_KINDS[name]


# Branches are an open registry too: a row of a batch takes one path through the grafts, its number in `branch [B]`.
BRANCHES: dict[str, int] = {"text": 0, "image": 1, "grounding": 2}


def register_branch(name: str) -> int:
    """Return the number of the branch `name`, a new one if it is unknown."""
    return BRANCHES.setdefault(name, max(BRANCHES.values()) + 1)


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels of the original image, xyxy."""

    x1: float
    y1: float
    x2: float
    y2: float

    @property
    def width(self) -> float:
        return self.x2 - self.x1

    @property
    def height(self) -> float:
        return self.y2 - self.y1

    @property
    def center(self) -> tuple[float, float]:
        return (self.x1 + self.x2) / 2, (self.y1 + self.y2) / 2


@dataclass(frozen=True, slots=True)
class TextPart:
    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    source: ImageSource
    """A path, encoded bytes, or an open picture."""


DEMO_FORMS = ("visual_guided_text", "textual_guided_visual", "uni_modal", "both")
"""How a hub hands a demonstration to the LLM: its text after it has seen the picture (MMICT), its picture's queries
after they have read the text, queries and text that have not met (plain tuning in context), or both that have."""


@dataclass(frozen=True, slots=True)
class DemoPart(ImagePart):
    """A demonstration: a picture and all that is said of it. Without a hub it is read as that picture and that text,
    less the question where the message that it stands in asks the same."""

    text: str = ""
    form: str = DEMO_FORMS[0]
    """One of `DEMO_FORMS`."""


@dataclass(frozen=True, slots=True)
class BoxPart:
    """A box inside a message; the codec of `data.boxes` writes it as text relative to the padded square."""

    box: Box
    image: int = 0
    """Which image of the sample (0-based, in order of appearance)."""
    label: str | None = None


Part = TextPart | ImagePart | BoxPart  # a DemoPart is an ImagePart


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, role: Role, text: str, images: tuple[ImageSource, ...] = ()) -> Message:
        """A message of images followed by one text."""
        return cls(role, (*(ImagePart(image) for image in images), TextPart(text)))


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation. Training has loss on every assistant message; scores take the last one as the gold answer."""

    id: str
    messages: tuple[Message, ...]
    task: str = "chat"
    """Groups samples for mixtures and scores: caption, naming, colour, count, place, box, absent, decision, ..."""
    options: tuple[str, ...] = ()
    """The closed set of answers, where there is one; the gold answer's text is one of them."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    where: str = field(default="", compare=False)
    """File and line that it was read from; errors name it."""

    @property
    def images(self) -> tuple[ImageSource, ...]:
        return tuple(p.source for m in self.messages for p in m.parts if isinstance(p, ImagePart))

    @property
    def boxes(self) -> tuple[BoxPart, ...]:
        return tuple(p for m in self.messages for p in m.parts if isinstance(p, BoxPart))

    @property
    def answer(self) -> Message | None:
        """The gold answer: the last message, if it is the assistant's."""
        last = self.messages[-1] if self.messages else None
        return last if last is not None and last.role == "assistant" else None

    @property
    def prompt(self) -> tuple[Message, ...]:
        """All messages before the gold answer."""
        return self.messages if self.answer is None else self.messages[:-1]


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of positions of one kind, for people; tensors `token_kind` and `image_index` are what travels."""

    kind: int
    image: int
    """Index into the batch's flat list of images, -1 for none."""
    start: int
    length: int


@dataclass(frozen=True)
class VisualTokens:
    """What a front-end gives an LLM. Never expanded by beams: `image_index` points into its rows."""

    tokens: Tensor  # float [N, M, D]
    mask: Tensor | None = None  # bool [N, M], True = a real token; None = all real

    @property
    def per_image(self) -> int:
        """M."""
        return int(self.tokens.shape[1])

    @property
    def counts(self) -> Tensor:
        """Real tokens of each image, int64 [N]; they come before the others."""
        if self.mask is None:
            return torch.full((len(self),), self.per_image, device=self.tokens.device)
        return self.mask.sum(dim=1)

    @property
    def each(self) -> list[Tensor]:
        """The real tokens of each image, [M_i, D]."""
        return list(self.tokens) if self.mask is None else [t[m] for t, m in zip(self.tokens, self.mask, strict=True)]

    def __len__(self) -> int:
        return int(self.tokens.shape[0])


FOR_LOSSES = ("steps", "step_weights")
"""Fields of a batch that are no input of a model."""


@dataclass(frozen=True)
class Batch:
    """What a collator gives a model. Absent fields are None and are not passed on."""

    input_ids: Tensor  # int64 [B, T]
    attention_mask: Tensor  # int64 [B, T], 1 = real
    token_kind: Tensor | None = None  # int64 [B, T], see TOKEN_KINDS; None = text only
    image_index: Tensor | None = None  # int64 [B, T], row of the flat image list at image positions, else -1
    labels: Tensor | None = None  # int64 [B, T], -100 = no loss
    pixel_values: Tensor | None = None  # float [N, 3, S, S], live pictures; of a mixed front-end [N, E]
    vision_features: Tensor | None = None  # float [N, P, V], cached tower outputs instead of pixels; or [N, E]
    image_text: Tensor | None = (
        None  # int64 [N, L], ids of what is said of each picture, -1 behind; where a hub reads it
    )
    image_form: Tensor | None = None  # int64 [N], 0 = a picture that is asked about, else 1 + its place in DEMO_FORMS
    steps: Tensor | None = None  # int64 [B, T], number of the answer's step at labels, -1 elsewhere; None = no marks
    step_weights: Tensor | None = None  # float32 [B, K], of each row's steps; None = all equal
    branch: Tensor | None = None  # int64 [B], see BRANCHES; None = the model has but one for pictures, or decides
    question: Tensor | None = None  # int64 [B, T], 1 at the last user turn's own words; made where a graft reads them
    position_ids: Tensor | None = None  # int64 [B, T], where rows are packed: from 0 in each document, and at padding

    def inputs(self) -> dict[str, Tensor]:
        """The keyword arguments of the model's forward; of packed rows without a mask, which positions stand for."""
        left = FOR_LOSSES if self.position_ids is None else (*FOR_LOSSES, "attention_mask")
        return {k: v for k, v in self.__dict__.items() if v is not None and k not in left}

    def for_losses(self) -> dict[str, Tensor]:
        """What a loss may read beside them."""
        return {k: v for k in FOR_LOSSES if (v := getattr(self, k)) is not None}


@dataclass(frozen=True, kw_only=True)
class Score:
    """One figure with its error, and the bare LLM's in the same run where that exists."""

    task: str
    metric: str
    value: float
    stderr: float
    n: int
    low: float | None = None
    """Ends of the 95 % interval of `value`."""
    high: float | None = None
    base: float | None = None
    """The bare LLM's (or the parent's) value on the same items in the same run."""
    difference: float | None = None
    """value - base, paired over items."""
    difference_low: float | None = None
    difference_high: float | None = None
    informative: bool = True
    """False where the base is not clearly above chance: printed, never judged."""
    detectable: float | None = None
    """Smallest drop that this n can tell from nothing (80 % power, 5 % two-sided)."""
    spread: float | None = None
    """Standard deviation of the paired differences, from which the items that another drop takes follow."""
    version: int = 1
    """Of the task's definition."""
    yardsticks: Mapping[str, float] = field(default_factory=dict)
    """Values of probe, ridge, constant, ... on the same items."""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One claim of a proof."""

    name: str
    holds: bool
    detail: str


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What `verify` found. `sha256` is that of the canonical content, so that an edited proof is recognised."""

    holds: bool
    guarantee: Guarantee
    how: How
    prefix_exact: bool
    checks: tuple[Check, ...]
    base: Mapping[str, Any]
    """Identity of the base: name, hashes, dtype."""
    graft_sha256: str
    environment: Mapping[str, Any]
    """Versions, seed, device, threads, date."""
    prompts: int
    answers: int
    note: str = ""
    sha256: str = ""

    def content(self) -> dict[str, Any]:
        """Everything but the hash, as plain JSON values."""
        content = asdict(self)
        content.pop("sha256")
        content["checks"] = [asdict(c) for c in self.checks]
        return json.loads(json.dumps(content, ensure_ascii=False, default=str))  # type: ignore[no-any-return]
