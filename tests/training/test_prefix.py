"""The common beginning of a batch runs once: the same loss and gradients, and never where it would be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.grafts._requests import Row, request, wake
from tests.training._tiny import cache, model, recipe, samples
from torch import Tensor

from tsugiki.testing import tiny_model
from tsugiki.training import losses, parts, prefix
from tsugiki.training.prefix import SharedPrefix, common
from tsugiki.training.trainer import train

SHARED = 9
TRAINED = {"projector": ("projector",), "cross_attention": ("projector", "graft.cross_attention")}
WINDOWS = {"sliding_window": 6}
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("gpt2", {}),
    ("opt", {}),
    ("gpt_neox", {}),
    ("gemma2", WINDOWS),
    ("gemma3_text", WINDOWS),
    ("mistral", WINDOWS),
    ("olmo2", {}),
]
# Right padding, two pictures in a row, rows without a picture, text before and after.
ROWS: list[Row] = [[SHARED, "i", 7], [SHARED + 3, "i", 4, "i", 8], [SHARED + 12], [SHARED + 1, "i", 5]]


def batch(built: Any, rows: list[Row] = ROWS, *, labels: int = 3) -> dict[str, Tensor]:
    """Rows that begin with the same `SHARED` tokens and end with `labels` labels."""
    inputs = request(built, rows)
    inputs["input_ids"][:, :SHARED] = inputs["input_ids"][0, :SHARED]
    for i in range(len(rows)):  # so that not more than that is common
        inputs["input_ids"][i, SHARED] += i if inputs["token_kind"][i, SHARED] == 0 else 0
    inputs["labels"] = torch.full_like(inputs["input_ids"], -100)
    for row, mask in enumerate(inputs["attention_mask"]):
        end = int(mask.sum())
        inputs["labels"][row, end - labels : end] = inputs["input_ids"][row, end - labels : end]
    return inputs


def learn(built: Any, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of one forward and backward."""
    built.zero_grad()
    loss = built(**inputs, num_items_in_batch=torch.tensor(7)).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in built.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("attention", [None, "eager"], ids=["own", "eager"])
@pytest.mark.parametrize("graft", ["projector", "cross_attention"])
@pytest.mark.parametrize(("family", "options"), FAMILIES, ids=[f for f, _ in FAMILIES])
def test_loss_and_gradients_are_those_of_the_whole_rows(
    family: str, options: dict[str, Any], graft: str, attention: str | None
) -> None:
    built = tiny_model(graft, family, llm={"attn_implementation": attention, **options})
    # Eager attention takes its softmax in float32, where float64's lowest mask value is -inf and padding becomes NaN.
    dtype = torch.float32 if built.language_model.config._attn_implementation == "eager" else torch.float64
    built.to(dtype)
    wake(built)
    share, inputs = SharedPrefix(built), batch(built)
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    with parts.training(built, dict.fromkeys(TRAINED[graft], 1.0)):
        parts.set_modes(built)
        whole, expected = learn(built, inputs)
        for _ in range(2):  # the second one from the kept keys and values, which the first must have left alone
            short = share(inputs)
            assert short["input_ids"].shape[1] == inputs["input_ids"].shape[1] - SHARED
            loss, found = learn(built, short)
            torch.testing.assert_close(loss, whole, rtol=1e-5, atol=1e-6)
            assert found.keys() == expected.keys() and found
            for name in found:
                scale = float(expected[name].abs().max()) + 1e-9
                torch.testing.assert_close(found[name] / scale, expected[name] / scale, rtol=0, atol=1e-4, msg=name)


def test_it_ends_before_a_picture_a_label_padding_and_any_difference() -> None:
    built = model()
    inputs = batch(built)
    assert common(inputs) == SHARED
    moved = {k: v.clone() for k, v in inputs.items()}
    moved["input_ids"][2, 5] += 1
    assert common(moved) == 5
    moved = {k: v.clone() for k, v in inputs.items()}
    moved["labels"][1, 6] = 3  # scored at position 5, which has to run
    assert common(moved) == 5
    moved = {k: v.clone() for k, v in inputs.items()}
    moved["attention_mask"][3, 0] = 0
    assert common(moved) == 0
    same = batch(built, [[SHARED, "i", 3]] * 2)
    assert common(same) == SHARED
    assert common({k: v for k, v in inputs.items() if k not in {"token_kind", "image_index"}}) == 0
    short = {k: v[:, :1] if k != "pixel_values" else v for k, v in inputs.items()}
    assert common(short) == 0


def test_it_is_left_out_where_it_would_be_wrong_or_not_worth_it() -> None:
    built = model()
    inputs, share = batch(built), SharedPrefix(built)
    assert "cache" in share(inputs)
    unknown = share({**inputs, "position_ids": torch.zeros(1)})
    assert "cache" not in unknown
    short = {k: v[:, SHARED - 3 :] if k not in {"pixel_values"} else v for k, v in inputs.items()}
    assert common(short) == 3 and "cache" not in share(short)
    built.language_model.requires_grad_(True)
    assert "cache" not in share(inputs)
    built.language_model.requires_grad_(False)
    built.grafts[0].__class__ = type("Early", (type(built.grafts[0]),), {"PREFIX_EXACT": False})
    assert "cache" not in share(inputs)


def test_a_prefix_runs_once_and_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    built = model()
    share, inputs = SharedPrefix(built), batch(built)
    runs: list[int] = []
    built.language_model.register_forward_hook(lambda *_: runs.append(1))
    share(inputs), share(inputs)
    assert len(runs) == 1
    monkeypatch.setattr(prefix, "REMEMBER", 2)
    for change in (1, 2, 0):  # two others push the first one out
        other = {k: v.clone() for k, v in inputs.items()}
        other["input_ids"][:, 0] += change
        share(other)
    assert len(runs) == 4


def test_marks_of_steps_are_cut_too() -> None:
    built = model()
    inputs = batch(built, labels=4)
    inputs["steps"] = torch.where(inputs["labels"] >= 0, inputs["labels"] % 2, -1)
    inputs["step_weights"] = torch.tensor([[1.0, 3.0]] * len(ROWS))
    short = SharedPrefix(built)(inputs)
    assert "cache" in short and short["steps"].shape == short["labels"].shape
    assert torch.equal(short["steps"] >= 0, short["labels"] >= 0)
    found, whole = (losses.get("per_step")(built, given, None) for given in (short, inputs))
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["model", "bf16"])
@pytest.mark.parametrize("graft", ["projector", "cross_attention"])
def test_a_training_with_it_is_the_training_without(graft: str, precision: str, tmp_path: Path) -> None:
    found = []
    for share in (True, False):
        fields = recipe(*TRAINED[graft], share_prefix=share, steps=6) | {"precision": precision}
        built = model(graft)
        done = train(
            built, fields, tmp_path / str(share), data=samples(), progress=False, features=cache(built, tmp_path)
        )
        found.append(done.losses)
    assert found[0] == pytest.approx(found[1], rel=1e-4 if precision == "model" else 2e-2)


@pytest.mark.parametrize(
    ("stage", "shared"),
    [({}, True), ({"share_prefix": False}, False), ({"gradient_checkpointing": True}, False)],
)
def test_the_recipe_decides(
    stage: dict[str, Any], shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def spying(name: str, **_: Any) -> Any:
        def spy(built: Any, inputs: Any, items: Any) -> Tensor:
            seen.append("cache" in inputs)
            return losses.per_token(built, inputs, items)

        return spy

    monkeypatch.setattr(losses, "get", spying)
    built = model()
    train(
        built,
        recipe(steps=2, **stage),
        tmp_path / "run",
        data=samples(),
        progress=False,
        features=cache(built, tmp_path),
    )
    assert seen == [shared, shared]


def test_a_llm_that_trains_is_never_shared(tmp_path: Path) -> None:
    found = []
    for share in (True, False):
        built = model()
        fields = recipe("llm", "projector", steps=2, share_prefix=share)
        done = train(
            built, fields, tmp_path / str(share), data=samples(), progress=False, features=cache(built, tmp_path)
        )
        found.append(done.losses)
    assert found[0] == found[1]
