"""Conversations -> token ids, kinds, image numbers and labels, through the LLM's own chat template.

Without a picture the ids are those of the bare tokenizer and template. With pictures the template is rendered once with
a random text in the place of each, the result is cut there, and every piece is tokenised as the bare tokenizer does it;
so what a user types never becomes a picture. T = number of tokens.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tsugiki.data._template import (
    PLACEHOLDER,
    answer_spans,
    parts_from_text,
    plain_messages,
    render,
    special_ids,
    text_ids,
)
from tsugiki.data.boxes import BoxCodec
from tsugiki.data.branch import question_span
from tsugiki.data.said import Said
from tsugiki.data.steps import ends, numbered
from tsugiki.errors import PromptError, UnsupportedError
from tsugiki.types import IMAGE, TEXT, ImagePart, Message, Segment, TextPart

__all__ = ["IGNORE", "PLACEHOLDER", "Encoded", "encode", "parts_from_text", "plain_messages", "render", "text_ids"]

IGNORE = -100


@dataclass(frozen=True, slots=True)
class Encoded:
    """One conversation as a model reads it; four lists of T integers."""

    input_ids: list[int]
    token_kind: list[int]
    image_index: list[int]
    """Number of the sample's picture at image positions, -1 elsewhere."""
    labels: list[int] | None = None
    """The id where there is loss, -100 elsewhere."""
    steps: list[int] | None = None
    """Number of the step at labels, -1 elsewhere; where the answer is marked (`data.steps`)."""
    step_weights: tuple[float, ...] | None = None
    """Of all steps, where they are not equal."""
    question: list[int] | None = None
    """1 at the words of the last user message, 0 elsewhere."""
    said: tuple[Said, ...] = ()
    """Of each picture, where a hub reads it."""
    positions: list[int] | None = None
    """From 0 in each of several documents (`data.packing`); None = one, from its start."""

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def images(self) -> int:
        """How many pictures it has."""
        return max(self.image_index, default=-1) + 1

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Runs of one kind and one picture, for people."""
        runs: list[Segment] = []
        for kind, image in zip(self.token_kind, self.image_index, strict=True):
            if runs and (runs[-1].kind, runs[-1].image) == (kind, image):
                last = runs.pop()
                runs.append(Segment(kind, image, last.start, last.length + 1))
            else:
                runs.append(Segment(kind, image, runs[-1].start + runs[-1].length if runs else 0, 1))
        return tuple(runs)


@dataclass(frozen=True, slots=True)
class _Token:
    id: int
    start: int
    end: int
    image: int = -1


def encode(
    messages: Sequence[Message],
    tokenizer: Any,
    *,
    tokens_per_image: int | Sequence[int],
    placeholder_id: int,
    image_kind: int | Sequence[int] = IMAGE,
    sizes: Sequence[tuple[int, int]] = (),
    codec: BoxCodec | None = None,
    labels: bool = False,
    steps: Sequence[int] = (),
    question: bool = False,
    add_generation_prompt: bool = False,
    max_length: int | None = None,
    where: str = "",
) -> Encoded:
    """Encode a conversation.

    Args:
        messages: text, image and box parts in any order and any message.
        tokenizer: of the LLM; without a chat template, "User: ...", "Assistant: ..." and the end-of-text token.
        tokens_per_image: visual tokens of one picture, or of each in order.
        placeholder_id: id at image positions; what counts there is the kind.
        image_kind: kind of image positions, or that of each picture in order.
        sizes: (width, height) of every picture, needed where there are boxes.
        codec: writes boxes, relative to the padded square of their picture.
        labels: also give labels: every assistant message and the token that ends its turn.
        steps: with labels: how many parts of the last message, an answer, each of its steps has.
        question: also mark the words of the last user message, in a conversation with pictures.
        add_generation_prompt: end with the start of an assistant message.
        max_length: the longest conversation allowed, in tokens.
        where: what an error names.

    Raises:
        PromptError: unknown role, image part without an image, box without a size, too long, or a template that
            refuses the conversation, drops a picture or hides where an answer starts.
        UnsupportedError: labels with a tokenizer that gives no offsets.
    """
    count = sum(isinstance(p, ImagePart) for m in messages for p in m.parts)
    marks = _sentinels(messages, count)
    plain = plain_messages(messages, sizes=sizes, codec=codec, image_text=marks.__getitem__, where=where)
    form: Any = {"add_generation_prompt": add_generation_prompt, "where": where}
    if not count and not labels:
        ids = text_ids(plain, tokenizer, **form)
        _check_length(len(ids), 0, max_length, where)
        return Encoded(ids, [TEXT] * len(ids), [-1] * len(ids))
    text = render(plain, tokenizer, **form)
    spans = list(answer_spans(text, plain, tokenizer, **form)) if labels else []
    tokens: list[_Token] = []
    kinds = [image_kind] * count if isinstance(image_kind, int) else image_kind
    each = [tokens_per_image] * count if isinstance(tokens_per_image, int) else tokens_per_image
    for start, end, image in _pieces(text, marks, where):
        if image >= 0:
            tokens += [_Token(placeholder_id, start, end, image)] * each[image]
        else:
            tokens += _tokenise(tokenizer, text[start:end], start, offsets=labels or question)
    _check_length(len(tokens), count, max_length, where)
    scored = _labels(tokens, text, spans, special_ids(tokenizer)) if labels else None
    numbers = None
    if scored is not None and steps:
        last = ends(messages[-1], steps, text, spans[-1], sizes=sizes, codec=codec, where=where)
        numbers = numbered([(t.start, t.end) for t in tokens], scored, spans, last)
    return Encoded(
        input_ids=[t.id for t in tokens],
        token_kind=[TEXT if t.image < 0 else kinds[t.image] for t in tokens],
        image_index=[t.image for t in tokens],
        labels=scored,
        steps=numbers,
        question=_question(tokens, *question_span(text, plain)) if question and count else None,
    )


def _question(tokens: Sequence[_Token], start: int, end: int) -> list[int]:
    return [int(t.image < 0 and t.start < end and t.end > start) for t in tokens]


def _sentinels(messages: Sequence[Message], count: int) -> list[str]:
    """A text for each picture that occurs in no message: random, so that nobody can type it."""
    typed = "".join(p.text for m in messages for p in m.parts if isinstance(p, TextPart)) if count else ""
    while (key := secrets.token_hex(12)) in typed:
        pass
    return [f"Picture{key}N{i}E" for i in range(count)]


def _pieces(text: str, marks: Sequence[str], where: str) -> Iterator[tuple[int, int, int]]:
    """(start, end, picture or -1) of the rendered text cut at the sentinels, in order; empty text is left out."""
    if not marks:
        yield 0, len(text), -1
        return
    found = list(re.finditer("|".join(map(re.escape, marks)), text))
    if [m.group() for m in found] != list(marks):
        raise PromptError(
            f"the chat template shows {len(found)} pictures of {len(marks)}, or in another order",
            expected="a template that writes every message once and in order",
            fix="Give the tokenizer another chat_template, or put the pictures into the last user message.",
            where=where,
        )
    at = 0
    for image, match in enumerate(found):
        if match.start() > at:
            yield at, match.start(), -1
        yield match.start(), match.end(), image
        at = match.end()
    if at < len(text):
        yield at, len(text), -1


def _tokenise(tokenizer: Any, text: str, at: int, *, offsets: bool) -> list[_Token]:
    """Tokens of one piece with their places in the whole text."""
    if not offsets:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return [_Token(i, at, at) for i in ids]
    if not getattr(tokenizer, "is_fast", False):
        raise UnsupportedError(
            f"{type(tokenizer).__name__} gives no character offsets, so answers can't be told from questions",
            expected="a fast tokenizer (tokenizer.json)",
            fix="Load it with AutoTokenizer, or convert it with the tokenizers library.",
        )
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [
        _Token(i, at + start, at + end)
        for i, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]


def _labels(
    tokens: Sequence[_Token], text: str, spans: Sequence[tuple[int, int]], special: frozenset[int]
) -> list[int]:
    """The id of every token of an answer and of the token that ends its turn; -100 elsewhere and at pictures."""
    labels = [IGNORE] * len(tokens)
    for start, end in spans:
        after = len(tokens)
        for i, token in enumerate(tokens):
            # A token without width is white space that the tokenizer trimmed: its place is where the white space ends.
            inside = token.start < end and token.end > start
            if inside or (token.start == token.end and start < token.start <= end):
                labels[i] = IGNORE if token.image >= 0 else token.id
            elif token.start >= end:
                after = i
                break
        ending = _turn_end(tokens, after, text, special)
        for i in range(after, ending):
            labels[i] = tokens[i].id
    return labels


def _turn_end(tokens: Sequence[_Token], at: int, text: str, special: frozenset[int]) -> int:
    """One past the special token that follows an answer, with nothing but white space between; else `at`."""
    for i in range(at, len(tokens)):
        token = tokens[i]
        if token.image >= 0:
            return at
        if token.id in special:
            return i + 1
        if text[token.start : token.end].strip():
            return at
    return at


def _check_length(length: int, images: int, limit: int | None, where: str) -> None:
    if limit is not None and length > limit:
        pictures = f" with {images} pictures" if images else ""
        raise PromptError(
            f"the conversation has {length} tokens{pictures}",
            expected=f"at most {limit}",
            fix="Shorten the text, or use fewer pictures or fewer visual tokens for each.",
            where=where,
        )
