"""FrontEnd: everything between a picture and the visual tokens that an LLM reads, as one object with one config.

Shapes: N pictures, S input size in pixels, P patches, V tower width, M visual tokens, D LLM width.
One tower today; `towers` is a list already: a mix of several comes between their features and the projector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from tsugiki.data.boxes import BoxCodec
from tsugiki.errors import BaseMismatchError, InputError, StoreError, UnknownNameError
from tsugiki.types import VisualTokens
from tsugiki.vision.places import Places
from tsugiki.vision.projector import Projector, ProjectorConfig, build_projector
from tsugiki.vision.site import site_state
from tsugiki.vision.tower import ENCODE_BATCH, Tower, build_tower


@dataclass(frozen=True, kw_only=True)
class FrontEndConfig:
    """A front-end. The last five fields are filled in when it is built: for the card, and for the check at loading."""

    tower: str
    """Asset name, hub id or folder."""
    input_size: int | None = None
    """Pixels; None = the tower's own."""
    layer: int = -1
    """Which hidden states of a transformers tower are the features: -1 its last output, -2 before its last layer
    (LLaVA with CLIP)."""
    projector: str = "pixel_unshuffle"
    """linear | mlp | pixel_unshuffle."""
    hidden: int | None = None
    """Hidden width of the projector; None = twice the LLM's width."""
    factor: int = 2
    """Edge of the block of patches that becomes one token, `pixel_unshuffle` only."""
    positions: str | bool = "none"
    """none | learned | sincos: 2-D position vectors added to the visual tokens."""
    position_gain: float = 0.3
    """RMS of the position vectors at the start, relative to that of the visual tokens."""
    places: int = 0
    """Boxes that a linear reader finds in the picture; they stand behind the visual tokens as text, see `places.py`."""
    box_text: dict[str, int] = field(default_factory=dict)
    """Fields of `data.boxes.BoxCodec`: how the model reads and writes boxes; {} = three decimals."""
    train_tower: bool = False
    """Train the tower too: it is then saved with the front-end, and its features are never cached."""
    site: bool = False
    """The towers' statistics are those of a site (`site.py`), saved with the front-end."""
    encode_batch: int = ENCODE_BATCH
    """Pictures per call of a frozen tower; live and cached features are bit-equal at the same value."""
    seed: int = 0
    """Of the projector's random start."""

    grid: tuple[int, int] | None = None
    """(h, w) of the tower's patches."""
    width: int | None = None
    """V."""
    licence: str = ""
    """Of the tower's weights."""
    tower_sha256: str = ""
    """Of the tower's weights, without what training or a site changed."""
    fingerprint: str = ""
    """Of the tower's weights and transform, as it was built."""

    def __post_init__(self) -> None:
        self.projector_config()  # its names are checked here, before anything is loaded
        self.codec()
        if self.places < 0:
            raise InputError(f"places={self.places}", expected="0 or more")
        if self.encode_batch < 1:
            raise InputError(f"encode_batch={self.encode_batch}", expected="at least 1")
        if self.grid is not None:
            object.__setattr__(self, "grid", tuple(self.grid))

    def projector_config(self) -> ProjectorConfig:
        return ProjectorConfig(
            kind=self.projector,
            hidden=self.hidden,
            factor=self.factor,
            positions=self.positions,
            position_gain=self.position_gain,
            seed=self.seed,
        )

    def codec(self) -> BoxCodec:
        """How boxes are written.

        Raises:
            UnknownNameError: a field that the codec does not have.
            BoxError: values that make no codec.
        """
        known = {f.name for f in fields(BoxCodec)}
        for name in self.box_text:
            if name not in known:
                raise UnknownNameError("field of box_text", name, known)
        return BoxCodec(**self.box_text)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; without the settings of boxes where they are the defaults, as older grafts were saved."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {k: v for k, v in values.items() if v or k not in ("places", "box_text", "site")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FrontEndConfig:
        """The config of a dict.

        Raises:
            UnknownNameError: a field that does not exist.
        """
        known = {f.name for f in fields(cls)}
        for name in values:
            if name not in known:
                raise UnknownNameError("front-end field", name, known)
        return cls(**values)


class FrontEnd(nn.Module):
    """Tower, projector, and the places that are written as text, if any. Make one with `FrontEnd.build`."""

    def __init__(self, config: FrontEndConfig, tower: Tower, projector: Projector, places: Places | None) -> None:
        super().__init__()
        self.tower, self.projector, self.places = tower, projector, places
        tower.encode_batch = config.encode_batch
        tower.frozen = not config.train_tower
        self.config = replace(
            config,
            input_size=tower.input_size,
            grid=tower.grid,
            width=tower.width,
            licence=tower.licence,
            tower_sha256=tower.weights_sha256(),
            fingerprint=tower.fingerprint(),
        )

    @classmethod
    def build(
        cls,
        source: FrontEndConfig | str | Path | nn.Module,
        hidden_size: int,
        embedding_rms: float | None = None,
        *,
        tower: nn.Module | None = None,
        **fields_: Any,
    ) -> FrontEnd:
        """A front-end for an LLM.

        Args:
            source: a config, the name of a tower, or a tower object.
            hidden_size: D.
            embedding_rms: root mean square of the LLM's word embeddings (after the LLM's own scaling, if it has
                one), which the visual tokens of a set of made-up pictures get; None = 1 for standard normal features
                (a saved state is loaded next).
            tower: the object for a config whose tower can't be found by name.
            fields_: of `FrontEndConfig`.

        Raises:
            UnknownNameError: a field, projector or kind of positions that does not exist.
            BaseMismatchError: the config was made for a tower with other weights.
            UnsupportedError, AssetError, StoreError: the tower can't be built, see `build_tower`.
        """
        if isinstance(source, FrontEndConfig):
            config = replace(source, **_known(fields_))
        else:
            if isinstance(source, nn.Module):
                tower = source
            config = FrontEndConfig(tower=_name(source), **_known(fields_))
        built = build_tower(config.tower if tower is None else tower, config.input_size, layer=config.layer)
        config = replace(config, tower=built.name)
        if config.tower_sha256 and config.tower_sha256 != built.weights_sha256():
            raise BaseMismatchError(
                f"the vision tower {built.name} has weights {built.weights_sha256()[:12]}",
                expected=f"{config.tower_sha256[:12]}, those that the projector was trained with",
                fix="Use the same version of the tower.",
            )
        projector = build_projector(config.projector_config(), built.grid, built.width, hidden_size)
        places = None
        if config.places:
            sizes = built.grid, built.width, hidden_size, projector.factor
            places = Places(config.places, config.codec(), *sizes)
        frontend = cls(config, built, projector, places)
        if embedding_rms is not None:
            frontend.calibrate(embedding_rms)
        return frontend

    @property
    def towers(self) -> tuple[Tower, ...]:
        """All towers, in the order in which their features are mixed."""
        return (self.tower,)

    @property
    def tokens_per_image(self) -> int:
        """M."""
        return self.projector.tokens + (0 if self.places is None else self.places.tokens)

    def transform(self, image: Image.Image, variant: int = 0) -> Tensor:
        """An RGB picture -> pixels, float32 [3, S, S]."""
        return self.tower.transform(image, variant)

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Pixels [N, 3, S, S] -> the tower's features, fp16 [N, P, V], no gradient; see `Tower.encode`."""
        return self.tower.encode(pixel_values)

    def project(self, features: Tensor) -> VisualTokens:
        """The tower's features [N, P, V], live or cached -> visual tokens [N, M, D].

        Raises:
            InputError: features of another tower or input size.
        """
        expected = (self.tower.patches, self.tower.width)
        if features.ndim != 3 or tuple(features.shape[1:]) != expected:
            raise InputError(
                f"vision_features of shape {list(features.shape)}",
                expected=f"[N, {expected[0]}, {expected[1]}] of {self.tower.name} at {self.tower.input_size} px",
                fix="Fill the cache with this front-end.",
            )
        features = features.to(self.projector.linear_2.weight.device)
        tokens = self.projector(features)
        return VisualTokens(tokens if self.places is None else torch.cat([tokens, self.places(features, tokens)], 1))

    def forward(self, pixel_values: Tensor | None = None, features: Tensor | None = None) -> VisualTokens:
        """Visual tokens [N, M, D] of pixels [N, 3, S, S] or of features [N, P, V]: give one of the two."""
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
        return self.project(features)

    def calibrate(self, rms: float, features: Tensor | None = None) -> None:
        """Set the RMS of the visual tokens, on features [N, P, V] of real pictures or, without any, of made-up ones."""
        if features is None:
            features = self.encode(torch.stack([self.transform(picture) for picture in _made_up_pictures(4)]))
        self.projector.set_output_rms(rms, features)

    def trainable_state(self) -> dict[str, Tensor]:
        """What is saved: projector, positions, places, a site's statistics, the tower if it trains. Detached views."""
        state = {f"projector.{k}": v.detach() for k, v in self.projector.state_dict().items()}
        if self.places is not None:
            state |= {f"places.{k}": v.detach() for k, v in self.places.state_dict().items()}
        if self.config.train_tower:
            state |= {f"tower.{k}": v.detach() for k, v in self.tower.state_dict().items()}
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


def _known(values: Mapping[str, Any]) -> Mapping[str, Any]:
    known = {f.name for f in fields(FrontEndConfig)}
    for name in values:
        if name not in known:
            raise UnknownNameError("front-end field", name, known)
    return values


def _name(source: str | Path | nn.Module) -> str:
    return str(getattr(source, "name", type(source).__name__)) if isinstance(source, nn.Module) else str(source)


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
