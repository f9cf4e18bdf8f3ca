"""What a front-end is made of, as plain values: one tower, or several that are mixed, over one view or more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from tsugiki.data.boxes import BoxCodec
from tsugiki.data.said import Reader
from tsugiki.errors import InputError, UnknownNameError
from tsugiki.vision.hub_projector import HubSettings
from tsugiki.vision.projector import KINDS, ProjectorConfig
from tsugiki.vision.query_branch import QueryBranchSettings
from tsugiki.vision.tower import ENCODE_BATCH
from tsugiki.vision.views import Views

ALIGN = ("repeat", "bilinear")
# Fields that came after grafts were first saved.
_LATER = (
    "towers", "views", "reduce_crops", "raster", "align", "cls_token", "marks", "post_norm", "places", "box_text",
    "site", "hub", "query_branch",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """One tower of a mix. The last five fields are filled in when it is built."""

    tower: str
    """Asset name, hub id or folder."""
    input_size: int | None = None
    """Pixels; None = the tower's own."""
    layer: int = -1
    """Which hidden states of a transformers tower are the features: -1 its last output."""
    post_norm: bool = False
    """CLIP only: its last LayerNorm, which transformers applies to the CLS token alone, applied to all tokens."""

    grid: tuple[int, int] | None = None
    width: int | None = None
    licence: str = ""
    tower_sha256: str = ""
    fingerprint: str = ""

    def __post_init__(self) -> None:
        if not self.tower:
            raise InputError("a tower without a name", expected="`tower` in each of `towers`", where="front-end")
        if self.grid is not None:
            object.__setattr__(self, "grid", tuple(self.grid))


@dataclass(frozen=True, kw_only=True)
class FrontEndConfig:
    """A front-end. The last five fields are filled in when it is built: for the card, and for the check at loading."""

    tower: str = ""
    """Asset name, hub id or folder; or leave it out and give `towers`."""
    input_size: int | None = None
    """Pixels; None = the tower's own."""
    layer: int = -1
    """Which hidden states of a transformers tower are the features: -1 its last output, -2 before its last layer
    (LLaVA with CLIP)."""
    towers: tuple[TowerConfig, ...] = ()
    """Several towers, mixed in this order (`mix.py`); names or dicts of TowerConfig's fields will do. They stay
    frozen, and `input_size` and `layer` are given for each."""
    views: str = "global"
    """global | global+2x2 | global+3x3: the whole square, and the crops that are seen beside it."""
    reduce_crops: bool = False
    """Halve the raster of the crops per side, before the projection."""
    raster: tuple[int, int] | None = None
    """(h, w) that the grids of a mix are aligned to; None = the largest of them."""
    align: str = "repeat"
    """repeat | bilinear: how a grid comes to the raster; repeat needs a whole factor."""
    cls_token: bool = False
    """Keep a token for the whole view before its cells: the tower's CLS, or the mean over cells where it has none."""
    marks: bool | None = None
    """A learned vector before and one behind every view; None = with several towers or views."""
    projector: str = "pixel_unshuffle"
    """linear | mlp | pixel_unshuffle | linear_norm | hub."""
    hub: dict[str, Any] = field(default_factory=dict)
    """Settings of the projector `hub`, which reads a picture and what is said of it together: those of
    `hub_projector.HubSettings` and `hub.HubConfig`."""
    query_branch: dict[str, Any] = field(default_factory=dict)
    """Settings of a hub whose queries stand before the cells of each view, beside any other projector: those of
    `query_branch.QueryBranchSettings` and `hub.HubConfig`, such as `{form: light}`; {} = none."""
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
    """Of the tower's weights, without what training changed."""
    fingerprint: str = ""
    """Of the tower's weights and transform."""

    def __post_init__(self) -> None:
        towers: Any = self.towers
        if isinstance(towers, str) or not isinstance(towers, Sequence):
            raise InputError(f"towers={self.towers!r}", expected="a list of towers", where="front-end")
        if self.raster is not None and not (
            isinstance(self.raster, Sequence)
            and len(self.raster) == 2
            and all(isinstance(n, int) and n > 0 for n in self.raster)
        ):
            raise InputError(f"raster={self.raster!r}", expected="two numbers, rows and columns", where="front-end")
        for name in ("grid", "raster"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "towers", tuple(_tower_config(given) for given in self.towers))
        if self.projector == "hub":
            self._check_hub()
        else:
            self.projector_config()  # its names are checked here, before anything is loaded
        self.query_settings()
        self.codec()
        Views(self.views)
        self._check_mix()
        if self.places < 0:
            raise InputError(f"places={self.places}", expected="0 or more")
        if self.encode_batch < 1:
            raise InputError(f"encode_batch={self.encode_batch}", expected="at least 1")

    def _check_hub(self) -> None:
        self.hub_settings()
        usual = {f.name: f.default for f in fields(self)}
        for name in ("hidden", "factor", "positions", "places"):
            if getattr(self, name) != usual[name]:
                raise InputError(
                    f"{name}={getattr(self, name)!r} with projector='hub'", expected="settings of the hub itself",
                    fix=f"Leave {name} out.", where="front-end",
                )  # fmt: skip
        if self.mixed:
            raise InputError(
                "projector='hub' with several towers, views or a query branch", expected="one tower with one view",
                fix="Use another projector, and the hub as `query_branch`.", where="front-end",
            )  # fmt: skip

    def _check_mix(self) -> None:
        if bool(self.tower) == bool(self.towers):
            raise InputError(
                "no tower" if not self.tower else f"tower={self.tower!r} and {len(self.towers)} towers",
                expected="one of the two: tower, or towers",
                where="front-end",
            )
        if self.reduce_crops and self.views == "global":
            raise InputError(
                "reduce_crops without crops", expected="views: global+2x2 or global+3x3", where="front-end"
            )
        if self.align not in ALIGN:
            raise UnknownNameError("way to align grids", self.align, ALIGN)
        if self.towers and (self.input_size is not None or self.layer != -1):
            raise InputError("input_size or layer for several towers", expected="them for each of `towers`")
        if self.mixed and self.train_tower:
            raise InputError(
                "train_tower with several towers or views", expected="towers that stay frozen",
                fix="Set train_tower to False.", where="front-end",
            )  # fmt: skip
        if self.mixed and self.projector == "pixel_unshuffle" and (self.cls_token or self.reduce_crops):
            raise InputError(
                f"projector='pixel_unshuffle' with {'cls_token' if self.cls_token else 'reduce_crops'}",
                expected="a projector that makes one token of each cell",
                fix="Use linear_norm, linear or mlp, or leave that setting out.",
                where="front-end",
            )

    @property
    def mixed(self) -> bool:
        """Whether there is more than the cells of one tower's view of the whole square."""
        own = self.cls_token or bool(self.marks) or bool(self.query_branch)
        return bool(self.towers) or self.views != "global" or own

    @property
    def marked(self) -> bool:
        """Whether a view has a start and an end vector."""
        return self.marks if self.marks is not None else bool(self.towers) or self.views != "global"

    @property
    def all_towers(self) -> tuple[TowerConfig, ...]:
        """The towers, also where there is one."""
        if self.towers:
            return self.towers
        own = {f.name: getattr(self, f.name) for f in fields(TowerConfig) if f.name != "post_norm"}
        return (TowerConfig(**own),)

    @property
    def name(self) -> str:
        """The towers' names, for people."""
        return " + ".join(one.tower for one in self.all_towers)

    def hub_settings(self) -> HubSettings:
        """Of the projector `hub`.

        Raises:
            UnknownNameError, InputError: as `HubSettings.of`.
        """
        return HubSettings.of(self.hub)

    def query_settings(self) -> QueryBranchSettings | None:
        """Of the query branch, None where there is none; raises as `hub_settings`."""
        return QueryBranchSettings.of(self.query_branch) if self.query_branch else None

    def reader(self, tokenizer: Any) -> Reader | None:
        """How the words are made that a hub reads, for an LLM's tokenizer; None without a hub.

        Raises:
            AssetError: as `HubSettings.reader`.
        """
        return self.hub_settings().reader(tokenizer) if self.projector == "hub" else None

    def projector_config(self) -> ProjectorConfig:
        if self.projector not in KINDS:
            raise UnknownNameError("projector", self.projector, (*KINDS, "hub"))
        if self.hub:
            raise InputError(
                f"settings of a hub with projector={self.projector!r}", expected="projector: hub", where="front-end"
            )
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
        return BoxCodec(**known_fields(BoxCodec, self.box_text, "field of box_text"))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; what came later is left out where it is the default, as older grafts were saved."""
        return _plain(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FrontEndConfig:
        """The config of a dict.

        Raises:
            UnknownNameError: a field that does not exist.
        """
        return cls(**known_fields(cls, values))


def known_fields(cls: type[Any], values: Mapping[str, Any], kind: str = "front-end field") -> dict[str, Any]:
    """The same values.

    Raises:
        UnknownNameError: one of them is no field of `cls`.
    """
    known = {f.name for f in fields(cls)}
    for name in values:
        if name not in known:
            raise UnknownNameError(kind, name, known)
    return dict(values)


def _plain(config: Any) -> dict[str, Any]:
    values = {}
    for one in fields(config):
        value = getattr(config, one.name)
        usual = one.default_factory() if one.default_factory is not MISSING else one.default
        if one.name not in _LATER or value != usual:
            values[one.name] = (
                list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, dict) else value
            )
    if "towers" in values:
        values["towers"] = [_plain(tower) for tower in config.towers]
    return values


def _tower_config(given: Any) -> TowerConfig:
    if isinstance(given, TowerConfig):
        return given
    if isinstance(given, Mapping):
        return TowerConfig(**known_fields(TowerConfig, given))
    return TowerConfig(tower=str(given))
