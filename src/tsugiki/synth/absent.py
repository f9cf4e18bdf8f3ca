"""Questions about what is and what is not there, after POPE: absent names drawn in three ways, as many as present ones.

random: any name of the pictures at hand; popular: the one that is on most of them; adversarial: the one that is most
often together with what is there. Scenes draw their things evenly, so there the three differ little; on pictures with
habits (COCO) they differ much. `evals.tasks.absent` scores them. Source: POPE (2305.10355).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from tsugiki.synth.layout import one
from tsugiki.synth.shown import Shown, pictures
from tsugiki.types import Message, Sample

NEGATIVES = ("random", "popular", "adversarial")


def questions(samples: Sequence[Sample], *, seed: int = 0) -> list[Sample]:
    """For each picture and each way to draw one question with the answer yes and one with no.

    Args:
        samples: of scenes; each picture counts once in each language.
        seed: of what is asked about.

    Raises:
        DataError: no sample says what its picture shows.
    """
    made: list[Sample] = []
    shown = pictures(samples)
    for language in sorted({s.phrases.language for s in shown}):
        own = [s for s in shown if s.phrases.language == language]
        sets = [{s.name(o) for o in s.objects} for s in own]
        popular = Counter(name for names in sets for name in names)
        together = {name: Counter(n for names in sets if name in names for n in names) for name in popular}
        for number, (picture, there) in enumerate(zip(own, sets, strict=True)):
            absent = sorted(set(popular) - there)
            if not absent:
                continue
            rng = np.random.default_rng((seed, number))
            absent = [absent[i] for i in rng.permutation(len(absent))]  # equal ones in random order
            drawn = {
                "random": absent[0],
                "popular": max(absent, key=lambda n: popular[n]),
                "adversarial": max(absent, key=lambda n, t=tuple(there): sum(together[x][n] for x in t)),  # type: ignore[misc]
            }
            for kind in NEGATIVES:
                stem = f"absent-{seed}-{language}-{number:06d}-{kind}"
                made.append(_sample(f"{stem}-yes", kind, picture, one(sorted(there), rng), True))
                made.append(_sample(f"{stem}-no", kind, picture, drawn[kind], False))
    return made


def _sample(name: str, kind: str, shown: Shown, asked: str, there: bool) -> Sample:
    phrases = shown.phrases
    options = (phrases.answers["yes", "short"], phrases.answers["no", "short"])
    question = phrases.questions["presence"][0].format(**phrases.fields(asked, 1))
    text = phrases.space.join((question, phrases.hints["yes or no"][0]))
    messages = (Message.of("user", text, (shown.image,)), Message.of("assistant", options[0 if there else 1]))
    meta = {**shown.meta, "negatives": kind, "form": "short", "short": options[0 if there else 1]}
    return Sample(name, messages, task="presence", options=options, meta=meta)
