"""LAWS against loops over explicit attention matrices in float64, and what is made of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.grafts._requests import wake

from tsugiki import testing
from tsugiki.errors import DataError, InputError, UnknownNameError, UnsupportedError
from tsugiki.evals import laws
from tsugiki.evals.laws import Laws
from tsugiki.types import DEMO, IMAGE, PAD, TAG, TEXT, Message, Sample


def conversations(n: int = 3) -> list[Sample]:
    """Questions about pictures, of different lengths, with answers."""
    return [
        Sample(
            id=f"c{i}",
            messages=(
                Message.of("system", "Be brief."),
                Message.of("user", "What?" * (i + 1), (picture,)),
                Message.of("assistant", "A cup."),
            ),
        )
        for i, picture in enumerate(testing.tiny_images(n))
    ]


def seeing(graft: str = "projector", family: str = "llama", attention: str = "eager", **options: Any) -> Any:
    model = testing.tiny_model(graft, family, **options)
    wake(model)
    model = model.double()
    model.language_model.set_attn_implementation(attention)
    return model


def written_out(matrices: Any, parts: torch.Tensor, asks: list[int]) -> np.ndarray:
    """[L, 3] by loops: matrices L x [1, H, S, S], parts [S, 3] with a single 1 in each row."""
    found, part = np.zeros((len(matrices), 3)), parts.int().argmax(-1).tolist()
    for layer, matrix in enumerate(matrices):
        heads = matrix[0].tolist()
        for head in heads:
            for i in asks:
                for j, weight in enumerate(head[i]):
                    found[layer, part[j]] += weight
        found[layer] /= len(heads) * len(asks)
    return found


@pytest.mark.parametrize(
    ("graft", "family"), [("projector", "qwen3"), ("wings", "llama"), ("cross_attention", "llama")]
)
@pytest.mark.parametrize("queries", ["all", "answer"])
def test_against_loops_over_attention_matrices(graft: str, family: str, queries: Any) -> None:
    model, samples = seeing(graft, family), conversations(2)
    found = laws.measure(model, samples, queries=queries)
    for i, sample in enumerate(samples):
        batch = model.encode_samples([sample], labels=True)
        kinds, labels = batch.token_kind[0].tolist(), batch.labels[0].tolist()
        first = next(p for p, kind in enumerate(kinds) if kind != TEXT)
        parts = torch.tensor([[kind == TEXT and p < first, kind != TEXT, kind == TEXT and p > first]
                              for p, kind in enumerate(kinds)])  # fmt: skip
        asks = list(range(len(kinds)))
        if queries == "answer":
            asks = [p for p in asks[:-1] if labels[p + 1] != -100]
        inputs = {k: v for k, v in batch.inputs().items() if k != "labels"}
        with torch.no_grad():
            own = model(**inputs, output_attentions=True, use_cache=False).attentions
        assert np.allclose(found.own[i], written_out(own, parts, asks), atol=1e-12)

        text = [p for p, kind in enumerate(kinds) if kind == TEXT]
        with torch.no_grad(), model.detached() as llm:
            alone = llm(batch.input_ids[:, text], output_attentions=True).attentions
        where = [text.index(p) for p in asks if p in text]
        assert np.allclose(found.base[i], written_out(alone, parts[text], where), atol=1e-12)
    assert np.allclose(found.own.sum(-1), 1) and np.allclose(found.base.sum(-1), 1)
    assert (found.base[..., 1] == 0).all() and (found.own[..., 1] > 0).all()


@pytest.mark.parametrize("family", ["mistral", "gemma3_text", "gpt2", "phi3"])
def test_sdpa_reads_what_eager_reads(family: str) -> None:
    eager, fused = (laws.measure(seeing(family=family, attention=a), conversations(2)) for a in ("eager", "sdpa"))
    assert np.allclose(eager.own, fused.own, atol=1e-9) and np.allclose(eager.base, fused.base, atol=1e-9)


def test_no_attention_matrix_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = seeing("wings", attention="sdpa"), []
    original = torch.nn.functional.scaled_dot_product_attention

    def noted(q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(v.shape[-1])
        return original(q, k, v, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    laws.measure(model, conversations(2))
    assert seen
    monkeypatch.setattr(torch, "softmax", None)
    monkeypatch.setattr(torch.nn.functional, "softmax", None)
    laws.measure(model, conversations(2))


def test_the_model_is_as_it_was() -> None:
    model, sample = seeing("wings", attention="sdpa"), conversations(1)
    inputs = model.encode_samples(sample).inputs()
    with torch.no_grad():
        before = model(**inputs).logits
        laws.measure(model, conversations(2))
        assert torch.equal(model(**inputs).logits, before)
    assert type(model.decoder.blocks[0].attention.config).__name__ == "_AttentionConfig"  # the router's own hook


def test_shift_is_one_minus_rho_in_parts() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 12)), rng.normal(size=(5, 12))
    parts = laws.shift(x, y)
    for a, b, row in zip(x, y, parts, strict=True):
        depth, total = len(a), 0.0
        mean_a, mean_b = sum(a) / depth, sum(b) / depth
        sd_a = (sum((v - mean_a) ** 2 for v in a) / depth) ** 0.5
        sd_b = (sum((v - mean_b) ** 2 for v in b) / depth) ** 0.5
        for layer in range(depth):
            each = ((a[layer] - mean_a) / sd_a - (b[layer] - mean_b) / sd_b) ** 2 / (2 * depth)
            assert row[layer] == pytest.approx(each, abs=1e-12)
            total += each
        assert total == pytest.approx(1 - np.corrcoef(a, b)[0, 1], abs=1e-12)
    assert np.allclose(laws.shift(x, 3 * x + 2), 0) and np.isnan(laws.shift(x, np.ones_like(x))).all()


def made(own: Any, base: Any) -> Laws:
    samples = conversations(len(own))
    return Laws(np.asarray(own, float), np.asarray(base, float), tuple(samples))


def test_the_layers_that_moved_are_suggested() -> None:
    rng = np.random.default_rng(0)
    base = np.zeros((8, 6, 3))
    base[..., 0] = np.linspace(0.8, 0.3, 6) + 0.01 * rng.normal(size=(8, 6))
    base[..., 2] = 1 - base[..., 0]
    own = base.copy()
    own[:, 4, 0] += 0.5
    own[:, 4, 2] -= 0.5
    found = made(own, base)
    assert laws.suggest(found, 1).layers == (4,) and len(laws.suggest(found).layers) == 2
    one = laws.suggest(found, 1)
    assert one.chosen[4] == 1 and sum(one.chosen) == pytest.approx(1)
    moved = found.moved_text()
    assert [m.value for m in one.moved] == pytest.approx(moved.mean(0).tolist())
    assert laws.suggest(found, 6).layers == (0, 1, 2, 3, 4, 5)
    by_name = {s.metric: s for s in laws.scores(found)}
    rho = [np.corrcoef(own[i, :, 0], own[i, :, 2])[0, 1] for i in range(8)]
    assert by_name["1 - rho, before against after"].value == pytest.approx(1 - np.mean(rho))
    assert by_name["1 - rho, text after, against the bare LLM"].value == pytest.approx(found.moved(2).sum(-1).mean())
    assert by_name["share on pictures"].value == 0 and all(s.low is not None for s in by_name.values())


def test_conversations_on_one_picture_are_drawn_together() -> None:
    found = laws.measure(seeing(), [*conversations(2), *(replace(s, id="again") for s in conversations(2))])
    groups = found.groups()
    assert groups is None or groups.tolist() == [0, 1, 0, 1]


def test_kinds_to_parts() -> None:
    kinds = torch.tensor([[PAD, TEXT, DEMO, TEXT, IMAGE, TAG, TEXT]])
    assert laws.parts_of(kinds)[0].argmax(-1).tolist()[1:] == [0, 1, 2, 1, 1, 2]
    assert laws.parts_of(kinds)[0, 0].sum() == 0


def test_mistakes() -> None:
    model, samples = seeing(), conversations(3)
    with pytest.raises(DataError, match="1 of 2 conversations have a picture; expected at least 2"):
        laws.measure(model, [samples[0], Sample(id="t", messages=(Message.of("user", "Hello"),))])
    with pytest.raises(UnknownNameError, match="'answer'"):
        laws.measure(model, samples, queries="answers")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="sample c0: no answer"):
        laws.measure(model, [replace(s, messages=s.prompt) for s in samples], queries="answer")
    found = laws.measure(model, samples)
    for count in (0, 5):
        with pytest.raises(InputError, match="expected 1 to 4"):
            laws.suggest(found, count)
    flat = made(np.full((2, 4, 3), 1 / 3), np.full((2, 4, 3), 0.5))
    with pytest.raises(DataError, match="the same in all layers"):
        laws.suggest(flat)


def test_a_trained_llm_needs_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    model = seeing()
    monkeypatch.setattr(type(model), "guarantee", "bounded")
    with pytest.raises(UnsupportedError, match="Pass base="):
        laws.measure(model, conversations(2))
    given = laws.measure(model, conversations(2), base=testing.tiny_llm().double())
    monkeypatch.undo()
    assert np.allclose(given.base, laws.measure(model, conversations(2)).base)
