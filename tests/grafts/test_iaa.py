"""IAA: the deeper network it is, its branches, caches, word vectors and what it refuses."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.grafts._requests import alone, request, wake
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

import tsugiki
from tsugiki.build import attach
from tsugiki.chat import decode
from tsugiki.decoder import DecoderSpec
from tsugiki.errors import InputError, PromptError, UnknownNameError, UnsupportedError
from tsugiki.evals.free import FreeAnswerer
from tsugiki.grafts import iaa
from tsugiki.grafts._context import build as context_of
from tsugiki.testing import FAMILIES, TinyTower, tiny_llm, tiny_model, tiny_tokenizer
from tsugiki.types import BRANCHES, TEXT, Box, BoxPart, Sample

IMAGE, GROUNDING, NONE = BRANCHES["image"], BRANCHES["grounding"], BRANCHES["text"]
ROWS = [[3, "i", 4, "i", 2], [5, "i", 6], [9], [2, "i", 3]]


def logits(model: Any, inputs: dict[str, Tensor], **options: Any) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(**inputs, **options).logits
    return out


def two(family: str = "llama", **options: Any) -> Any:
    built = tiny_model("iaa", family, **{"layers": (0, 2), "branches": ("image", "grounding"), **options})
    wake(built)
    return built


# -- what it computes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [(0, 3), (1, 2, 3)])
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma2", "olmo2"])
def test_it_is_a_deeper_llm_of_the_same_class(family: str, chosen: tuple[int, ...]) -> None:
    """An LLM with all layers in one list, in float64, gives the same scores for the same embeddings."""
    model = tiny_model("iaa", family, layers=chosen).double()
    wake(model)
    own = model.graft("iaa").sets["image"]
    changed: dict[str, Any] = {"num_hidden_layers": 4 + len(chosen)}
    if (types := getattr(model.language_model.config, "layer_types", None)) is not None:
        changed["layer_types"] = [t for i, t in enumerate(types) for _ in range(1 + (i in chosen))]
    torch.manual_seed(0)
    deep = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**FAMILIES[family], **changed})).double()
    deep.eval().load_state_dict(model.language_model.state_dict(), strict=False)
    spec, layers = DecoderSpec(deep), iter(DecoderSpec(deep).layers)
    for i, layer in enumerate(model.decoder.layers):
        next(layers).load_state_dict(layer.state_dict())
        if i in chosen:
            next(layers).load_state_dict(own["layers"][chosen.index(i)].state_dict())
    spec.norm.load_state_dict(own["norm"].state_dict())
    inputs = request(model, [[4, "i", 5]])
    inputs["pixel_values"] = inputs["pixel_values"].double()
    seen: list[Tensor] = []
    grab = model.decoder.layers[0].register_forward_pre_hook(
        lambda _, a, k: seen.append(a[0] if a else k["hidden_states"]), with_kwargs=True
    )
    ours = logits(model, inputs)
    grab.remove()
    first = spec.layers[0].register_forward_pre_hook(
        lambda _, a, k: ((seen[0], *a[1:]), k) if a else (a, {**k, "hidden_states": seen[0]}), with_kwargs=True
    )
    with torch.no_grad():
        theirs = deep(input_ids=inputs["input_ids"].clamp(max=271)).logits
    first.remove()
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_presets() -> None:
    assert iaa.places("iaa-14", 32) == (0, 1, 5, 6, 10, 11, 15, 16, 20, 21, 25, 26, 30, 31)
    assert iaa.places("iaa-8", 32) == (0, 5, 10, 15, 20, 25, 30, 31)
    assert iaa.places(6, 30) == (5, 11, 17, 23, 29)
    for depth in range(1, 40):
        for name in iaa.PRESETS:
            found = iaa.places(name, depth)
            assert set(found) <= set(range(depth)) and depth - 1 in found


@pytest.mark.parametrize("family", FAMILIES)
def test_starts(family: str) -> None:
    """Zero output matrices are the identity, bit for bit; a copy is not; a random layer is no copy."""
    plain = tiny_model("projector", family)
    inputs = request(plain, [[3, "i", 5]])
    want = logits(plain, inputs)
    for init in ("copy_zero", "copy", "random"):
        model = tiny_model("iaa", family, init=init)
        assert torch.equal(logits(model, inputs), want) is (init == "copy_zero")
        layer, source = model.graft("iaa").sets["image"]["layers"][0], model.decoder.layers[0]
        same = [torch.equal(a, b) for a, b in zip(layer.parameters(), source.parameters(), strict=True) if a.dim() > 1]
        assert all(same) if init == "copy" else sum(not s for s in same) >= (2 if init == "copy_zero" else 4)


def test_layers_have_no_dropout_and_places_of_their_own_in_the_cache() -> None:
    model = tiny_model("iaa", "gpt2", layers=(1, 3))
    indices = [b.attention.layer_idx for b in model.decoder.inserted]
    assert indices == [4, 5] and [b.after for b in model.decoder.inserted] == [1, 3]
    assert all(m.p == 0 for m in model.graft("iaa").modules() if isinstance(m, nn.Dropout))
    inputs = request(model, [[3, "i", 5]])
    with torch.no_grad():
        assert len(model(**inputs, use_cache=True).cache.layers) == 6


# -- branches ----------------------------------------------------------------------------------------------------------


def test_a_branch_has_its_own_layers_and_learns_alone() -> None:
    model = two()
    inputs = request(model, [[3, "i", 5]])
    image, grounding = (logits(model, inputs, branch=b) for b in ("image", "grounding"))
    assert torch.equal(image, logits(model, inputs)) and not torch.allclose(image, grounding)
    labels = torch.where(inputs["token_kind"] == TEXT, inputs["input_ids"], -100)
    model(**inputs, labels=labels, branch="grounding").loss.backward()
    for name, p in model.graft("iaa").named_parameters():
        assert (p.grad is not None) is name.startswith("sets.grounding.")


def test_a_branch_without_a_set_takes_that_of_image() -> None:
    model = tiny_model("iaa", layers=(1,))
    wake(model)
    inputs = request(model, [[3, "i", 5]])
    assert torch.equal(logits(model, inputs, branch="grounding"), logits(model, inputs))
    model = tiny_model("iaa", layers=(1,), branches=("grounding",))
    plain = tiny_model("projector")
    wake(model)
    plain.frontend.load_state_dict(model.frontend.state_dict())
    assert torch.equal(logits(model, inputs), logits(plain, inputs))
    assert not torch.equal(logits(model, inputs, branch="grounding"), logits(plain, inputs))


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_several_branches_are_what_each_is_alone(side: str) -> None:
    model = two()
    batch = request(model, ROWS, side=side)
    branch = torch.tensor([IMAGE, GROUNDING, NONE, IMAGE])
    together = logits(model, batch, branch=branch)
    for row in range(len(ROWS)):
        single, where = alone(batch, row, side)
        mine = logits(model, single, branch=branch[row : row + 1])
        torch.testing.assert_close(together[row : row + 1, where], mine, rtol=5e-5, atol=5e-5)


def test_the_loss_of_several_branches() -> None:
    model = two()
    batch = request(model, ROWS)
    branch = torch.tensor([GROUNDING, IMAGE, NONE, GROUNDING])
    labels = torch.where(batch["token_kind"] == TEXT, batch["input_ids"], -100)
    scores = logits(model, batch, branch=branch).double()
    out = model(**batch, labels=labels, branch=branch)
    losses = []
    for b in range(len(ROWS)):
        for t in range(1, labels.shape[1]):
            if labels[b, t] != -100:
                losses.append(float(torch.logsumexp(scores[b, t - 1], 0) - scores[b, t - 1, labels[b, t]]))
    assert out.loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert out.label_rows.tolist() == [b for b in range(len(ROWS)) for t in labels[b, 1:] if t != -100]
    total = model(**batch, labels=labels, branch=branch, num_items_in_batch=3).loss
    assert total.item() == pytest.approx(sum(losses) / 3, rel=1e-5)
    out.loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.graft("iaa").parameters())


@pytest.mark.parametrize("beams", [1, 2])
def test_generate_groups_branches(beams: int) -> None:
    model = two()
    batch = request(model, ROWS, side="left")
    branch = torch.tensor([IMAGE, GROUNDING, NONE, GROUNDING])
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "num_beams": beams}
    together = model.generate(**batch, branch=branch, **options)
    for row in range(len(ROWS)):
        single, _ = alone(batch, row, "left")
        own = model.generate(**single, branch=branch[row : row + 1], **options)
        assert torch.equal(together[row, -4:], own[0, -4:])
    for more in ({}, {"generation_config": GenerationConfig(return_dict_in_generate=True)}):
        whole = more or {"return_dict_in_generate": True}
        with pytest.raises(InputError, match="several branches"):
            model.generate(**batch, branch=branch, **whole)


def test_a_cache_belongs_to_one_branch() -> None:
    model = two()
    inputs = request(model, [[3, "i", 5]])
    with torch.no_grad():
        cache = model(**inputs, branch="grounding", use_cache=True).cache
    step = {"input_ids": torch.tensor([[7]]), "attention_mask": torch.ones(1, inputs["input_ids"].shape[1] + 1).long()}
    with pytest.raises(PromptError, match="branch 'grounding'"):
        model(**step, cache=copy.deepcopy(cache), branch=torch.tensor([IMAGE]))
    got = logits(model, step, cache=cache)  # without a name, the cache's own goes on
    added = {"input_ids": 7, "attention_mask": 1, "token_kind": TEXT, "image_index": -1}
    longer = {k: torch.cat([inputs[k], torch.full((1, 1), v)], 1) for k, v in added.items()}
    want = logits(model, longer | {"pixel_values": inputs["pixel_values"]}, branch="grounding")[:, -1:]
    torch.testing.assert_close(got, want, rtol=5e-5, atol=5e-5)


def test_a_cache_of_several_branches_or_of_a_row_without_an_image_is_refused() -> None:
    model = two()
    batch = request(model, ROWS)
    with pytest.raises(PromptError, match="several branches"):
        model(**batch, branch=torch.tensor([IMAGE, GROUNDING, NONE, IMAGE]), use_cache=True)
    with torch.no_grad():
        cache = model(**batch, use_cache=True).cache
    late = torch.tensor([False, False, True, False])
    with pytest.raises(PromptError, match="gets its first one"):
        cache.take_rows(cache.rows | late, prefix_exact=False)


def test_wrong_branches_are_told() -> None:
    model = two()
    inputs = request(model, [[3, "i", 5]])
    with pytest.raises(UnknownNameError, match="grounding"):
        model(**inputs, branch="groundig")
    with pytest.raises(InputError, match="one number a row"):
        model(**inputs, branch=torch.tensor([1, 1]))
    with pytest.raises(InputError, match="branch number 99"):
        model(**inputs, branch=torch.tensor([99]))
    # A request with an image never takes the text path.
    assert torch.equal(logits(model, inputs, branch="text"), logits(model, inputs))


def test_chat_and_samples_name_their_branch() -> None:
    model = two()
    picture = [tsugiki.testing.tiny_images(1)[0]]
    asked = {b: model.chat("Where?", picture, max_new_tokens=6, branch=b) for b in ("image", "grounding")}
    assert asked["image"] != asked["grounding"]
    encoded = model.processor.encode((tsugiki.Message.of("user", "Where?", tuple(picture)),), branch="grounding")
    assert encoded["branch"].tolist() == [GROUNDING] and "question" not in encoded


# -- words -------------------------------------------------------------------------------------------------------------


def test_differences_for_a_few_words() -> None:
    rows = (40, 41, 90)
    model = tiny_model("iaa", layers=(1,), words="delta_rows", rows=rows)
    plain = tiny_model("iaa", layers=(1,))
    inputs = request(model, [[3, "i", 5]])
    inputs["input_ids"][0, 1], inputs["input_ids"][0, -1] = 41, 40
    assert torch.equal(logits(model, inputs), logits(plain, inputs))
    words = model.graft("iaa").sets["image"]["words"]
    assert sum(p.numel() for p in words.parameters()) == 2 * len(rows) * 32
    wake(model)
    given = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[41, 7, 90, 40]])
    with torch.no_grad():
        changed, scores = words(given, ids=ids), words(given @ torch.ones(32, 272), hidden=given)
    for t, token in enumerate(ids[0].tolist()):
        more = words.input[rows.index(token)] if token in rows else torch.zeros(32)
        torch.testing.assert_close(changed[0, t], given[0, t] + more)
        for v in range(272):
            want = given[0, t].sum() + (given[0, t] @ words.output[rows.index(v)] if v in rows else 0.0)
            torch.testing.assert_close(scores[0, t, v], want, rtol=1e-4, atol=1e-4)
    out = model(**inputs, labels=torch.where(inputs["token_kind"] == TEXT, inputs["input_ids"], -100))
    out.loss.backward()
    assert words.input.grad is not None and words.input.grad.abs().sum() > 0
    assert words.output.grad is not None and words.output.grad.abs().sum() > 0


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "opt"])
def test_whole_matrices(family: str) -> None:
    model = tiny_model("iaa", family, layers=(1,), words="full")
    inputs = request(model, ROWS)
    plain = tiny_model("iaa", family, layers=(1,))
    torch.testing.assert_close(logits(model, inputs), logits(plain, inputs), rtol=1e-5, atol=1e-5)
    wake(model)
    words = model.graft("iaa").sets["image"]["words"]
    assert sum(p.numel() for p in words.parameters()) >= 2 * 272 * 32
    text, _ = alone(request(model, [[3, "i", 2], [6]]), 1, "right")
    mixed = request(model, [[3, "i", 2], [6]])
    torch.testing.assert_close(logits(model, mixed)[1:, :6], logits(model, text), rtol=5e-5, atol=5e-5)
    out = model(**inputs, labels=torch.where(inputs["token_kind"] == TEXT, inputs["input_ids"], -100))
    out.loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in words.parameters())


# -- stages, saving, stacking, refusals --------------------------------------------------------------------------------


def test_a_branch_takes_over_another_ones_weights_when_its_stage_begins() -> None:
    model = two()
    graft = model.graft("iaa")
    image, grounding = (graft.sets[b].state_dict() for b in ("image", "grounding"))
    assert any(not torch.equal(image[k], grounding[k]) for k in image)
    before = {k: v.clone() for k, v in image.items()}
    graft.begin_stage({"inherit": "image"}, ["grounding"])
    assert all(torch.equal(before[k], graft.sets[b].state_dict()[k]) for k in before for b in ("image", "grounding"))


@pytest.mark.parametrize("words", [{"words": "none"}, {"words": "delta_rows", "rows": (40, 41)}, {"words": "full"}])
def test_saved_and_loaded(tmp_path: Path, words: dict[str, Any]) -> None:
    model = two(**words)
    model.save(tmp_path / "graft")
    loaded = tsugiki.load(tmp_path / "graft", base=tiny_llm(), tokenizer=tiny_tokenizer(), vision=TinyTower())
    inputs = request(model, [[3, "i", 5]])
    for branch in ("image", "grounding"):
        assert torch.equal(logits(model, inputs, branch=branch), logits(loaded, inputs, branch=branch))


def test_it_stacks_on_wings_without_copying_its_hooks() -> None:
    model = tiny_model("wings", rank=4, width=64)
    wake(model)
    inputs = request(model, [[4, "i", 5]])
    before = logits(model, inputs)
    model = attach(model, "iaa", layers=(1, 3))
    assert torch.equal(logits(model, inputs), before)
    assert all(not m._forward_hooks and "forward" not in vars(m) for m in model.graft("iaa").modules())
    fast = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert torch.equal(fast, model.generate(**inputs, max_new_tokens=4, do_sample=False, use_cache=False))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"layers": "iaa-9"}, "iaa-8"),
        ({"layers": 0}, "layers = 0"),
        ({"layers": (1, 4)}, "numbers from 0 to 3"),
        ({"layers": (1, 1)}, "layers"),
        ({"init": "zero"}, "copy_zero"),
        ({"branches": ()}, "branches"),
        ({"branches": ("image", "image")}, "branches"),
        ({"branches": ("text",)}, "branches"),
        ({"branches": ("a.b",)}, "branches"),
        ({"branches": "image"}, "branches"),
        ({"branches": ("image", "values")}, "branches"),
        ({"words": "delta_rows", "rows": 5}, "rows = 5"),
        ({"words": "delta_rows", "rows": ("a",)}, "rows"),
        ({"inherit": "other"}, "other"),
        ({"words": "some"}, "words"),
        ({"words": "delta_rows"}, "rows"),
        ({"words": "delta_rows", "rows": (272,)}, "rows"),
        ({"rows": (3,)}, "rows"),
    ],
)
def test_wrong_settings_are_told(options: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        tiny_model("iaa", **options)


def test_a_quantised_base_is_refused_or_starts_at_random() -> None:
    llm = tiny_llm()
    for layer in llm.model.layers:
        packed = (layer.mlp.down_proj.weight * 100).to(torch.int8)
        layer.mlp.down_proj.weight = nn.Parameter(packed, requires_grad=False)
    with pytest.raises(UnsupportedError, match="down_proj.weight"):
        iaa.Graft(iaa.Config(init="copy"), DecoderSpec(llm))
    made = iaa.Graft(iaa.Config(init="random", norm=False), DecoderSpec(llm))
    assert all(p.dtype == torch.float32 for p in made.parameters())


def test_an_inserted_layer_sees_rows_with_an_image_only() -> None:
    kinds = torch.tensor([[0, 1, 0], [0, 0, 0]])
    whole = context_of(kinds[:1], kinds[:1] - 1, None, rows=torch.tensor([True]))
    mixed = context_of(kinds, torch.full_like(kinds, -1), None, rows=torch.tensor([True, False]))
    assert whole.rows is None and mixed.rows is not None and mixed.rows.flatten().tolist() == [True, False]


def test_a_stack_that_fails_leaves_no_layers_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("projector")
    inputs = request(model, [[3, "i", 5]])
    before = logits(model, inputs)

    def fail(*_: Any) -> None:
        raise RuntimeError("stopped")

    with monkeypatch.context() as patched:
        patched.setattr(iaa.Graft, "attach", fail)
        with pytest.raises(RuntimeError, match="stopped"):
            attach(model, "iaa", layers=(1,))
    assert model.decoder.inserted == () and [g.name for g in model.grafts] == ["projector"]
    assert torch.equal(logits(model, inputs), before)


def test_a_free_answer_takes_the_branch_that_the_gold_answer_shows() -> None:
    model = two()
    picture = tsugiki.testing.tiny_images(1)[0]
    asked = tsugiki.Message.of("user", "Where is it?", (picture,))
    gold = tsugiki.Message("assistant", (BoxPart(Box(0, 0, 9, 9)),))
    found = FreeAnswerer(model, max_new_tokens=6)([Sample(id="1", messages=(asked, gold))])
    said = {}
    for branch in ("image", "grounding"):
        inputs = model.processor.encode((asked,), add_generation_prompt=True, branch=branch)
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :]
        said[branch] = decode(model.tokenizer, tokens)
    assert found == [said["grounding"]] and said["image"] != said["grounding"]


def test_several_branches_have_no_common_hidden_states() -> None:
    model = two()
    batch = request(model, ROWS)
    with pytest.raises(InputError, match="hidden states"):
        model(**batch, branch=torch.tensor([IMAGE, GROUNDING, NONE, IMAGE]), output_hidden_states=True)


def test_a_set_is_taught_by_its_branch_and_that_of_image_by_those_without_a_set() -> None:
    graft = two().graft("iaa")
    known = ("image", "grounding", "defects")
    assert graft.taught_by(["grounding"], known) == {"grounding"}
    assert graft.taught_by(["image"], known) == {"image", "defects"} and graft.taught_by([], known) == set(known)
