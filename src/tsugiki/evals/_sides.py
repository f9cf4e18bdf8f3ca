"""A model and its base on the same inputs: losses, divergences and greedy answers, item by item.

Shapes: B rows, T positions, L label positions, V vocabulary. Losses are in nats.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tsugiki import identity
from tsugiki.errors import DataError, InputError
from tsugiki.evals._reference import load_bare
from tsugiki.evals.harness import after_picture
from tsugiki.evals.options import without_pictures
from tsugiki.evals.prompts import Prompt
from tsugiki.types import Batch, ImageSource, Message, Sample

CONTINUE = "Continue this text: "
_GREEDY: dict[str, Any] = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}


@dataclass(frozen=True)
class Losses:
    """One number a text: sums over its label tokens, in nats."""

    tokens: list[int]
    own: list[float]
    base: list[float]
    divergence: list[float]
    """KL(base || model)."""


class Sides:
    """The two sides of a comparison.

    Args:
        model: the composite; encodes conversations, and is the own side.
        base: the bare LLM; None = the model's own with the grafts detached, or loaded from its source where it trained.
        own: a bare LLM to be judged in place of the composite (a damaged copy), on text requests.
        proven: on text requests take the base's figures for the model's too: `verify` has shown that they are equal.

    Raises:
        InputError: the LLM was trained and its source is not there.
    """

    def __init__(self, model: Any, *, base: Any = None, own: Any = None, proven: bool = False) -> None:
        self.model, self.own, self.proven = model, own if own is not None else model, proven
        self._base = base
        if base is None and getattr(model.config, "llm_trained", False):
            folder = identity.find_source(model.language_model, model.base_identity)
            if folder is None:
                raise InputError(
                    f"the LLM was trained, and its base {model.base_identity.get('name')} has no source files here",
                    expected="base=, the bare LLM",
                    where="retention",
                )
            self._base = load_bare(folder, model.language_model)

    @contextmanager
    def base(self) -> Iterator[Any]:
        """The bare LLM, inside."""
        if self._base is not None:
            yield self._base
            return
        with self.model.detached() as llm:
            yield llm

    @torch.no_grad()
    def text_losses(self, texts: Sequence[str], batch_size: int = 4) -> Iterator[Losses]:
        """Every token of bare texts, in batches of like shapes."""
        rows = bare_rows(self.model, texts)
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            ids, mask = right_padded(part, self.model.tokenizer.pad_token_id or 0, self.model.device)
            with self.base() as llm:
                base = llm(input_ids=ids, attention_mask=mask).logits
            own = base if self.proven else self.own(input_ids=ids, attention_mask=mask).logits
            found = [_compare(o[: len(r) - 1], b[: len(r) - 1], r[1:]) for o, b, r in zip(own, base, part, strict=True)]
            yield _losses(found)

    @torch.no_grad()
    def picture_losses(self, texts: Sequence[str], pictures: Sequence[ImageSource]) -> Iterator[Losses]:
        """The second half of texts, asked for after an unrelated picture; the base reads the same words without it."""
        for i, text in enumerate(texts):
            head, tail = _halves(text)
            asked = Message.of("user", CONTINUE + head), Message.of("assistant", tail)
            sample = Sample(id=str(i), messages=after_picture(asked, pictures[i % len(pictures)]))
            shown: Batch = self.model.encode_samples([sample], labels=True)
            plain: Batch = self.model.encode_samples([without_pictures(sample)], labels=True)
            output = self.model(**shown.inputs())
            assert plain.labels is not None
            at = (plain.labels[0] != -100).nonzero()[:, 0]  # [L]
            with self.base() as llm:
                logits = llm(input_ids=plain.input_ids, attention_mask=plain.attention_mask).logits[0, at - 1]
            labels = plain.labels[0, at]
            if torch.equal(output.label_ids.cpu(), labels.cpu()):  # a template may cut a token at the picture
                yield _losses([_compare(output.logits[0], logits, labels.tolist())])

    @torch.no_grad()
    def agreements(
        self, prompts: Sequence[Prompt], max_new_tokens: int, pictures: Sequence[ImageSource] = ()
    ) -> Iterator[float]:
        """Share of each greedy answer up to which model and base agree: common first tokens / tokens of the longer one.

        With pictures, the model is asked after an unrelated one and the base without it.
        """
        if self.proven and not pictures:
            yield from (1.0 for _ in prompts)
            return
        options = {**_GREEDY, "max_new_tokens": max_new_tokens}
        for i, prompt in enumerate(prompts):
            turns = tuple(Message.of(role, text) for role, text in prompt.turns)  # type: ignore[arg-type]
            if pictures:
                turns = after_picture(turns, pictures[i % len(pictures)])
            sample = Sample(id=str(i), messages=turns)
            plain = self.model.encode_samples([without_pictures(sample)], add_generation_prompt=True).inputs()
            shown = self.model.encode_samples([sample], add_generation_prompt=True).inputs() if pictures else plain
            inputs = plain if self.own is not self.model else shown
            own = self.own.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :].tolist()
            with self.base() as llm:
                base = llm.generate(**plain, **options)[0, plain["input_ids"].shape[1] :].tolist()
            same = next(
                (k for k, (a, b) in enumerate(zip(own, base, strict=False)) if a != b), min(len(own), len(base))
            )
            yield same / max(len(own), len(base), 1)


def _compare(own: Tensor, base: Tensor, labels: Sequence[int]) -> tuple[int, float, float, float]:
    """Tokens, own and base loss, KL(base || own), summed over positions: logits [L, V], labels [L]."""
    target = torch.tensor(labels, device=own.device)[:, None]
    p, q = own.float().log_softmax(-1), base.float().to(own.device).log_softmax(-1)
    divergence = (q.exp() * (q - p)).sum(-1).double().sum()
    losses = [-float(x.gather(1, target).double().sum()) for x in (p, q)]
    return len(labels), losses[0], losses[1], max(float(divergence), 0.0)


def _losses(found: Sequence[tuple[int, float, float, float]]) -> Losses:
    tokens, own, base, divergence = (list(column) for column in zip(*found, strict=True))
    return Losses(tokens, own, base, divergence)


def joined(parts: Iterator[Losses]) -> Losses:
    """Losses of all texts."""
    out = Losses([], [], [], [])
    for part in parts:
        out.tokens.extend(part.tokens)
        out.own.extend(part.own)
        out.base.extend(part.base)
        out.divergence.extend(part.divergence)
    return out


def _halves(text: str) -> tuple[str, str]:
    """A text cut at the space next to its middle."""
    cut = text.rfind(" ", 0, len(text) // 2 + 1)
    cut = cut if cut > 0 else len(text) // 2
    return text[:cut], text[cut:].strip()


def bare_rows(model: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of bare texts after the tokenizer's first token, as much as the LLM's context holds.

    Raises:
        DataError: a text of fewer than two tokens.
    """
    tokenizer, length = model.tokenizer, _context(model)
    first = next((i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), None)
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"][: length - 1] for text in texts]
    rows = [[first, *row] if first is not None else row for row in rows]
    if any(len(row) < 2 for row in rows):
        raise DataError("an empty text", expected="at least two tokens", where="texts")
    return rows


def right_padded(rows: Sequence[list[int]], pad: int, device: Any) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([r + [pad] * (width - len(r)) for r in rows], device=device)
    mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows], device=device)
    return ids, mask


def _context(model: Any) -> int:
    return int(getattr(model.language_model.config, "max_position_embeddings", None) or 2048)
