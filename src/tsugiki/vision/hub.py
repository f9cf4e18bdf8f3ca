"""M-Hub: a query transformer that reads a picture and a text together (MMICT, 2312.06363).

Shapes: N pairs of a picture and a text, P patches, V tower width, Q queries, T text tokens, W hub width, D LLM width.

    per layer:  [Q; T] = norm([Q; T] + attention([Q; T]))          both ways, padded text masked
                Q      = norm(Q + attention(Q, Z))                 every second layer, Z = norm(features)
                Q      = norm(Q + ffn_q(Q)),  T = norm(T + ffn_t(T))

What comes out, by what goes in: a picture alone gives *uni-modal visual* tokens; picture and text give *textual-guided
visual* tokens (the queries) and *visual-guided textual* ones (the text's places). Pairs do not see each other, so all
of a batch run at once, whatever the lengths.

Two forms. `published`: BERT's sizes, own word and position embeddings; its weights come from a BLIP-2 or InstructBLIP
Q-Former (`_qformer.py`), its text output is W T alone. `light`: a few layers that read the LLM's own tokens by their
frozen word embeddings; its text output is E(text) + gate W T with the gate at zero, so that a demonstration starts as
plain text, and a name that was never trained still reaches the LLM.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, sqrt
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsugiki.errors import InputError, UnknownNameError

PAPER = "https://arxiv.org/abs/2312.06363"
CODE = "https://github.com/KDEGroup/MMICT"
FORMS = ("light", "published")


@dataclass(frozen=True, kw_only=True)
class HubConfig:
    """Sizes of a hub; the defaults are the light form's, `HubConfig.published()` has the paper's."""

    form: Literal["light", "published"] = "light"
    """Whose words it reads: the LLM's (light) or its own (published)."""
    layers: int = 4
    width: int = 256
    """W."""
    heads: int = 4
    hidden: int = 512
    """Width inside the FFNs."""
    queries: int = 32
    """Q."""
    cross_every: int = 2
    """Layers 0, k, 2k, ... attend to the picture."""
    vocabulary: int = 30522
    """Own words, `published` only: BERT's."""
    longest: int = 512
    """Text tokens that have a position, `published` only."""
    eps: float = 1e-12
    """Of the LayerNorms."""
    seed: int = 0
    """Of the random start."""

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise UnknownNameError("form of the hub", self.form, FORMS)
        for name in ("layers", "width", "heads", "hidden", "queries", "cross_every", "vocabulary", "longest"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}", expected="at least 1", where="hub")
        if self.width % self.heads:
            raise InputError(
                f"width={self.width} with {self.heads} heads", expected="heads that divide the width", where="hub"
            )

    @classmethod
    def published(cls) -> HubConfig:
        """MMICT's: BERT-base with cross-attention in every second layer, as BLIP-2 has it."""
        return cls(form="published", layers=12, width=768, heads=12, hidden=3072)


@dataclass(frozen=True)
class HubOutput:
    """What a hub makes of N pairs."""

    visual: Tensor  # [N, Q, D], guided by the text where there was one
    text: Tensor | None = None  # [N, T, D], guided by the picture; padded places hold nothing to be read


class Attention(nn.Module):
    """norm(x + output(attention(query(x), key(source), value(source))))."""

    def __init__(self, width: int, source_width: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key, self.value = nn.Linear(source_width, width), nn.Linear(source_width, width)
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor, source: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [N, S, W], source [N, K, U], mask bool [N, K] with True for what may be read -> [N, S, W]."""
        q, k, v = (self._split(f(y)) for f, y in ((self.query, x), (self.key, source), (self.value, source)))
        seen = None if mask is None else mask[:, None, None, :]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        out: Tensor = self.norm(x + self.output(mixed.transpose(1, 2).flatten(2)))
        return out

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)


class FeedForward(nn.Module):
    """norm(x + down(gelu(up(x))))."""

    def __init__(self, width: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x + self.down(F.gelu(self.up(x))))
        return out


class HubLayer(nn.Module):
    """One layer: both kinds attend to both, the queries to the picture, each kind has an FFN of its own."""

    def __init__(self, config: HubConfig, vision_width: int, crosses: bool, text: bool = True) -> None:
        super().__init__()
        self.attention = Attention(config.width, config.width, config.heads, config.eps)
        self.cross = Attention(config.width, vision_width, config.heads, config.eps) if crosses else None
        self.query_ffn = FeedForward(config.width, config.hidden, config.eps)
        self.text_ffn = FeedForward(config.width, config.hidden, config.eps) if text else None

    def forward(
        self, queries: Tensor, text: Tensor | None, seen: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """queries [N, Q, W], text [N, T, W], seen [N, P, V], mask bool [N, Q + T] -> both kinds, as they came."""
        both = queries if text is None else torch.cat([queries, text], 1)
        both = self.attention(both, both, mask)
        queries, rest = both[:, : queries.shape[1]], both[:, queries.shape[1] :]
        if self.cross is not None:
            queries = self.cross(queries, seen)
        return self.query_ffn(queries), None if text is None or self.text_ffn is None else self.text_ffn(rest)


class Hub(nn.Module):
    """A query transformer between a tower and an LLM.

    Args:
        config: form and sizes.
        vision_width: V.
        out_width: D.
        text: False leaves out what only texts pass through.
    """

    def __init__(self, config: HubConfig, vision_width: int, out_width: int, *, text: bool = True) -> None:
        super().__init__()
        self.config, self.vision_width, self.out_width = config, vision_width, out_width
        light, published = (config.form == form for form in FORMS)
        # A narrow hub reads a wide tower through one matrix for all layers: a fifth of the weights.
        source = config.width if light else vision_width
        self.vision_norm = nn.LayerNorm(vision_width)
        self.vision_in = nn.Linear(vision_width, config.width) if light else None
        self.queries = nn.Parameter(torch.empty(config.queries, config.width))
        self.words = nn.Embedding(config.vocabulary, config.width) if published and text else None
        self.positions = nn.Embedding(config.longest, config.width) if published and text else None
        self.text_in = nn.Linear(out_width, config.width) if light and text else None
        self.input_norm = nn.LayerNorm(config.width, eps=config.eps)
        self.layers = nn.ModuleList(
            HubLayer(config, source, crosses=i % config.cross_every == 0, text=text) for i in range(config.layers)
        )
        self.project = nn.Linear(config.width, out_width)  # shared by both kinds
        self.gate = nn.Parameter(torch.zeros(1)) if light and text else None
        self._start()

    @property
    def tokens(self) -> int:
        """Q, what a picture takes in the LLM's sequence."""
        return self.config.queries

    def forward(self, features: Tensor, text: Tensor | None = None, mask: Tensor | None = None) -> HubOutput:
        """All pairs at once.

        Args:
            features: of the tower, [N, P, V]; several pictures or frames of one pair side by side along P.
            text: light: the LLM's word embeddings float [N, T, D]; published: ids of its own words, int64 [N, T].
                None: the uni-modal reading of the pictures.
            mask: bool [N, T], True at real tokens; None = all are.

        Raises:
            InputError: a text of the other form, or longer than the hub has positions for.
        """
        queries, said = self.states(features, text, mask)
        out = None if said is None else self.project(said)
        if out is not None and self.gate is not None:
            assert text is not None
            out = text.to(out) + self.gate * out
        return HubOutput(self.project(queries), out)

    def states(
        self, features: Tensor, text: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """What the projection to the LLM sees: queries [N, Q, W] and text [N, T, W], of the forward's arguments."""
        dtype = self.project.weight.dtype
        seen = self.vision_norm(features.to(dtype))
        if self.vision_in is not None:
            seen = self.vision_in(seen)
        queries = self.input_norm(self.queries.expand(len(features), -1, -1))
        said = None if text is None else self._read(text)
        both = None
        if mask is not None and said is not None:
            both = F.pad(mask, (queries.shape[1], 0), value=True)
        for layer in self.layers:
            queries, said = layer(queries, said, seen, both)
        return queries, said

    def _read(self, text: Tensor) -> Tensor:
        """Words as the first layer takes them, [N, T, W]."""
        t = text.shape[1]
        if self.words is None:
            assert self.text_in is not None
            if not text.is_floating_point():
                raise InputError("word ids", expected="the LLM's word embeddings [N, T, D]", where="hub")
            x = self.text_in(text.to(self.project.weight.dtype))
            x = x + places(t, self.config.width).to(x)
        else:
            assert self.positions is not None
            if text.is_floating_point():
                raise InputError("word embeddings", expected="ids of the hub's own words [N, T]", where="hub")
            if t > self.config.longest:
                raise InputError(
                    f"a text of {t} tokens", expected=f"at most {self.config.longest}", fix="Cut it.", where="hub"
                )
            x = self.words(text) + self.positions.weight[:t]
        out: Tensor = self.input_norm(x)
        return out

    @torch.no_grad()
    def set_output_rms(self, rms: float, features: Tensor) -> None:
        """Scale the projection so that the uni-modal tokens of features [N, P, V] have this RMS: the LLM's words'."""
        found = float(self(features).visual.double().pow(2).mean().sqrt())
        self.project.weight.mul_(rms / max(found, 1e-12))
        self.project.bias.mul_(rms / max(found, 1e-12))

    @torch.no_grad()
    def _start(self) -> None:
        """Matrices that keep the variance, no biases; BERT's small words and queries in the published form."""
        generator = torch.Generator().manual_seed(self.config.seed)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(0, 1 / sqrt(module.in_features), generator=generator)
                module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(0, 0.02, generator=generator)
        self.queries.normal_(0, 0.02, generator=generator)

    def extra_repr(self) -> str:
        return f"form={self.config.form}, queries={self.config.queries}, {self.vision_width}->{self.out_width}"


def places(length: int, width: int) -> Tensor:
    """Position vectors [length, width] of a text: sines and cosines of falling frequency, RMS 1, for any length."""
    count = (width + 1) // 2
    turns = torch.exp(torch.arange(count, dtype=torch.float64) * (-log(10_000.0) / max(count, 1)))
    angle = torch.arange(length, dtype=torch.float64)[:, None] * turns
    return (sqrt(2.0) * torch.cat([angle.sin(), angle.cos()], 1)[:, :width]).float()
