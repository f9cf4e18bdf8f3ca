"""A closed-form start of the projector from captions, without running the LLM.

A frozen LLM can read a visual token from the first step if the token lies where the words for what is there lie. So
the mean over a picture's visual tokens is matched, by ridge regression over pictures, to the weighted mean of the
word embeddings of its caption:

    min_W  sum_i | W (h_i - h) - (y_i - y) |^2 + lambda |W|^2      h_i = mean_t hidden(x_i)_t,   y_i = sum_u w_u e_u
    / sum_u w_u

Since the last matrix is linear, what it says of the mean it says token by token: tokens at a thing come to lie near
the thing's name. The words are the LLM's own tokens, weighted by inverse document frequency over the given captions,
so that no language and no list of stop words is built in: what is in every caption weighs nothing.
Shapes: n pictures, P patches, V tower width, F width before the first matrix, H hidden width, D LLM width, U tokens
that carry content.
"""

from __future__ import annotations

import copy
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tsugiki.errors import InputError, UnknownNameError
from tsugiki.vision.frontend import FrontEnd
from tsugiki.vision.projector import Projector, gain_for, unshuffle
from tsugiki.vision.ridge import Ridge, ridge

_CHUNK = 64  # pictures; bounds the memory for hidden layers
_SAMPLE = 256  # pictures that tell sizes
_HOLD_OUT = 10  # every 10th picture tells the second ridge's strength


@torch.no_grad()
def warm_start(
    frontend: FrontEnd,
    features: Tensor,
    texts: Sequence[str],
    tokenizer: Any,
    word_embeddings: Tensor,
    *,
    match: bool = True,
    norm: float | None = 1.0,
    first: str = "fit",
    idf_power: float = 2.0,
    min_count: int = 2,
    limit: int = 2000,
) -> dict[str, Any]:
    """Set the projector from pictures with captions, position vectors apart. 2,000 pictures take half a minute at most.

    Args:
        frontend: its projector is changed in place; of a mix also those of queries, on what each maps of the whole
            square.
        features: of frozen towers, [n, P, V] or [n, E], as `FeatureCache.get` or `FrontEnd.encode` give them.
        texts: n captions, or all that is said of a picture in one string.
        tokenizer: the LLM's.
        word_embeddings: [vocabulary, D], with the LLM's own scaling of embeddings if it has one.
        match: False leaves the directions random and sets only the norm (an arm of the ablation).
        norm: RMS of the visual tokens as a multiple of the word embeddings'; None = as the regression leaves it.
        first: fit = the first matrix carries the best linear map, as pairs of opposite rows; random = it stays.
        idf_power: of the weights; 0 counts all tokens alike.
        min_count: a token in fewer captions is left out, nothing can be learned about it.
        limit: at most so many pictures, evenly spaced.

    Returns:
        matched, reason (if not), pictures, words (U), lambda_1, lambda_2 (shares of the trace), r2 (of the target on
        held-out pictures), recall (share of held-out pictures' content tokens that are found as the nearest ones to
        a visual token), recall_chance, rms, seconds. Where captions have no content that differs, only the norm is set.

    Raises:
        InputError: as many texts as pictures are needed, and at least 2.
    """
    began = time.perf_counter()
    _check(frontend, features, texts, word_embeddings, first)
    keep = torch.linspace(0, len(texts) - 1, min(limit, len(texts))).round().long()
    features, texts = features.cpu()[keep], [texts[i] for i in keep.tolist()]
    table = word_embeddings.detach().float().cpu()
    words = content_words(texts, tokenizer, power=idf_power, min_count=min_count) if match else None
    report: dict[str, Any] = {"matched": False, "pictures": len(texts), "first": first, "norm": norm}
    if words is not None and len(words.ids) < 2:
        words, report["reason"] = None, "the texts do not differ: nothing to match"
    if words is not None:
        report |= {"matched": True, "words": len(words.ids)}
    fitted, own = [], []
    for projector, inputs in frontend.projections(features):
        fitted.append(copy.deepcopy(projector).float().cpu())  # the given ones stay if anything goes wrong
        own.append(_start(fitted[-1], inputs, words, table, first, norm))
    for (projector, _), start in zip(frontend.projections(features[:1]), fitted, strict=True):
        projector.load_state_dict(start.state_dict())
    report |= own[0] | ({"queries": own[1:]} if own[1:] else {})
    return report | {"seconds": time.perf_counter() - began}


def _start(
    projector: Projector, features: Tensor, words: ContentWords | None, table: Tensor, first: str, norm: float | None
) -> dict[str, Any]:
    """Set one projector from what it maps [n, P, V]; a norm behind the last matrix keeps the directions that were
    fitted without it."""
    out_norm, projector.out_norm = projector.out_norm, None
    rms, report = float(table.pow(2).mean().sqrt()), dict[str, Any]()
    if words is not None:
        report |= _match(projector, features, words, table, first)
    if norm is not None:
        _set_norm(projector, features, rms, norm, centred=words is not None)
    size = float(_tokens(projector, features).pow(2).mean().sqrt())
    if out_norm is not None:
        projector.out_norm = out_norm
        out_norm.reset_parameters()
        positions = 0.0 if projector.positions is None else projector.positions.double()
        content = torch.cat([projector.content(part) for part in _chunks(features[:_SAMPLE])]).double()
        out_norm.weight.mul_(gain_for(content, positions, size))
        size = float(_tokens(projector, features).pow(2).mean().sqrt())
    return report | {"rms": size}


@dataclass(frozen=True)
class ContentWords:
    """What captions say: tokens that carry content, and how much each caption says of each."""

    ids: Tensor  # int64 [U], ids of the tokenizer
    weights: Tensor  # float32 [n, U], rows sum to 1, or to 0 where a caption says nothing

    def targets(self, table: Tensor) -> Tensor:
        """Weighted mean embedding of each caption, [n, D]."""
        return self.weights @ table[self.ids]


def content_words(texts: Sequence[str], tokenizer: Any, *, power: float = 2.0, min_count: int = 2) -> ContentWords:
    """Tokens of captions with weight idf ** power, idf = log(n / number of captions that hold the token).

    A token counts once in a caption. Texts get a space in front, so that a first word is the same token as a later one.
    """
    spaced = [text if text[:1].isspace() else f" {text}" for text in texts]
    rows = [sorted(set(ids)) for ids in tokenizer(spaced, add_special_tokens=False)["input_ids"]]
    n = len(rows)
    counts = Counter(i for row in rows for i in row)
    if n < 10 * min_count:
        min_count = 1  # too few captions to be choosy
    # Rare tokens are not worth more than those with five captions: one picture can't carry the whole fit.
    idf = {i: math.log(n / max(c, min(5, n // 10 + 1))) for i, c in counts.items() if min_count <= c < n}
    ids = sorted(i for i, value in idf.items() if value > 1e-9)
    column = {i: k for k, i in enumerate(ids)}
    weights = torch.zeros(n, len(ids))
    for row, found in enumerate(rows):
        for i in found:
            if i in column:
                weights[row, column[i]] = idf[i] ** power
    total = weights.sum(dim=1, keepdim=True)
    return ContentWords(torch.tensor(ids, dtype=torch.long), weights / total.clamp_min(1e-12))


def _match(projector: Projector, features: Tensor, words: ContentWords, table: Tensor, first: str) -> dict[str, Any]:
    targets = words.targets(table)  # [n, D]
    told = words.weights.sum(dim=1) > 0
    held = torch.zeros(len(targets), dtype=torch.bool)
    if int(told.sum()) >= 3 * _HOLD_OUT:
        held[_HOLD_OUT - 1 :: _HOLD_OUT] = True
        held &= told
    fit = told & ~held
    centre = targets[told].mean(dim=0)
    report: dict[str, Any] = {}
    if projector.linear_1 is not None and first == "fit":
        inputs = _means(projector, features, before_first=True)  # [n, F]
        linear = ridge(inputs[fit], targets[fit])
        report["lambda_1"] = linear.strength
        _set_first(projector, linear, features)
    hidden = _means(projector, features)  # [n, H]
    # The first matrix has seen the pictures of `fit`: only the held-out ones can tell how much to trust it.
    solution = ridge(hidden[fit], targets[fit], (hidden[held], targets[held]) if held.any() else None)
    if held.any():
        report |= {"r2": solution.r2} | _recall(projector, features[held], words, table, held, solution, centre)
        solution = ridge(hidden[told], targets[told], strengths=[solution.strength])
    report["lambda_2"] = solution.strength
    projector.linear_2.weight.copy_(solution.matrix.T)
    projector.linear_2.bias.copy_(solution.target_mean - solution.input_mean @ solution.matrix)
    return report


def _set_first(projector: Projector, linear: Ridge, features: Tensor) -> None:
    """Rows +b and -b of the first matrix: gelu(z) - gelu(-z) = z, so the last matrix can give the linear map
    exactly, and more.

    Where H < 2 D, the directions in which the map varies most; rows beyond 2 D stay random.
    """
    first = projector.linear_1
    assert first is not None
    matrix = linear.matrix  # [F, D]
    count = min(matrix.shape[1], first.out_features // 2)
    if count == 0:
        return
    if count < matrix.shape[1]:
        outputs = (_means(projector, features, before_first=True) - linear.input_mean) @ matrix
        matrix = matrix @ torch.linalg.svd(outputs, full_matrices=False).Vh[:count].T
    parts = [(_inputs(projector, p) - linear.input_mean) @ matrix for p in _chunks(features[:_SAMPLE])]
    matrix = matrix / torch.cat(parts).pow(2).mean().sqrt().clamp_min(1e-12)  # unit RMS: where GELU bends
    rows = torch.cat([matrix.T, -matrix.T])
    first.weight[: 2 * count].copy_(rows)
    first.bias[: 2 * count].copy_(-rows @ linear.input_mean)


def _set_norm(projector: Projector, features: Tensor, rms: float, norm: float, *, centred: bool) -> None:
    """Bring the visual tokens to `norm` times the embeddings' RMS.

    After a match the mean token lies at the centre of the words, and only what differs from it is stretched; then
    all is scaled by `norm`.
    """
    if not centred:
        projector.set_output_rms(norm * rms, features[:_SAMPLE])
        return
    positions = torch.zeros(()) if projector.positions is None else projector.positions
    content = _tokens(projector, features) - positions.double()  # [n, M, D]
    mean = content.mean(dim=(0, 1))
    fixed = mean + positions.double()
    if float(fixed.pow(2).mean()) < rms * rms:
        gain = gain_for(content - mean, fixed, rms)
    else:  # the centre alone is longer than that: keep the shape, scale the whole
        gain, norm = 1.0, norm * rms / float((content + positions).pow(2).mean().sqrt())
    weight, bias = projector.linear_2.weight, projector.linear_2.bias
    weight.mul_(gain * norm)
    bias.copy_(norm * (mean + gain * (bias - mean)))
    positions.mul_(norm)


def _recall(
    projector: Projector,
    features: Tensor,
    words: ContentWords,
    table: Tensor,
    held: Tensor,
    solution: Ridge,
    centre: Tensor,
) -> dict[str, float]:
    """How many of a picture's k main tokens are among the k that come nearest to one of its visual tokens."""
    names = F.normalize(table[words.ids] - centre, dim=-1)  # [U, D]
    found = total = chance = 0.0
    for part, said in zip(_chunks(features), words.weights[held].split(_CHUNK), strict=True):
        tokens = (projector.hidden(part.float()) - solution.input_mean) @ solution.matrix  # [c, M, D]
        near = (F.normalize(tokens, dim=-1) @ names.T).amax(dim=1)  # [c, U]
        for row, weights in zip(near, said, strict=True):
            main = (weights >= 0.5 * weights.max()).nonzero()[:, 0]
            top = row.topk(len(main)).indices
            found += float(torch.isin(main, top).sum())
            total += len(main)
            chance += len(main) ** 2 / len(names)
    return {"recall": found / total, "recall_chance": chance / total}


def _inputs(projector: Projector, features: Tensor) -> Tensor:
    """What the first matrix sees, [n, M, F]."""
    x = features.float()
    return (
        x if projector.layer_norm is None else projector.layer_norm(unshuffle(x, projector.in_grid, projector.factor))
    )


def _means(projector: Projector, features: Tensor, *, before_first: bool = False) -> Tensor:
    """Mean over a picture's tokens of what the last (or first) matrix sees, float32."""
    means = []
    for part in _chunks(features):
        seen = _inputs(projector, part) if before_first else projector.hidden(part.float())
        means.append(seen.mean(dim=1))
    return torch.cat(means)


def _tokens(projector: Projector, features: Tensor) -> Tensor:
    """Visual tokens of the first pictures, float64 [n, M, D]: enough to tell their size."""
    content = torch.cat([projector.content(part) for part in _chunks(features[:_SAMPLE])]).double()
    return content if projector.positions is None else content + projector.positions.double()


def _chunks(features: Tensor) -> list[Tensor]:
    return list(features.split(_CHUNK))


def _check(frontend: FrontEnd, features: Tensor, texts: Sequence[str], table: Tensor, first: str) -> None:
    if first not in ("fit", "random"):
        raise UnknownNameError("start of the first matrix", first, ("fit", "random"))
    if len(features) != len(texts) or len(texts) < 2:
        raise InputError(
            f"{len(features)} pictures and {len(texts)} texts",
            expected="as many of each, and at least 2",
            fix="Give more pictures, or set warm_start=false.",
            where="warm start",
        )
    if table.shape[1] != frontend.projector.out_width:
        raise InputError(f"word embeddings of width {table.shape[1]}", expected=str(frontend.projector.out_width))
    frontend.project(features[:1])  # says what is wrong with the features
