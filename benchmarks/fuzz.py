"""Damaged input: bytes of good files are changed, cut, doubled and mixed; every reader says what is wrong in one line.

    python benchmarks/fuzz.py              # 10,000 inputs and the table
    python benchmarks/fuzz.py --inputs 300    # a few, as JSON on standard output, for the tests

Counted are tracebacks (any error that is not of `tsugiki.errors`), inputs that take longer than the limit, and changed
graft folders that load although what they hold is another value.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from _results import write

from tsugiki import store
from tsugiki.data import schema
from tsugiki.data.bank import Bank
from tsugiki.data.boxes import BoxCodec, PaddedSquare
from tsugiki.data.convert import coco, coco_captions, coco_keypoints, csv, imagefolder, labelstudio, llava, voc, yolo
from tsugiki.data.images import image_size, open_image
from tsugiki.errors import TsugikiError
from tsugiki.testing import tiny_images, tiny_model
from tsugiki.training import recipe

LIMIT = 5.0
"""Seconds that one input may take."""
BOX = [4, 4, 20, 20]
COCO = {
    "images": [{"id": 1, "file_name": "a.png", "width": 48, "height": 48}],
    "categories": [{"id": 1, "name": "cup", "keypoints": ["left_eye", "right_eye"]}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": BOX, "caption": "カップ", "keypoints": [5, 5, 2, 9, 9, 1]}
    ],
}
LINE = {
    "id": "1", "task": "place", "options": ["cup"], "meta": {"a": [1, 2.5]},
    "messages": [
        {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "何？"}]},
        {"role": "assistant", "content": [{"type": "box", "box": BOX, "image": 0, "label": "cup"}]},
    ],
}  # fmt: skip
STUDIO = [{"data": {"image": "a.png"}, "annotations": [{"result": [
    {"type": "rectanglelabels", "original_width": 48, "original_height": 48, "from_name": "l",
     "value": {"x": 10, "y": 10, "width": 20, "height": 20, "rotation": 0, "rectanglelabels": ["cup"]}},
    {"type": "choices", "from_name": "c", "value": {"choices": ["good"]}}]}]}]  # fmt: skip
LLAVA = [{"id": 1, "image": "a.png", "conversations": [
    {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "cup"}]}]  # fmt: skip
VOC = (
    "<annotation><filename>a.png</filename><size><width>48</width><height>48</height></size><object><name>cup</name>"
    "<bndbox><xmin>4</xmin><ymin>4</ymin><xmax>20</xmax><ymax>20</ymax></bndbox></object></annotation>"
)
NASTY = (b"\x00", b"\xff\xfe", b"NaN", b"1e999", b"-1", b"[" * 3000, b"&a [*a]", b'"', b"\n", b"{", b"9" * 400, b"null")


@contextmanager
def limited() -> Iterator[None]:
    """TimeoutError after the limit."""

    def late(_: int, frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def mutated(raw: bytes, rng: random.Random) -> bytes:
    """One to four changes: a bit, a byte, a cut, a doubled piece, a nasty one put in or over."""
    data = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        at, kind = rng.randrange(len(data) + 1), rng.randrange(6)
        end = min(len(data), at + rng.randint(1, 12))
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = rng.randrange(256)
        elif kind == 2:
            del data[at : end if rng.random() < 0.8 else None]
        elif kind == 3:
            data[at:at] = data[at:end]
        elif kind == 4:
            data[at:at] = rng.choice(NASTY)
        else:
            data[at:end] = rng.choice(NASTY)
    return bytes(data)


class Target:
    """A reader, the files that it reads, and which of them are changed."""

    def __init__(self, folder: Path, files: dict[str, bytes], read: Callable[[Path], Any], same: bool = False) -> None:
        self.folder, self.read, self.files, self.same = folder, read, files, same
        for name, raw in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(raw)
        self.value = read(folder)  # the good files have to be read

    def once(self, rng: random.Random) -> str:
        """ "" if all is well, else what happened."""
        name = rng.choice(sorted(self.files))
        (self.folder / name).write_bytes(mutated(self.files[name], rng))
        try:
            with limited():
                value = self.read(self.folder)
            return "silent" if self.same and value != self.value else ""
        except TsugikiError as error:
            return "" if "\n" not in str(error) else "several lines"
        except TimeoutError:
            return "hang"
        except BaseException as error:
            return f"traceback {type(error).__name__}: {str(error)[:200]}"
        finally:
            (self.folder / name).write_bytes(self.files[name])


def picture(form: str) -> bytes:
    buffer = io.BytesIO()
    tiny_images(1)[0].save(buffer, form)
    return buffer.getvalue()


def as_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def boxes(folder: Path) -> Any:
    text = (folder / "text").read_bytes().decode("utf-8", "replace")
    return BoxCodec().parse(text, PaddedSquare(48, 40))


def lines(folder: Path) -> Any:
    return schema.check(folder / "a.jsonl"), schema.load(folder / "a.jsonl")


def bank(folder: Path) -> Any:
    with Bank.open(folder) as opened:
        return opened.counts(), opened.tower, opened.width


def graft(folder: Path) -> Any:
    """Value of all that is read of a saved graft, but for the seals themselves."""
    settings, tensors = store.read_state(folder)
    facts = {k: v for k, v in settings.get("tsugiki", {}).items() if not k.endswith("_sha256")}
    return {**settings, "tsugiki": facts}, {k: v.numpy().tobytes() for k, v in tensors.items()}


def targets(root: Path) -> dict[str, Target]:
    """All of them, in folders of their own."""
    png = {"a.png": picture("PNG")}

    def made(name: str, files: dict[str, bytes], read: Callable[[Path], Any], same: bool = False) -> Target:
        (root / name).mkdir()
        for file, raw in png.items():  # beside the files, not changed
            (root / name / file).write_bytes(raw)
        return Target(root / name, files, read, same)

    saved = Path(tiny_model("wings", rank=2).save(root / "graft"))
    kept = {p.name: p.read_bytes() for p in saved.iterdir() if p.name != store.CARD}
    Bank.create(root / "bank0", tower="t", fingerprint="f", width=4, answers=["a", "b"]).close()
    database = {p.name: p.read_bytes() for p in (root / "bank0").iterdir()}
    plan = (recipe.FOLDER / "projector.yaml").read_bytes()
    yaml = b"names: [cup]\nnc: 1\n"
    table = "path,label\na.png,良品\n".encode()
    line = as_json({"file_name": "a.png", "label": "cup"})
    (root / "yolo" / "images").mkdir(parents=True)
    (root / "yolo" / "images" / "a.png").write_bytes(png["a.png"])
    return {
        "JSONL": made("jsonl", {"a.jsonl": as_json(LINE)}, lines),
        "coco": made("coco", {"a.json": as_json(COCO)}, lambda f: coco.convert(f / "a.json", absent=1)),
        "coco captions": made("captions", {"a.json": as_json(COCO)}, lambda f: coco_captions.convert(f / "a.json")),
        "coco keypoints": made("keypoints", {"a.json": as_json(COCO)}, lambda f: coco_keypoints.convert(f / "a.json")),
        "csv": made("csv", {"a.csv": table}, lambda f: csv.convert(f / "a.csv")),
        "imagefolder": made("folder", {"metadata.jsonl": line}, imagefolder.convert),
        "Label Studio": made("studio", {"a.json": as_json(STUDIO)}, lambda f: labelstudio.convert(f / "a.json")),
        "LLaVA": made("llava", {"a.json": as_json(LLAVA)}, lambda f: llava.convert(f / "a.json")),
        "VOC": made("voc", {"a.xml": VOC.encode()}, voc.convert),
        "YOLO": Target(root / "yolo", {"data.yaml": yaml, "labels/a.txt": b"0 0.5 0.5 0.2 0.2\n"}, yolo.convert),
        "boxes": made("boxes", {"text": b"[0.1,0.1,0.5,0.5] [.2, 0.2,0.3,0.9]"}, boxes),
        "recipes": made("recipes", {"a.yaml": plan}, lambda f: recipe.load(f / "a.yaml")),
        "PNG": made("png", png, lambda f: (image_size(f / "a.png"), open_image(f / "a.png"))),
        "JPEG": made("jpeg", {"a.jpg": picture("JPEG")}, lambda f: (image_size(f / "a.jpg"), open_image(f / "a.jpg"))),
        "grafts": Target(saved, kept, graft, same=True),
        "banks": Target(root / "bank", database, bank),
    }  # fmt: skip


def run(inputs: int, seed: int) -> list[dict[str, Any]]:
    """Rows of the table; what goes wrong is told on standard error."""
    rows = []
    with tempfile.TemporaryDirectory() as root:
        found = targets(Path(root))
        each = -(-inputs // len(found))
        for name, target in found.items():
            rng, counts = random.Random(f"{seed}/{name}"), {"traceback": 0, "hang": 0, "silent": 0, "several": 0}
            seen = set()
            for number in range(each):
                if said := target.once(rng):
                    counts[said.split()[0]] += 1
                    if said not in seen:
                        print(f"{name} {number}: {said}", file=sys.stderr, flush=True)
                    seen.add(said)
            words = ("tracebacks", "hangs", "changed and accepted", "errors of several lines")
            rows.append({"input": name, "inputs": each} | dict(zip(words, counts.values(), strict=True)))
    total = {key: sum(row[key] for row in rows) for key in rows[0] if key != "input"}
    return [*rows, {"input": "all", **total}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, help="so many, as JSON, and no table")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.inputs:
        print(json.dumps(run(options.inputs, options.seed)))
        return
    notes = [
        f"A hang is an input that takes more than {LIMIT:g} s. Each input has one to four changes: a bit, a byte, a"
        " cut, a doubled piece, or something nasty (NaN, 3,000 brackets, an anchor that holds itself) put in.",
        "Of grafts the value is compared: a folder that loads has the settings and tensors that were saved.",
    ]
    write("fuzz", "10,000 damaged inputs", run(10_000, options.seed), notes, seed=options.seed)


if __name__ == "__main__":
    main()
