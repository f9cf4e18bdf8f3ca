"""Patch features [N, P, V] -> visual tokens [N, M, D] in the LLM's embedding space.

Shapes: P = h * w patches in row-major order, f = unshuffle factor, M visual tokens, H hidden width, D LLM width.
Four kinds: `linear`, `linear_norm` (SPHINX, 2311.07575: linear, LayerNorm), `mlp` (LLaVA-1.5, 2310.03744: linear,
GELU, linear) and `pixel_unshuffle` (each f x f block of patches becomes one token of width f * f * V, then LayerNorm,
linear, GELU, linear: the shape that LFM2-VL has in transformers and llama.cpp, so that an export loses nothing). Odd
grids are padded with zeros on the right and below.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, pi, sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsugiki.errors import InputError, UnknownNameError

KINDS = ("linear", "mlp", "pixel_unshuffle", "linear_norm")
POSITIONS = ("none", "learned", "sincos")


@dataclass(frozen=True, kw_only=True)
class ProjectorConfig:
    """How visual tokens are made from patches."""

    kind: str = "pixel_unshuffle"
    """linear | mlp | pixel_unshuffle | linear_norm."""
    hidden: int | None = None
    """H; None = twice the LLM's width. Not used by the linear kinds."""
    factor: int = 2
    """Edge of the block of patches that becomes one token, `pixel_unshuffle` only."""
    positions: str | bool = "none"
    """none | learned | sincos: 2-D position vectors added to the visual tokens; True = learned, from sincos on."""
    position_gain: float = 0.3
    """RMS of the position vectors at the start, relative to that of the visual tokens."""
    seed: int = 0
    """Of the random start."""

    def __post_init__(self) -> None:
        if isinstance(self.positions, bool):
            object.__setattr__(self, "positions", "learned" if self.positions else "none")
        if self.kind not in KINDS:
            raise UnknownNameError("projector", self.kind, KINDS)
        if self.positions not in POSITIONS:
            raise UnknownNameError("kind of positions", str(self.positions), POSITIONS)
        if not 0 < self.position_gain < 1:
            raise InputError(f"position_gain={self.position_gain}", expected="between 0 and 1", where="projector")
        if self.factor < 1 or (self.hidden is not None and self.hidden < 1):
            raise InputError(f"factor={self.factor}, hidden={self.hidden}", expected="at least 1", where="projector")


class Projector(nn.Module):
    """tokens = linear_2(hidden(features)) + positions, with hidden(x) = gelu(linear_1(norm(unshuffle(x)))) or a part
    of it.

    `linear_2` is always the last matrix: gain and warm start set it and leave the rest. `linear_norm` has a LayerNorm
    behind it, and then the gain is that norm's.

    Args:
        config: kind and sizes.
        grid: (h, w) of the patches.
        in_width: V.
        out_width: D.
    """

    def __init__(self, config: ProjectorConfig, grid: tuple[int, int], in_width: int, out_width: int) -> None:
        super().__init__()
        self.config, self.in_grid, self.in_width, self.out_width = config, grid, in_width, out_width
        f = config.factor if config.kind == "pixel_unshuffle" else 1
        self.factor, self.grid = f, (ceil(grid[0] / f), ceil(grid[1] / f))
        width, hidden = in_width * f * f, config.hidden or 2 * out_width
        self.layer_norm = nn.LayerNorm(width) if config.kind == "pixel_unshuffle" else None
        self.linear_1 = None if config.kind.startswith("linear") else nn.Linear(width, hidden)
        self.linear_2 = nn.Linear(width if self.linear_1 is None else hidden, out_width)
        self.out_norm = nn.LayerNorm(out_width) if config.kind == "linear_norm" else None
        self.positions: Tensor | None = None
        if config.positions == "learned":
            self.positions = nn.Parameter(sincos_2d(self.grid, out_width))
        elif config.positions == "sincos":  # a buffer: saved with the rest, and never trained with it
            del self.positions
            self.register_buffer("positions", sincos_2d(self.grid, out_width))
        self._start()

    @property
    def tokens(self) -> int:
        """M."""
        return self.grid[0] * self.grid[1]

    def hidden(self, features: Tensor) -> Tensor:
        """What the last matrix sees: [N, P, V] -> [N, M, H] ([N, M, V] for `linear`)."""
        x = unshuffle(features, self.in_grid, self.factor) if self.layer_norm is not None else features
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        return x if self.linear_1 is None else F.gelu(self.linear_1(x))

    def content(self, features: Tensor) -> Tensor:
        """Tokens without position vectors, [N, P, V] -> [N, M, D]; any number of rows where no patches are merged."""
        tokens: Tensor = self.linear_2(self.hidden(features.to(self.linear_2.weight.dtype)))
        return tokens if self.out_norm is None else self.out_norm(tokens)

    def forward(self, features: Tensor) -> Tensor:
        """[N, P, V] -> [N, M, D]."""
        tokens = self.content(features)
        return tokens if self.positions is None else tokens + self.positions.to(tokens.dtype)

    @torch.no_grad()
    def set_output_rms(self, rms: float, features: Tensor | None = None) -> None:
        """Scale the last matrix or norm (and the position vectors): the visual tokens of `features` get this RMS.

        Args:
            rms: root mean square over all entries, that of the LLM's word embeddings.
            features: [N, P, V] of real pictures; None = standard normal ones, right only where a LayerNorm comes first.
        """
        if features is None:
            generator = torch.Generator().manual_seed(self.config.seed)
            features = torch.randn(4, self.in_grid[0] * self.in_grid[1], self.in_width, generator=generator)
        if self.positions is not None:
            self.positions.mul_(self.config.position_gain * rms / _rms(self.positions))
        content = self.content(features.to(self.linear_2.weight))  # [N, M, D]
        gain = gain_for(content.double(), 0.0 if self.positions is None else self.positions.double(), rms)
        last = self.linear_2 if self.out_norm is None else self.out_norm
        last.weight.mul_(gain)
        last.bias.mul_(gain)

    @torch.no_grad()
    def _start(self) -> None:
        """Matrices that keep the variance, no biases, unit output RMS for standard normal features."""
        generator = torch.Generator().manual_seed(self.config.seed)
        for linear in (self.linear_1, self.linear_2):
            if linear is not None:
                linear.weight.normal_(0, 1 / sqrt(linear.in_features), generator=generator)
                linear.bias.zero_()
        self.set_output_rms(1.0)

    def extra_repr(self) -> str:
        return f"kind={self.config.kind}, grid={self.in_grid}->{self.grid}, tokens={self.tokens}"


def build_projector(config: ProjectorConfig, grid: tuple[int, int], in_width: int, out_width: int) -> Projector:
    """The projector of a config; see `Projector`."""
    return Projector(config, grid, in_width, out_width)


def unshuffle(features: Tensor, grid: tuple[int, int], factor: int) -> Tensor:
    """Blocks of factor x factor patches side by side in one token: [N, h * w, V] -> [N, h' * w', factor * factor * V].

    Within a token: block row, block column, channel. Missing patches of an uneven grid are zeros on the right and
    below.
    """
    (h, w), f = grid, factor
    n, _, v = features.shape
    x = F.pad(features.reshape(n, h, w, v), (0, 0, 0, -w % f, 0, -h % f))  # [N, h' f, w' f, V]
    x = x.reshape(n, ceil(h / f), f, ceil(w / f), f, v).transpose(2, 3)  # [N, h', w', f, f, V]
    return x.reshape(n, ceil(h / f) * ceil(w / f), f * f * v)


def sincos_2d(grid: tuple[int, int], width: int) -> Tensor:
    """2-D position vectors [h * w, width], zero mean over places, RMS 1.

    A quarter each for cos and sin of y and of x. Coordinates are token centres in [0, 1]; the frequencies run,
    evenly in their logarithm, from half a turn over the whole picture to one turn over two tokens: a low one tells
    the side, a high one the neighbour.
    """
    h, w = grid
    count = max(1, width // 4)
    parts = []
    y = ((torch.arange(h) + 0.5) / h).repeat_interleave(w)
    x = ((torch.arange(w) + 0.5) / w).repeat(h)
    for coordinate, side in ((y, h), (x, w)):
        turns = torch.logspace(0, 1, count, base=max(side, 1), dtype=torch.float64) / 2
        angle = 2 * pi * coordinate.double()[:, None] * turns
        parts += [angle.cos(), angle.sin()]
    vectors = F.pad(torch.cat(parts, dim=1), (0, max(0, width - 4 * count)))[:, :width]
    vectors = vectors - vectors.mean(dim=0)
    return (vectors / _rms(vectors)).float()


def _rms(x: Tensor) -> float:
    return max(float(x.double().pow(2).mean().sqrt()), 1e-12)


def gain_for(content: Tensor, positions: Tensor | float, rms: float) -> float:
    """The a > 0 for which rms(a * content + positions) is `rms`: the positive root of a quadratic."""
    a, c = float(content.pow(2).mean()), float(torch.as_tensor(positions).pow(2).mean()) - rms * rms
    b = 2 * float((content * positions).mean())
    if a == 0.0:
        return 1.0
    return (-b + sqrt(max(b * b - 4 * a * c, 0.0))) / (2 * a)
