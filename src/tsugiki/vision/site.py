"""Site adaptation: the normalisation statistics of a frozen tower, estimated again on unlabelled pictures of a site.

A batch norm subtracts the mean and divides by the deviation that its inputs had in training. Where pictures come from
another camera or lamp its inputs have others; new statistics need no label and no gradient, and everything else of the
tower stays as it is. With blend b the new ones are (1 - b) * own + b * site.

Source: AdaBN, 1603.04779; the blend: 2006.16971.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tsugiki.data.images import open_image
from tsugiki.errors import InputError, UnsupportedError
from tsugiki.types import ImageSource
from tsugiki.vision.tower import Tower

BATCH = 16
"""Pictures that pass together; a layer is normalised by its batch's own statistics while those of all are gathered."""
FEWEST = 8
"""Fewer pictures say too little about a site."""


def adapt(tower: Tower, pictures: Iterable[ImageSource], blend: float = 0.5) -> int:
    """Estimate the tower's statistics again and put them in, in place: its fingerprint changes, and with it the names
    of cached features. Called again, a tower's own statistics are those that it has then; EfficientNet-Lite, whose
    batch norms are folded away, always starts from those of its asset.

    Args:
        tower: frozen.
        pictures: of the site, at least `FEWEST`; about 100 do.
        blend: 0 changes nothing, 1 keeps nothing of the old statistics.

    Returns:
        How many batch norms have new statistics.

    Raises:
        UnsupportedError: the tower has no batch norm, or trains.
        InputError: a blend outside [0, 1], or too few pictures.
        ImageError: a picture can't be read.
    """
    if not 0 <= blend <= 1:
        raise InputError(f"blend {blend}", expected="0 to 1", where="blend")
    if not tower.frozen:
        raise UnsupportedError(
            f"site adaptation of {tower.name}, which trains", expected="a frozen tower", fix="Set train_tower to False."
        )
    folded = hasattr(tower.backbone, "with_norms")
    backbone: Any = tower.backbone
    if folded:
        backbone = backbone.with_norms().to(tower.device)
    norms = _norms(backbone)
    if not norms:
        raise UnsupportedError(
            f"{tower.name} has no batch norm",
            expected="a tower whose statistics can be estimated again, such as EfficientNet-Lite or ResNet",
            fix="Layer norms take theirs from each picture: there is nothing to adapt.",
        )
    sources = list(pictures)
    if len(sources) < FEWEST:
        raise InputError(f"{len(sources)} pictures of the site", expected=f"at least {FEWEST}", fix="Give more.")
    with torch.no_grad():
        for norm, found in zip(norms, _estimated(tower, backbone, norms, sources), strict=True):
            norm.running_mean.lerp_(found.mean.to(norm.running_mean), blend)
            norm.running_var.lerp_(found.variance.to(norm.running_var), blend)
        if folded:
            tower.backbone.fold(backbone)  # type: ignore[operator]
    return len(norms)


def tensors(tower: Tower) -> dict[str, Tensor]:
    """What adaptation changes, by its name in the backbone's state dict; the tensors themselves. {} without batch
    norms."""
    state = tower.backbone.state_dict(keep_vars=True)
    if hasattr(tower.backbone, "with_norms"):
        return {name: tensor.detach() for name, tensor in state.items()}
    own = {id(t) for norm in _norms(tower.backbone) for t in (norm.running_mean, norm.running_var)}
    return {name: tensor.detach() for name, tensor in state.items() if id(tensor) in own}


def adapt_frontend(frontend: Any, pictures: Iterable[ImageSource], blend: float = 0.5) -> int:
    """Adapt those towers of a front-end that have batch norms; it is then saved and loaded with them. A projector that
    was trained before reads the new features as they are. Arguments and errors as `adapt`; how many batch norms.

    Raises:
        InputError: it was adapted already.
    """
    if frontend.config.site:
        raise InputError(
            "a front-end that was adapted to a site already",
            expected="one with the statistics of its training",
            fix="Load the graft from before, and adapt that.",
        )
    sources = list(pictures)
    able = [tower for tower in frontend.towers if tensors(tower)] or list(frontend.towers)
    changed = sum(adapt(tower, sources, blend) for tower in able)
    frontend.config = replace(frontend.config, site=True)
    return changed


def site_state(towers: Sequence[Tower]) -> dict[str, Tensor]:
    """`tensors` of several towers, by their number: what an adapted front-end is saved with."""
    return {f"site.{i}.{name}": tensor for i, tower in enumerate(towers) for name, tensor in tensors(tower).items()}


@dataclass
class _Sums:
    """Of the inputs of one batch norm: a sum and one of squares [C], float64, over `count` values of each channel."""

    total: Tensor
    squares: Tensor
    count: int = 0

    def add(self, x: Tensor) -> None:
        """Inputs [N, C, ...]."""
        values = x.detach().double().transpose(0, 1).flatten(1)  # [C, N * ...]
        self.total += values.sum(1)
        self.squares += values.square().sum(1)
        self.count += values.shape[1]

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    @property
    def variance(self) -> Tensor:
        """The unbiased one, as torch keeps it."""
        spread = (self.squares / self.count - self.mean.square()).clamp_min(0)
        return spread * self.count / max(self.count - 1, 1)


def _estimated(tower: Tower, backbone: nn.Module, norms: list[Any], sources: list[ImageSource]) -> list[_Sums]:
    empty = [torch.zeros(len(norm.running_mean), dtype=torch.float64, device=tower.device) for norm in norms]
    sums = [_Sums(zeros, zeros.clone()) for zeros in empty]
    batches = math.ceil(len(sources) / BATCH)
    with _own_statistics(norms, sums):
        for number in range(batches):
            part = sources[number::batches]  # batches of equal size, but for one picture
            pixels = torch.stack([tower.transform(open_image(source)) for source in part]).to(tower._like())
            backbone(pixels)
    return sums


@contextmanager
def _own_statistics(norms: list[Any], sums: list[_Sums]) -> Iterator[None]:
    """Batch norms normalise by the batch at hand and leave their statistics alone; what they are given is added up."""
    before = [(norm.training, norm.track_running_stats, norm.running_mean, norm.running_var) for norm in norms]
    hooks = [
        norm.register_forward_pre_hook(lambda _, args, s=s: s.add(args[0])) for norm, s in zip(norms, sums, strict=True)
    ]
    for norm in norms:
        norm.train()
        norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for norm, (training, tracked, mean, variance) in zip(norms, before, strict=True):
            norm.train(training)
            norm.track_running_stats, norm.running_mean, norm.running_var = tracked, mean, variance


def _norms(backbone: nn.Module) -> list[Any]:
    return [m for m in backbone.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
