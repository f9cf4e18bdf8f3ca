"""What `kills.py` kills, all on tiny fakes: four activities, what a killed one may leave, and when two runs are equal.

Nothing here may compute before the fork: the process that starts children only reads.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image, ImageDraw
from safetensors.torch import load, load_file

from tsugiki import store
from tsugiki.data.files import sha256_file
from tsugiki.studies.fit import fit
from tsugiki.testing import TinyTower, tiny_images, tiny_llm, tiny_model, tiny_tokenizer
from tsugiki.training import checkpoints
from tsugiki.training.trainer import train
from tsugiki.types import Message, Sample
from tsugiki.vision.cache import FeatureCache

COLOURS = {"良品": (220, 40, 40), "不良": (40, 60, 220)}
STAGE = {"data": "train", "batch_size": 4, "steps": 10}
RECIPE = {
    "save_steps": 1,
    "stages": [
        {**STAGE, "name": "align", "train": {"projector": 0.01}},
        {**STAGE, "name": "tune", "train": {"projector": 0.01, "graft.cross_attention": 0.01}, "variants": 2},
    ],
}
OWN = {"save_steps": 1, "stages": [{**STAGE, "train": {"projector": 0.01}, "steps": 6, "warm_start": True}]}
SAVES = 40


@dataclass(frozen=True)
class Activity:
    """Something that a process does in a folder and that another process, after a kill, does again to its end."""

    work: Callable[[Path], None]
    curve: Callable[[Path], Any]
    """What has to be equal in a run that was killed and continued and in one that was not; read when it is done."""


def _train(folder: Path) -> None:
    model = tiny_model("cross_attention")
    samples = [
        Sample(str(i), (Message.of("user", "What? " * (1 + i % 3), (p,)), Message.of("assistant", f"{i % 8}.")))
        for i, p in enumerate(tiny_images(24))
    ]
    train(model, RECIPE, folder / "run", data=samples, progress=False)


def _fit(folder: Path) -> None:
    torch.manual_seed(0)  # a process that is started anew has the same beginning
    fit(
        folder.parent / "photos", base=tiny_llm(initializer_range=0.1), tokenizer=tiny_tokenizer(), recipe=OWN,
        vision=TinyTower(), out=folder / "run", answers=2, progress=False,
    )  # fmt: skip


def _saved(seed: int) -> Any:
    return tiny_model("wings", seed=seed, rank=4)


def _save(folder: Path) -> None:
    """Two models in turn to the same place, in which somebody has a file of their own."""
    two = _saved(1), _saved(2)
    (folder / "graft").mkdir(exist_ok=True)
    (folder / "graft" / "notes.txt").write_text("mine")
    for i in range(SAVES):
        two[i % 2].save(folder / "graft")


def _cache(folder: Path) -> None:
    features = FeatureCache(tiny_model().frontend, folder / "features", variants=2)
    features.fill(tiny_images(160))


def _losses(run: Path) -> list[Any]:
    return [[r["stage"], r["step"], r["loss"], r["lr"]] for r in map(json.loads, (run / "log.jsonl").open())]


def _graft(folder: Path) -> Any:
    return store.settings_of(folder)["tsugiki"]["weights_sha256"]


def _trained(folder: Path) -> Any:
    return _losses(folder / "run"), _graft(folder / "run" / "graft")


def _fitted(folder: Path) -> Any:
    run = folder / "run"
    scores = json.loads((run / "scores.json").read_text())
    return _trained(folder), _losses(run / "choose"), scores["scores"], scores["marks"]


def _left(folder: Path) -> Any:
    return _graft(folder / "graft"), (folder / "graft" / "notes.txt").read_text()


def _features(folder: Path) -> Any:
    return {p.name: sha256_file(p) for p in sorted((folder / "features").glob("??/*.features"))}


ACTIVITIES = {
    "fit": Activity(_fit, _fitted),
    "train": Activity(_train, _trained),
    "save": Activity(_save, _left),
    "cache": Activity(_cache, _features),
}


def photos(folder: Path, each: int = 12) -> None:
    """Pictures of two classes for `fit`."""
    for number, (name, colour) in enumerate(COLOURS.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            image = Image.new("RGB", (40, 40), colour)
            ImageDraw.Draw(image).rectangle((i, 2 * i, 20 + i, 4 + 3 * i), fill=(20 * i, 255 - 20 * i, 60 * number))
            image.save(folder / name / f"{i}.png")


# -- what may be left -------------------------------------------------------------------------------------------------


def temporary(folder: Path) -> list[Path]:
    """What a killed writer left under a temporary name: nobody reads it."""
    found = [p for p in folder.rglob("*") if p.name.endswith((".part", ".old"))]
    return [p for p in found if not set(p.parents) & set(found)]


def broken(folder: Path) -> list[str]:
    """Files under their own names that are not whole, and folders that lack a part; has to be empty at any moment."""
    left = set(temporary(folder))
    files = [p for p in folder.rglob("*") if p.is_file() and not left & {p, *p.parents}]
    found = [f"{p.relative_to(folder)}: {said}" for p in files if (said := _wrong(p))]
    for place in folder.rglob("stage-*-step-*"):
        if not left & {place, *place.parents} and place.parent.name == "checkpoints":
            found += [f"{place.name}: not whole"] if not checkpoints.whole(place) else []
    for place in folder.rglob("graft"):
        if not left & set(place.parents):
            found += [f"{place.relative_to(folder)}: {said}" for said in _wrong_graft(place)]
    return found


def _wrong_graft(folder: Path) -> Iterator[str]:
    if [p.name for p in folder.iterdir()] == ["notes.txt"]:  # nothing saved yet
        return
    try:
        settings, _ = store.read_state(folder)
    except OSError as error:
        yield str(error)
        return
    if settings["tsugiki"]["weights_sha256"] != sha256_file(folder / store.WEIGHTS):
        yield "weights of another graft"


def _wrong(file: Path) -> str:
    """What is wrong with one file, by its kind."""
    try:
        raw = file.read_bytes()
        if file.suffix == ".json":
            json.loads(raw)
        elif file.suffix == ".jsonl":
            lines = raw.decode().split("\n")
            for line in lines[:-1]:  # the last one may be cut off in a log; it is passed over by who reads it
                json.loads(line)
            if lines[-1] and file.name != "log.jsonl":
                return "its last line is cut off"
        elif file.suffix == ".yaml":
            yaml.safe_load(raw)
        elif file.suffix == ".safetensors":
            load_file(file)
        elif file.suffix == ".features":
            load(raw[4:])
            return "" if zlib.crc32(raw[4:]).to_bytes(4, "big") == raw[:4] else "another checksum"
        elif file.suffix == ".html":
            return "" if raw.rstrip().endswith(b"</html>") else "cut off"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
