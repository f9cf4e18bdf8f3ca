"""Contextual calibration (Zhao et al. 2021, "Calibrate Before Use", arXiv 2102.09690) of closed-set answers.

Demonstrations alone make some answers likelier than others: the commonest label, the one that stands last, words that
the LLM likes. How much is seen by asking the same question after the same demonstrations about pictures that show
nothing. With p_free, the probabilities of the options there, averaged over these pictures, the corrected probabilities
are

    q_k = (p_k / p_free_k) / sum_j (p_j / p_free_j)

which is the paper's W = diag(p_free)^-1, b = 0; its softmax around that changes no order and is left out, so that q is
p where p_free says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tsugiki.data.images import image_size
from tsugiki.errors import InputError
from tsugiki.evals.options import Normalise, OptionScorer, OptionScores, text_key
from tsugiki.types import ImagePart, Message, Sample

GREYS = (127, 0, 255)
"""Of the pictures that show nothing; several, as the paper asks with several empty words."""
SIDE = 64


class Calibrated:
    """Scores options as an `OptionScorer` does, corrected; each list of demonstrations costs `len(GREYS)` more prompts.

    Args:
        scorer: exact (`tolerance=None`) and without demonstrations of its own.
        demos: finds the demonstrations and puts them in front (`studies.neighbours.BankDemos`).
        normalise: of option likelihoods, before the correction.

    Raises:
        InputError: no demonstrations, or a scorer that leaves options unfinished.
    """

    def __init__(self, scorer: OptionScorer, demos: Any, normalise: Normalise = "sum") -> None:
        if demos is None:
            raise InputError(
                "a calibration without demonstrations", expected="a bank", fix="Name one: --bank.", where="calibrate"
            )
        if scorer.tolerance is not None or scorer.demos is not None:
            raise InputError("a scorer with a tolerance or its own demonstrations", expected="neither")
        self.scorer, self.demos, self.normalise = scorer, demos, normalise
        self.blanks = [Image.new("RGB", (SIDE, SIDE), (grey, grey, grey)) for grey in GREYS]
        self._known: dict[tuple[object, ...], Tensor] = {}  # log p_free [K]

    def __call__(self, samples: Sequence[Sample]) -> list[OptionScores]:
        """Corrected scores in the samples' order; of a calibrated answer, `logprobs` are log q_k."""
        return self.score(samples, [self.demos.neighbours(sample) for sample in samples])

    def score(self, samples: Sequence[Sample], neighbours: Sequence[Sequence[Any]]) -> list[OptionScores]:
        """As a call, with the demonstrations that were found."""
        pairs = list(zip(samples, neighbours, strict=True))
        found = self.scorer([self.demos.placed(sample, near) for sample, near in pairs])
        free = self._free(pairs)
        return [corrected(own, prior, self.normalise) for own, prior in zip(found, free, strict=True)]

    def _free(self, pairs: Sequence[tuple[Sample, Sequence[Any]]]) -> list[Tensor]:
        """log p_free [K] of each question and its demonstrations."""
        keys: list[tuple[object, ...]] = []
        todo: dict[tuple[object, ...], list[Sample]] = {}
        for sample, near in pairs:
            asked = [self.demos.placed(_about(sample, blank), near) for blank in self.blanks]
            keys.append((*(n.entry.id for n in near), *text_key(asked[0])))
            if keys[-1] not in self._known:
                todo[keys[-1]] = asked
        found = iter(self.scorer([sample for asked in todo.values() for sample in asked]))
        for key in todo:
            self._known[key] = mean_log([_log_softmax(next(found), self.normalise) for _ in self.blanks])
        return [self._known[key] for key in keys]


def corrected(own: OptionScores, free: Tensor, normalise: Normalise = "sum") -> OptionScores:
    """Scores with log q_k for log-probabilities, so that `best` and `probabilities` give the corrected answer.

    Args:
        own: finished scores of K options.
        free: log p_free [K].
    """
    logprobs = torch.log_softmax(_log_softmax(own, normalise) - free, 0)
    # One "token" each: whatever the normalisation was, it is done.
    return replace(own, logprobs=tuple(logprobs.tolist()), tokens=(1,) * len(own.options))


def mean_log(rows: Sequence[Tensor]) -> Tensor:
    """Logarithm of the mean of probabilities, given as log-probabilities [K] each."""
    return torch.logsumexp(torch.stack(list(rows)), 0) - torch.log(torch.tensor(float(len(rows)), dtype=torch.float64))


def _log_softmax(scores: OptionScores, normalise: Normalise) -> Tensor:
    return torch.log_softmax(torch.tensor(scores.scores(normalise), dtype=torch.float64), 0)


def _about(sample: Sample, blank: Image.Image) -> Sample:
    """The question about a picture that shows nothing; as large as the true one where boxes are asked about."""

    def emptied(message: Message) -> Message:
        return replace(message, parts=tuple(ImagePart(of(p)) if isinstance(p, ImagePart) else p for p in message.parts))

    def of(part: ImagePart) -> Image.Image:
        return blank.resize(image_size(part.source)) if sample.boxes else blank

    return replace(sample, messages=tuple(emptied(m) for m in sample.messages))
