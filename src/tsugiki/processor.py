"""Conversations with pictures to model inputs, as a processor of transformers.

Shapes: B rows, T positions, N images of the batch in order of appearance, S pixels of a side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import AutoProcessor, BatchFeature, ProcessorMixin

from tsugiki.configuration import TsugikiConfig
from tsugiki.data.boxes import BoxCodec
from tsugiki.data.collate import Collator, Item
from tsugiki.data.images import image_size
from tsugiki.data.prompt import Encoded, parts_from_text
from tsugiki.data.said import ASKED, Reader, Said
from tsugiki.errors import PromptError
from tsugiki.model import TsugikiForConditionalGeneration
from tsugiki.types import IMAGE, TAG, TEXT, Batch, ImagePart, Message, Part, Sample, TextPart, register_branch
from tsugiki.vision.frontend import FrontEnd, FrontEndConfig
from tsugiki.vision.packing import tokens_of, transform_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL import Image


class TsugikiProcessor(ProcessorMixin):
    """Makes `input_ids`, `attention_mask`, and with pictures `token_kind`, `image_index`, `pixel_values`.

    Image positions are marked by kind, never by the id: a placeholder that a user types stays text.

    Args:
        tokenizer: the LLM's own, untouched.
        transform: picture to pixels [3, S, S], or to one row for several towers or views.
        tokens_per_image: visual tokens of a picture, the most where the number depends on its shape.
        tokens_of: (width, height) to that number, where it does.
        codec: how boxes are written; None = three decimals.
        reader: of what is said of the pictures, where the front-end has a hub.
    """

    image_token = "<image>"
    """Only a name for callers that count images in text; it is never a token of the vocabulary."""

    def __init__(
        self,
        tokenizer: Any,
        *,
        transform: Callable[[Image.Image], Tensor],
        tokens_per_image: int,
        tokens_of: Callable[[tuple[int, int]], int] | None = None,
        placeholder_id: int,
        image_kind: int,
        max_length: int | None,
        branches: Sequence[str] = ("image",),
        question: bool = False,
        codec: BoxCodec | None = None,
        reader: Reader | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.transform = transform
        self.tokens_per_image = tokens_per_image
        self.tokens_of = tokens_of
        self.image_token_id = placeholder_id
        self.image_kind = image_kind
        self.max_length = max_length
        self.branches, self.question = tuple(branches), question
        for branch in self.branches:
            register_branch(branch)
        self.codec, self.reader = codec or BoxCodec(), reader
        self.chat_template = getattr(tokenizer, "chat_template", None)

    @classmethod
    def of(cls, model: TsugikiForConditionalGeneration) -> TsugikiProcessor:
        """The processor of a built model."""
        return cls(
            model.tokenizer,
            transform=model.frontend.transform,
            tokens_per_image=model.tokens_per_image,
            tokens_of=model.frontend.tokens_of if model.splices and model.frontend.views.count > 1 else None,
            placeholder_id=model.placeholder_id,
            image_kind=IMAGE if model.splices else TAG,
            max_length=getattr(model.language_model.config, "max_position_embeddings", None),
            branches=model.branches,
            question=model.chooses_branch,
            codec=model.frontend.config.codec(),
            reader=model.frontend.config.reader(model.tokenizer),
        )

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, folder: Any, *args: Any, base: Any = None, tokenizer: Any = None, **kwargs: Any
    ) -> TsugikiProcessor:
        """The processor of a saved graft, without loading a model; the tokenizer is the base's own.

        Raises:
            StoreError: no graft there, or its base can't be found.
        """
        from tsugiki.store import base_tokenizer, settings_of

        settings = settings_of(folder)
        facts = settings["tsugiki"]["processor"]
        tokenizer = tokenizer if tokenizer is not None else base_tokenizer(folder, base)
        config = FrontEndConfig.from_dict(settings["frontend"])
        return cls(
            tokenizer,
            transform=transform_of(facts),
            tokens_per_image=facts["tokens_per_image"],
            tokens_of=tokens_of(facts) if facts["tokens_per_image"] > 1 else None,
            placeholder_id=settings["placeholder_id"],
            image_kind=facts["image_kind"],
            max_length=facts["max_length"],
            branches=facts.get("branches", ("image",)),
            question=facts.get("question", False),
            codec=config.codec(),
            reader=config.reader(tokenizer),
        )

    def facts(self, frontend: FrontEnd) -> dict[str, Any]:
        """What a saved graft stores, so that `from_pretrained` needs no model."""
        return {
            **frontend.facts(),
            "tokens_per_image": self.tokens_per_image,
            "image_kind": self.image_kind,
            "max_length": self.max_length,
            "branches": list(self.branches),
            "question": self.question,
        }

    def collator(self, features: Callable[[Any], Tensor] | None = None, **options: Any) -> Collator:
        """Samples to batches of this model."""
        return Collator(
            self.tokenizer,
            placeholder_id=self.image_token_id,
            tokens_per_image=self.tokens_per_image,
            tokens_of=self.tokens_of,
            image_kind=self.image_kind,
            transform=None if features is not None else self.transform,
            features=features,
            branches=self.branches,
            reader=self.reader,
            **{"max_length": self.max_length, "question": self.question, "codec": self.codec, **options},
        )

    def encode(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False, branch: str | None = None
    ) -> dict[str, Tensor]:
        """One conversation to inputs of one row.

        Args:
            branch: the path through the grafts; None leaves it to the model where it decides, else "image".

        Raises:
            PromptError, ImageError: see `data.prompt.encode` and `data.images.open_image`.
            UnknownNameError: no such branch.
        """
        sample = Sample(id="request", messages=tuple(messages), meta={} if branch is None else {"branch": branch})
        decides = self.question and branch is None
        collate = self.collator(labels=False, add_generation_prompt=add_generation_prompt, question=decides)
        batch: Batch = collate([sample])
        return batch.inputs()

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """As in transformers: messages whose content is text or a list of parts, or a list of such conversations."""
        for name in ("tools", "documents", "chat_template", "continue_final_message"):
            if kwargs.get(name):
                raise PromptError(
                    f"{name} with pictures is not supported",
                    expected="messages alone",
                    fix="Render and tokenise such a prompt with the tokenizer.",
                    where="apply_chat_template",
                )
        options = {k: kwargs.pop(k, d) for k, d in (("add_generation_prompt", False), ("tokenize", True))}
        batch = conversation if conversation and isinstance(conversation[0], (list, tuple)) else [conversation]
        if not options["tokenize"]:
            texts = [self.tokenizer.apply_chat_template(_flat(c), tokenize=False, **kwargs) for c in batch]
            return texts if batch is conversation else texts[0]
        samples = [Sample(id=str(i), messages=_messages(c)) for i, c in enumerate(batch)]
        collate = self.collator(
            labels=False,
            add_generation_prompt=options["add_generation_prompt"],
            padding_side=self.tokenizer.padding_side,
        )
        return BatchFeature(collate(samples).inputs())

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> BatchFeature:
        """Texts as they are, without a chat template, `<image>` where each picture stands.

        Prefer `apply_chat_template` for what a user typed: there only image parts are pictures.

        Args:
            images: a picture, a list of them, or one list for each text.
            text: a string or a list of strings.
            kwargs: for the tokenizer, where there is no picture.

        Raises:
            PromptError: a text has more or fewer `<image>` than pictures.
        """
        texts = [text] if isinstance(text, str) else list(text or [])
        if images is None:
            return BatchFeature(self.tokenizer(text, **{"return_tensors": "pt", **kwargs}))
        groups = _groups(images, len(texts))
        parts = [
            parts_from_text(t, g, marker=self.image_token, where="processor")
            for t, g in zip(texts, groups, strict=True)
        ]
        items = [
            Item(self._encoded(p), tuple(q.source for q in p if isinstance(q, ImagePart)), "processor") for p in parts
        ]
        return BatchFeature(self.collator(labels=False, padding_side=self.tokenizer.padding_side)(items).inputs())

    def _encoded(self, parts: Sequence[Part]) -> Encoded:
        ids: list[int] = list(self.tokenizer("")["input_ids"])  # what the tokenizer puts before every text
        kinds, images = [TEXT] * len(ids), [-1] * len(ids)
        count = 0
        for part in parts:
            if isinstance(part, ImagePart):
                size = image_size(part.source) if self.tokens_of is not None else None
                new, kind, image = [self.image_token_id] * self._tokens(size), self.image_kind, count
                count += 1
            else:
                assert isinstance(part, TextPart)
                new, kind, image = self.tokenizer(part.text, add_special_tokens=False)["input_ids"], TEXT, -1
            ids, kinds, images = ids + new, kinds + [kind] * len(new), images + [image] * len(new)
        asked = self.reader.ids("".join(p.text for p in parts if isinstance(p, TextPart))) if self.reader else ()
        said = (Said(ASKED, asked),) * count if self.reader else ()
        question = [int(k == TEXT) for k in kinds] if self.question else None
        return Encoded(ids, kinds, images, question=question, said=said)

    def _tokens(self, size: tuple[int, int] | None) -> int:
        return self.tokens_per_image if self.tokens_of is None or size is None else self.tokens_of(size)

    def batch_decode(self, *args: Any, **kwargs: Any) -> Any:
        return self.tokenizer.batch_decode(*args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        return self.tokenizer.decode(*args, **kwargs)

    def _get_num_multimodal_tokens(self, image_sizes: Sequence[Any] | None = None, **_: Any) -> dict[str, list[int]]:
        """Tokens and patches of images of the given sizes (height, width)."""
        sizes = [(int(width), int(height)) for height, width in image_sizes or ()]
        return {"num_image_tokens": [self._tokens(size) for size in sizes], "num_image_patches": [1] * len(sizes)}

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> list[str]:  # type: ignore[override]
        """Nothing to write: the saved graft's config and the base's tokenizer say all."""
        return []

    def __repr__(self) -> str:
        return f"TsugikiProcessor({self.tokens_per_image} tokens an image, placeholder id {self.image_token_id})"


def encode_samples(
    model: TsugikiForConditionalGeneration,
    samples: Sequence[Sample],
    *,
    labels: bool = False,
    features: Callable[[Any], Tensor] | None = None,
    add_generation_prompt: bool = False,
    padding_side: str | None = None,
) -> Batch:
    """Samples to a Batch on the model's device; padded on the left for generation, else on the right."""
    padding_side = padding_side or ("left" if add_generation_prompt else "right")
    collate = model.processor.collator(
        features, labels=labels, add_generation_prompt=add_generation_prompt, padding_side=padding_side
    )
    batch: Batch = collate(samples)
    moved = {k: v.to(model.device) for k, v in (batch.inputs() | batch.for_losses()).items()}
    return dataclasses.replace(batch, **moved)


def _messages(conversation: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """Messages of transformers' chat format."""
    out = []
    for turn in conversation:
        content = turn["content"]
        if isinstance(content, str):
            out.append(Message(turn["role"], (TextPart(content),)))
            continue
        parts: list[TextPart | ImagePart] = []
        for part in content:
            if part["type"] == "text":
                parts.append(TextPart(part["text"]))
                continue
            source = next((part[k] for k in ("image", "path", "url") if part.get(k) is not None), None)
            if source is None:
                raise PromptError(
                    "an image part without an image", expected="image, path or url", where=str(turn["role"])
                )
            if isinstance(source, str) and source.startswith(("http://", "https://")):
                raise PromptError(
                    f"an image by address: {source}",
                    expected="a local file or an open picture",
                    fix="Download it first.",
                )
            parts.append(ImagePart(source))
        out.append(Message(turn["role"], tuple(parts)))
    return tuple(out)


def _flat(conversation: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    return [
        {"role": m.role, "content": "".join(p.text for p in m.parts if isinstance(p, TextPart))}
        for m in _messages(conversation)
    ]


def _groups(images: Any, n: int) -> list[list[Any]]:
    if images is None:
        return [[] for _ in range(n)]
    if not isinstance(images, (list, tuple)):
        images = [images]
    if images and isinstance(images[0], (list, tuple)):
        return [list(g) for g in images]
    return [list(images)] if n == 1 else [[i] for i in images]


AutoProcessor.register(TsugikiConfig, TsugikiProcessor)
