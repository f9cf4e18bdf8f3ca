"""M-Hub as the projector of a front-end: visual tokens of questions' pictures, and demonstrations (MMICT, 2312.06363).

One row for each picture of a batch, whichever form it has; all of them go through the hub in one pass:

    asked about             Q_out                        guided by the question where there is one
    visual_guided_text      T_out s                      of a demonstration no picture token is left
    textual_guided_visual   Q_out s
    uni_modal               Q_out E(text) s              the two have not met: plain tuning in context
    both                    Q_out T_out s

Q_out and T_out are the hub's outputs (`hub.py`), E the LLM's word embeddings, s the separator: one vector, which is
trained and starts as the LLM's line break. (The reference adds a word for it whose embedding stays random.)
Shapes: N pictures, P patches, V tower width, Q queries, L words of the longest text, D LLM width, M tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from tsugiki.data.said import ASKED, BOTH_FORM, PLAIN_FORM, TEXT_FORM, Reader
from tsugiki.errors import AssetError, InputError, UnknownNameError
from tsugiki.types import DEMO_FORMS
from tsugiki.vision.hub import Hub, HubConfig


@dataclass(frozen=True, kw_only=True)
class HubStart:
    """Sizes of a hub in a front-end, and where its weights come from."""

    weights: str = ""
    """BLIP-2 or InstructBLIP, a hub id or a folder: the Q-Former that a published hub starts from, sizes included."""
    sizes: HubConfig = HubConfig()
    WHERE: ClassVar[str] = "front-end: hub"

    def __post_init__(self) -> None:
        if self.weights and self.sizes.form != "published":
            raise InputError(f"weights={self.weights!r} for a light hub", expected="form: published", where=self.WHERE)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """The settings of plain values.

        Raises:
            UnknownNameError: a field that does not exist.
            InputError: a wrong value.
        """
        own = {f.name for f in fields(cls)} - {"sizes"}
        sizes = {f.name for f in fields(HubConfig)}
        for name in values:
            if name not in own | sizes:
                raise UnknownNameError("hub setting", str(name), own | sizes, where=cls.WHERE)
        base = HubConfig.published() if values.get("form") == "published" else HubConfig()
        given = {k: v for k, v in values.items() if k in sizes}
        return cls(sizes=replace(base, **given), **{k: v for k, v in values.items() if k in own})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, all of them: a saved graft is built again without the checkpoint that it started from."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "sizes"}
        return own | asdict(self.sizes)


@dataclass(frozen=True, kw_only=True)
class HubSettings(HubStart):
    """What stands under `hub` in a front-end's config: the fields of `HubConfig`, and these."""

    demos: str = DEMO_FORMS[0]
    """How a demonstration reaches the LLM where nothing else is asked for, one of `DEMO_FORMS`."""
    guided: bool = True
    """Whether a question guides the tokens of its picture; False = they are uni-modal."""
    words: str = "google-bert/bert-base-uncased"
    """A BERT, a hub id or a folder: the tokenizer of a published hub, and its text branch where `weights` has none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.demos not in DEMO_FORMS:
            raise UnknownNameError("form of demonstrations", str(self.demos), DEMO_FORMS, where="hub.demos")

    @property
    def published(self) -> bool:
        return self.sizes.form == "published"

    def reader(self, tokenizer: Any) -> Reader:
        """How the words are made that the hub reads.

        Args:
            tokenizer: the LLM's.

        Raises:
            AssetError: the tokenizer of a published hub is not found.
        """
        own = _tokenizer(self.words) if self.published else None
        return Reader(tokenizer, self.sizes.queries, own, self.guided)


@lru_cache(maxsize=4)
def _tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise AssetError(
            f"the tokenizer of the hub, {name!r}, can't be loaded ({type(error).__name__})",
            expected="a BERT, a hub id or a folder",
            fix="Check the name and, for a hub id, the connection; it is `words` in the settings of the hub.",
        ) from error


@dataclass(frozen=True)
class Texts:
    """What is said of the N pictures of a batch."""

    ids: Tensor  # int64 [N, L], -1 behind the end
    forms: Tensor  # int64 [N], see `data.said`
    words: Tensor | None = None  # float [N, L, D], their embeddings in the LLM, where somebody reads them

    @classmethod
    def of(cls, ids: Tensor, forms: Tensor | None, embed: Callable[[Tensor], Tensor], *, published: bool) -> Texts:
        """With the LLM's word embeddings, which stay as they are.

        Args:
            ids: int64 [N, L].
            forms: int64 [N]; None = all pictures are asked about.
            embed: ids -> [N, L, D], as the LLM's first layer sees them.
            published: ids are the LLM's only where the form is `uni_modal`.
        """
        forms = torch.zeros_like(ids[:, 0]) if forms is None else forms
        own = ids.clamp(min=0)
        if published:
            own = torch.where((forms == PLAIN_FORM)[:, None], own, 0)
        with torch.no_grad():
            return cls(ids, forms, embed(own))


class HubReader(nn.Module):
    """What makes a hub a projector to a warm start; batches may be of pictures or of views."""

    hub: Hub

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self.hub = hub
        # What a warm start looks for in a projector.
        self.layer_norm = self.linear_1 = self.positions = None

    @property
    def tokens(self) -> int:
        """Q."""
        return self.hub.tokens

    @property
    def linear_2(self) -> nn.Linear:
        """The last matrix."""
        return self.hub.project

    def hidden(self, features: Tensor) -> Tensor:
        """What the last matrix sees without words: [N, P, V] -> [N, Q, W]."""
        return self.hub.states(features)[0]


class HubProjector(HubReader):
    """A hub and a separator, in a projector's place.

    Args:
        sizes: of the hub.
        in_width: V.
        out_width: D.
    """

    def __init__(self, sizes: HubConfig, in_width: int, out_width: int) -> None:
        super().__init__(Hub(sizes, in_width, out_width))
        self.out_width, self.factor, self.out_norm = out_width, 1, None
        self.separator = nn.Parameter(torch.zeros(out_width))

    def content(self, features: Tensor) -> Tensor:
        """Tokens of pictures without words: [N, P, V] -> [N, Q, D]."""
        return self.hub(features).visual  # type: ignore[no-any-return]

    def set_output_rms(self, rms: float, features: Tensor) -> None:
        """See `Hub.set_output_rms`."""
        self.hub.set_output_rms(rms, features)

    @torch.no_grad()
    def take_separator(self, tokenizer: Any, embed: Callable[[Tensor], Tensor]) -> None:
        """Start the separator as the LLM's line break, so that a light hub's demonstration starts as a line of text.

        Args:
            tokenizer: the LLM's.
            embed: ids -> embeddings, as the first layer sees them.
        """
        read = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("\n", ".", ","))
        ids: list[int] = next(filter(None, read), [])
        if not ids:  # it keeps none of them: the separator stays at zero
            return
        device = next(embed.parameters()).device  # type: ignore[attr-defined]
        self.separator.copy_(embed(torch.tensor(ids, device=device)).float().mean(0))

    def forward(
        self, features: Tensor, ids: Tensor | None = None, forms: Tensor | None = None, words: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Rows of all pictures.

        Args:
            features: [N, P, V].
            ids, forms, words: see `Texts`; None = pictures of which nothing is said.

        Returns:
            tokens [N, M, D], each row's own first, and a mask bool [N, M] of these; None where all rows are full.
        """
        if ids is None or forms is None:
            return self.content(features), None
        there = ids >= 0
        # Where picture and words are not to meet the words are masked: the queries see what they see without any.
        seen = there & (forms != PLAIN_FORM)[:, None]
        out = self.hub(features, words if self.hub.words is None else _bounded(ids, seen), seen)
        text = out.text
        if words is not None:
            text = torch.where((forms == PLAIN_FORM)[:, None, None], words.to(text), text)
        rows = torch.cat([out.visual, text, self.separator.expand(len(text), 1, -1)], 1)  # [N, Q + L + 1, D]
        return _packed(rows, _kept(forms, there, self.tokens))

    def extra_repr(self) -> str:
        return f"tokens={self.tokens}"


def _bounded(ids: Tensor, seen: Tensor) -> Tensor:
    """Ids that can be looked up, also where they are masked and may be of another vocabulary."""
    return torch.where(seen, ids, 0)


def _kept(forms: Tensor, there: Tensor, queries: int) -> Tensor:
    """Which of [queries, text, separator] are a row's tokens: bool [N, Q + L + 1]."""
    visual = (forms != TEXT_FORM)[:, None].expand(-1, queries)
    textual = torch.isin(forms, forms.new_tensor([TEXT_FORM, PLAIN_FORM, BOTH_FORM]))[:, None] & there
    return torch.cat([visual, textual, (forms != ASKED)[:, None]], 1)


def _packed(rows: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's own tokens to its front: [N, K, D] and bool [N, K] -> [N, M, D] and bool [N, M]."""
    order = torch.argsort((~kept).to(torch.uint8), dim=1, stable=True)[:, : int(kept.sum(1).max())]
    return rows.gather(1, order[..., None].expand(-1, -1, rows.shape[-1])), kept.gather(1, order)
