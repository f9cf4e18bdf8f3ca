"""Where each layer's attention goes: to the text before the first picture, to pictures, to the text after (LAWS).

For a conversation, layer l and one of the three parts: LAWS = the attention weight on that part's positions, summed
over them, mean over heads and over the queries. Three extra value channels read it from whatever attention function
runs (sdpa, eager, ...), so no attention matrix is made or kept: [3] numbers a layer and conversation.

Two curves over the L layers are compared by Pearson's rho; their shift is 1 - rho. It is a sum over layers, of
(z_x - z_y)^2 / 2L with curves standardised to z: what a layer adds to the shift. Rho does not depend on the number of
queries or keys, so other ways to normalise the weights give the same.

* `attention_shift`: before against after in one model, as published. The three parts of a query sum to 1, so rho can
  only be positive where the share of the picture varies more over layers than how the texts share the rest.
* `moved`: the model against the bare LLM on the same text without the picture, for each part of the text. Without a
  picture the two parts share everything and their own rho is -1 by arithmetic; this comparison is free of that.

Source: WINGS (2406.03496). Which queries it sums over is not told; the default is all of them.
Shapes: n conversations, L layers, T queries, S keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tsugiki.data.prompt import IGNORE
from tsugiki.decoder import DecoderSpec
from tsugiki.errors import DataError, InputError, UnknownNameError, UnsupportedError
from tsugiki.evals import stats
from tsugiki.evals.task import Settings, bare_llm, picture_groups
from tsugiki.grafts import _context
from tsugiki.grafts._sites import Site, install
from tsugiki.grafts._statistics import attend
from tsugiki.types import DEMO, IMAGE, PAD, TAG, Batch, Sample, Score

Floats = npt.NDArray[np.float64]
Queries = Literal["all", "answer"]

VERSION = 1
PARTS = ("before", "image", "after")
TEXT_PARTS = (0, 2)
"""Of `PARTS`."""
QUERIES: tuple[Queries, ...] = ("all", "answer")
FEWEST = 2
"""Conversations and layers without which there is nothing to compare."""
RESAMPLES = 1_000
RULE = (
    "the layers that add most to the shift (1 - Pearson's rho over layers) between the model's attention and the bare "
    "LLM's on the text before and after the picture, mean over conversations and both texts"
)


@dataclass(frozen=True)
class Laws:
    """LAWS of a model and of the bare LLM on the same conversations."""

    own: Floats
    """[n, L, 3], in the order of `PARTS`; sums to 1 over them."""
    base: Floats
    """[n, L, 3] of the bare LLM on the same text; 0 for the picture, which it does not get."""
    samples: tuple[Sample, ...]
    queries: Queries = "all"

    @property
    def layers(self) -> int:
        """L."""
        return int(self.own.shape[1])

    def attention_shift(self) -> Floats:
        """What each layer adds to 1 - rho of before and after in the model, [n, L]; nan where a curve is flat."""
        return shift(self.own[..., 0], self.own[..., 2])

    def moved(self, part: int) -> Floats:
        """What each layer adds to 1 - rho of model and bare LLM on one part, [n, L]; nan where a curve is flat."""
        return shift(self.own[..., part], self.base[..., part])

    def moved_text(self) -> Floats:
        """`moved`, mean over both parts of the text, [n, L]."""
        return np.asarray(np.mean([self.moved(part) for part in TEXT_PARTS], axis=0))

    def groups(self) -> npt.NDArray[np.intp] | None:
        """A number for each conversation's picture; None where all have their own."""
        keys = picture_groups(self.samples)
        return None if keys is None else np.array([list(dict.fromkeys(keys)).index(k) for k in keys])


@dataclass(frozen=True)
class Suggestion:
    """Layers for learners, as `layers:` of the graft wings takes them."""

    layers: tuple[int, ...]
    """In ascending order."""
    moved: tuple[stats.Interval, ...]
    """What each of the L layers adds to the shift, mean over conversations."""
    chosen: tuple[float, ...]
    """How often each of the L layers is among the first k when conversations are drawn anew."""
    rule: str = RULE


def select(samples: Sequence[Sample]) -> list[Sample]:
    """Conversations with a picture."""
    return [s for s in samples if s.images]


def measure(
    model: Any,
    samples: Sequence[Sample],
    *,
    queries: Queries = "all",
    base: Any = None,
    progress: Callable[[int, int], None] | None = None,
) -> Laws:
    """LAWS of `model` and of the bare LLM.

    Args:
        model: a Tsugiki model, under any attention implementation that its LLM takes from transformers' registry.
        samples: conversations; those without a picture are left out.
        queries: "all" positions, or those that predict the "answer" (the assistant's words).
        base: the bare LLM, where the model's own is changed and its source not at hand.
        progress: called with (conversations done, all); each counts twice, with and without its picture.

    Raises:
        DataError: fewer than `FEWEST` conversations with a picture and text before and after it.
        UnsupportedError: the LLM does not ask the registry for its attention, or the bare LLM is not here.
    """
    if queries not in QUERIES:
        raise UnknownNameError("queries", queries, QUERIES, where="queries")
    chosen = select(samples)
    if len(chosen) < FEWEST:
        raise DataError(
            f"{len(chosen)} of {len(samples)} conversations have a picture",
            expected=f"at least {FEWEST}",
            fix="Give questions about pictures.",
        )
    bare = bare_llm(model, Settings(base=base))
    if bare is None:
        raise UnsupportedError(
            "the LLM was trained and its source is not here", expected="the bare LLM beside it", fix="Pass base=."
        )
    tell = progress or (lambda done, total: None)
    training = model.training
    model.eval()
    try:
        own, rows = [], []
        for sample in chosen:
            batch = model.encode_samples([sample], labels=queries == "answer")
            row = _Row.of(batch, sample)
            own.append(_laws(model.decoder, row, partial(_see, model, batch)))
            rows.append(row.without_pictures())
            tell(len(rows), 2 * len(chosen))
        with ExitStack() as stack:
            llm = stack.enter_context(model.detached()) if bare is model else bare
            decoder, other = DecoderSpec(llm), []
            for row in rows:
                other.append(_laws(decoder, row, partial(_read, decoder, row.ids)))
                tell(len(chosen) + len(other), 2 * len(chosen))
    finally:
        model.train(training)
    return Laws(np.stack(own), np.stack(other), tuple(chosen), queries)


def shift(x: Floats, y: Floats) -> Floats:
    """What each layer adds to 1 - rho of two curves, [..., L] each -> [..., L]: their sum is 1 - Pearson's rho.

    nan where a curve is the same in all layers: it has no rho.
    """
    spread = [c.std(-1, keepdims=True) for c in (x, y)]
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = (
            (c - c.mean(-1, keepdims=True)) / np.where(s > 1e-12, s, np.nan)
            for c, s in zip((x, y), spread, strict=True)
        )
    return np.asarray((a - b) ** 2 / (2 * x.shape[-1]))


def suggest(laws: Laws, count: int | None = None, *, seed: int = 0) -> Suggestion:
    """Layers for learners by `RULE`; of equal ones the first.

    Args:
        count: k, how many; None = a third of the layers.

    Raises:
        InputError: k is not in 1..L.
        DataError: no conversation in which attention varies over layers.
    """
    depth = laws.layers
    k = math.ceil(depth / 3) if count is None else count
    if not 1 <= k <= depth:
        raise InputError(f"{k} layers", expected=f"1 to {depth}, as many as the LLM has", where="count")
    moved, groups = _defined(laws.moved_text(), laws.groups())
    names = np.arange(len(moved)) if groups is None else groups
    members = [np.flatnonzero(names == g) for g in np.unique(names)]
    sums = np.stack([moved[m].sum(0) for m in members])  # [pictures, L]; a mean over drawn pictures ranks as its sum
    rng, hits = np.random.default_rng(seed), np.zeros(depth)
    for _ in range(RESAMPLES):
        drawn = sums[rng.integers(len(sums), size=len(sums))].sum(0)
        hits[_first(drawn, k)] += 1
    intervals = tuple(stats.mean(moved[:, i], groups=None if groups is None else groups.tolist()) for i in range(depth))
    layers = tuple(sorted(_first(moved.mean(0), k).tolist()))
    return Suggestion(layers, intervals, tuple((hits / RESAMPLES).tolist()))


def scores(laws: Laws) -> list[Score]:
    """The shifts, and the share of attention that goes to pictures, with their intervals over conversations."""
    found = [_score("1 - rho, before against after", laws, laws.attention_shift().sum(-1))]
    found += [
        _score(f"1 - rho, text {PARTS[part]}, against the bare LLM", laws, laws.moved(part).sum(-1))
        for part in TEXT_PARTS
    ]
    return [*found, _score("share on pictures", laws, laws.own[..., 1].mean(-1))]


def _score(metric: str, laws: Laws, values: Floats) -> Score:
    kept, groups = _defined(values[:, None], laws.groups())
    found = stats.mean(kept[:, 0], groups=None if groups is None else groups.tolist())
    left = len(values) - len(kept)
    return Score(
        task="attention",
        metric=metric,
        value=found.value,
        stderr=found.stderr,
        n=found.n,
        low=found.low,
        high=found.high,
        note=f"{left} conversations have none: a curve is flat" if left else "",
        version=VERSION,
    )


def _defined(values: Floats, groups: npt.NDArray[np.intp] | None) -> tuple[Floats, npt.NDArray[np.intp] | None]:
    """Rows without nan."""
    kept = np.isfinite(values).all(-1)
    if not kept.any():
        raise DataError(
            "attention is the same in all layers, in every conversation", expected="layers that differ", fix="Train it."
        )
    return values[kept], None if groups is None else groups[kept]


def _first(values: Floats, k: int) -> npt.NDArray[np.intp]:
    """Indices of the k largest, the first ones of equals."""
    return np.argsort(-values, kind="stable")[:k]


# --- reading attention ---


@dataclass(frozen=True)
class _Row:
    """One conversation."""

    ids: Tensor  # int64 [S]
    parts: Tensor  # float [S, 3], 1 where a position belongs to a part
    asks: Tensor  # bool [S], the queries that count

    @classmethod
    def of(cls, batch: Batch, sample: Sample) -> _Row:
        """A batch of one conversation; where it has labels, only the positions that predict them ask."""
        assert batch.token_kind is not None
        parts, where = parts_of(batch.token_kind)[0], sample.where or f"sample {sample.id}"
        for part in TEXT_PARTS:
            if not parts[:, part].any():
                found = f"no text {PARTS[part]} the picture"
                raise DataError(found, expected="text before and after it", fix="Add words.", where=where)
        asks = torch.ones_like(batch.input_ids[0], dtype=torch.bool)
        if batch.labels is not None:
            asks = (batch.labels[0] != IGNORE).roll(-1)  # the first position is never a label
            if not asks.any():
                raise DataError("no answer", expected="an assistant message", fix='Use queries="all".', where=where)
        return cls(batch.input_ids[0], parts, asks)

    def without_pictures(self) -> _Row:
        text = self.parts[:, 1] == 0
        return _Row(self.ids[text], self.parts[text], self.asks[text])


def parts_of(kinds: Tensor) -> Tensor:
    """Token kinds int64 [B, S] -> float [B, S, 3]: text before the first picture, pictures, text after that.

    The tag that stands for a picture whose tokens the LLM does not get (cross-attention) counts as the picture.
    """
    image = (kinds == IMAGE) | (kinds == DEMO) | (kinds == TAG)
    since = image.long().cumsum(1) > 0
    text = (kinds != PAD) & ~image
    return torch.stack([text & ~since, image, text & since], -1).float()


def _laws(decoder: DecoderSpec, row: _Row, run: Callable[[], Any]) -> Floats:
    """[L, 3] of one forward over S positions.

    Raises:
        UnsupportedError: a layer's attention does not run through the registry.
    """
    with _watched(decoder, row.parts[None]) as seen:
        run()
    missed = [i for i in range(len(decoder.layers)) if i not in seen]
    if missed:
        raise UnsupportedError(
            f"layer {missed[0]} of {decoder.name} does not run its attention through transformers' attention functions",
            expected="a family whose attention asks the registry",
            fix="Its attention can't be read without its matrices.",
        )
    rows = torch.stack([seen[i] for i in range(len(decoder.layers))])  # [L, S, 3]
    found: Floats = rows[:, row.asks.to(rows.device)].double().mean(1).cpu().numpy()
    return found


@torch.no_grad()
def _see(model: Any, batch: Batch) -> Any:
    inputs = {k: v for k, v in batch.inputs().items() if k != "labels"}
    return model(**inputs, use_cache=False, logits_to_keep=1)


@torch.no_grad()
def _read(decoder: DecoderSpec, ids: Tensor) -> Any:
    """The LLM without its head on a text, under a context that lets sites act."""
    row = ids[None].to(decoder.embed.weight.device)
    with _context.running(_context.build(torch.zeros_like(row), torch.full_like(row, -1), None)):
        return decoder.body(input_ids=row, use_cache=False)


@contextmanager
def _watched(decoder: DecoderSpec, channels: Tensor) -> Iterator[dict[int, Tensor]]:
    """Layer -> attention of each query on the parts, mean over heads, [S, 3]; channels [1, S, 3] tell the keys' parts.

    The graft's own sites stay where they are: what is read is the attention that runs under them.
    """
    seen: dict[int, Tensor] = {}

    def note(index: int, call: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor, _: Any, **keywords: Any) -> Any:
        scaling = keywords.get("scaling")
        scaling = q.shape[-1] ** -0.5 if scaling is None else scaling
        output, mass = attend(call, q, k, v, channels.to(q.device), scaling)
        seen[index] = mass[0] / q.shape[1]
        return output

    with ExitStack() as stack:
        for block in decoder.blocks:
            site = Site("attention", block.attention, partial(note, block.index), "LAWS", on_text=True)
            stack.callback(install(site))
        yield seen
