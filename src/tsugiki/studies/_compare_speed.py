"""What an arm of a comparison costs: time of its answers beside the bare LLM's, and the peak of its memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from tsugiki.evals import stats
from tsugiki.types import Sample

PAIRS, TOKENS = 10, 16
"""Interleaved pairs of a timing, and tokens of an answer."""
MEGABYTE = 1e6


def speed(model: Any, sample: Sample, seed: int) -> dict[str, Any]:
    """Time to the first token and a token's time after it, of a question about a picture; each as a ratio to the bare
    LLM reading as many tokens of text, in interleaved pairs."""
    batch = model.encode_samples([sample], add_generation_prompt=True).inputs()
    length = batch["input_ids"].shape[1]
    ids = torch.randint(10, 250, (1, length), generator=torch.Generator().manual_seed(seed))
    plain = {"input_ids": ids.to(model.device), "attention_mask": torch.ones_like(ids).to(model.device)}
    found: dict[str, list[tuple[float, float]]] = {"first": [], "token": []}
    for _ in range(PAIRS):
        own = _timed(lambda n: model.generate(**batch, max_new_tokens=n, min_new_tokens=n, do_sample=False))
        with model.detached() as llm:
            bare = _timed(lambda n: llm.generate(**plain, max_new_tokens=n, min_new_tokens=n, do_sample=False))
        found["first"].append((own[0], bare[0]))
        found["token"].append(((own[1] - own[0]) / TOKENS, (bare[1] - bare[0]) / TOKENS))
    result: dict[str, Any] = {"prompt_tokens": length}
    for name, pairs in found.items():
        ratio = stats.median_ratio([a for a, _ in pairs], [b for _, b in pairs])
        seconds = sorted(a for a, _ in pairs)[PAIRS // 2]
        result[name] = {"seconds": seconds, "ratio": ratio.value, "low": ratio.low, "high": ratio.high}
    return result


@torch.no_grad()
def _timed(generate: Callable[[int], Any]) -> tuple[float, float]:
    """Seconds to the first token, and to the last of `TOKENS` more."""
    times = []
    for n in (1, 1 + TOKENS):
        started = time.perf_counter()
        generate(n)
        times.append(time.perf_counter() - started)
    return times[0], times[1]


def taken(device: torch.device) -> float:
    """Megabytes in use as a training begins; a GPU counts its peak from here on."""
    if device.type != "cuda":
        return peak(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device) / MEGABYTE


def peak(device: torch.device) -> float:
    """Megabytes that were used at most: of the GPU where the model lies on one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MEGABYTE
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MEGABYTE
