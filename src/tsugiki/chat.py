"""One turn of a conversation, with or without pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from threading import Thread
from typing import TYPE_CHECKING, Any

import torch
from transformers import TextIteratorStreamer

from tsugiki.data.detail import instruct
from tsugiki.types import BoxPart, ImagePart, ImageSource, Message, TextPart

if TYPE_CHECKING:
    from tsugiki.model import TsugikiForConditionalGeneration


def chat(
    model: TsugikiForConditionalGeneration,
    text: str,
    images: Sequence[ImageSource] = (),
    *,
    history: Sequence[Message] = (),
    detail: str = "full",
    stream: bool = False,
    branch: str | None = None,
    demos: Callable[[Sequence[Message]], Sequence[Message]] | None = None,
    **options: Any,
) -> str | Iterator[str]:
    """Answer `text`, about `images` if there are any.

    A conversation without a picture is the bare LLM's own: its tokenizer, chat template and generation config, and
    `detail` says nothing. With pictures, `detail` asks for a short answer, a full one, or one with boxes.

    Args:
        history: earlier turns; add the returned answer as `Message.of("assistant", answer)`.
        detail: "short", "full" or "boxes".
        stream: return an iterator over pieces of text.
        branch: the path through the grafts, "grounding" for places. None: the model decides where one of its grafts
            does; else "grounding" where `detail` asks for boxes.
        demos: the conversation -> the same with demonstrations in front, as `studies.neighbours` makes it.
        options: for `generate`, such as max_new_tokens, do_sample, num_beams.

    Raises:
        ImageError: a picture can't be read.
        PromptError: the conversation is longer than the LLM's context.
    """
    pictured = bool(images) or any(isinstance(p, ImagePart) for m in history for p in m.parts)
    asked = instruct(text, detail) if pictured else text
    messages: Sequence[Message] = (*history, Message.of("user", asked, tuple(images)))
    if demos is not None:
        messages = demos(messages)
    if branch is None and detail == "boxes" and not model.chooses_branch:
        branch = "grounding"
    inputs = model.processor.encode(messages, add_generation_prompt=True, branch=branch)
    inputs = {k: v.to(model.device) for k, v in inputs.items()}
    own = model.generation_config
    limited = {"max_new_tokens", "max_length", "generation_config"} & set(options)
    if not limited and own.max_new_tokens is None and own.max_length is None:
        options["max_new_tokens"] = 256
    if stream:
        return _stream(model, inputs, options)
    with torch.no_grad():
        output = model.generate(**inputs, **options)
    return decode(model.tokenizer, output[0, inputs["input_ids"].shape[1] :])


def decode(tokenizer: Any, ids: Any) -> str:
    """Token ids of an answer to text."""
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def _stream(model: TsugikiForConditionalGeneration, inputs: dict[str, Any], options: dict[str, Any]) -> Iterator[str]:
    streamer = TextIteratorStreamer(model.tokenizer, skip_prompt=True, skip_special_tokens=True)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            with torch.no_grad():
                model.generate(**inputs, **options, streamer=streamer)
        except BaseException as error:  # handed to the reader's thread below
            failures.append(error)
            streamer.end()

    thread = Thread(target=run, daemon=True)
    thread.start()
    for piece in streamer:
        if piece:
            yield piece
    thread.join()
    if failures:
        raise failures[0]


def plain_text(message: Message) -> str:
    """The text parts of a message, boxes as their labels."""
    return "".join(
        p.text if isinstance(p, TextPart) else (p.label or "") if isinstance(p, BoxPart) else "" for p in message.parts
    )
