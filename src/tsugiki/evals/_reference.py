"""The bare LLM that a model is proved against: loaded afresh from its source, or rebuilt where it has none."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tsugiki import identity


@dataclass(frozen=True)
class Reference:
    """The bare LLM that a model is compared with."""

    llm: Any
    """A second object with the base's forward and generate; None = the model's own LLM with the grafts detached."""
    tokenizer: Any
    origin: str
    """Where it comes from, in words."""
    hashes: Mapping[str, str] | None
    """What every LLM tensor's hash has to be; None = as recorded when the graft was attached."""
    source: Path | None = None
    words: Mapping[str, str | None] | None = None
    """Hashes of the source's (or parent's) tokenizer, chat template and generation config."""
    parent: bool = False

    @contextmanager
    def bare(self, model: Any) -> Iterator[Any]:
        """The LLM to run, inside."""
        if self.llm is not None:
            yield self.llm
            return
        with model.detached() as llm:
            yield llm


def reference(model: Any) -> Reference:
    """The base of a model, loaded afresh from its source; without source files, rebuilt from its config and tensors."""
    llm, base = model.language_model, model.base_identity
    wrapped = base.get("peft") is not None or identity.peft_hash(llm) is not None
    folder = identity.find_source(llm, base)
    if folder is None:
        twin = None if wrapped else _twin(llm)
        how = "rebuilt from its config and tensors" if twin is not None else "with the grafts detached"
        return Reference(twin, copy.deepcopy(model.tokenizer), f"the LLM {how} (it has no source files)", None)
    fresh = None if wrapped else load_bare(folder, llm)
    tokenizer = _tokenizer(folder) or copy.deepcopy(model.tokenizer)
    hashes = identity.stored_hashes(llm, folder)
    if hashes is None and fresh is not None:
        hashes = identity.tensor_hashes(fresh)
    words = word_hashes(tokenizer, fresh)
    # The base is the LLM as handed over, also where its template or generation config is not that of its files.
    if _handed_over(model, words, "chat template") or _handed_over(model, words, "tokenizer"):
        tokenizer = copy.deepcopy(model.tokenizer)
    if fresh is not None and _handed_over(model, words, "generation config"):
        fresh.generation_config = copy.deepcopy(model.generation_config)
    how = "the LLM with its adapter, grafts detached; its tensors" if wrapped else "a bare LLM loaded"
    return Reference(fresh, tokenizer, f"{how} from {folder}", hashes, folder, words)


def word_hashes(tokenizer: Any, llm: Any) -> dict[str, str | None]:
    """Hashes of what turns text into ids and ids into answers; None where there is none to compare."""
    return {
        "tokenizer": None if tokenizer is None else identity.tokenizer_hash(tokenizer),
        "chat template": identity.template_hash(tokenizer),
        "generation config": None if llm is None else identity.generation_hash(llm),
    }


def recorded(model: Any, name: str) -> Any:
    return model.base_identity.get(f"{name.replace(' ', '_')}_sha256")


def _handed_over(model: Any, words: Mapping[str, str | None], name: str) -> bool:
    """Is the model's own what was recorded at attach, while the source's files hold another one?"""
    own = word_hashes(model.tokenizer, model.language_model)[name]
    return own == recorded(model, name) and words[name] is not None and words[name] != own


def load_bare(folder: str | Path, like: Any) -> Any:
    """The LLM of a folder or hub id in the form (dtype, quantisation, attention, device) of another one."""
    options: dict[str, Any] = {"dtype": like.dtype, "attn_implementation": like.config._attn_implementation}
    if (quantised := getattr(like.config, "quantization_config", None)) is not None:
        options["quantization_config"] = quantised
    return AutoModelForCausalLM.from_pretrained(str(folder), **options).to(like.device).eval()


def parent_reference(against: Any) -> Reference:
    """Another model, with eyes or without, as the reference."""
    llm = getattr(against, "language_model", against)
    name = getattr(llm.config, "_name_or_path", "") or type(llm).__name__
    tokenizer = getattr(against, "tokenizer", None)
    words = word_hashes(tokenizer, llm)
    return Reference(against, tokenizer, f"the parent model on {name}", identity.tensor_hashes(llm), None, words, True)


def _twin(llm: Any) -> Any:
    """A second object of the same class, config, tensors and form; hooks and replaced methods do not come along."""
    if getattr(llm.config, "quantization_config", None) is not None:
        return None
    with torch.random.fork_rng():
        twin = type(llm)(copy.deepcopy(llm.config))
    kinds = {name: t.dtype for name, t in [*llm.named_parameters(), *llm.named_buffers()]}
    for name, tensor in [*twin.named_parameters(), *twin.named_buffers()]:
        tensor.data = tensor.data.to(kinds.get(name, tensor.dtype))
    twin.load_state_dict(llm.state_dict(), strict=False)  # other keys are the claim `keys`
    twin.generation_config = copy.deepcopy(llm.generation_config)
    return twin.to(llm.device).eval()


def _tokenizer(folder: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError):
        return None
