"""A model and its base on the same inputs: losses, divergences and greedy answers, item by item.

Shapes: B rows, T positions, L label positions, V vocabulary. Losses are in nats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tsugiki import identity
from tsugiki.data.prompt import IGNORE
from tsugiki.errors import DataError, InputError
from tsugiki.evals._reference import load_bare
from tsugiki.evals.harness import after_picture
from tsugiki.evals.options import last_turn, without_pictures
from tsugiki.evals.prompts import Prompt
from tsugiki.types import TEXT, Batch, ImageSource, Message, Sample

CONTINUE = "Continue this text: "
_AFTER_TEXT = {"attention_mask": 1, "token_kind": TEXT, "image_index": -1, "question": 0}
"""What stands at positions of an answer, in the inputs that have a value a position."""
_GREEDY: dict[str, Any] = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}


@dataclass(frozen=True)
class Losses:
    """One number a text: sums over its label tokens, in nats."""

    tokens: list[int]
    own: list[float]
    base: list[float]
    divergence: list[float]
    """KL(base || model)."""


@dataclass(frozen=True)
class Greedy:
    """Greedy answers to one prompt, as token ids, and the inputs that they were answers to."""

    own: list[int]
    base: list[int]
    shown: Mapping[str, Tensor]
    """What the own side was asked."""
    plain: Mapping[str, Tensor]
    """What the base was asked: the same words."""

    @property
    def agreement(self) -> float:
        """Common first tokens / tokens of the longer answer."""
        pairs = enumerate(zip(self.own, self.base, strict=False))
        same = next((i for i, (a, b) in pairs if a != b), min(len(self.own), len(self.base)))
        return same / max(len(self.own), len(self.base), 1)


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

    @property
    def llms(self) -> list[Any]:
        """The LLMs that run: the composite's, and the base where it is another object."""
        return [self.model.language_model, *([] if self._base is None else [self._base])]

    def unproven(self) -> Sides:
        """The same sides, both measured on text requests."""
        return Sides(self.model, base=self._base)

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
            messages = after_picture(asked, pictures[i % len(pictures)])
            yield from self.answer_losses([Sample(id=str(i), messages=messages)])

    @torch.no_grad()
    def answer_losses(self, samples: Sequence[Sample]) -> Iterator[Losses]:
        """The last turn of each conversation; the base reads the same words without pictures."""
        for sample in samples:
            plain: Batch = self.model.encode_samples([without_pictures(sample)], labels=True)
            assert plain.labels is not None
            at = torch.tensor(last_turn((plain.labels[0] != IGNORE).tolist())).nonzero()[:, 0]  # [L]
            labels = plain.labels[0, at].cpu()
            words = {"input_ids": plain.input_ids, "attention_mask": plain.attention_mask}
            with self.base() as llm:
                base = llm(**words).logits[0, at - 1]
            if not sample.images:
                own = base if self.proven else self.own(**words).logits[0, at - 1]
            else:
                output = self.model(**self.model.encode_samples([sample], labels=True).inputs())
                if not torch.equal(output.label_ids[-len(at) :].cpu(), labels):
                    continue  # the template cuts a token at the picture
                own = output.logits[0][-len(at) :]
            yield _losses([_compare(own, base, labels.tolist())])

    @torch.no_grad()
    def greedy(
        self, prompts: Sequence[Prompt], max_new_tokens: int, pictures: Sequence[ImageSource] = ()
    ) -> Iterator[Greedy]:
        """Both sides' answers. With pictures, the model is asked after an unrelated one and the base without it."""
        options = {**_GREEDY, "max_new_tokens": max_new_tokens}
        for i, prompt in enumerate(prompts):
            turns = prompt.conversation
            sample = Sample(
                id=str(i), messages=after_picture(turns, pictures[i % len(pictures)]) if pictures else turns
            )
            plain = self.model.encode_samples([without_pictures(sample)], add_generation_prompt=True).inputs()
            shown = plain
            if pictures and self.own is self.model:
                shown = self.model.encode_samples([sample], add_generation_prompt=True).inputs()
            with self.base() as llm:
                base = llm.generate(**plain, **options)[0, plain["input_ids"].shape[1] :].tolist()
            own = base
            if pictures or not self.proven:
                own = self.own.generate(**shown, **options)[0, shown["input_ids"].shape[1] :].tolist()
            yield Greedy(own, base, shown, plain)

    def agreements(
        self, prompts: Sequence[Prompt], max_new_tokens: int, pictures: Sequence[ImageSource] = ()
    ) -> Iterator[float]:
        """Share of each greedy answer up to which model and base agree."""
        if self.proven and not pictures:
            return iter([1.0] * len(prompts))
        return (found.agreement for found in self.greedy(prompts, max_new_tokens, pictures))

    @torch.no_grad()
    def losses_after(self, found: Greedy) -> Losses:
        """Both sides' losses on the tokens of the base's own answer."""
        with self.base() as llm:
            base = _logits(llm, found.plain, found.base)
        own = base if self.proven and found.shown is found.plain else _logits(self.own, found.shown, found.base)
        return _losses([_compare(own, base, found.base)])


def _logits(side: Any, asked: Mapping[str, Tensor], answer: Sequence[int]) -> Tensor:
    """Logits [L, V] at which an answer of L tokens is predicted after what was asked, of 1 row."""
    inputs, ids = dict(asked), asked["input_ids"]
    for name, tensor in asked.items():
        if tensor.shape == ids.shape and name in _AFTER_TEXT:
            inputs[name] = torch.cat([tensor, tensor.new_full((1, len(answer)), _AFTER_TEXT[name])], 1)
    inputs["input_ids"] = torch.cat([ids, ids.new_tensor([list(answer)])], 1)
    start = ids.shape[1] - 1
    logits: Tensor = side(**inputs).logits[0, start : start + len(answer)]
    return logits


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
