"""`tsugiki.predict`: one question about every picture of a folder, or the questions of a JSONL; stopped and continued.

With options the answer is the likeliest of them, and every option gets its probability; without, it is generated
greedily. Boxes in an answer are given in pixels of the upright original.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from tsugiki import identity, store
from tsugiki.data import schema
from tsugiki.data.convert._rows import Wording
from tsugiki.data.detail import PHRASES, instruct, language
from tsugiki.data.images import SUFFIXES, image_files
from tsugiki.errors import DataError, ImageError, InputError
from tsugiki.studies import _asked
from tsugiki.studies._answers import Answerer, Prediction, picture_of, question_of
from tsugiki.studies._build import load_graft
from tsugiki.studies._rows import RESTART, Row, Rows
from tsugiki.studies.neighbours import BankDemos
from tsugiki.training.report import clock
from tsugiki.types import Box, Message, Sample

logger = logging.getLogger("tsugiki")

Progress = Callable[[int, int], None]
TELL_SECONDS = 5.0


def predict(
    model: Any,
    folder: str | Path | Sequence[Sample],
    *,
    out: str | Path | None = None,
    options: Sequence[str] | None = None,
    question: str | None = None,
    detail: str = "short",
    batch_size: int = 8,
    max_new_tokens: int = 64,
    resume: bool = True,
    bank: str | Path | BankDemos | None = None,
    calibrate: bool = False,
    progress: Progress | bool | None = None,
) -> list[Prediction]:
    """Answers about all pictures, in order of their paths or of the samples; a picture that can't be read gets an error
    in its row and stops nothing.

    Args:
        model: a model, or a saved graft's folder.
        folder: a folder of pictures (with those below it), one picture, a JSONL file of samples, or samples; the
            samples' own questions and options are used, gold answers are not looked at.
        out: a .jsonl or .csv file. It grows while the run goes on; the same call continues it.
        options: possible answers. None = those of the training, where `question` is None too; () = a free answer. With
            a bank, None = its answers too.
        question: None = that of the training if `fit` kept it, else "What is shown in this picture?".
        detail: "short", "full" or "boxes": the form that a given question asks for, as in `chat`.
        batch_size: pictures at once.
        max_new_tokens: longest free answer.
        resume: False replaces a file that is there.
        bank: a demo bank's folder: its nearest entries stand in front of each question, and in the answer's row.
        calibrate: with a bank, closed-set answers without what its entries alone make likely (contextual calibration);
            each list of entries costs three more questions.
        progress: True prints speed and time left; a function is called with pictures done and in all.

    Raises:
        DataError: no picture there, or a wrong line of the JSONL.
        InputError: the file holds answers to another question, of another graft or settings.
        PromptError: the question is longer than the LLM's context.
        StoreError: the disk is full; every answer before is in the file. Or no bank there.
        BaseMismatchError: a bank of another tower.
    """
    loaded = load_graft(model) if isinstance(model, str | Path) else model
    demos = BankDemos(loaded, bank) if isinstance(bank, str | Path) else bank
    samples, own = _samples(loaded, folder, options, question, detail, max_new_tokens)
    if demos is not None and options is None and not own:
        both = tuple(dict.fromkeys(o for s in samples[:1] for o in (*s.options, *demos.bank.answers)))
        samples = [replace(s, options=both) for s in samples]
    every = tuple(dict.fromkeys(o for s in samples for o in s.options))
    rows = None if out is None else Rows(Path(out), every, neighbours=demos is not None)
    if out is not None and isinstance(folder, str | Path) and Path(out).absolute() == Path(folder).absolute():
        raise InputError("the answers would replace the questions", expected="another file", where="out")
    answerer = Answerer(loaded, batch_size, max_new_tokens, InputError if own else ImageError, demos, calibrate)
    run = _Run(loaded, own, detail, max_new_tokens, every, _key_of(demos, calibrate))
    done = {} if rows is None else _begin(rows, samples, run, resume)
    pace = _Pace(len(samples), len(done), progress)
    todo = [s for s in samples if s.id not in done]
    try:
        for start in range(0, len(todo), batch_size):
            found = answerer(todo[start : start + batch_size])
            if rows is not None:
                rows.add(run.row(p) for p in found)
            done.update((p.id, p) for p in found)
            pace(len(done))
    finally:
        if rows is not None:
            rows.close()
    predictions = [done[s.id] for s in samples]
    failed = [p for p in predictions if p.error]
    if failed:
        logger.warning("%d of %d without an answer; the first: %s", len(failed), len(samples), failed[0].error)
    return predictions


def _key_of(demos: BankDemos | None, calibrate: bool) -> str | None:
    return None if demos is None else demos.key + " calibrated" * calibrate


def _samples(
    model: Any,
    folder: str | Path | Sequence[Sample],
    options: Sequence[str] | None,
    question: str | None,
    detail: str,
    max_new_tokens: int,
) -> tuple[list[Sample], bool]:
    """What is asked, and whether the samples ask their own questions."""
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens={max_new_tokens}", expected="at least 1")
    if options is not None and (len(set(options)) != len(options) or len(options) == 1 or "" in options):
        raise InputError(f"options {list(options)}", expected="two or more, all different", where="options")
    if not isinstance(folder, str | Path):
        return _own(list(folder), question, options), True
    path = Path(folder)
    if path.suffix.lower() == ".jsonl":
        return _own(schema.load(path), question, options), True
    named = pictures_of(path)
    asked = _asked.read(getattr(model.config, "name_or_path", None)) if question is None else None
    if options is None:
        options = asked.options if asked is not None else ()
    if asked is not None:
        text = asked.question
    else:
        text = _with_form(question if question is not None else Wording().question, detail)
    samples = []
    for name, file in named:
        message = Message.of("user", text, (file,))
        samples.append(Sample(id=name, messages=(message,), options=tuple(options), where=str(file)))
    return samples, False


def _own(samples: list[Sample], question: str | None, options: Sequence[str] | None) -> list[Sample]:
    if question is not None:
        raise InputError(
            "a question, and samples that ask their own",
            expected="a folder of pictures with it",
            fix="Leave the question out, or name the folder.",
            where="question",
        )
    seen: dict[str, str] = {}
    for sample in samples:
        if sample.id in seen:
            raise DataError(f"id {sample.id!r} again", expected="one for each sample", where=sample.where or "samples")
        seen[sample.id] = sample.where
    if not samples:
        raise DataError("no sample", expected="one or more", where="samples")
    return [s if s.options or options is None else replace(s, options=tuple(options)) for s in samples]


def pictures_of(path: Path) -> list[tuple[str, Path]]:
    """Name below the folder and path of every picture, sorted.

    Raises:
        DataError: none there.
    """
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return [(path.name, path)]
    if not path.is_dir():
        found = f"{path.suffix or 'a file without a suffix'}" if path.exists() else "it does not exist"
        raise DataError(
            found, expected="a folder of pictures, a picture or a .jsonl", fix="Correct the path.", where=str(path)
        )
    files = image_files(path)
    if not files:
        raise DataError(
            "no picture in it or below", expected="files such as .jpg and .png", fix="Check it.", where=str(path)
        )
    return [(file.relative_to(path).as_posix(), file) for file in files]


def _with_form(question: str, detail: str) -> str:
    """The question as `chat` asks it; the words for the form of the answer are not put twice."""
    asked = instruct(question, detail)
    phrase = PHRASES[language(question)][detail]
    return question.rstrip() if question.rstrip().endswith(phrase) else asked


class _Run:
    """What answers depend on beside picture and question: stored in each row, so that no file mixes two runs."""

    def __init__(
        self, model: Any, own: bool, detail: str, max_new_tokens: int, options: Sequence[str], bank: str | None
    ) -> None:
        self.graft = store.graft_sha256(model)[:16]
        base = [model.base_identity.get(k) for k in ("tensors_sha256", "dtype")]
        form: list[Any] = [None if own else detail, list(options), max_new_tokens]
        if bank is not None:
            form.append(bank)
        self.with_bank = bank is not None
        self.key = identity.hash_json([self.graft, base, form])[:12]

    def row(self, p: Prediction) -> Row:
        """Plain values of a prediction."""
        row = {
            "id": p.id,
            "image": p.image,
            "answer": p.answer,
            "probability": p.probability,
            "probabilities": dict(p.probabilities),
            "boxes": [[b.x1, b.y1, b.x2, b.y2] for b in p.boxes],
            "error": p.error,
            "question": p.question,
            "graft": self.graft,
            "run": self.key,
            "picture": p.picture,
        }
        return row | {"neighbours": [list(n) for n in p.neighbours]} if self.with_bank else row

    def check(self, row: Row, question: str | None, where: Path) -> None:
        """Raises InputError where a row is of another run; says what differs."""
        if row["run"] == self.key and question in (None, row["question"]):
            return
        if row["graft"] != self.graft:
            found, now = f"the graft {row['graft']}", self.graft
        elif question not in (None, row["question"]):
            found, now = f"the question {row['question']!r}", repr(question)
        else:
            found, now = "other options, form or length of answers, or another state of the bank", "those of now"
        raise InputError(
            f"it holds answers with {found}",
            expected=now,
            fix=RESTART,
            where=str(where),
        )


def _begin(rows: Rows, samples: Sequence[Sample], run: _Run, resume: bool) -> dict[str, Prediction]:
    """Answers that are in the file already and still hold; the file is left with whole rows only."""
    old = rows.read() if resume else []
    wanted = {s.id: s for s in samples}
    kept, done = [], {}
    for row in old:
        sample = wanted.get(row["id"])
        run.check(row, None if sample is None else question_of(sample), rows.path)
        if sample is not None:
            if row["picture"] != picture_of(sample):  # another picture under the same name: asked again
                continue
            done[sample.id] = _prediction(row)
        kept.append(row)
    rows.start(kept)
    if done:
        logger.info("%s: %d of %d are answered already.", rows.path, len(done), len(samples))
    return done


def _prediction(row: Row) -> Prediction:
    boxes = tuple(Box(*map(float, box)) for box in row["boxes"])
    near = tuple((int(i), str(label), float(distance)) for i, label, distance in row.get("neighbours", ()))
    same = {k: row[k] for k in ("id", "image", "question", "answer", "probabilities", "error", "picture")}
    return Prediction(boxes=boxes, neighbours=near, **same)


class _Pace:
    """Tells how far it is, how fast, and how long it will take."""

    def __init__(self, total: int, before: int, progress: Progress | bool | None) -> None:
        self.total, self.before, self.progress = total, before, progress
        self.started = time.monotonic()
        self.told = self.started
        self.console = Console(stderr=True)
        if before:
            self(before)

    def __call__(self, done: int) -> None:
        if callable(self.progress):
            self.progress(done, self.total)
            return
        now = time.monotonic()
        if not self.progress or (now - self.told < TELL_SECONDS and done < self.total) or done == self.before:
            return
        self.told = now
        speed = (done - self.before) / max(now - self.started, 1e-9)
        left = clock((self.total - done) / speed)
        self.console.print(
            f"{done} of {self.total} pictures, {speed:.1f} a second, {left} left", highlight=False, soft_wrap=True
        )
