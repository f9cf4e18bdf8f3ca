"""M-Hub against transformers' Q-Former and against its equations as loops."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    Blip2QFormerConfig,
    Blip2QFormerModel,
    InstructBlipQFormerConfig,
    InstructBlipQFormerModel,
)

from tsugiki.errors import InputError, StoreError, UnknownNameError
from tsugiki.vision import _qformer
from tsugiki.vision.hub import Attention, Hub, HubConfig, HubOutput, places

V, D = 12, 20
SMALL: dict[str, Any] = {"layers": 3, "width": 16, "heads": 2, "hidden": 24, "queries": 5, "vocabulary": 50}
SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
}


def light(**changes: Any) -> Hub:
    return Hub(HubConfig(**{**SMALL, **changes}), V, D).double()


def batch(n: int = 3, t: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(n, 9, V, generator=generator, dtype=torch.float64)
    text = torch.randn(n, t, D, generator=generator, dtype=torch.float64)
    lengths = torch.tensor([t, 2, 4])[:n]
    return features, text, torch.arange(t) < lengths[:, None]


def opened(hub: Hub) -> Hub:
    """With the gate away from zero, so that the text's own path shows."""
    assert hub.gate is not None
    torch.nn.init.constant_(hub.gate, 0.7)
    return hub


def norm(x: list[float], module: torch.nn.LayerNorm) -> list[float]:
    mean = sum(x) / len(x)
    var = sum((v - mean) ** 2 for v in x) / len(x)
    weight, bias = module.weight.tolist(), module.bias.tolist()
    return [(v - mean) / math.sqrt(var + module.eps) * weight[i] + bias[i] for i, v in enumerate(x)]


def linear(x: list[float], module: torch.nn.Linear) -> list[float]:
    rows = module.weight.tolist()
    return [
        sum(a * b for a, b in zip(x, row, strict=True)) + c for row, c in zip(rows, module.bias.tolist(), strict=True)
    ]


def attend(x: list[list[float]], source: list[list[float]], module: Attention) -> list[list[float]]:
    """The equation of an attention, place by place and head by head."""
    q, k, v = ([linear(y, f) for y in s] for f, s in ((module.query, x), (module.key, source), (module.value, source)))
    size = len(q[0]) // module.heads
    out = []
    for i, row in enumerate(x):
        mixed: list[float] = []
        for head in range(module.heads):
            part = slice(head * size, (head + 1) * size)
            scores = [sum(a * b for a, b in zip(q[i][part], key[part], strict=True)) / math.sqrt(size) for key in k]
            top = max(scores)
            weights = [math.exp(s - top) for s in scores]
            mixed += [
                sum(w * value[part][c] for w, value in zip(weights, v, strict=True)) / sum(weights) for c in range(size)
            ]
        out.append(norm([a + b for a, b in zip(row, linear(mixed, module.output), strict=True)], module.norm))
    return out


def ffn(x: list[float], module: Any) -> list[float]:
    hidden = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in linear(x, module.up)]
    return norm([a + b for a, b in zip(x, linear(hidden, module.down), strict=True)], module.norm)


@torch.no_grad()
def written_out(hub: Hub, features: Tensor, text: Tensor) -> tuple[list[list[float]], list[list[float]]]:
    """The light hub on one pair: features [P, V], text [T, D]."""
    assert hub.vision_in is not None and hub.text_in is not None and hub.gate is not None
    seen = [linear(norm(row, hub.vision_norm), hub.vision_in) for row in features.tolist()]
    queries = [norm(row, hub.input_norm) for row in hub.queries.tolist()]
    where = places(len(text), hub.config.width).double().tolist()
    said = [
        norm([a + b for a, b in zip(linear(row, hub.text_in), where[i], strict=True)], hub.input_norm)
        for i, row in enumerate(text.tolist())
    ]
    for number, layer in enumerate(hub.layers):
        both = attend(queries + said, queries + said, layer.attention)  # type: ignore[arg-type]
        queries, said = both[: len(queries)], both[len(queries) :]
        if number % 2 == 0:
            queries = attend(queries, seen, layer.cross)  # type: ignore[arg-type]
        queries = [ffn(q, layer.query_ffn) for q in queries]
        said = [ffn(t, layer.text_ffn) for t in said]
    gate = float(hub.gate)
    worded = [
        [e + gate * w for e, w in zip(row, linear(t, hub.project), strict=True)]
        for row, t in zip(text.tolist(), said, strict=True)
    ]
    return [linear(q, hub.project) for q in queries], worded


def test_the_light_form_is_its_equations() -> None:
    hub = opened(light())
    features, text, _ = batch()
    visual, worded = written_out(hub, features[0], text[0])
    out = hub(features[:1], text[:1])
    assert torch.allclose(out.visual[0], torch.tensor(visual, dtype=torch.float64), atol=1e-10)
    assert torch.allclose(out.text[0], torch.tensor(worded, dtype=torch.float64), atol=1e-10)


@torch.no_grad()
def test_the_published_form_is_transformers_q_former() -> None:
    theirs = InstructBlipQFormerModel(
        InstructBlipQFormerConfig(**SIZES, encoder_hidden_size=V, cross_attention_frequency=2)
    ).double()
    theirs.eval()
    queries = torch.randn(1, 5, 16, dtype=torch.float64)
    state = {f"qformer.{k}": v for k, v in theirs.state_dict().items()} | {"query_tokens": queries}
    config = _qformer.config_of({"qformer_config": theirs.config.to_dict(), "num_query_tokens": 5})
    hub = Hub(config, V, D).double()
    filled = _qformer.fill(hub, state)
    assert set(filled.started) == {f"{p}.{e}" for p in ("project", "vision_norm") for e in ("weight", "bias")}
    features, _, mask = batch()
    ids = torch.randint(1, 50, mask.shape)
    states = theirs(
        ids,
        attention_mask=torch.cat([torch.ones(3, 5), mask], 1),
        query_embeds=queries.expand(3, -1, -1),
        encoder_hidden_states=hub.vision_norm(features),
    ).last_hidden_state
    out = hub(features, ids, mask)
    assert torch.allclose(out.visual, hub.project(states[:, :5]), atol=1e-9)
    assert torch.allclose(out.text[mask], hub.project(states[:, 5:])[mask], atol=1e-9)


@torch.no_grad()
def test_blip_2_has_no_text_branch_and_bert_gives_it() -> None:
    blip = Blip2QFormerModel(Blip2QFormerConfig(**SIZES, encoder_hidden_size=V, cross_attention_frequency=2))
    bert = BertModel(BertConfig(**SIZES))
    state = {f"qformer.{k}": v for k, v in blip.state_dict().items()} | {"query_tokens": torch.randn(1, 5, 16)}
    config = _qformer.config_of({"qformer_config": blip.config.to_dict(), "num_query_tokens": 5})
    alone = _qformer.fill(Hub(config, V, D), state)
    assert "words.weight" in alone.started and "layers.2.text_ffn.up.weight" in alone.started
    hub = Hub(config, V, D)
    both = _qformer.fill(hub, state, text={f"bert.{k}": v for k, v in bert.state_dict().items()})
    assert not [k for k in both.started if not k.startswith(("project", "vision_norm"))]
    assert torch.equal(hub.words.weight, bert.embeddings.word_embeddings.weight)  # type: ignore[union-attr]
    own, given = hub.state_dict(), bert.encoder.layer[1].intermediate.dense.weight
    assert torch.equal(own["layers.1.text_ffn.up.weight"], given)
    assert torch.equal(own["layers.1.attention.query.weight"], blip.encoder.layer[1].attention.attention.query.weight)
    assert torch.equal(own["layers.1.query_ffn.up.weight"], blip.encoder.layer[1].intermediate_query.dense.weight)


def test_a_q_former_is_read_from_a_folder(tmp_path: Path) -> None:
    import json

    from safetensors.torch import save_file

    blip = Blip2QFormerModel(Blip2QFormerConfig(**SIZES, encoder_hidden_size=V, cross_attention_frequency=2))
    state = {f"qformer.{k}": v for k, v in blip.state_dict().items()} | {"query_tokens": torch.randn(1, 5, 16)}
    save_file({**state, "language_model.lm_head.weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    values = {"qformer_config": blip.config.to_dict(), "num_query_tokens": 5}
    (tmp_path / "config.json").write_text(json.dumps(values))
    config, found = _qformer.read(tmp_path)
    assert config.queries == 5 and config.layers == 3 and set(found) == set(state)
    _qformer.fill(Hub(config, V, D), found)


def test_a_part_of_a_q_former_is_refused() -> None:
    blip = Blip2QFormerModel(Blip2QFormerConfig(**SIZES, encoder_hidden_size=V, cross_attention_frequency=2))
    config = _qformer.config_of({"qformer_config": blip.config.to_dict(), "num_query_tokens": 5})
    state = {k: v for k, v in blip.state_dict().items() if "layer.1" not in k}
    with pytest.raises(StoreError, match=r"tensors are missing, the first is (queries|layers\.1)"):
        _qformer.fill(Hub(config, V, D), state)
    whole = dict(blip.state_dict()) | {"query_tokens": torch.zeros(1, 4, 16)}
    with pytest.raises(StoreError, match=r"queries has shape \[4, 16\]"):
        _qformer.fill(Hub(config, V, D), whole)
    with pytest.raises(StoreError, match="a light hub"):
        _qformer.fill(Hub(HubConfig(**SMALL), V, D), whole)


@torch.no_grad()
def test_a_pair_alone_is_the_pair_in_a_batch() -> None:
    hub = opened(light())
    features, text, mask = batch()
    whole = hub(features, text, mask)
    for i in range(3):
        length = int(mask[i].sum())
        alone: HubOutput = hub(features[i : i + 1], text[i : i + 1, :length])
        assert torch.allclose(alone.visual[0], whole.visual[i], atol=1e-10)
        assert alone.text is not None
        assert torch.allclose(alone.text[0], whole.text[i, :length], atol=1e-10)


@torch.no_grad()
def test_what_is_padded_is_not_read() -> None:
    hub = opened(light())
    features, text, mask = batch()
    other = torch.where(mask[..., None], text, torch.full_like(text, 9.0))
    assert torch.equal(hub(features, text, mask).visual, hub(features, other, mask).visual)


def test_text_and_picture_reach_each_other() -> None:
    hub = opened(light())
    features, text, mask = batch()
    features.requires_grad_(), text.requires_grad_()
    out = hub(features, text, mask)
    of_picture, of_text = (
        torch.autograd.grad(out.text[0].sum(), features, retain_graph=True)[0],
        torch.autograd.grad(out.visual[0].sum(), text)[0],
    )
    assert of_picture[0].abs().max() > 0 and of_text[0].abs().max() > 0
    assert of_picture[1:].abs().max() == 0 and of_text[1:].abs().max() == 0


def test_a_light_hub_starts_with_plain_text() -> None:
    hub = light()
    features, text, mask = batch()
    out = hub(features, text, mask)
    assert torch.equal(out.text, text)
    out.text.square().sum().backward()
    assert hub.gate is not None and hub.gate.grad is not None and hub.gate.grad.abs() > 0


@torch.no_grad()
def test_without_text_the_picture_is_read_alone() -> None:
    hub = light()
    features, text, _ = batch()
    alone = hub(features)
    assert alone.text is None and alone.visual.shape == (3, 5, D)
    assert not torch.allclose(alone.visual, hub(features, text).visual)


@torch.no_grad()
def test_the_visual_tokens_get_the_words_size() -> None:
    hub = light()
    features, _, _ = batch()
    hub.set_output_rms(0.13, features)
    assert float(hub(features).visual.pow(2).mean().sqrt()) == pytest.approx(0.13)


def test_the_light_form_is_small() -> None:
    hub = Hub(HubConfig(), 1280, 576)
    assert sum(p.numel() for p in hub.parameters()) <= 6_000_000 and hub.tokens == 32


def test_places_have_rms_one_and_differ() -> None:
    vectors = places(300, 16)
    assert torch.allclose(vectors.pow(2).mean(1), torch.ones(300), atol=1e-5)
    assert float(torch.cdist(vectors, vectors).fill_diagonal_(9).min()) > 0.1


def test_what_can_not_be_is_told() -> None:
    features, text, _ = batch()
    with pytest.raises(UnknownNameError, match="Did you mean 'light'"):
        HubConfig(form="ligth")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="heads that divide the width"):
        HubConfig(width=30, heads=4)
    with pytest.raises(InputError, match="queries=0"):
        HubConfig(queries=0)
    with pytest.raises(InputError, match="word embeddings"):
        light()(features, torch.ones(3, 6, dtype=torch.long))
    published = Hub(HubConfig(form="published", longest=4, **SMALL), V, D).double()
    with pytest.raises(InputError, match="ids of the hub's own words"):
        published(features, text)
    with pytest.raises(InputError, match="a text of 6 tokens; expected at most 4"):
        published(features, torch.ones(3, 6, dtype=torch.long))
