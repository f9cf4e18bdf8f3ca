"""What a graft costs a request without an image: operators and time against the bare LLM, interleaved.

python benchmarks/text_request.py --pairs 60
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from _results import write
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, AutoTokenizer

import tsugiki
from tsugiki import assets
from tsugiki.evals import stats

PROMPT = "A graft joins a shoot to a rooted tree, and the tree keeps its own roots, trunk and leaves. " * 6


class Operators(TorchDispatchMode):
    """Names of all operators that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def operators(run: Any) -> list[str]:
    with torch.no_grad(), Operators() as seen:
        run()
    return seen.names


def seconds(run: Any) -> float:
    start = time.perf_counter()
    with torch.no_grad():
        run()
    return time.perf_counter() - start


def compare(graft: str, pairs: int) -> dict[str, Any]:
    folder = assets.resolve("smollm2-135m-instruct")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bare = AutoModelForCausalLM.from_pretrained(folder).eval()
    llm = AutoModelForCausalLM.from_pretrained(folder).eval()
    model = tsugiki.attach(llm, graft, vision="efficientnet-lite0", tokenizer=tokenizer, input_size=224)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    runs = [lambda: bare(**inputs), lambda: model(**inputs)]
    lists = [operators(run) for run in runs]
    for run in runs * 3:
        seconds(run)
    # Each pair measures both, in turn first, so that a drift of the machine falls on both.
    times: list[list[float]] = [[], []]
    for pair in range(pairs):
        for i in (0, 1) if pair % 2 else (1, 0):
            times[i].append(seconds(runs[i]))
    ratio = stats.median_ratio(times[1], times[0])
    return {
        "graft": graft,
        "operators, bare": len(lists[0]),
        "operators, grafted": len(lists[1]),
        "same list": lists[0] == lists[1],
        "time ratio (median)": ratio.value,
        "95 % interval": f"{ratio.low:.4f} – {ratio.high:.4f}",
        "pairs": pairs,
        "reaches below 1.02": ratio.low < 1.02,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=60)
    pairs = parser.parse_args().pairs
    rows = [compare(graft, pairs) for graft in tsugiki.available()]
    tokens = "one forward of about 130 prompt tokens, SmolLM2-135M-Instruct in fp32"
    write(
        "text_request", "A text request with a graft attached, against the bare LLM", rows, [f"Each time is {tokens}."]
    )


if __name__ == "__main__":
    main()
