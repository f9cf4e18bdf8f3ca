"""Interleaved image-text conversations (IIT): does a turn before the last one, with or without a picture, cost answers?

After the benchmark of WINGS (2406.03496): T is a question in words, V one about a picture, and the last turn of T, TT,
TTT, VT, V, TV and TTV is what is scored. Earlier turns are the nearest neighbours of the last question in
sentence-embedding space, with their gold answers. [recall] The paper builds six kinds from public benchmarks and has
some turns reworded by a chat service; here the items are the caller's, nothing is reworded, and VT, a question in words
after one about a picture, is the seventh.

The same last items stand in T, TT, TTT and VT, and the same in V, TV and TTV, so that kinds are compared item by item;
the earlier turn of TT is the later one of TTT. No option of the last turn, right or wrong, occurs in an earlier turn.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tsugiki.data import schema
from tsugiki.data.files import atomic_write, sha256_file
from tsugiki.errors import DataError
from tsugiki.types import Message, Sample

VERSION = 1
PAPER = "arXiv 2406.03496"

KINDS = {"T": ("T", "TT", "TTT", "VT"), "V": ("V", "TV", "TTV")}
"""Kind of the last turn -> kinds of conversations, the one without earlier turns first."""
FILE, CARD = "iit.jsonl", "iit.json"
MOST = 4
"""Conversations of a kind in which one item is an earlier turn: else a few central items would stand in most."""
_DIGITS = 4  # of a cosine: what differs by less than rounding is in order of id on every machine

Encode = Callable[[Sequence[str]], Tensor]
"""Texts -> unit vectors [n, D]."""


def generate(
    texts: Sequence[Sample], pictures: Sequence[Sample], encode: Encode, *, n: int | None = None, seed: int = 0
) -> list[Sample]:
    """Conversations of all kinds about `n` last questions in words and `n` about pictures; deterministic.

    Last questions are compared by their words, candidates for earlier turns by theirs and their gold answer: the gold
    answer of the last turn has no part in what stands before it. Items with one `meta["source"]` never meet.

    Args:
        texts: questions in words, with options and a gold answer.
        pictures: questions about one picture each, with options and a gold answer.
        encode: a sentence encoder.
        n: last items of each kind at most; None = all that have earlier turns.

    Returns:
        All conversations of one last item after one another. `task` is "iit"; `meta` says `turns` (the kind), `item`
        (id of the last item) and `earlier` (ids, in order).

    Raises:
        DataError: an item that is not one question with options and a gold answer, or with more pictures or fewer than
            its kind has; or no item for which earlier turns are left.
    """
    pools = {"T": _Pool.of("T", texts, encode), "V": _Pool.of("V", pictures, encode)}
    found: list[Sample] = []
    for last, kinds in KINDS.items():
        before = {kind: Counter[str]() for kind in "TV"}
        order = list(range(len(pools[last].items)))
        random.Random(f"iit {seed} {last}").shuffle(order)
        done = 0
        for i in order:
            if done == n:
                break
            item, vector = pools[last].items[i], pools[last].questions[i]
            # The nearest one stands right before the last question.
            near = pools["T"].nearest(item, vector, 2, before["T"])[::-1]
            seen = pools["V"].nearest(item, vector, 1, before["V"]) if last == "T" else []
            if len(near) < 2 or last == "T" and not seen:
                continue
            for used, chosen in (("T", near), ("V", seen)):
                before[used].update(s.id for s in chosen)
            done += 1
            earlier = {"": [], "T": near[1:], "TT": near, "V": seen}
            found += [conversation(kind, earlier[kind[:-1]], item) for kind in kinds]
        if not done:
            raise DataError(
                f"no {last} item of {len(order)} with earlier turns that hold none of its options",
                expected="more items, of other options",
                where="iit",
            )
    return found


def conversation(kind: str, earlier: Sequence[Sample], last: Sample) -> Sample:
    """The items as turns of one conversation, the last one's options to choose from.

    Raises:
        DataError: an option of the last turn occurs in an earlier one.
    """
    sample = Sample(
        id=f"iit-{kind}-{last.id}",
        messages=tuple(m for s in (*earlier, last) for m in s.messages),
        task="iit",
        options=last.options,
        meta={"turns": kind, "item": last.id, "earlier": [s.id for s in earlier]},
    )
    return checked(sample)


def checked(sample: Sample) -> Sample:
    """The conversation itself, where no option of its last turn occurs in an earlier turn.

    Raises:
        DataError: one does.
    """
    told = _told(sample.messages[:-2])
    given = next((option for option in sample.options if occurs(option, told)), None)
    if given is not None:
        raise DataError(
            f"the option {given!r} occurs in an earlier turn",
            expected="options that only the last turn has",
            fix="Take another earlier turn.",
            where=sample.where or f"sample {sample.id}",
        )
    return sample


def occurs(option: str, text: str) -> bool:
    """Does an option stand in a text, whatever the case? An ASCII one as whole words: "no" is not in "know"."""
    wanted, within = option.strip().casefold(), text.casefold()
    if not option.isascii():
        return wanted in within
    return re.search(rf"(?<![a-z0-9]){re.escape(wanted)}(?![a-z0-9])", within) is not None


def write(
    folder: str | Path, samples: Sequence[Sample], *, seed: int, sources: Iterable[Mapping[str, Any]] = ()
) -> None:
    """Write conversations to `FILE`, and to `CARD` what made them: generator and version, seed, items, licences.

    Args:
        sources: of the items and of the encoder: name, version and licence of each.

    Raises:
        StoreError: the folder can't be written.
    """
    lines = Path(folder) / FILE
    schema.write(lines, samples)
    card = {
        "generator": "tsugiki.synth.iit",
        "version": VERSION,
        "paper": PAPER,
        "seed": seed,
        "conversations": dict(Counter(s.meta["turns"] for s in samples)),
        "sources": [dict(source) for source in sources],
        "file": {"name": FILE, "sha256": sha256_file(lines)},
    }
    atomic_write(Path(folder) / CARD, json.dumps(card, indent=2, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class _Pool:
    """Items of one kind, in order of id, with their vectors."""

    items: list[Sample]
    texts: list[str]
    questions: Tensor  # [n, D]
    whole: Tensor  # [n, D], question and gold answer

    @classmethod
    def of(cls, kind: str, given: Sequence[Sample], encode: Encode) -> _Pool:
        items = sorted((_item(kind, s) for s in given), key=lambda s: s.id)
        if not items:
            raise DataError(f"no {kind} items", expected="questions with options and a gold answer", where="iit")
        texts = [_told(s.messages) for s in items]
        return cls(items, texts, encode([_told(s.prompt) for s in items]), encode(texts))

    def nearest(self, last: Sample, vector: Tensor, k: int, used: Mapping[str, int]) -> list[Sample]:
        """At most `k` items that may stand before `last`, the nearest first."""
        likeness = (self.whole @ vector).tolist()
        found: list[Sample] = []
        for i in sorted(range(len(likeness)), key=lambda i: (-round(likeness[i], _DIGITS), self.items[i].id)):
            item = self.items[i]
            if (
                used.get(item.id, 0) < MOST
                and _apart(item, last)
                and not any(occurs(o, self.texts[i]) for o in last.options)
            ):
                found.append(item)
                if len(found) == k:
                    break
        return found


def _apart(item: Sample, last: Sample) -> bool:
    source = item.meta.get("source")
    return item.id != last.id and (source is None or source != last.meta.get("source"))


def _item(kind: str, sample: Sample) -> Sample:
    roles = tuple(m.role for m in sample.messages)
    pictures = 1 if kind == "V" else 0
    if roles != ("user", "assistant") or not sample.options or len(sample.images) != pictures:
        raise DataError(
            f"turns of {', '.join(roles)}, {len(sample.options)} options, {len(sample.images)} pictures",
            expected=f"a question with options and {pictures} pictures, and its gold answer",
            where=sample.where or f"sample {sample.id}",
        )
    return sample


def _told(messages: Sequence[Message]) -> str:
    return "\n".join(schema.message_text(m).strip() for m in messages)
