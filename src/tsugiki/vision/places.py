"""Boxes that a linear reader finds in a picture, written behind its visual tokens in the LLM's own characters.

A frozen LLM copies a box that stands in its prompt as text almost without a fault, and hardly learns to read one off
visual tokens (docs/results/boxes.md). So the place is read where it is plain, in the tower's feature map, and handed
over where the LLM is at home: K times, after all visual tokens, the visual token at the place (what is there) and the
word embeddings of "[12,34,56,78]" (where it is). The LLM has to find the name that is asked for and to copy.

The reader is one 3 x 3 convolution: per cell of the map a score (is the middle of a thing here?) and the four edges,
relative to the cell's centre; the K best cells are kept, each of a place of its own. It is fitted in closed form from
pictures with boxes and stays as it is: whole digits have no gradient.
Shapes: N pictures, P = h * w cells, V tower width, M visual tokens, D LLM width, K places, L characters of a box.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsugiki.data.boxes import BoxCodec
from tsugiki.errors import InputError, UnsupportedError

CHARACTERS = "0123456789.,[]"
OVERLAP = 0.3
"""Intersection over union from which two boxes are of one place."""
TAPS = 3
"""Edge of the neighbourhood that a cell is read from."""


class Places(nn.Module):
    """The reader and the writer. All its numbers are buffers: saved with the front-end, never trained.

    Args:
        count: K.
        codec: how a box is written; all boxes have to be equally long in it.
        grid: (h, w) of the tower's map.
        in_width: V.
        out_width: D.
        factor: edge of the block of cells that one visual token stands for.

    Raises:
        InputError: a codec whose boxes differ in length, or more places than cells.
    """

    weight: Tensor
    bias: Tensor
    centre: Tensor
    glyphs: Tensor
    middles: Tensor
    block: Tensor

    def __init__(
        self, count: int, codec: BoxCodec, grid: tuple[int, int], in_width: int, out_width: int, factor: int = 1
    ) -> None:
        super().__init__()
        self.count, self.codec, self.grid = count, codec, grid
        text = codec.write((0, 0, 0, 0))
        if len(text) != len(codec.write((codec.steps,) * 4)):
            raise InputError(
                f"boxes of different lengths, {text} and {codec.write((codec.steps,) * 4)}",
                expected="a codec that writes all numbers equally long",
                fix="Set box_text to {}, or to {decimals: 0, scale: 99, whole: 2}.",
                where="places",
            )
        if not 1 <= count <= grid[0] * grid[1]:
            raise InputError(f"places={count}", expected=f"1 to {grid[0] * grid[1]}, the cells of the tower's map")
        self.text = text
        self.register_buffer("weight", torch.zeros(TAPS * TAPS, in_width, 5))  # per tap, row-major
        self.register_buffer("bias", torch.tensor([0.0, -0.25, -0.25, 0.25, 0.25]))
        self.register_buffer("centre", torch.zeros(in_width))  # of the features: what lies beyond the map
        self.register_buffer("glyphs", torch.zeros(len(CHARACTERS), out_width))
        h, w = grid
        rows, columns = torch.arange(h).repeat_interleave(w), torch.arange(w).repeat(h)
        self.register_buffer("middles", torch.stack([(columns + 0.5) / w, (rows + 0.5) / h], dim=1), persistent=False)
        block = rows // factor * -(-w // factor) + columns // factor
        self.register_buffer("block", block, persistent=False)

    @property
    def tokens(self) -> int:
        """K * (1 + L)."""
        return self.count * (1 + len(self.text))

    @property
    def fitted(self) -> bool:
        """Whether the reader has been set."""
        return bool(self.weight.any())

    @torch.no_grad()
    def take_glyphs(self, tokenizer: Any, embed: nn.Module) -> None:
        """Learn the characters' embeddings from the LLM.

        Args:
            embed: the LLM's input embeddings, ids -> [..., D], scaled as the first layer sees them.

        Raises:
            UnsupportedError: the vocabulary lacks a character.
        """
        ids = tokenizer.convert_tokens_to_ids(list(CHARACTERS))
        unknown = getattr(tokenizer, "unk_token_id", None)
        lacks = [c for c, i in zip(CHARACTERS, ids, strict=True) if i is None or i == unknown]
        if lacks:
            raise UnsupportedError(
                f"the tokenizer has no token {lacks[0]!r}",
                expected=f"one for each of {' '.join(CHARACTERS)}",
                fix="Set places to 0.",
                where="places",
            )
        self.glyphs.copy_(embed(torch.tensor(ids, device=next(embed.parameters()).device)))

    def read(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [N, P] and boxes [N, P, 4], xyxy in [0, 1] of the square, of all cells of features [N, P, V]."""
        with torch.autocast(features.device.type, enabled=False):
            x = features.to(self.weight.dtype) - self.centre
            taps = torch.einsum("npv,tvo->npto", x, self.weight)  # what each cell says to each neighbour
            n, h, w = len(x), *self.grid
            padded = F.pad(taps.reshape(n, h, w, TAPS * TAPS, 5), (0, 0, 0, 0, 1, 1, 1, 1))
            out = self.bias.expand(n, h, w, 5)
            for tap in range(TAPS * TAPS):
                dy, dx = divmod(tap, TAPS)
                out = out + padded[:, dy : dy + h, dx : dx + w, tap]
        out = out.flatten(1, 2)
        return out[..., 0], (self.middles.repeat(1, 2) + out[..., 1:]).clamp(0, 1)

    def find(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The K best cells [N, K] and their boxes [N, K, 4], the best first.

        A cell whose box overlaps that of a chosen one comes after all others.
        """
        score, boxes = self.read(features)
        rows, chosen = torch.arange(len(score), device=score.device), []
        for _ in range(self.count):
            best = score.argmax(dim=1)
            chosen.append(best)
            near = overlaps(boxes, boxes[rows, best][:, None]) >= OVERLAP
            score = torch.where(near, score - 1e3, score)
            score[rows, best] = -torch.inf
        cells = torch.stack(chosen, dim=1)
        return cells, boxes.gather(1, cells[..., None].expand(-1, -1, 4))

    def characters(self, boxes: Tensor) -> Tensor:
        """Boxes [..., 4] in [0, 1] -> what `codec.encode` writes, as indices into CHARACTERS, int64 [..., L]."""
        steps = (boxes.double() * self.codec.steps).round().long()
        low = steps[..., :2].clamp(max=self.codec.steps - 1)
        steps = torch.cat([low, torch.maximum(steps[..., 2:], low + 1)], dim=-1)
        number = self.text[1 : 1 + (len(self.text) - 5) // 4]

        def fixed(sign: str) -> Tensor:
            return torch.full_like(steps[..., 0], CHARACTERS.index(sign))

        signs = []
        for edge, opening in enumerate("[,,,"):
            signs.append(fixed(opening))
            for i, sign in enumerate(number):
                power = number[i + 1 :].count("0")  # digits that follow
                signs.append(steps[..., edge] // 10**power % 10 if sign == "0" else fixed(sign))
        signs.append(fixed("]"))
        return torch.stack(signs, dim=-1)

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Features [N, P, V] and their visual tokens [N, M, D] -> tokens of the places [N, K * (1 + L), D]."""
        with torch.no_grad():
            cells, boxes = self.find(features)
            text = self.glyphs[self.characters(boxes)].to(tokens.dtype)  # [N, K, L, D]
            block = self.block[cells]
        name = tokens.gather(1, block[..., None].expand(-1, -1, tokens.shape[-1]))
        return torch.cat([name[:, :, None], text], dim=2).flatten(1, 2)

    def extra_repr(self) -> str:
        return f"count={self.count}, text={self.text!r}, tokens={self.tokens}"


def overlaps(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes [..., 4] that broadcast; 0 where there is no area."""
    common = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(dim=-1)
    area = [(x[..., 2:] - x[..., :2]).clamp(min=0).prod(dim=-1) for x in (a, b)]
    return common / (area[0] + area[1] - common).clamp(min=1e-12)


def as_tensor(boxes: Sequence[Sequence[float]]) -> Tensor:
    """Boxes as float32 [k, 4], also where there are none."""
    return torch.tensor([list(b) for b in boxes], dtype=torch.float32).reshape(-1, 4)
