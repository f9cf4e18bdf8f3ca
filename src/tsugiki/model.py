"""Front-end + grafts + an untouched LLM, as one Hugging Face model.

A request without an image is the LLM's own forward and generate, nothing else. A request with an image runs the same
LLM with a context in its keywords, which the grafts' sites read.
Shapes: B rows, T positions, N images, M visual tokens, D LLM width.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForImageTextToText, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tsugiki import branches
from tsugiki.configuration import CACHE, TsugikiConfig, TsugikiOutput, cache_of
from tsugiki.decoder import DecoderSpec, is_peft, unwrapped
from tsugiki.errors import InputError, PromptError, UnknownNameError, UnsupportedError
from tsugiki.generation import SeeingGeneration, refuse_imageless_placeholders, text_kinds
from tsugiki.grafts import _context
from tsugiki.grafts._base import Graft
from tsugiki.grafts._cache import TsugikiCache
from tsugiki.grafts._context import KEYWORD, Context
from tsugiki.grafts._sites import refuse_unregistered
from tsugiki.types import Guarantee, How, ImageSource, Message, Sample, VisualTokens
from tsugiki.vision.frontend import FrontEnd
from tsugiki.vision.hub_projector import Texts
from tsugiki.vision.site import adapt_frontend

_TAKEN = "tsugiki_grafted"
"""An attribute of an LLM that has hooks of a model; they outlive the model that set them."""


class TsugikiForConditionalGeneration(PreTrainedModel, SeeingGeneration, GenerationMixin):
    """A pretrained causal LM with eyes.

    Args:
        config: made by `tsugiki.attach` or read by `tsugiki.load`.
        llm: the causal LM as handed over; its tree, keys and weights stay as they are.
        frontend: images to visual tokens.
        grafts: in the order in which they act.
        tokenizer: the LLM's own.
    """

    config_class = TsugikiConfig
    base_model_prefix = "tsugiki"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    _skip_keys_device_placement = [CACHE]
    _supports_flash_attn = _supports_sdpa = _supports_flex_attn = _supports_attention_backend = True

    def __init__(
        self,
        config: TsugikiConfig,
        llm: PreTrainedModel,
        frontend: FrontEnd,
        grafts: Sequence[Graft],
        tokenizer: Any,
    ) -> None:
        if _TAKEN in llm.__dict__:
            raise InputError(
                "an LLM that carries the grafts of another model",
                expected="a bare LLM, or the model that `attach` returned",
                fix="Call detach() on that model, load the LLM again, or attach to the model to stack grafts.",
                where="attach(llm)",
            )
        super().__init__(config)
        self.language_model = llm
        self.frontend = frontend
        self.grafts = nn.ModuleList(grafts)
        self.decoder = DecoderSpec(llm)
        self.decoder.inserted = tuple(b for g in grafts for b in g.added_layers())
        self.tokenizer = tokenizer
        self.base_identity: dict[str, Any] = dict(config.base_identity or {})
        self._removers: list[Callable[[], None]] = []
        self._llm_keywords = set(inspect.signature(self.decoder.llm.forward).parameters)
        self.all_tied_weights_keys: dict[str, str] = {}
        self._trained_llm = config.llm_trained
        self.freeze_llm(not config.llm_trained)
        self._hook()
        try:
            refuse_unregistered(self.decoder)
        except BaseException:
            self._unhook()
            raise
        self.train(False)

    # -- what is inside ------------------------------------------------------------------------------------------------

    @property
    def placeholder_id(self) -> int:
        return int(self.config.placeholder_id)

    @property
    def splices(self) -> bool:
        """Whether any graft puts visual tokens at the placeholders; else an image is one tag in the prompt."""
        return any(cast(Graft, g).SPLICES for g in self.grafts)

    @property
    def tokens_per_image(self) -> int:
        return self.frontend.tokens_per_image if self.splices else 1

    @property
    def guarantee(self) -> Guarantee:
        exact = not self._trained_llm and all(cast(Graft, g).guarantee == "exact" for g in self.grafts)
        return "exact" if exact else "bounded"

    @property
    def how(self) -> How:
        return "switched" if any(cast(Graft, g).how == "switched" for g in self.grafts) else "untouched"

    @property
    def prefix_exact(self) -> bool:
        return self.guarantee == "exact" and self.keeps_prefix

    @property
    def keeps_prefix(self) -> bool:
        """Whether text before the first image is the same with and without the image: its cache may be continued."""
        return all(cast(Graft, g).prefix_exact or cast(Graft, g).on_text for g in self.grafts)

    @property
    def on_text(self) -> bool:
        """Whether any graft also acts on requests without an image."""
        return any(cast(Graft, g).on_text for g in self.grafts)

    @property
    def branches(self) -> tuple[str, ...]:
        """The paths through the grafts that a row with an image may take."""
        return tuple(dict.fromkeys(("image", *(b for g in self.grafts for b in cast(Graft, g).branches))))

    @property
    def chooses_branch(self) -> bool:
        """Whether a graft decides on the branch of requests that name none."""
        return any(cast(Graft, g).chooses_branch for g in self.grafts)

    @property
    def generation_config(self) -> GenerationConfig:
        """The LLM's own."""
        llm = self.__dict__["_modules"].get("language_model")
        return llm.generation_config if llm is not None else GenerationConfig()

    @generation_config.setter
    def generation_config(self, value: GenerationConfig) -> None:
        llm = self.__dict__.get("_modules", {}).get("language_model")
        if llm is not None:
            unwrapped(llm).generation_config = value  # type: ignore[assignment]

    @property
    def processor(self) -> Any:
        """Conversations with images to this model's inputs."""
        from tsugiki.processor import TsugikiProcessor

        return TsugikiProcessor.of(self)

    def get_input_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.language_model.get_input_embeddings()
        return embeddings

    def get_output_embeddings(self) -> nn.Module:
        head: nn.Module = self.language_model.get_output_embeddings()
        return head

    def init_weights(self) -> None:
        """Nothing: every part comes with its weights."""

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the LLM ties its own."""

    def __str__(self) -> str:
        from tsugiki.build import describe

        return describe(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> TsugikiForConditionalGeneration:
        """A copy whose hooks run its own parts: a copied hook would still call the original's."""
        self._unhook()
        try:
            twin = type(self).__new__(type(self))
            memo[id(self)] = twin
            twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        finally:
            self._hook()
        twin._hook()
        return twin

    # -- hooks ---------------------------------------------------------------------------------------------------------

    def _hook(self) -> None:
        for graft in self.grafts:
            cast(Graft, graft).attach(self.decoder)
        self._removers.append(self.decoder.head.register_forward_pre_hook(_keep_positions).remove)
        self.language_model.__dict__[_TAKEN] = True

    def _unhook(self) -> None:
        while self._removers:
            self._removers.pop()()
        for graft in reversed(self.grafts):
            cast(Graft, graft).detach()
        self.language_model.__dict__.pop(_TAKEN, None)

    @contextmanager
    def detached(self) -> Iterator[PreTrainedModel]:
        """The bare LLM, without any hook, inside."""
        self._unhook()
        try:
            yield self.language_model
        finally:
            self._hook()

    def detach(self) -> PreTrainedModel:
        """Take the graft off and give the LLM back as it was handed over."""
        self._unhook()
        return cast(PreTrainedModel, self.language_model)

    def freeze_llm(self, frozen: bool = True) -> None:
        """Freeze the LLM (the default), or let it train; a trained LLM makes the guarantee `bounded`.

        Raises:
            UnsupportedError: a PeftModel is to train: what is saved would lack its adapter.
        """
        if not frozen and is_peft(self.language_model):
            raise UnsupportedError(
                "the base is a PeftModel, which stays as it was handed over",
                expected="a plain LLM, to train it",
                fix="Attach to peft_model.merge_and_unload() instead.",
            )
        self.language_model.requires_grad_(not frozen)
        self._trained_llm = self._trained_llm or not frozen
        self.config.llm_trained = self._trained_llm

    def graft(self, name: str) -> Graft:
        """The graft of that name.

        Raises:
            UnknownNameError: there is none.
        """
        found = {cast(Graft, g).name: cast(Graft, g) for g in self.grafts}
        if name not in found:
            raise UnknownNameError("graft of this model", name, found)
        return found[name]

    def adjust(self, graft: str, **changes: Any) -> None:
        """Change settings of a graft that alter no shape; they are saved with it.

        Raises:
            UnknownNameError: no such graft, or none of its settings that can change.
            InputError: a wrong value.
        """
        part = self.graft(graft)
        part.config = part.adjusted(self.decoder, **changes)
        saved = {"name": graft, "config": dataclasses.asdict(part.config)}
        self.config.grafts = [saved if g["name"] == graft else g for g in self.config.grafts or []]

    def train(self, mode: bool = True) -> TsugikiForConditionalGeneration:
        """Training mode for what trains; frozen parts stay in eval mode, without dropout."""
        super().train(mode)
        if mode and not any(p.requires_grad for p in self.language_model.parameters()):
            self.language_model.eval()
            # transformers recomputes a layer only while that layer is in training mode; its children stay in eval mode.
            for layer in self.decoder.layers:
                layer.training = bool(getattr(layer, "gradient_checkpointing", False)) and not _drops(layer)
        return self

    def enable_checkpointing(self, **options: Any) -> None:
        """Recompute layers in the backward pass instead of keeping them, under either version's name for it."""
        enable = getattr(self, "activation_checkpointing_enable", None) or self.gradient_checkpointing_enable
        enable(**options)

    def _set_gradient_checkpointing(  # type: ignore[override]
        self, enable: bool = True, gradient_checkpointing_func: Callable[..., Any] = checkpoint, **kwargs: Any
    ) -> None:
        if isinstance(gradient_checkpointing_func, partial) and gradient_checkpointing_func.keywords.get(
            "use_reentrant"
        ):
            # The reentrant form does not see what grafts share between layers: its gradients would be wrong.
            gradient_checkpointing_func = partial(gradient_checkpointing_func, use_reentrant=False)

        def recompute(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
            # The backward pass runs after the forward's context is gone, on another thread for accelerators.
            return gradient_checkpointing_func(_context.bound(function, _context.current()), *args, **options)

        super()._set_gradient_checkpointing(enable, recompute, **kwargs)
        self.train(self.training)

    # -- forward -------------------------------------------------------------------------------------------------------

    def get_image_features(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """pixel_values [N, 3, S, S] -> `.pooler_output`: a list of N tensors [M, D]."""
        visual = self.frontend(pixel_values=pixel_values)
        return BaseModelOutputWithPooling(last_hidden_state=visual.tokens, pooler_output=visual.each)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_kind: Tensor | None = None,
        image_index: Tensor | None = None,
        pixel_values: Tensor | None = None,
        vision_features: Tensor | None = None,
        image_text: Tensor | None = None,
        image_form: Tensor | None = None,
        visual: VisualTokens | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        branch: Tensor | str | None = None,
        question: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> TsugikiOutput:
        """One forward.

        Args:
            input_ids: int64 [B, T].
            attention_mask: int64 [B, past + T], 1 = real; or whatever the LLM takes.
            token_kind, image_index: int64 [B, T] from the processor or collator; without images leave them out.
            pixel_values: float [N, 3, S, S]; or `vision_features` [N, P, V], the tower's cached output; or `visual`.
                Of a mixed front-end both are [N, E].
            image_text, image_form: int64 [N, L] and [N], what is said of each picture, where the front-end has a hub;
                without them it sees pictures alone.
            labels: int64 [B, T], -100 = no loss. Then logits are computed at label positions only.
            cache, past_key_values: two names of the same.
            branch: int64 [B], numbers of `types.BRANCHES`, or one name: the path of each row through the grafts. None:
                the cache's, or what a graft decides by `question`, else "image". Rows of several branches run apart.
                Give a row of text "text": with another number it runs as one whose image is still to come.
            question: int64 [B, T], 1 at the words of the last user turn.
            mm_token_type_ids: ignored, for callers that derive it from a processor of transformers.

        Raises:
            PromptError: placeholders and visual tokens do not match, image positions without an image, or a cache for
                rows of several branches or of another one.
            UnknownNameError: no such branch.
        """
        keep = None if labels is None else _label_positions(labels)
        if visual is None and (pixel_values is not None or vision_features is not None):
            texts = self._texts(image_text, image_form)
            visual = self.frontend(pixel_values=pixel_values, features=vision_features, texts=texts)
        past = cache if cache is not None else past_key_values
        with_image = visual is not None or (isinstance(past, TsugikiCache) and past.has_image)
        common: dict[str, Any] = {"attention_mask": attention_mask, "inputs_embeds": inputs_embeds, **kwargs}
        if not with_image:
            refuse_imageless_placeholders(token_kind)
        if not with_image and not self.on_text:
            common |= {"input_ids": input_ids, "position_ids": position_ids, CACHE: past}
            if position_ids is not None and attention_mask is None and labels is not None:
                use_cache = False  # transformers tells packed documents apart only where there is no past to come
            common |= {"use_cache": use_cache, "logits_to_keep": logits_to_keep}
            given = _given(common)
            if keep is None:
                return cast(TsugikiOutput, self.language_model(**given))
            with _context.running(Context(visual=None, keep=keep)):
                return self._scored(self.language_model(**given), labels, keep, num_items_in_batch)

        shape = input_ids.shape if input_ids is not None else cast(Tensor, inputs_embeds).shape[:2]
        device = (input_ids if input_ids is not None else cast(Tensor, inputs_embeds)).device
        kinds = token_kind if token_kind is not None else text_kinds(attention_mask, shape, device)
        images = image_index if image_index is not None else torch.full(shape, -1, device=device)
        asked = use_cache
        if use_cache is None:
            use_cache = labels is None and not self.training and bool(self.language_model.config.use_cache)
        rows, name = branches.of_rows(self, kinds, branch, past, input_ids=input_ids, question=question), "image"
        if rows is not None and with_image:
            if len(found := branches.groups(rows)) > 1:
                branches.refuse_cache(past, asked)
                common |= {"input_ids": input_ids, "position_ids": position_ids, "labels": labels, "visual": visual}
                common |= {"token_kind": kinds, "image_index": images, "branch": rows, "use_cache": False}
                common["logits_to_keep"] = logits_to_keep
                return branches.forward(self.forward, common, rows, num_items_in_batch)
            name = found[0][0]
        recomputed = torch.is_grad_enabled() and any(
            m.training and getattr(m, "gradient_checkpointing", False) for m in self.decoder.layers
        )
        cache = None if recomputed else self._cache(past, use_cache, attention_mask, shape, device, name)
        if cache is not None and rows is not None:
            cache.take_rows(rows != branches.TEXT_ROW, prefix_exact=self.keeps_prefix)
        context_visual, images = _with_past(cache, visual, images)
        if position_ids is None and "position_ids" in self._llm_keywords:
            position_ids = _positions(attention_mask, shape[1])
        context = _context.build(
            kinds,
            images,
            context_visual,
            position_ids=position_ids,
            cache=cache,
            keep=keep,
            branch=name,
            rows=None if rows is None else rows != branches.TEXT_ROW,
        )
        common |= {"input_ids": self._safe(input_ids), "position_ids": position_ids, CACHE: cache}
        common |= {"use_cache": use_cache, "logits_to_keep": logits_to_keep, KEYWORD: context}
        with _context.running(context):
            output = self.language_model(**_given(common))
        penalties = [p for g in self.grafts if (p := cast(Graft, g).penalty(context)) is not None]
        return self._scored(output, labels, keep, num_items_in_batch, penalties)

    def _cache(
        self,
        past: Cache | None,
        use_cache: bool,
        mask: Tensor | None,
        shape: Sequence[int],
        device: torch.device,
        branch: str,
    ) -> TsugikiCache | None:
        if past is None and not use_cache:
            return None
        if past is None:
            past = DynamicCache(config=self.language_model.config)
        if isinstance(past, TsugikiCache):
            return past
        length = int(past.get_seq_length())
        if length and (self.on_text or not self.keeps_prefix):
            raise PromptError(
                "this cache was computed without the grafts, which act on text before an image too",
                expected="a cache that this model returned",
                fix="Encode the conversation again from its start.",
            )
        cache = TsugikiCache(past, branch=branch, inserted=self.decoder.inserted_places)
        if length:  # a conversation that began without an image
            past_mask = mask[:, :length] if mask is not None and mask.dim() == 2 else None
            text = text_kinds(past_mask, (shape[0], length), device)
            cache.append(text, torch.full_like(text, -1))
        return cache

    def _texts(self, ids: Tensor | None, forms: Tensor | None) -> Texts | None:
        """What a hub reads beside the pictures; None where there is none, or nothing is said."""
        if ids is None or self.frontend.hub is None:
            return None
        return Texts.of(ids, forms, self.decoder.embed, published=self.frontend.hub.hub.words is not None)

    def _safe(self, input_ids: Tensor | None) -> Tensor | None:
        """Placeholders beyond the vocabulary become padding before the embedding looks them up."""
        if input_ids is None:
            return None
        rows = self.decoder.vocabulary
        if self.placeholder_id < rows:
            return input_ids
        return torch.where(input_ids >= rows, torch.full_like(input_ids, self._filler), input_ids)

    @property
    def _filler(self) -> int:
        pad = getattr(self.tokenizer, "pad_token_id", None)
        return int(pad) if pad is not None else 0

    def _scored(
        self,
        output: Any,
        labels: Tensor | None,
        keep: Tensor | None,
        num_items: Tensor | int | None,
        penalties: Sequence[Tensor] = (),
    ) -> TsugikiOutput:
        result = TsugikiOutput(
            logits=output.logits,
            hidden_states=output.get("hidden_states"),
            attentions=output.get("attentions"),
        )
        if (cache := cache_of(output)) is not None:
            result[CACHE] = cache
        if labels is None or keep is None:
            return result
        target = labels.flatten()[keep + 1]  # positions never end a row, see _label_positions
        logits = output.logits.flatten(0, -2).float()
        total = F.cross_entropy(logits, target.to(logits.device), reduction="sum")
        if penalties:  # the mean over label tokens, like the rest: accumulated batches add up to the step's
            result.penalty = torch.stack([p.to(total.device) for p in penalties]).sum().expand(keep.numel())
            total = total + result.penalty.sum()
        count = num_items if num_items is not None else max(int(keep.numel()), 1)
        result.loss = total / (count.to(total.device) if isinstance(count, Tensor) else count)
        result.label_ids, result.label_rows = target, keep // labels.shape[1]
        return result

    # -- conversations, samples, folders: the other files of this room -------------------------------------------------

    def chat(
        self,
        text: str,
        images: Sequence[ImageSource] = (),
        *,
        history: Sequence[Message] = (),
        detail: str = "full",
        stream: bool = False,
        branch: str | None = None,
        demos: Callable[[Sequence[Message]], Sequence[Message]] | None = None,
        **options: Any,
    ) -> Any:
        """Answer one turn; see `tsugiki.chat.chat`."""
        from tsugiki.chat import chat

        given: Any = {"history": history, "detail": detail, "stream": stream, "branch": branch, "demos": demos}
        return chat(self, text, images, **given, **options)

    def encode_samples(self, samples: Sequence[Sample], **options: Any) -> Any:
        """Samples to a Batch of this model; see `tsugiki.processor.encode_samples`."""
        from tsugiki.processor import encode_samples

        return encode_samples(self, samples, **options)

    def adapt_to_site(self, pictures: Iterable[ImageSource], blend: float = 0.5) -> int:
        """Estimate the batch norms of the vision towers again on unlabelled pictures; see `vision.site`. Text is not
        touched; proofs and cached features of before belong to the model of before."""
        changed = adapt_frontend(self.frontend, pictures, blend)
        self.config.frontend = self.frontend.config.to_dict()
        return changed

    def save(self, folder: Any, **options: Any) -> Any:
        """Write the graft alone; see `tsugiki.store.save`."""
        from tsugiki.store import save

        return save(self, folder, **options)

    def export(self, folder: Any, *, full: bool = True) -> Any:
        """Write a self-contained folder; see `tsugiki.store.export`."""
        from tsugiki.store import export

        return export(self, folder, full=full)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As `save`: trained parts only, so Trainer checkpoints and hub pushes are small too."""
        self.save(save_directory)

    @classmethod
    def from_pretrained(cls, folder: Any, *args: Any, base: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """As `tsugiki.load`: finds the base, builds, and puts the saved parts in."""
        from tsugiki.store import load

        kwargs.pop("config", None)
        return load(folder, base=base, **kwargs)


def _keep_positions(_: nn.Module, args: tuple[Any, ...]) -> Any:
    context = _context.current()
    if context is None or context.keep is None:
        return None
    return (args[0].flatten(0, 1)[context.keep][None], *args[1:])  # [B, T, D] -> [1, L, D]


def _label_positions(labels: Tensor) -> Tensor:
    """Flat positions [L] whose next token has a label: labels int64 [B, T]."""
    has = torch.zeros_like(labels, dtype=torch.bool)
    has[:, :-1] = labels[:, 1:] != -100
    return has.flatten().nonzero()[:, 0]


def _positions(attention_mask: Tensor | None, length: int) -> Tensor | None:
    """Position ids [B, T] that padding does not shift, or None where the LLM's own are right."""
    if attention_mask is None or attention_mask.dim() != 2:
        return None
    return (attention_mask.long().cumsum(1) - 1).clamp(min=0)[:, -length:]


def _with_past(
    cache: TsugikiCache | None, visual: VisualTokens | None, images: Tensor
) -> tuple[VisualTokens | None, Tensor]:
    """All images so far, and this forward's image numbers into them."""
    if cache is None:
        return visual, images
    if visual is not None:
        before = cache.add_images(visual)
        images = torch.where(images >= 0, images + before, images)
    return cache.visual, images


def _given(keywords: dict[str, Any]) -> dict[str, Any]:
    """Only what the caller set: the LLM's defaults are its own."""
    everything = isinstance(keywords["logits_to_keep"], int) and keywords["logits_to_keep"] == 0
    return {k: v for k, v in keywords.items() if v is not None and not (everything and k == "logits_to_keep")}


def _drops(layer: nn.Module) -> bool:
    return isinstance(getattr(layer, "dropout", 0.0), float) and getattr(layer, "dropout", 0.0) > 0


AutoModelForImageTextToText.register(TsugikiConfig, TsugikiForConditionalGeneration)
