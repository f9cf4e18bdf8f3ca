"""What the light hub adds to the time to the first token of an image question, beside MLP projectors.

    python benchmarks/hub_cost.py --rounds 40

From a picture and a question to the first token's logits: words and picture made ready, tower, projector, the LLM's
forward. Arms take turns; a ratio is the median over rounds, its interval a bootstrap over rounds. Seconds are the
process's own on the processor, not the wall's.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from _results import RESULTS, write
from _turns import median, ratios, timed, turns
from _wings_arms import LLM, TOWER, twin

from tsugiki import assets
from tsugiki.studies._build import build_model, fetch_tower, load_llm
from tsugiki.synth import scenes
from tsugiki.types import Message, Sample
from tsugiki.vision.cache import FeatureCache

PICTURES, ROUNDS = 16, 40
ARMS: dict[str, dict[str, Any]] = {
    "mlp": {"projector": "mlp"},
    "pixel_unshuffle": {"projector": "pixel_unshuffle"},
    "hub": {"projector": "hub"},
    "hub, 16 queries": {"projector": "hub", "hub": {"queries": 16}},
}
"""Front-ends; `pixel_unshuffle` is an MLP over blocks of 2 x 2 cells. The first two are what others are compared to."""
BESIDE = tuple(ARMS)[:2]
BOUND = "at most 1.15"


def asking(model: Any, samples: Iterator[Sample], features: FeatureCache | None) -> Callable[[], None]:
    """The next question, up to its first token.

    Args:
        features: of the pictures; None = each picture is opened and encoded.
    """
    collate = model.processor.collator(features, labels=False, add_generation_prompt=True, padding_side="left")

    def run() -> None:
        with torch.inference_mode():
            model(**collate([next(samples)]).inputs(), use_cache=True, logits_to_keep=1)

    return run


def projecting(model: Any, samples: Iterator[Sample], features: FeatureCache) -> Callable[[], None]:
    """The next question's visual tokens alone."""
    collate = model.processor.collator(features, labels=False, add_generation_prompt=True)
    batches = cycle([collate([next(samples)]).inputs() for _ in range(PICTURES)])

    def run() -> None:
        inputs = next(batches)
        with torch.inference_mode():
            texts = model._texts(inputs.get("image_text"), inputs.get("image_form"))
            model.frontend(features=inputs["vision_features"], texts=texts)

    return run


def questions(folder: Path) -> list[Sample]:
    """A question about each of some drawings."""
    made = scenes.generate(PICTURES, out=folder, languages=("en",), seed=0)
    return [
        Sample(id=str(i), messages=(Message.of("user", "What can be seen in this picture?", s.images[:1]),))
        for i, s in enumerate(made)
    ]


def models() -> dict[str, Any]:
    """One for each arm, on the same weights of the LLM."""
    llm, tokenizer = load_llm(LLM, device="cpu")
    vision = {"tower": TOWER, "input_size": 224}
    return {
        name: build_model(twin(llm), "projector", vision | own, tokenizer=tokenizer, device="cpu").eval()
        for name, own in ARMS.items()
    }


def rows_of(found: dict[str, Any], measured: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """One for each arm."""
    rows = []
    for name, model in found.items():
        own = model.frontend.projector
        row = {
            "projector": name,
            "parameters": f"{sum(p.numel() for p in own.parameters()):,}",
            "tokens a picture": model.tokens_per_image,
        }
        for what, seconds in measured.items():
            for base in BESIDE if what != "projector alone, ms" else ():
                row[f"{what} / {base}'s"] = "1" if name == base else median(ratios(seconds[name], seconds[base]))
        row["projector alone, ms"] = median([1000 * s for s in measured["projector alone, ms"][name]])
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    for name in (LLM, "openmoji"):
        assets.fetch(name)
    fetch_tower(TOWER)
    with tempfile.TemporaryDirectory() as name:
        samples, found = questions(Path(name) / "scenes"), models()
        cache = FeatureCache(found["mlp"].frontend, Path(name) / "features")
        cache.fill([s.images[0] for s in samples])
        makers = {
            "fresh picture": lambda model: asking(model, cycle(samples), None),
            "cached features": lambda model: asking(model, cycle(samples), cache),
            "projector alone, ms": lambda model: projecting(model, cycle(samples), cache),
        }
        measured = {
            what: turns({arm: partial(timed, make(model)) for arm, model in found.items()}, rounds)
            for what, make in makers.items()
        }
    notes = [
        f"{LLM} in fp32, {TOWER} at 224 px, one question about one drawing, {rounds} rounds in which the arms take"
        " turns. Medians over rounds with 95 % intervals (bootstrap over rounds); seconds are the process's own on the"
        " processor, one thread.",
        "Fresh picture: opened, padded and encoded by the tower each time. Cached features: the tower has seen it.",
        f"Bound: the light hub {BOUND} beside an MLP projector, at most 6 million parameters.",
    ]
    folder = RESULTS if rounds >= ROUNDS else assets.cache_dir() / "runs" / "hub_cost"
    title = "What the light hub adds to the first token"
    write("hub_cost", title, rows_of(found, measured), notes, folder=folder, seconds=measured)


if __name__ == "__main__":
    main()
