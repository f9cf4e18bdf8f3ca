"""int8 weights on both sides: the grid by a loop, everything back afterwards, and exact grafts that stay exact."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tsugiki import grafts, testing
from tsugiki.errors import UnsupportedError
from tsugiki.evals import prompts, quantised, retention
from tsugiki.types import Score

MATERIAL = retention.Material(
    texts=[f"The number {i} comes after {i - 1}." for i in range(10, 13)],
    prompts=prompts.bundled()[:2],
    pictures=testing.tiny_images(2),
)


@pytest.fixture(autouse=True)
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torchao, also where it is installed."""
    monkeypatch.setattr(quantised, "installed", lambda: False)


def measured(model: Any, **options: Any) -> dict[str, Score]:
    scores = retention.retention(
        model, suites=("wiki", "answers"), material=MATERIAL, max_new_tokens=4, int8=True, **options
    )
    return {f"{s.task}.{s.metric}": s for s in scores}


def test_a_weight_is_read_from_the_nearest_point_of_its_rows_grid() -> None:
    weight = torch.randn(5, 7).mul(torch.tensor([1e-3, 1.0, 40.0, 0.0, 5.0])[:, None])
    found = quantised.rounded(weight)
    assert torch.equal(found[3], weight[3])
    for row, read in zip(weight.double().tolist(), found.double().tolist(), strict=True):
        scale = max(abs(w) for w in row) / 127.5
        for w, r in zip(row, read, strict=True):
            level = r / scale if scale else 0.0
            assert level == pytest.approx(round(level), abs=1e-4) and -128 <= round(level) <= 127
            assert abs(r - w) <= 0.50001 * scale
    half = weight.to(torch.bfloat16)
    assert torch.equal(quantised.rounded(half), quantised.rounded(half.float()).to(torch.bfloat16))


def test_only_the_layers_matrices_change_and_all_come_back() -> None:
    model = testing.tiny_model("lora")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    with quantised.int8(model.language_model) as how:
        assert how == "int8 weights, simulated per output channel"
        changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    kinds = {name.rpartition(".layers.")[2].partition(".")[2] for name in changed}
    assert kinds == {
        *(f"self_attn.{k}_proj.weight" for k in "qkvo"),
        *(f"mlp.{k}_proj.weight" for k in ("gate", "up", "down")),
    }
    assert len(changed) == 4 * 7 and all(name.startswith("language_model.") for name in changed)
    assert all(parameters[name] is p for name, p in model.named_parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_an_error_inside_brings_the_weights_back() -> None:
    llm = testing.tiny_llm()
    before = dict(llm.named_parameters())
    with pytest.raises(KeyError), quantised.int8(llm):
        raise KeyError
    assert all(p is before[name] for name, p in llm.named_parameters())


@pytest.mark.parametrize("graft", grafts.available())
def test_an_exact_graft_is_exact_on_the_quantised_base(graft: str) -> None:
    model = testing.tiny_model(graft)
    with torch.no_grad():
        for parameter in [*model.grafts.parameters(), *model.frontend.projector.parameters()]:
            parameter.add_(0.1 * torch.randn_like(parameter))
    ids = torch.tensor([model.tokenizer("The quick brown fox.")["input_ids"]])
    with torch.no_grad(), quantised.int8(model.language_model):
        own = model(input_ids=ids).logits
        with model.detached() as llm:
            base = llm(input_ids=ids).logits
    with torch.no_grad(), model.detached() as llm:
        assert torch.equal(own, base) and not torch.equal(base, llm(input_ids=ids).logits)


def test_both_sides_are_quantised_and_what_is_proven_is_measured() -> None:
    model = testing.tiny_model()
    scores = measured(model, measure_exact=False, budget={"kl@int8": 0.0, "loss@picture@int8": 100.0})
    plain = {name.replace("@int8", "") for name in scores if "@int8" in name}
    assert plain == {name for name in scores if "@int8" not in name}
    assert {"wiki@int8.loss", "wiki@picture@int8.kl", "answers@picture@int8.agreement"} <= set(scores)
    for name in ("wiki@int8.loss", "wiki@int8.kl", "answers@int8.agreement"):
        score = scores[name]
        assert score.difference == score.difference_low == score.difference_high == 0
        assert "simulated per output channel" in score.note and "not measured" not in score.note
    assert "not measured again" in scores["wiki.kl"].note
    assert scores["wiki@int8.loss"].base != scores["wiki.loss"].base
    assert scores["wiki@picture@int8.kl"].value > 0


def test_a_trained_llm_against_its_quantised_base() -> None:
    model, base = testing.tiny_model(), testing.tiny_llm()
    model.freeze_llm(False)
    with torch.no_grad():
        for parameter in model.language_model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    scores = measured(model, base=base, after_picture=False, budget={"wiki@int8.kl": 0.0})
    assert "over the budget of 0 (wiki@int8.kl)" in scores["wiki@int8.kl"].note
    with quantised.int8(base):
        reread = retention.retention(model, base=base, suites=("wiki",), after_picture=False, material=MATERIAL)
    assert scores["wiki@int8.loss"].base == reread[0].base
    assert all(p.requires_grad for p in model.language_model.parameters())


def test_what_can_t_be_quantised_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="no linear weights"), quantised.int8(testing.tiny_llm("gpt2")):
        pass
    llm = testing.tiny_llm()
    llm.config.quantization_config = SimpleNamespace()
    with pytest.raises(UnsupportedError, match="quantised already"), quantised.int8(llm):
        pass


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs torchao: pip install 'tsugiki[int8]'")
def test_torchao_stores_the_same_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantised, "installed", lambda: True)
    model = testing.tiny_model()
    layer = next(m for m in model.language_model.model.layers.modules() if isinstance(m, nn.Linear))
    weight = layer.weight
    expected, step = quantised.rounded(weight), weight.detach().abs().amax(1, keepdim=True) / 127.5
    ids = torch.tensor([model.tokenizer("The quick brown fox.")["input_ids"]])
    with torch.no_grad(), quantised.int8(model.language_model) as how:
        assert how.startswith("int8 weights, torchao ")
        stored = layer.weight.dequantize()
        assert ((stored - expected).abs() <= 1.001 * step).all() and (stored == expected).double().mean() > 0.9
        own = model(input_ids=ids).logits
        with model.detached() as llm:
            assert torch.equal(own, llm(input_ids=ids).logits)
    assert layer.weight is weight
