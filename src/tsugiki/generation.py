"""Generation with pictures: kinds grow with the answer, the LLM's own generate for everything else."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin

from tsugiki import branches
from tsugiki.configuration import CACHE
from tsugiki.errors import PromptError
from tsugiki.grafts._cache import TsugikiCache
from tsugiki.types import DEMO, IMAGE, PAD, TAG, TEXT


class SeeingGeneration(GenerationMixin):
    """The part of the composite that `generate` needs."""

    language_model: Any
    frontend: Any
    decoder: Any
    placeholder_id: Any
    on_text: Any
    _safe: Any
    _texts: Any

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As `transformers`' generate; a request without an image is the LLM's own call.

        Args:
            inputs: int64 [B, T], or `input_ids=`; with `token_kind`, `image_index` and pictures from the processor.
        """
        parent: Any = super()
        pixels, features = kwargs.pop("pixel_values", None), kwargs.pop("vision_features", None)
        visual = kwargs.pop("visual", None)
        said = [kwargs.pop(name, None) for name in ("image_text", "image_form")]
        given = [kwargs.pop(name, None) for name in ("cache", "past_key_values")]
        past = next((c for c in given if c is not None), None)  # an empty cache is false
        if past is not None:
            kwargs[CACHE] = past
        with_image = any(v is not None for v in (pixels, features, visual))
        if not with_image and not (isinstance(past, TsugikiCache) and past.has_image):
            refuse_imageless_placeholders(kwargs.get("token_kind"))
            if self.on_text:
                ids = inputs if inputs is not None else kwargs.pop("input_ids", None)
                if kwargs.get("token_kind") is None and ids is not None:
                    # Later steps may have masks in which padding is no longer seen.
                    if kwargs.get("attention_mask") is None:
                        kwargs["attention_mask"] = self._inferred_mask(ids, kwargs.get("generation_config"))
                    kwargs["token_kind"] = text_kinds(kwargs["attention_mask"], ids.shape, ids.device)
                    kwargs["image_index"] = torch.full_like(ids, -1)
                return parent.generate(ids, *args, **kwargs)
            for name in ("token_kind", "image_index", "mm_token_type_ids", "branch", "question"):
                kwargs.pop(name, None)
            return self.language_model.generate(inputs, *args, **kwargs)
        if with_image and visual is None:
            with torch.no_grad():
                visual = self.frontend(pixel_values=pixels, features=features, texts=self._texts(*said))
        ids = inputs if inputs is not None else kwargs.pop("input_ids", None)
        branch, question = kwargs.pop("branch", None), kwargs.pop("question", None)
        if ids is not None and kwargs.get("token_kind") is not None:
            rows = branches.of_rows(self, kwargs["token_kind"], branch, past, input_ids=ids, question=question)
            if rows is not None:
                kwargs["branch"] = rows
                if len(branches.groups(rows)) > 1:
                    branches.refuse_cache(past, None)
                    each = {**kwargs, "visual": visual, "input_ids": ids}
                    return branches.generate(partial(self.generate, None, *args), each, rows, self._end_id(kwargs))
        if self.placeholder_id < self.decoder.vocabulary:
            # The id is never a word of an answer, whatever else is suppressed.
            config = kwargs.get("generation_config") or self.language_model.generation_config
            already = kwargs.pop("suppress_tokens", None) or config.suppress_tokens or []
            if "generation_config" in kwargs:
                kwargs["generation_config"] = copy.deepcopy(config)
                kwargs["generation_config"].suppress_tokens = [*already, self.placeholder_id]
            else:
                kwargs["suppress_tokens"] = [*already, self.placeholder_id]
        return parent.generate(self._safe(ids), *args, visual=visual, **kwargs)

    def create_masks_for_generate(self, *args: Any, **kwargs: Any) -> Any:
        """The LLM's own masks, for static caches."""
        from transformers.masking_utils import create_masks_for_generate

        own = getattr(self.language_model, "create_masks_for_generate", create_masks_for_generate)
        kwargs["config"] = self.language_model.config
        return own(*args, **kwargs)

    def prepare_inputs_for_generation(self, input_ids: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        parent: Any = super()
        inputs: dict[str, Any] = parent.prepare_inputs_for_generation(input_ids, *args, **kwargs)
        cache = inputs.get(CACHE)
        past = int(cache.get_seq_length()) if cache is not None else 0
        given = inputs["input_ids"] if inputs.get("input_ids") is not None else inputs["inputs_embeds"]
        for name, value in (("token_kind", TEXT), ("image_index", -1)):
            if inputs.get(name) is not None:
                own = inputs[name][:, past : past + given.shape[1]]
                missing = given.shape[1] - own.shape[1]  # candidates of assisted decoding are text
                inputs[name] = torch.nn.functional.pad(own, (0, missing), value=value)
        return inputs

    def _end_id(self, kwargs: Mapping[str, Any]) -> int:
        """What `generate` writes behind an answer that is shorter than others."""
        config = kwargs.get("generation_config") or self.language_model.generation_config
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        found = kwargs.get("pad_token_id", config.pad_token_id)
        return int(next(i for i in (found, *ends, 0) if i is not None))

    def _inferred_mask(self, ids: Tensor, config: Any) -> Tensor:
        """As transformers infers it: padding is the pad token, unless that also ends answers."""
        chosen = config if config is not None else self.language_model.generation_config
        ends = chosen.eos_token_id if isinstance(chosen.eos_token_id, list) else [chosen.eos_token_id]
        if chosen.pad_token_id is None or chosen.pad_token_id in ends:
            return torch.ones_like(ids)
        mask: Tensor = (ids != chosen.pad_token_id).long()
        return mask

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        updated: dict[str, Any] = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)
        new = kwargs.get("num_new_tokens", 1)
        for name, value in (("token_kind", TEXT), ("image_index", -1)):
            tensor = updated.get(name)
            if tensor is not None:
                updated[name] = torch.cat([tensor, tensor.new_full((tensor.shape[0], new), value)], dim=1)
        return updated


def text_kinds(attention_mask: Tensor | None, shape: Sequence[int], device: torch.device) -> Tensor:
    """Kinds [B, T] of positions of which nothing is said: text, and padding where the mask is 0."""
    kinds = torch.full(tuple(shape), TEXT, device=device)
    if attention_mask is None or attention_mask.dim() != 2:
        return kinds
    return kinds.masked_fill(attention_mask[:, -shape[1] :].to(device) == 0, PAD)


def refuse_imageless_placeholders(token_kind: Tensor | None) -> None:
    if token_kind is not None and any(bool((token_kind == kind).any()) for kind in (IMAGE, DEMO, TAG)):
        raise PromptError(
            "the prompt has image positions but no image came with it",
            expected="pixel_values or vision_features",
            fix="Pass on everything that the processor returned.",
        )
