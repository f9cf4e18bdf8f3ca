"""One GGUF file -> one safetensors folder of Hugging Face names; transformers dequantises the weights to fp32."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from tsugiki._wheels import sha256_of
from tsugiki.errors import AssetError

_PROBE = "The same words, the same numbers: 0123456789."


def convert(source: Path, to: Path, facts: Mapping[str, Any]) -> None:
    """Write the LLM of a GGUF to the new folder `to`, with a card.json of `facts` and the hashes of all files.

    Raises:
        AssetError: the logits of the folder, loaded again, are not bit-equal to those of the GGUF.
    """
    quantised = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    # What is loaded calls itself quantised and can't be saved: its weights go into a plain model.
    settings = quantised.config.to_dict()
    config = type(quantised.config).from_dict(
        {k: v for k, v in settings.items() if k not in {"quantization_config", "_name_or_path"}}
    )
    plain: Any = type(quantised)(config)
    plain.to(torch.float32)
    plain.load_state_dict(quantised.state_dict())
    plain.generation_config = quantised.generation_config
    plain.save_pretrained(to)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(to)
    ids = tokenizer(_PROBE, return_tensors="pt").input_ids
    want, got = _logits(quantised, ids), _logits(AutoModelForCausalLM.from_pretrained(to, dtype=torch.float32), ids)
    if not torch.equal(want, got):
        raise AssetError(
            f"the converted LLM differs from {source.name} by {float((want - got).abs().max()):.2e} in its logits",
            expected="equal logits",
            fix="Report it with the versions of torch and transformers.",
        )
    card = {
        **facts,
        "gguf": source.name,
        "gguf_sha256": sha256_of(source),
        "dtype": "float32",
        "transformers": transformers.__version__,
        "files": {file.name: sha256_of(file) for file in sorted(to.iterdir())},
    }
    (to / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def _logits(llm: Any, ids: torch.Tensor) -> torch.Tensor:  # [1, T] -> [1, T, vocabulary]
    logits: torch.Tensor = llm.eval()(ids).logits
    return logits
