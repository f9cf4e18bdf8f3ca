"""Several towers and views to one run of visual tokens: SPHINX's mixed embeddings. 2311.07575, section 3; 2402.05935.

Grids are brought to one raster and put side by side per cell, e = [a | b | c], so that the projector sees all towers
at the same place; queries, which have no place, get a linear map and a LayerNorm of their own and stand before the
cells. They are a tower's, or those of a branch that reads the view's features (`query_branch.py`). A view is [start;
queries; CLS; cells; end], a crop of padding alone is one `skip` vector, all of them learned and shared by all views:

    z_v = project(e_v)      q_v = LN(d_v W + b)      t_v = [s; q_v; z_v; e] or [skip]      t = [t_global; t_1; t_2; ...]

Shapes: N pictures, W views, V widths of the towers, P cells of the raster, Q queries, L tokens of a view, M of a
picture, D LLM width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsugiki.errors import InputError
from tsugiki.types import VisualTokens
from tsugiki.vision.config import FrontEndConfig
from tsugiki.vision.projector import Projector, ProjectorConfig
from tsugiki.vision.query_branch import QueryBranch
from tsugiki.vision.tower import Tower
from tsugiki.vision.views import Views

Grid = tuple[int, int]
PAPER = "arXiv:2311.07575"


@dataclass(frozen=True)
class Source:
    """What a mix has to know of a tower."""

    name: str
    grid: Grid
    width: int
    queries: bool

    @classmethod
    def of(cls, tower: Tower) -> Source:
        return cls(tower.name, tower.grid, tower.width, tower.queries)


def raster_of(sources: Sequence[Source], raster: Grid | None, align: str) -> Grid:
    """The raster that all grids are aligned to.

    Raises:
        InputError: no tower has a grid, or one that can't be aligned.
    """
    grids = [source.grid for source in sources if not source.queries]
    if not grids:
        raise InputError(
            "a mix of queries alone",
            expected="at least one tower with a grid, such as a ViT",
            fix="Add one; a Q-Former alone is a front-end with `tower`.",
            where="front-end",
        )
    raster = raster or (max(h for h, _ in grids), max(w for _, w in grids))
    for source in sources:
        if not source.queries:
            _check_grid(source, raster, align)
    return raster


def _check_grid(source: Source, raster: Grid, align: str) -> None:
    (h, w), (rows, columns) = source.grid, raster
    if h * columns != w * rows:
        raise InputError(
            f"the tower {source.name} has a grid of {h}x{w} cells, which can't be aligned to {rows}x{columns}",
            expected="a grid with the raster's aspect ratio",
            fix="Use another tower, or set `raster` to one that all grids can be brought to.",
            where="front-end",
        )
    if align == "repeat" and rows % h:
        raise InputError(
            f"the tower {source.name} has a grid of {h}x{w} cells, which can't be repeated to {rows}x{columns}",
            expected=f"a grid that divides {rows}x{columns}",
            fix="Give this tower another input_size, or set align to 'bilinear'.",
            where="front-end",
        )


def aligned(cells: Tensor, grid: Grid, raster: Grid, align: str) -> Tensor:
    """Cells of one grid as those of another: [K, h * w, V] -> [K, rows * columns, V], row-major.

    `repeat` writes each cell into a block, `bilinear` interpolates between the cells' centres.
    """
    if grid == raster:
        return cells
    if align == "bilinear":
        return resized(cells, grid, raster)
    blocks: Tensor = cells.unflatten(1, grid)
    for dim, (had, wanted) in enumerate(zip(grid, raster, strict=True), start=1):
        blocks = blocks.repeat_interleave(wanted // had, dim=dim)
    return blocks.flatten(1, 2)


def resized(cells: Tensor, grid: Grid, to: Grid) -> Tensor:
    """Bilinear, corners not aligned: [K, h * w, V] -> [K, h' * w', V]; halving is the mean of 2 x 2 cells."""
    # In fp32: interpolation in fp16 is missing on some CPUs, and its rounding would depend on the device.
    maps = cells.float().transpose(1, 2).unflatten(2, grid)
    found: Tensor = F.interpolate(maps, size=to, mode="bilinear", align_corners=False)
    return found.flatten(2).transpose(1, 2).to(cells)


def _read_tower(number: int | None, sources: Sequence[Source]) -> int | None:
    """The number of the tower that a query branch reads, if it is one of these and has patches."""
    if number is not None and (not 0 <= number < len(sources) or sources[number].queries):
        readable = [f"{i} ({s.name})" for i, s in enumerate(sources) if not s.queries]
        raise InputError(
            f"tower={number}", expected=f"the number of a tower with patches: {', '.join(readable)}",
            fix="Leave it out to read all of them.", where="front-end: query_branch",
        )  # fmt: skip
    return number


class Mix(nn.Module):
    """What a mix has beside the front-end's projector: maps of the queries, a query branch, and learned vectors.

    Args:
        config: the front-end's.
        sources: its towers, in order.
        out_width: D.

    Raises:
        InputError: grids that can't be aligned, an odd raster that is to be halved, or a query branch of a tower that
            is not there or has no patches.
    """

    start: Tensor | None
    end: Tensor | None
    skip: Tensor | None

    def __init__(self, config: FrontEndConfig, sources: Sequence[Source], out_width: int) -> None:
        super().__init__()
        self.sources, self.views, self.cls, self.align = (
            tuple(sources),
            Views(config.views),
            config.cls_token,
            config.align,
        )
        self.raster = raster_of(self.sources, config.raster, config.align)
        self.crop_raster = self.raster
        if config.reduce_crops:
            if self.raster[0] % 2 or self.raster[1] % 2:
                raise InputError(
                    f"reduce_crops with a raster of {self.raster[0]}x{self.raster[1]} cells",
                    expected="even numbers", fix="Set `raster`, or leave reduce_crops out.", where="front-end",
                )  # fmt: skip
            self.crop_raster = (self.raster[0] // 2, self.raster[1] // 2)
        self.queries = nn.ModuleList(
            Projector(ProjectorConfig(kind="linear_norm", seed=config.seed), s.grid, s.width, out_width)
            for s in self.sources
            if s.queries
        )
        self.branch_of: int | None = None
        if (asked := config.query_settings()) is not None:
            self.branch_of = _read_tower(asked.tower, self.sources)
            width = self.width if self.branch_of is None else self.sources[self.branch_of].width
            self.queries.append(QueryBranch(asked.sizes, width, out_width))
        generator = torch.Generator().manual_seed(config.seed)
        wanted = {"start": config.marked, "end": config.marked, "skip": self.views.count > 1}
        for name, there in wanted.items():
            vector = torch.randn(out_width, generator=generator)
            self.register_parameter(name, nn.Parameter(vector) if there else None)

    @property
    def branch(self) -> QueryBranch | None:
        """The last of `queries`, where it is one."""
        last = self.queries[-1] if len(self.queries) else None
        return last if isinstance(last, QueryBranch) else None

    @property
    def width(self) -> int:
        """Of the cells: the sum over the towers with a grid."""
        return sum(source.width for source in self.sources if not source.queries)

    def cells(self, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Features of K views, [K, rows, V] for each tower -> CLS [K, 0 or 1, sum V] and cells [K, P, sum V]."""
        pairs = [(part, source) for part, source in zip(parts, self.sources, strict=True) if not source.queries]
        first = torch.cat([part[:, : int(self.cls)] for part, _ in pairs], dim=-1)
        cells = [aligned(part[:, int(self.cls) :], source.grid, self.raster, self.align) for part, source in pairs]
        return first, torch.cat(cells, dim=-1)

    def asked(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """What each of `queries` maps: the outputs of a tower's queries [K, Q, V], and last what a branch reads."""
        found = [part for part, source in zip(parts, self.sources, strict=True) if source.queries]
        if self.branch is not None:
            found.append(torch.cat(self.cells(parts), 1) if self.branch_of is None else parts[self.branch_of])
        return found

    def spans(self, projector: Projector, parts: Sequence[Tensor], places: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Tokens of K views.

        Args:
            projector: of the cells.
            parts: for each tower [K, rows, V].
            places: their numbers among the views: [0] for whole squares; else crops, all of them of one raster.

        Returns:
            [K, L, D], and of these the tokens of the cells, [K, cells, D].
        """
        first, cells = self.cells(parts)
        crop = bool(places) and places[0] > 0
        if crop and self.crop_raster != self.raster:
            cells = resized(cells, self.raster, self.crop_raster)
        tokens = projector.content(cells)
        if projector.positions is not None:
            tokens = tokens + self._positions(projector, places).to(tokens)
        found = [q(part) for q, part in zip(self.queries, self.asked(parts), strict=True)]
        found += [projector.content(first)] if self.cls else []
        found.append(tokens)
        if self.start is not None and self.end is not None:
            marks = [vector.to(tokens).expand(len(tokens), 1, -1) for vector in (self.start, self.end)]
            found = [marks[0], *found, marks[1]]
        return torch.cat(found, dim=1), tokens

    def _positions(self, projector: Projector, places: Sequence[int]) -> Tensor:
        """Position vectors of the whole square for its cells, and for a crop's cells those of its part of the square:
        [K or 1, cells, D]."""
        assert projector.positions is not None
        table = projector.positions[None]
        if not places or places[0] == 0:
            return table
        n, (h, w) = self.views.side, projector.grid
        fine = resized(table, (h, w), (n * h, n * w)).unflatten(1, (n, h, n, w))[0]
        own = torch.stack([fine[row, :, column].flatten(0, 1) for row, column in map(self.views.place, places)])
        return own if self.crop_raster == self.raster else resized(own, (h, w), self.crop_raster)

    def lengths(self, projector: Projector) -> tuple[int, int]:
        """L of the whole square and of a crop."""
        extra = sum(q.tokens for q in self.queries) + self.cls + 2 * (self.start is not None)  # type: ignore[misc]
        whole = projector.tokens
        crop = whole if self.crop_raster == self.raster else self.crop_raster[0] * self.crop_raster[1]
        return extra + whole, extra + crop

    def forward(self, projector: Projector, seen: Tensor, parts: Sequence[Tensor]) -> tuple[VisualTokens, Tensor]:
        """Visual tokens of N pictures.

        Args:
            projector: of the cells.
            seen: bool [N, W], which views are seen.
            parts: for each tower [N, W, rows, V].

        Returns:
            [N, M, D], each picture's tokens first and then padding that the mask leaves out; and the tokens of the
            whole squares' cells, [N, cells, D].
        """
        device = projector.linear_2.weight.device
        spans, cells = self.spans(projector, [part[:, 0].to(device) for part in parts], [0])
        if self.skip is None:
            return VisualTokens(spans), cells
        which = seen[:, 1:].nonzero()  # [K, 2]
        crops = [part[:, 1:][which[:, 0], which[:, 1]].to(device) for part in parts]
        seen_crops, _ = self.spans(projector, crops, (which[:, 1] + 1).tolist())
        rows = torch.cat([spans.flatten(0, 1), seen_crops.flatten(0, 1), self.skip[None].to(spans)])
        index = self._index(seen, *self.lengths(projector)).to(device)
        return VisualTokens(rows[index.clamp(min=0)], index >= 0), cells

    def _index(self, seen: Tensor, whole: int, crop: int) -> Tensor:
        """Which row each token is: all whole squares first, then all seen crops, then the skip vector; [N, M], -1 =
        none."""
        n, w = seen.shape
        skip = n * whole + int(seen[:, 1:].sum()) * crop
        first = torch.full((n, w), skip, device=seen.device)  # row of each view's first token
        first[:, 0] = torch.arange(n, device=seen.device) * whole
        first[:, 1:][seen[:, 1:]] = n * whole + torch.arange(int(seen[:, 1:].sum()), device=seen.device) * crop
        lengths = torch.where(seen, crop, 1)
        lengths[:, 0] = whole
        ends = lengths.cumsum(1)
        slots = torch.arange(whole + (w - 1) * max(crop, 1), device=seen.device).expand(n, -1).contiguous()
        view = torch.searchsorted(ends, slots, right=True)  # w behind the last one
        there = view < w
        view = view.clamp(max=w - 1)
        within = slots - (ends - lengths).gather(1, view)
        return torch.where(there, first.gather(1, view) + within, -1)

    @torch.no_grad()
    def set_output_rms(self, rms: float, parts: Sequence[Tensor]) -> None:
        """Bring queries and learned vectors to this RMS, on features [K, rows, V] of each tower."""
        for projector, part in zip(self.queries, self.asked(parts), strict=True):
            projector.set_output_rms(rms, part)  # type: ignore[operator]
        for vector in (self.start, self.end, self.skip):
            if vector is not None:
                vector.mul_(rms / vector.pow(2).mean().sqrt())

    def extra_repr(self) -> str:
        towers = ", ".join(f"{s.name} {'queries' if s.queries else s.grid}" for s in self.sources)
        return f"{towers} -> {self.raster}, views={self.views.name}"
