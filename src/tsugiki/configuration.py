"""What a saved graft says of itself, and what a forward returns."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from typing import Any

from huggingface_hub.dataclasses import strict
from torch import Tensor
from transformers import AutoConfig, GenerationMixin, PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils.generic import ModelOutput


@strict
class TsugikiConfig(PreTrainedConfig):
    """What a saved graft needs to be built again, but for the base itself."""

    model_type = "tsugiki"
    sub_configs = {"text_config": AutoConfig}
    text_config: dict | PreTrainedConfig | None = None  # type: ignore[type-arg]
    frontend: dict | None = None  # type: ignore[type-arg]
    grafts: list | None = None  # type: ignore[type-arg]
    base_identity: dict | None = None  # type: ignore[type-arg]
    placeholder_id: int = 0
    llm_trained: bool = False
    format_version: int = 1
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.text_config, dict):
            text = dict(self.text_config)
            self.text_config = CONFIG_MAPPING[text.pop("model_type")](**text)
        if self.text_config is None:
            self.text_config = CONFIG_MAPPING["llama"]()
        # transformers hands its own choice of kernels down to the parts of a config: the LLM keeps its own.
        kernels = {k: v for k, v in vars(self.text_config).items() if k.endswith("_implementation_internal")}
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        vars(self.text_config).update(kernels)


# transformers 5.24 calls `cache` what was `past_key_values` before, in forwards, in generate and in outputs.
CACHE = "cache" if "cache" in signature(GenerationMixin.prepare_inputs_for_generation).parameters else "past_key_values"


@dataclass
class _Scores(ModelOutput):
    loss: Tensor | None = None  # nats per label token, or their sum / num_items_in_batch
    logits: Tensor | None = None  # [B, T, vocabulary], with labels [1, L, vocabulary]


if CACHE == "cache":

    @dataclass
    class _Cached(_Scores):
        cache: Cache | None = None

else:

    @dataclass
    class _Cached(_Scores):  # type: ignore[no-redef]
        past_key_values: Cache | None = None

        @property
        def cache(self) -> Cache | None:
            """Its newer name."""
            return self.past_key_values


@dataclass
class TsugikiOutput(_Cached):
    """Output of a forward: loss, logits, `cache`. With labels, logits stand at the label positions only."""

    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    label_ids: Tensor | None = None  # int64 [L], the labels of the L logits, rows in order
    label_rows: Tensor | None = None  # int64 [L], the batch row of each
    penalty: Tensor | None = None  # [L], what the grafts add to the loss of each label token; `loss` has it already


def cache_of(output: Any) -> Cache | None:
    """The cache in the output of any causal LM."""
    found: Cache | None = output.get(CACHE)
    return found


AutoConfig.register("tsugiki", TsugikiConfig)
