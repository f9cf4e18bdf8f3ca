"""Whose a parameter is, which modules train, and what a checkpoint has to hold."""

from __future__ import annotations

import pytest
import torch
from tests.training._tiny import model
from torch import nn

from tsugiki.errors import RecipeError
from tsugiki.training import parts


def test_every_parameter_belongs_to_one_part() -> None:
    built = model("cross_attention")
    found = parts.parts_of(built)
    assert list(found) == ["tower", "projector", "graft.cross_attention", "llm"]
    names = [name for content in found.values() for name in content]
    assert sorted(names) == sorted(n for n, _ in built.named_parameters())


def test_groups_have_their_rate_and_spare_vectors_the_decay() -> None:
    built = model("cross_attention")
    found = parts.groups(built, {"projector": 1e-3, "graft.cross_attention": 1e-4}, 0.1)
    assert {g["name"].split(" ")[0]: g["lr"] for g in found} == {"projector": 1e-3, "graft.cross_attention": 1e-4}
    for group in found:
        assert all((p.dim() > 1) == (group["weight_decay"] == 0.1) for p in group["params"])
    counted = sum(len(g["params"]) for g in found)
    assert counted == sum(len(parts.parts_of(built)[p]) for p in ("projector", "graft.cross_attention"))


def test_modes_and_gradients_inside_and_after() -> None:
    built = model("cross_attention")
    before = {n: p.requires_grad for n, p in built.named_parameters()}
    with parts.training(built, {"graft.cross_attention": 1.0}):
        parts.set_modes(built)
        free = {n for n, p in built.named_parameters() if p.requires_grad}
        assert free == set(parts.parts_of(built)["graft.cross_attention"])
        training = {n for n, m in built.named_modules() if m.training and n}
        assert all(n.startswith(("grafts", "frontend")) for n in training) and "grafts.0" in training
        assert not any(n.startswith(("frontend.projector", "frontend.tower", "language_model")) for n in training)
    assert {n: p.requires_grad for n, p in built.named_parameters()} == before and not built.training


def test_checkpointed_layers_train_their_flag_only() -> None:
    built = model()
    with parts.training(built, {"projector": 1.0}, gradient_checkpointing=True):
        parts.set_modes(built)
        layers = built.decoder.layers
        assert all(layer.training for layer in layers)
        assert not any(child.training for layer in layers for child in layer.children())
    assert not any(layer.training for layer in built.decoder.layers)


def test_an_error_inside_leaves_the_model_as_it_was() -> None:
    built = model()
    with pytest.raises(ValueError), parts.training(built, {"projector": 1.0}, gradient_checkpointing=True):
        parts.set_modes(built)
        raise ValueError
    assert not built.training and not any(getattr(m, "gradient_checkpointing", False) for m in built.modules())


def test_saved_buffers_of_a_part_are_kept_too() -> None:
    built = model()
    built.frontend.projector.register_buffer("shift", torch.ones(2))
    built.frontend.projector.register_buffer("scratch", torch.ones(2), persistent=False)
    built.language_model.register_buffer("other", torch.ones(2))
    kept = set(parts.trained_tensors(built, {"projector": 1.0}))
    own = set(parts.parts_of(built)["projector"])
    assert kept == own | {"frontend.projector.shift"}


def test_check_and_table() -> None:
    built = model()
    parts.check(built, {"projector": 1.0}, where="stages.0")
    with pytest.raises(RecipeError, match="one of projector, llm"):
        parts.check(built, {"grafts": 1.0}, where="stages.0")
    rows = parts.table(built, {"projector": 1e-3})
    assert [row["part"] for row in rows] == ["tower", "projector", "llm"]
    drawn = parts.draw(rows, "Stage x")
    assert "frozen" in list(drawn.columns[3].cells) and "parameters train" in str(drawn.caption)


def test_a_tower_that_trains() -> None:
    built = model(train_tower=True)
    assert not parts.frozen_tower(built)
    parts.check(built, {"tower": 1e-5}, where="stages.0")
    assert isinstance(built.frontend.tower, nn.Module)
