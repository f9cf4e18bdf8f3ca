"""FrontEnd: everything between a picture and the visual tokens that an LLM reads, as one object with one config.

With one tower and one view, pixels are [N, 3, S, S] and features [N, P, V]. With several towers or views (`mix.py`)
both are one flat row a picture, [N, E], in the form of `packing.py`; whoever passes them on need not know.
Shapes: N pictures, S input size in pixels, P patches, V tower width, W views, M visual tokens, D LLM width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from tsugiki.errors import InputError, StoreError
from tsugiki.types import VisualTokens
from tsugiki.vision.config import FrontEndConfig, TowerConfig
from tsugiki.vision.hub_projector import HubProjector, Texts
from tsugiki.vision.making import config_of, make_hub, make_mix, make_towers
from tsugiki.vision.mix import Mix
from tsugiki.vision.packing import Packing, ViewTransform, facts_of
from tsugiki.vision.places import Places
from tsugiki.vision.projector import Projector, build_projector
from tsugiki.vision.site import site_state
from tsugiki.vision.tower import Tower
from tsugiki.vision.views import TokenCount, Transform, Views

__all__ = ["FrontEnd", "FrontEndConfig", "TowerConfig"]


class FrontEnd(nn.Module):
    """Towers, projector, what a mix has beside it, and the places that are written as text, if any. Make one with
    `FrontEnd.build`.

    Args:
        config: its `all_towers` are `towers`, described as they were built.
        towers: frozen, or one that trains.
        projector: of the cells.
        mix: None for one tower and one view.
    """

    def __init__(
        self,
        config: FrontEndConfig,
        towers: Sequence[Tower],
        projector: Projector | HubProjector,
        mix: Mix | None = None,
        places: Places | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.tower, self.mix, self.places = towers[0], mix, places
        self.projector: Any = projector
        self.more_towers = nn.ModuleList(towers[1:])

    @classmethod
    def build(
        cls,
        source: FrontEndConfig | Mapping[str, Any] | Sequence[Any] | str | Path | nn.Module,
        hidden_size: int,
        embedding_rms: float | None = None,
        *,
        tower: nn.Module | Sequence[nn.Module | None] | None = None,
        **fields_: Any,
    ) -> FrontEnd:
        """A front-end for an LLM.

        Args:
            source: a config or a dict of its fields, the name of a tower or of a set of towers (`presets.py`), a
                tower object, or a list of names and objects.
            hidden_size: D.
            embedding_rms: root mean square of the LLM's word embeddings (after the LLM's own scaling, if it has
                one), which the visual tokens of a set of made-up pictures get; None = 1 for standard normal features
                (a saved state is loaded next).
            tower: the object, or the objects in order, for a config whose towers can't be found by name.
            fields_: of `FrontEndConfig`.

        Raises:
            UnknownNameError: a field, projector or kind of positions that does not exist.
            BaseMismatchError: the config was made for a tower with other weights.
            UnsupportedError, AssetError, StoreError: a tower can't be built, see `build_tower`.
            InputError: towers whose grids can't be aligned.
        """
        config, objects = config_of(source, tower, **fields_)
        config, towers = make_towers(config, objects)
        mix, grid, width = None, towers[0].grid, towers[0].width
        if config.mixed:
            config, mix = make_mix(config, towers, hidden_size, fresh=embedding_rms is not None)
            grid, width = mix.raster, mix.width
        places = None
        projector: Projector | HubProjector
        if config.projector == "hub":
            config, projector = make_hub(config, width, hidden_size, fresh=embedding_rms is not None)
        else:
            projector = build_projector(config.projector_config(), grid, width, hidden_size)
        if config.places:
            places = Places(config.places, config.codec(), grid, width, hidden_size, projector.factor)
        frontend = cls(config, towers, projector, mix, places)
        if embedding_rms is not None:
            frontend.calibrate(embedding_rms)
        return frontend

    @property
    def towers(self) -> tuple[Tower, ...]:
        """All towers, in the order in which their features are mixed."""
        return (self.tower, *self.more_towers)

    @property
    def hub(self) -> HubProjector | None:
        """The projector, where it is a hub."""
        return self.projector if isinstance(self.projector, HubProjector) else None

    @property
    def views(self) -> Views:
        """What of a picture the towers see."""
        return Views(self.config.views)

    @property
    def transform(self) -> Transform | ViewTransform:
        """An RGB picture (and the number of a fixed augmentation) -> pixels, float32 [3, S, S], of a mix [E]."""
        if self.mix is None:
            return self.tower.transform
        return ViewTransform(tuple(tower.transform for tower in self.towers), self.views)

    @property
    def packing(self) -> Packing:
        """Where what is in a row of a mix's features."""
        return Packing(self.views.count, tuple((tower.rows, tower.width) for tower in self.towers))

    @property
    def tokens_of(self) -> TokenCount:
        """(width, height) of a picture in pixels -> its visual tokens."""
        own = 0 if self.places is None else self.places.tokens
        if self.mix is None:
            return TokenCount(self.projector.tokens + own)
        whole, crop = self.mix.lengths(self.projector)
        return TokenCount(whole + crop * (self.views.count - 1) + own, crop, self.views)

    @property
    def tokens_per_image(self) -> int:
        """M; of a mix with views that of a picture without padding, the most."""
        return self.tokens_of.most

    def facts(self) -> dict[str, Any]:
        """How pictures are seen, as JSON values; see `packing.transform_of`."""
        transforms = [tower.transform for tower in self.towers]
        return facts_of(transforms, self.views, self.tokens_of if self.mix is not None else None)

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Pixels [N, 3, S, S] -> the tower's features, fp16 [N, P, V], no gradient; see `Tower.encode`. Of a mix [N, E]
        -> [N, E'], where each tower encodes the views that are seen."""
        if self.mix is None:
            return self.tower.encode(pixel_values)
        transform = self.transform
        assert isinstance(transform, ViewTransform)
        seen, pixels = transform.packing.unpack(pixel_values, "pixel_values")
        parts = []
        for tower, views in zip(self.towers, pixels, strict=True):
            found = torch.zeros(*seen.shape, tower.rows, tower.width, dtype=torch.float16, device=tower.device)
            found[seen] = tower.encode(views[seen].to(tower.device))
            parts.append(found)
        return self.packing.pack(seen.to(parts[0].device), parts)

    def project(self, features: Tensor, texts: Texts | None = None) -> VisualTokens:
        """The towers' features [N, P, V] or [N, E], live or cached -> visual tokens [N, M, D].

        Args:
            texts: what is said of the pictures, for a hub.

        Raises:
            InputError: features of another tower or input size, or texts of another number of pictures.
        """
        features = features.to(self.projector.linear_2.weight.device)
        if self.mix is None:
            self._check(features)
            if self.hub is not None:
                if texts is not None and len(texts.ids) != len(features):
                    raise InputError(f"texts of {len(texts.ids)} pictures", expected=f"those of {len(features)}")
                return VisualTokens(*self.hub(features, **({} if texts is None else vars(texts))))
            visual = VisualTokens(tokens := self.projector(features))
        else:
            visual, tokens = self.mix(self.projector, *self.packing.unpack(features, "vision_features"))
        return visual if self.places is None else with_tail(visual, self.places(self.cells(features), tokens))

    def cells(self, features: Tensor) -> Tensor:
        """What is read cell by cell, [N, P, V]: a tower's features, of a mix all towers' over the raster of the whole
        square."""
        if self.mix is None:
            return features
        _, parts = self.packing.unpack(features, "vision_features")
        return self.mix.cells([part[:, 0] for part in parts])[1]

    def projections(self, features: Tensor) -> list[tuple[Projector, Tensor]]:
        """Every projector with what it maps of the whole square, [N, P, V]: what a warm start fits."""
        if self.mix is None:
            return [(self.projector, features)]
        _, parts = self.packing.unpack(features, "vision_features")
        asked = self.mix.asked([part[:, 0] for part in parts])
        queries: list[Any] = list(self.mix.queries)
        return [(self.projector, self.cells(features)), *zip(queries, asked, strict=True)]

    def forward(
        self, pixel_values: Tensor | None = None, features: Tensor | None = None, texts: Texts | None = None
    ) -> VisualTokens:
        """Visual tokens [N, M, D] of pixels or of features: give one of the two, and for a hub what is said of them."""
        if (pixel_values is None) == (features is None):
            raise InputError(
                "both pixel_values and features" if features is not None else "no picture", expected="one of the two"
            )
        if features is None:
            assert pixel_values is not None
            features = self.encode(pixel_values) if self.tower.frozen else self.tower(pixel_values)
        elif not self.tower.frozen:
            raise InputError(
                "cached features with a tower that trains", expected="pixel_values", fix="Set train_tower to False."
            )
        return self.project(features, texts)

    def calibrate(self, rms: float, features: Tensor | None = None) -> None:
        """Set the RMS of the visual tokens, on features of real pictures or, without any, of made-up ones."""
        if features is None:
            features = self.encode(torch.stack([self.transform(picture) for picture in _made_up_pictures(4)]))
        self.projector.set_output_rms(rms, self.cells(features))
        if self.mix is not None:
            _, parts = self.packing.unpack(features, "vision_features")
            self.mix.set_output_rms(rms, [part[:, 0] for part in parts])

    def blank(self, *, encoded: bool) -> Tensor:
        """A batch of one picture of zeros with all views, as features or as pixels."""
        if self.mix is None:
            tower = self.tower
            if encoded:
                return torch.zeros(1, tower.patches, tower.width, dtype=torch.float16)
            return torch.zeros(1, 3, tower.input_size, tower.input_size)
        transform = self.transform
        assert isinstance(transform, ViewTransform)
        packing = self.packing if encoded else transform.packing
        row = torch.zeros(1, packing.size, dtype=torch.float16 if encoded else torch.float32)
        row[:, : packing.views] = 1
        return row

    def trainable_state(self) -> dict[str, Tensor]:
        """What is saved: projector, positions, a mix's own, places, a site's statistics, the tower if it trains.
        Detached, not copied."""
        saved: dict[str, nn.Module | None] = {"projector": self.projector, "mix": self.mix, "places": self.places}
        if self.config.train_tower:
            saved["tower"] = self.tower
        found = [(name, part) for name, part in saved.items() if part is not None]
        state = {f"{name}.{k}": v.detach() for name, part in found for k, v in part.state_dict().items()}
        return state | (site_state(self.towers) if self.config.site else {})

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """The reverse of `trainable_state`.

        Raises:
            StoreError: a tensor is missing, left over, or of another shape.
        """
        own = self.trainable_state()
        odd = sorted(own.keys() ^ state.keys()) or [k for k in own if own[k].shape != state[k].shape]
        if odd:
            found = f"shape {list(state[odd[0]].shape)}" if odd[0] in state else "nothing"
            expected = f"shape {list(own[odd[0]].shape)}" if odd[0] in own else "no tensor of this name"
            raise StoreError(
                f"{found} for {odd[0]}",
                expected=expected,
                fix="Build the front-end from the config saved with it.",
                where="front-end",
            )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state[name])

    def _check(self, features: Tensor) -> None:
        expected = (self.tower.patches, self.tower.width)
        if features.ndim != 3 or tuple(features.shape[1:]) != expected:
            raise InputError(
                f"vision_features of shape {list(features.shape)}",
                expected=f"[N, {expected[0]}, {expected[1]}] of {self.tower.name} at {self.tower.input_size} px",
                fix="Fill the cache with this front-end.",
            )


def with_tail(visual: VisualTokens, tail: Tensor) -> VisualTokens:
    """Visual tokens [N, M, D] with more behind each picture's last real one, [N, K, D]."""
    if visual.mask is None:
        return VisualTokens(torch.cat([visual.tokens, tail], dim=1))
    n, k, _ = tail.shape
    last = visual.mask.sum(dim=1, keepdim=True)  # [N, 1]
    at = last + torch.arange(k, device=last.device)
    tokens = torch.cat([visual.tokens, torch.zeros_like(tail)], dim=1)
    tokens = tokens.scatter(1, at[..., None].expand_as(tail), tail.to(tokens))
    mask = torch.cat([visual.mask, visual.mask.new_zeros(n, k)], dim=1)
    return VisualTokens(tokens, mask.scatter(1, at, torch.ones_like(at, dtype=torch.bool)))


def _made_up_pictures(n: int) -> list[Image.Image]:
    """Soft random colour patches with a sharp rectangle each: enough to learn the size of a tower's features."""
    generator = torch.Generator().manual_seed(0)
    pictures = []
    for _ in range(n):
        cells = torch.randint(0, 256, (6, 6, 3), generator=generator, dtype=torch.uint8)
        picture = Image.fromarray(cells.numpy()).resize((128, 128), Image.Resampling.BICUBIC)
        x, y, r, g, b = (int(v) for v in torch.randint(0, 64, (5,), generator=generator))
        picture.paste((4 * r, 4 * g, 4 * b), (x, y, x + 48, y + 40))
        pictures.append(picture)
    return pictures
