"""WINGS against its formulas written out, its claims, its cache, and released weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.grafts import _wings_reference as reference
from tests.grafts._requests import alone, request, wake
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

import tsugiki
from tsugiki.configuration import cache_of
from tsugiki.errors import InputError, PromptError, TsugikiError, UnsupportedError
from tsugiki.grafts import _learners, wings
from tsugiki.grafts._cache import TsugikiCache
from tsugiki.testing import TinyTower, tiny_model, tiny_tokenizer
from tsugiki.types import TEXT

PUBLISHED = {"llm": "trainable"}
CONFIGS: dict[str, dict[str, Any]] = {
    "default": {},
    "parallel": {"order": "parallel"},
    "segments": {"router": "segments"},
    "no router": {"router": "none"},
    "visual": {"learners": "visual"},
    "textual": {"learners": "textual"},
    "some layers": {"layers": (1, 3)},
    "narrow router": {"width": 5},
    "two heads": {"heads": 2},
    "scaled": {"scale": 2.0},
    "published": PUBLISHED,
    "published, prefix": {**PUBLISHED, "exclude_prefix": 3},
    "aligning": {**PUBLISHED, "active": "visual"},
    "reference": {**PUBLISHED, "compat": "reference", "exclude_prefix": 3},
}


def seeing(family: str = "llama", **options: Any) -> Any:
    model = tiny_model("wings", family, **{"rank": 4, "width": 64, **options})
    wake(model)
    return model


def logits(model: Any, inputs: dict[str, Tensor], **kwargs: Any) -> Tensor:
    with torch.no_grad():
        return model(**inputs, **kwargs).logits


def close(a: Tensor, b: Tensor, tolerance: float = 5e-5) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# -- formulas ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", [0, 1 << 20], ids=["channels", "masks"])
@pytest.mark.parametrize("name", CONFIGS)
def test_equals_the_formulas_written_out(name: str, pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_learners, "MASKED", pairs)
    model = seeing(**CONFIGS[name]).double()
    inputs = request(model, [[4, "i", 3, "i", 4]])
    inputs["pixel_values"] = inputs["pixel_values"].double()
    with torch.no_grad():
        want = reference.forward(model, inputs)
    close(logits(model, inputs)[0], want, 1e-9)


@pytest.mark.parametrize("name", ["published", "published, prefix", "reference", "textual"])
def test_text_alone_equals_the_formulas(name: str) -> None:
    model = seeing(**{**CONFIGS[name], **PUBLISHED}).double()
    inputs = request(model, [[9]])
    with torch.no_grad():
        want = reference.forward(model, inputs)
    close(logits(model, inputs)[0], want, 1e-9)


def test_in_a_block_side_by_side_the_output_is_added_at_the_blocks_end() -> None:
    model = seeing("gpt_neox")
    inputs = request(model, [[3, "i", 4]])
    seen: dict[str, Tensor] = {}
    block, graft = model.decoder.layers[0], model.grafts[-1]

    def keep(name: str, value: Any) -> None:
        seen[name] = value[0] if isinstance(value, tuple) else value

    handles = [
        block.register_forward_hook(lambda m, a, out: keep("with", out)),
        graft.layers[0].register_forward_hook(lambda m, a, out: keep("added", out)),
        graft.layers[0].register_forward_pre_hook(lambda m, a: keep("query", a[0])),
        block.register_forward_pre_hook(lambda m, a: keep("input", a[0])),
    ]
    logits(model, inputs)
    whole = seen["with"]
    with torch.no_grad():
        for parameter in graft.layers[0].parameters():
            parameter.zero_()
    added = seen["added"]
    logits(model, inputs)
    close(whole - seen["with"], added, 1e-5)
    assert torch.equal(seen["query"], seen["input"])
    [h.remove() for h in handles]


# -- start, kernels, router --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pairs", [0, 1 << 20], ids=["channels", "masks"])
def test_fresh_learners_change_no_bit(dtype: torch.dtype, pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_learners, "MASKED", pairs)
    model = tiny_model("projector", "llama", llm={"dtype": dtype})
    wake(model)
    inputs = request(model, [[4, "i", 6], [3, "i", 2, "i", 8]], side="left")
    options = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    before, decoded = logits(model, inputs), model.generate(**inputs, **options).logits
    model = tsugiki.attach(model, "wings", rank=4)
    assert torch.equal(logits(model, inputs), before)
    again = model.generate(**inputs, **options).logits
    assert all(torch.equal(a, b) for a, b in zip(again, decoded, strict=True))


class _Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("router", ["positions", "segments"])
def test_every_attention_is_the_fused_kernel(router: str) -> None:
    model = seeing(router=router)
    inputs = request(model, [[70, "i", 90]])
    with torch.no_grad(), _Operators() as seen:
        model(**inputs)
    fused = sum("scaled_dot_product_flash_attention" in n for n in seen.names)
    assert fused == 4 * (1 + 2), "one attention and two learners a layer"
    # What is left of softmax is the router's, over two weights.
    assert sum("softmax" in n for n in seen.names) == 4


def test_the_router_starts_equal_and_reads_where_attention_goes() -> None:
    model = tiny_model("wings", "llama", rank=4, width=64)
    router = model.grafts[-1].routers[0]
    seen: list[Tensor] = []
    router.register_forward_hook(lambda m, a, out: seen.append(out[1]))
    inputs = request(model, [[4, "i", 6]])
    logits(model, inputs)
    assert torch.equal(seen[0], torch.full_like(seen[0], 0.5)) and seen[0].shape == (1, inputs["input_ids"].shape[1], 2)
    with torch.no_grad():
        router.weight[0, 4:8] = 3.0  # attention on the picture speaks for the visual learner
    logits(model, inputs)
    assert (seen[1][0, 8:, 0] > seen[1][0, 8:, 1]).all()
    close(seen[1].sum(-1), torch.ones_like(seen[1][..., 0]), 1e-6)


def test_one_learner_equals_weights_of_one_and_zero() -> None:
    """Stage 1's graph: the visual learner alone is added ungated."""
    both, visual = seeing(), seeing(active="visual")
    visual.grafts.load_state_dict(both.grafts.state_dict())
    visual.frontend.load_state_dict(both.frontend.state_dict())
    inputs = request(both, [[4, "i", 6]])
    with torch.no_grad():
        for router in both.grafts[-1].routers:
            router.weight.zero_()
            router.bias.copy_(torch.tensor([1e3, -1e3]))
    close(logits(both, inputs), logits(visual, inputs), 1e-5)


# -- claims ------------------------------------------------------------------------------------------------------------


def test_claims_follow_the_llm() -> None:
    frozen, published = seeing(), seeing(**PUBLISHED)
    assert (frozen.guarantee, frozen.prefix_exact, frozen.on_text) == ("exact", True, False)
    assert (published.guarantee, published.prefix_exact, published.on_text) == ("bounded", False, True)


def test_published_learners_run_on_text_alone() -> None:
    model = seeing(**PUBLISHED)
    inputs = request(model, [[7], [4]])
    with torch.no_grad(), model.detached() as llm:
        bare = llm(**inputs).logits
    assert not torch.allclose(logits(model, inputs), bare)
    inputs = request(model, [[7], [4]], side="left")
    for beams in (1, 3):
        options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "num_beams": beams}
        slow = model.generate(**inputs, **options, use_cache=False)
        for cache in (None, "static"):
            assert torch.equal(model.generate(**inputs, **options, cache_implementation=cache), slow)


def test_published_rows_do_not_depend_on_their_neighbours() -> None:
    model = seeing(**PUBLISHED)
    batch = request(model, [[3, "i", 4], [9], [2, "i", 3, "i", 5]])
    together = logits(model, batch)
    for row in range(3):
        single, where = alone(batch, row, "right")
        close(together[row : row + 1, where], logits(model, single))


def test_published_a_picture_after_a_conversation_of_text() -> None:
    model = seeing(**PUBLISHED)
    inputs = request(model, [[5, "i", 4]])
    whole = logits(model, inputs)
    with torch.no_grad():
        text = model(input_ids=inputs["input_ids"][:, :5], use_cache=True)
        assert isinstance(text.cache, TsugikiCache) and not text.cache.has_image
        rest = {k: inputs[k][:, 5:] for k in ("input_ids", "token_kind", "image_index")}
        out = model(
            **rest,
            attention_mask=inputs["attention_mask"],
            pixel_values=inputs["pixel_values"],
            cache=text.cache,
            use_cache=True,
        )
    close(torch.cat([text.logits, out.logits], 1), whole)


def test_published_causality_also_where_a_picture_comes_later() -> None:
    model = seeing(**PUBLISHED)
    inputs = request(model, [[6, "i", 5]])
    text = {k: inputs[k][:, :6] for k in ("input_ids", "attention_mask")}
    close(logits(model, inputs)[:, :6], logits(model, text), 1e-5)
    released = seeing(**PUBLISHED, compat="reference")
    assert not torch.allclose(logits(released, inputs)[:, :6], logits(released, text), atol=1e-3), "the known defect"


# -- cache -------------------------------------------------------------------------------------------------------------


def test_the_cache_holds_codes_and_one_copy_of_the_features() -> None:
    model = seeing()
    inputs = request(model, [[4, "i", 6]])
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).cache
    length = inputs["input_ids"].shape[1]
    assert cache.slots.pop("wings.features").shape == (1, length, 32)
    assert {n: tuple(t.shape) for n, t in cache.slots.items()} == {f"wings.{i}": (1, length, 2, 4) for i in range(4)}


def test_a_cropped_cache_goes_on_from_there() -> None:
    model = seeing()
    inputs = request(model, [[4, "i", 6]])
    whole = logits(model, inputs)
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).cache
    cache.crop(-2)
    assert cache.slots["wings.0"].shape[1] == cache.slots["wings.features"].shape[1] == whole.shape[1] - 2
    last = {k: inputs[k][:, -2:] for k in ("input_ids", "token_kind", "image_index")}
    out = logits(model, last, attention_mask=inputs["attention_mask"], cache=cache, use_cache=True)
    close(out, whole[:, -2:])


def test_long_parts_of_a_prompt_use_masks_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_learners, "MASKED", 0)
    model = seeing()
    inputs = request(model, [[4, "i", 6, "i", 5]])
    whole, visual = logits(model, inputs), model.frontend(pixel_values=inputs["pixel_values"])
    cache, parts = None, []
    for start, end in ((0, 7), (7, 11), (11, 12), (12, whole.shape[1])):
        piece = {k: inputs[k][:, start:end] for k in ("input_ids", "token_kind", "image_index")}
        with torch.no_grad():
            mask = inputs["attention_mask"][:, :end]
            out = model(**piece, attention_mask=mask, visual=visual, cache=cache, use_cache=True)
        cache = out.cache
        parts.append(out.logits)
    close(torch.cat(parts, 1), whole)


def test_long_prompts_ask_a_learner_only_where_a_row_has_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_learners, "MASKED", 0)
    model = seeing()
    n = model.tokens_per_image
    rows: list[list[int | str]] = [[4, "i", 6], [7, "i", 3]]
    inputs, asked = request(model, rows), []
    attention = torch.nn.functional.scaled_dot_product_attention

    def spy(q: Tensor, k: Tensor, v: Tensor, *rest: Any, **keywords: Any) -> Tensor:
        asked.append((q.shape[2], k.shape[2]))
        return attention(q, k, v, *rest, **keywords)

    monkeypatch.setattr(_learners.F, "scaled_dot_product_attention", spy)
    whole = logits(model, inputs)
    t, text = 10 + n, 6  # the second row's image begins three positions later, the first row's text ends the earlier
    assert {(t - 4, n + 3), (text, text)} <= set(asked)
    for i in range(2):
        single, where = alone(inputs, i, "right")
        close(whole[i : i + 1, where], logits(model, single))


# -- parts, settings, released weights ---------------------------------------------------------------------------------


def test_its_parts_are_all_of_it() -> None:
    graft = seeing().grafts[-1]
    parts = graft.parts()
    assert set(parts) == {"visual", "textual", "router"}
    assert sorted(n for names in parts.values() for n in names) == sorted(n for n, _ in graft.named_parameters())


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"layers": (0, 4)}, "layers"),
        ({"layers": ()}, "layers"),
        ({"layers": (1, 1)}, "layers"),
        ({"rank": 0}, "rank"),
        ({"heads": 3}, "heads"),
        ({"heads": 8}, "heads"),
        ({"heads": 0}, "heads"),
        ({"layers": 3}, "layers"),
        ({"rank": 4.0}, "rank"),
        ({"scale": float("nan")}, "scale"),
        ({"exclude_prefix": -1}, "exclude_prefix"),
        ({"width": 0}, "width"),
        ({"compat": "reference"}, "llm"),
        ({"learners": "visual", "active": "textual"}, "active"),
        ({"router": "position"}, "router"),
    ],
)
def test_a_wrong_setting_is_named(options: dict[str, Any], field: str) -> None:
    with pytest.raises(TsugikiError, match=f"wings.{field}"):
        tiny_model("wings", "llama", **options)


def released(graft: Any) -> dict[str, Tensor]:
    """A state dict with the names of the released code."""
    generator = torch.Generator().manual_seed(3)
    d, r, width = 32, graft.config.rank, graft.config.width
    state = {"model.embed_tokens.weight": torch.zeros(272, d), "model.mm_projector.0.weight": torch.zeros(d, 24)}
    for i in graft.indices:
        for pool in ("attn_pool", "attn_t_pool"):
            for factor in "qkvo":
                name = f"model.layers.{i}.{pool}.{factor}_proj"
                state[f"{name}.0.weight"] = 0.3 * torch.randn(r, d, generator=generator)
                state[f"{name}.1.weight"] = 0.3 * torch.randn(d, r, generator=generator)
        state[f"model.layers.{i}.reweight_module.linear.weight"] = 0.3 * torch.randn(2, width, generator=generator)
        state[f"model.layers.{i}.reweight_module.linear.bias"] = 0.3 * torch.randn(2, generator=generator)
    return {k: v.bfloat16() for k, v in state.items()}


def test_released_weights_by_their_names() -> None:
    model = seeing(**PUBLISHED, compat="reference", exclude_prefix=3)
    graft = model.grafts[-1]
    state = released(graft)
    graft.load_state_dict(wings.from_reference(state, graft), strict=True)
    want = state["model.layers.2.attn_t_pool.k_proj.1.weight"]
    assert torch.equal(graft.layers[2].textual_k_up, want.float())
    model.double()
    inputs = request(model, [[4, "i", 5]])
    inputs["pixel_values"] = inputs["pixel_values"].double()
    with torch.no_grad():
        close(logits(model, inputs)[0], reference.forward(model, inputs), 1e-9)
    del state["model.layers.3.attn_pool.o_proj.1.weight"]
    with pytest.raises(InputError, match=r"layers.3.attn_pool.o_proj.1.weight"):
        wings.from_reference(state, graft)
    state = released(seeing(rank=2).grafts[-1])
    with pytest.raises(InputError, match="rank"):
        wings.from_reference(state, graft)


def test_saved_and_loaded(tmp_path: Any) -> None:
    model = seeing(layers=(0, 2), router="segments")
    inputs = request(model, [[4, "i", 5]])
    want = logits(model, inputs)
    model.save(tmp_path / "graft")
    llm = model.detach()
    again = tsugiki.load(tmp_path / "graft", base=llm, tokenizer=model.tokenizer, vision=model.frontend.tower)
    assert torch.equal(logits(again, inputs), want)
    assert tuple(again.grafts[-1].indices) == (0, 2)


# -- families, dtypes, ways to generate and to recompute ---------------------------------------------------------------


@pytest.mark.parametrize("family", ["falcon", "gptj", "bloom", "gpt_bigcode", "stablelm", "cohere", "phi"])
def test_any_family_is_exact_on_text_or_refused(family: str) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 272, "n_head": 4}
    sizes |= {"n_embd": 32, "n_layer": 2, "rotary_dim": 4, "intermediate_size": 48, "pad_token_id": 0}
    sizes |= {"num_key_value_heads": 4}
    config = AutoConfig.for_model(family, **sizes)
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.randint(3, 250, (2, 9))
    with torch.no_grad():
        bare = llm(input_ids=ids).logits
    try:
        model = tsugiki.attach(llm, "wings", vision=TinyTower(), tokenizer=tiny_tokenizer(), rank=2, width=16)
    except UnsupportedError as error:
        assert error.fix
    else:
        assert family not in ("falcon", "gptj", "bloom")
        wake(model)
        inputs = request(model, [[4, "i", 5]])
        labels = inputs["input_ids"].clone()
        model(**inputs, labels=labels).loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.grafts[-1].parameters())
        with torch.no_grad():
            assert torch.equal(model(input_ids=ids).logits, bare)
        llm = model.detach()
    with torch.no_grad():
        assert torch.equal(llm(input_ids=ids).logits, bare), "a refusal leaves nothing behind"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_no_bit_changes_at_real_head_widths(dtype: torch.dtype) -> None:
    sizes = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
    model = tiny_model("projector", "llama", llm={"dtype": dtype, "num_hidden_layers": 2, **sizes})
    inputs = request(model, [[300, "i", 40]])
    before = logits(model, inputs)
    model = tsugiki.attach(model, "wings", rank=4)
    assert torch.equal(logits(model, inputs), before)


@pytest.mark.parametrize("pairs", [0, 1 << 20], ids=["channels", "masks"])
def test_half_precision_autocast_is_finite_and_near(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_learners, "MASKED", pairs)
    model = seeing()
    inputs = request(model, [[5, "i", 9], [6]])
    want = logits(model, inputs)
    real = inputs["attention_mask"] == 1
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cpu", dtype=dtype):
            close(logits(model, inputs).float()[real], want[real], 0.1)


@pytest.mark.parametrize("options", [{}, PUBLISHED], ids=["frozen", "published"])
def test_parts_of_a_prompt_and_candidates_of_an_answer(options: dict[str, Any]) -> None:
    model = seeing(**options)
    greedy = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    requests = [request(model, [[4, "i", 6]])]
    if options:
        requests.append({"input_ids": torch.tensor([[5, 6, 7, 8, 9, 9, 30, 5, 6]])})
    for inputs in requests:
        want = model.generate(**inputs, **greedy)
        assert torch.equal(model.generate(**inputs, **greedy, prefill_chunk_size=5), want)
        assert torch.equal(model.generate(**inputs, **greedy, prompt_lookup_num_tokens=3), want)


def test_padding_is_seen_without_a_mask_and_a_foreign_cache_is_refused() -> None:
    model = seeing(**PUBLISHED)
    ids = torch.tensor([[0, 0, 0, 7, 8, 9], [4, 5, 6, 7, 8, 9]])
    greedy = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    assert torch.equal(model.generate(ids, **greedy), model.generate(ids, attention_mask=(ids != 0).long(), **greedy))
    with torch.no_grad(), model.detached() as llm:
        cache = cache_of(llm(input_ids=ids[1:], use_cache=True))
    with pytest.raises(PromptError, match="without the grafts"):
        model(input_ids=ids[1:, :2], cache=cache, use_cache=True)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
@pytest.mark.parametrize("options", [{}, PUBLISHED], ids=["frozen", "published"])
def test_an_empty_cache_of_the_callers_is_filled(name: str, options: dict[str, Any]) -> None:
    model = seeing(**options)
    for inputs in (request(model, [[4, "i", 6]]), request(model, [[7]])):
        own = DynamicCache(config=model.language_model.config)
        model.generate(**inputs, max_new_tokens=2, min_new_tokens=2, do_sample=False, **{name: own})
        assert own.get_seq_length() == inputs["input_ids"].shape[1] + 1


def test_reentrant_recomputation_and_a_cache_change_no_gradient() -> None:
    model = seeing()
    inputs = request(model, [[4, "i", 6], [3, "i", 2]])
    weight = model.frontend.projector.layer_norm.weight

    def gradient(**options: Any) -> Tensor:
        model.zero_grad()
        model.train()
        model(**inputs, labels=inputs["input_ids"], **options).loss.backward()
        return weight.grad.clone()

    plain = gradient()
    model.enable_checkpointing()
    close(gradient(use_cache=True), plain, 1e-5)
    name = "activation_checkpointing"
    name = name if hasattr(model, f"{name}_enable") else "gradient_checkpointing"
    getattr(model, f"{name}_enable")(**{f"{name}_kwargs": {"use_reentrant": True}})
    close(gradient(), plain, 1e-5)


# -- compile -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("pictured", [True, False])
def test_layers_compile_whole(pictured: bool) -> None:
    """A break of the graph inside a layer would raise."""
    model = seeing()
    inputs = request(model, [[5, "i", 6]] if pictured else [[9]])
    want = logits(model, inputs)
    torch._dynamo.reset()
    for layer in model.decoder.layers:
        layer.compile(backend="eager", fullgraph=True)
    close(logits(model, inputs), want, 1e-5)


def test_typed_text_is_a_key_of_the_textual_learner() -> None:
    model = seeing()
    inputs = request(model, [[3, "i", 5]])
    typed = {k: v.clone() for k, v in inputs.items()}
    typed["input_ids"][0, -4] = min(model.placeholder_id, 271)
    assert typed["token_kind"][0, -4] == TEXT
    assert not torch.allclose(logits(model, inputs)[:, -1], logits(model, typed)[:, -1])
