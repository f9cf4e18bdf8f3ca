"""Messages -> text by the LLM's chat template, and where in that text the answers are."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from PIL import Image

from tsugiki.data._fields import nearest
from tsugiki.data._record import ROLES
from tsugiki.data.boxes import BoxCodec, PaddedSquare
from tsugiki.errors import BoxError, InputError, PromptError
from tsugiki.types import BoxPart, ImagePart, ImageSource, Message, Part, TextPart

PLACEHOLDER = "<image>"
"""The marker of foreign formats (LLaVA's files, HF processors); our own format has image parts instead."""

Plain = Sequence[dict[str, str]]


def plain_messages(
    messages: Sequence[Message],
    *,
    sizes: Sequence[tuple[int, int]] = (),
    codec: BoxCodec | None = None,
    image_text: Callable[[int], str] = lambda _: "",
    where: str = "",
) -> list[dict[str, str]]:
    """Messages as chat templates take them, boxes written as text and picture number i as `image_text(i)`.

    Raises:
        PromptError: as `encode`.
        BoxError: a box that does not fit its picture.
    """
    if not messages:
        raise PromptError("no message", expected="at least one", fix="Add a user message.", where=where)
    codec, plain, count = codec or BoxCodec(), [], 0
    for number, message in enumerate(messages):
        place = f"{where} messages[{number}]".strip()
        if message.role not in ROLES:
            raise PromptError(
                f"unknown role {message.role!r}",
                expected=f"one of {', '.join(ROLES)}",
                fix=nearest(message.role, ROLES),
                where=place,
            )
        content = ""
        for part in message.parts:
            if isinstance(part, TextPart):
                content += part.text
            elif isinstance(part, ImagePart):
                _check_source(part.source, place)
                content += image_text(count)
                count += 1
            else:
                content += _box_text(part, sizes, codec, place)
        _check_unicode(content, place)
        plain.append({"role": message.role, "content": content})
    return plain


def parts_from_text(
    text: str,
    images: Sequence[ImageSource],
    *,
    marker: str = PLACEHOLDER,
    where: str = "",
    error: type[InputError] = PromptError,
) -> tuple[Part, ...]:
    """A text with one marker for each picture -> its parts, as foreign formats and HF processors write it.

    Raises:
        PromptError (or the `error` given): another number of markers than of pictures.
    """
    pieces = text.split(marker)
    if len(pieces) - 1 != len(images):
        more = "more" if len(pieces) - 1 > len(images) else "fewer"
        raise error(
            f"{len(pieces) - 1} {marker} placeholders for {len(images)} pictures, {more} than pictures",
            expected="one placeholder for each picture",
            fix=f"Correct the text or the pictures; where {marker} is meant as text, use an image part instead.",
            where=where,
        )
    parts: list[Part] = []
    for number, piece in enumerate(pieces):
        if number:
            parts.append(ImagePart(images[number - 1]))
        if piece:
            parts.append(TextPart(piece))
    return tuple(parts)


def render(plain: Plain, tokenizer: Any, *, add_generation_prompt: bool = False, where: str = "") -> str:
    """The text of a conversation by the tokenizer's chat template, or in plain form where it has none.

    Raises:
        PromptError: the template refuses the conversation (roles that do not alternate, a system message, ...).
    """
    if not tokenizer.chat_template:
        return _render_plain(plain, tokenizer, add_generation_prompt)
    from jinja2.exceptions import TemplateError

    try:
        return str(
            tokenizer.apply_chat_template(list(plain), tokenize=False, add_generation_prompt=add_generation_prompt)
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise PromptError(
            f"the chat template refuses the conversation ({str(error) or type(error).__name__})",
            expected="roles and their order as the LLM's chat template allows them",
            fix="Let user and assistant take turns, and move a system message into the first user message.",
            where=where,
        ) from error


def text_ids(plain: Plain, tokenizer: Any, *, add_generation_prompt: bool = False, where: str = "") -> list[int]:
    """Ids of a conversation without pictures, by the bare tokenizer and its chat template.

    Raises:
        PromptError: as `render`.
    """
    text = render(plain, tokenizer, add_generation_prompt=add_generation_prompt, where=where)
    if not tokenizer.chat_template:
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    ids = tokenizer.apply_chat_template(
        list(plain), tokenize=True, return_dict=False, add_generation_prompt=add_generation_prompt
    )
    return [int(i) for i in ids]


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of all special tokens, also those that have no name of their own."""
    added = {i for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids))


def answer_spans(
    text: str, plain: Plain, tokenizer: Any, *, add_generation_prompt: bool = False, where: str = ""
) -> Iterator[tuple[int, int]]:
    """(start, end) in characters of every assistant message in `text`, without its end of turn.

    An answer starts where the prompt for it ends: the conversation up to it, rendered with a generation prompt, is a
    prefix of `text`. Where it is not (templates that treat history in another way), and for the end, the message is
    rendered once more with a random text in its place, and what differs is the answer.

    Raises:
        PromptError: neither shows where it is.
    """
    for number, message in enumerate(plain):
        if message["role"] != "assistant":
            continue
        start, end = _by_replacing(text, plain, number, tokenizer, add_generation_prompt)
        prompt = _try_render(plain[:number], tokenizer, generation=True)
        if prompt is not None and text.startswith(prompt):
            start = len(prompt)
        if end is None and start is not None:
            end = _by_prefix(text, plain, number, start, tokenizer)
        if start is None or end is None or end < start:
            raise PromptError(
                "the chat template hides where the answer is",
                expected="a template that writes assistant messages as they are",
                fix="Give the tokenizer another chat_template.",
                where=f"{where} messages[{number}]".strip(),
            )
        yield start, end


def _by_replacing(
    text: str, plain: Plain, number: int, tokenizer: Any, generation: bool
) -> tuple[int | None, int | None]:
    """Where a message's content is: between what comes before and after a random text put in its place."""
    mark = f"Answer{secrets.token_hex(12)}E"
    other = [{**m, "content": mark} if i == number else m for i, m in enumerate(plain)]
    pieces = (_try_render(other, tokenizer, generation=generation) or "").split(mark)
    if len(pieces) != 2 or len(text) < len(pieces[0]) + len(pieces[1]):
        return None, None
    before, after = pieces
    return (
        len(before) if text.startswith(before) else None,
        len(text) - len(after) if text.endswith(after) else None,
    )


def _by_prefix(text: str, plain: Plain, number: int, start: int, tokenizer: Any) -> int | None:
    """End of a message's content where the template looks into it: the last place of it before the next message."""
    until = _try_render(plain[: number + 1], tokenizer, generation=False)
    content = plain[number]["content"].strip()
    if until is None or not text.startswith(until):
        return None
    # A template may show only the end of an answer (it drops the thinking): its last line is looked for then.
    for shown in (content, content.rpartition("\n")[2]):
        at = text.rfind(shown, start, len(until))
        if at >= 0:
            return at + len(shown)
    return None


def _try_render(plain: Plain, tokenizer: Any, *, generation: bool) -> str | None:
    if not plain:
        return None
    try:
        return render(plain, tokenizer, add_generation_prompt=generation)
    except PromptError:
        return None


def _render_plain(plain: Plain, tokenizer: Any, generation: bool) -> str:
    """A base model's tokenizer has no template: names, colons and the end-of-text token."""
    begin = getattr(tokenizer, "bos_token_id", None)
    starts = begin is not None and list(tokenizer("", verbose=False)["input_ids"])[:1] == [begin]
    text = tokenizer.bos_token if starts else ""
    for message in plain:
        end = (tokenizer.eos_token or "") if message["role"] == "assistant" else ""
        text += f"{message['role'].capitalize()}: {message['content']}{end}\n"
    return text + "Assistant:" if generation else text


def _check_source(source: ImageSource | None, where: str) -> None:
    if source is None or (not isinstance(source, Image.Image) and str(source) == "") or source == b"":
        raise PromptError(
            "an image part without an image", expected="a path, bytes or a picture", fix="Give one.", where=where
        )


def _check_unicode(text: str, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            f"half of a surrogate pair at character {error.start}",
            expected="valid Unicode",
            fix="Remove it.",
            where=where,
        ) from error


def _box_text(part: BoxPart, sizes: Sequence[tuple[int, int]], codec: BoxCodec, where: str) -> str:
    if not 0 <= part.image < len(sizes):
        raise PromptError(
            f"a box in picture {part.image}, but the sizes of {len(sizes)} pictures are known",
            expected="the number of a picture, from 0",
            fix="Add its image part, or correct the number.",
            where=where,
        )
    try:
        return codec.encode(part.box, PaddedSquare(*sizes[part.image]))
    except BoxError as error:
        raise BoxError(error.found, expected=error.expected, fix=error.fix, where=where) from error
