"""Every graft x every LLM family: what any graft must hold. A new file in grafts/ joins by existing.

The numbers are those of the rules in docs/design.md, "Rules that every method obeys".
"""

from __future__ import annotations

import dataclasses
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.grafts._requests import alone, in_parts, request, wake
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import tsugiki
from tsugiki import grafts
from tsugiki.configuration import cache_of
from tsugiki.errors import UnsupportedError
from tsugiki.grafts._base import Graft
from tsugiki.grafts._context import current
from tsugiki.grafts._sites import Site
from tsugiki.testing import FAMILIES, TinyTower, tiny_model
from tsugiki.types import TEXT

SMALL: dict[str, dict[str, Any]] = {
    "cross_attention": {"every": 2, "heads": 2, "ffn_ratio": 1.0},
    "lora": {"rank": 4},
    "lynx": {"gate": "soft", "experts": 3, "top_k": 2},
    "wings": {"rank": 4, "width": 64},
}
MIXED = [[3, "i", 4, "i", 2], [5, "i", 6], [9], [2, "i", 3]]


@pytest.fixture(params=grafts.available())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def made(name: str, family: str, **options: Any) -> Any:
    try:
        return tiny_model(name, family, **SMALL.get(name, {}), **options)
    except UnsupportedError as error:  # a family may be refused, by name and with a reason
        assert error.fix, "a refusal says what to do"
        pytest.skip(str(error))


@pytest.fixture
def model(name: str, family: str) -> Iterator[Any]:
    built = made(name, family)
    yield built
    built.detach()


def logits(model: Any, inputs: dict[str, Tensor], **kwargs: Any) -> Tensor:
    with torch.no_grad():
        return model(**inputs, **kwargs).logits


def bare(model: Any, inputs: dict[str, Tensor], **kwargs: Any) -> Tensor:
    """The base LLM on the same ids."""
    with torch.no_grad(), model.detached() as llm:
        ids = inputs["input_ids"]
        return llm(input_ids=ids, attention_mask=inputs["attention_mask"], **kwargs).logits


def close(a: Tensor, b: Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# -- claims ------------------------------------------------------------------------------------------------------------


def test_file_states_its_source(name: str) -> None:
    module = grafts.load(name)
    for constant in ("PAPER", "CODE", "LICENSE"):
        assert hasattr(module, constant)
    assert module.Config.__dataclass_params__.frozen
    assert all(f.kw_only for f in dataclasses.fields(module.Config))
    assert issubclass(module.Graft, Graft)


def test_starts_as_identity_if_it_says_so(model: Any) -> None:
    inputs = request(model, [[3, "i", 5]])
    same = torch.equal(logits(model, inputs), bare(model, inputs))
    assert same is all(g.STARTS_AS_IDENTITY for g in model.grafts)


def test_text_is_bit_equal_after_training(model: Any) -> None:
    wake(model)
    inputs = request(model, [[7], [4]])
    assert torch.equal(logits(model, inputs), bare(model, inputs))
    out = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    with model.detached() as llm:
        assert torch.equal(out, llm.generate(**inputs, max_new_tokens=4, do_sample=False))


def test_tokens_before_the_first_image_have_the_bases_logits(model: Any) -> None:
    wake(model)
    inputs = request(model, [[6, "i", 5]])
    same = torch.equal(logits(model, inputs)[:, :6], bare(model, inputs)[:, :6])
    assert same is model.prefix_exact


def test_image_reaches_the_logits_and_every_weight(model: Any) -> None:
    wake(model)
    one, other = request(model, [[3, "i", 5]]), request(model, [[3, "i", 5]], first_image=1)
    assert not torch.allclose(logits(model, one), logits(model, other))
    labels = one["input_ids"].clone()
    labels[:, :-3] = -100
    model(**one, labels=labels).loss.backward()
    parts = [*model.grafts.named_parameters(), *model.frontend.projector.named_parameters()]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in parts if p.requires_grad)
    assert all(p.grad is None for p in model.language_model.parameters())


def test_detach_restores_the_llm(model: Any) -> None:
    inputs = request(model, [[8]])
    keys = list(model.language_model.state_dict())
    modules = [n for n, _ in model.language_model.named_modules()]
    before = bare(model, inputs)
    wake(model)
    assert list(model.language_model.state_dict()) == keys
    llm = model.detach()
    assert [n for n, _ in llm.named_modules()] == modules
    assert all("forward" not in m.__dict__ and not m._forward_hooks and not m._forward_pre_hooks for m in llm.modules())
    with torch.no_grad():
        assert torch.equal(llm(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits, before)
    model._hook()


# -- 1 kinds, 2 causality, 3 batches, 4 caches -------------------------------------------------------------------------


def test_1_a_typed_placeholder_stays_text(model: Any) -> None:
    wake(model)
    inputs = request(model, [[3, "i", 5]])
    typed = {k: v.clone() for k, v in inputs.items()}
    typed["input_ids"][0, -2] = min(model.placeholder_id, 271)
    assert typed["token_kind"][0, -2] == TEXT
    # Tokens sorted by expert meet in matrices of other sizes when one of them changes.
    tolerance = 1e-6 if model.grafts[-1].name == "lynx" else 0.0
    close(logits(model, inputs)[:, :-2], logits(model, typed)[:, :-2], tolerance)


def test_2_a_later_token_changes_nothing_before_it(model: Any) -> None:
    wake(model)
    inputs = request(model, [[4, "i", 3, "i", 6]])
    changed = {k: v.clone() for k, v in inputs.items()}
    changed["input_ids"][0, -3] = 77
    a, b = logits(model, inputs), logits(model, changed)
    close(a[:, :-3], b[:, :-3], 1e-6)
    assert not torch.allclose(a[:, -3:], b[:, -3:])
    # A later picture changes nothing before it either.
    changed = {k: v.clone() for k, v in inputs.items()}
    changed["pixel_values"][1] = changed["pixel_values"][1].flip(-1) + 0.3
    start = int((inputs["image_index"][0] == 1).nonzero()[0])
    a, b = logits(model, inputs), logits(model, changed)
    close(a[:, :start], b[:, :start], 1e-6)
    assert not torch.allclose(a[:, start:], b[:, start:])


@pytest.mark.parametrize("side", ["left", "right"])
def test_3_alone_equals_in_a_batch(model: Any, side: str) -> None:
    wake(model)
    batch = request(model, MIXED, side=side)
    together = logits(model, batch)
    for row in range(len(MIXED)):
        single, where = alone(batch, row, side)
        close(together[row : row + 1, where], logits(model, single), 5e-5)


def test_3_rows_may_be_permuted(model: Any) -> None:
    wake(model)
    batch = request(model, MIXED)
    order = torch.tensor([2, 0, 3, 1])
    moved = {k: v[order] if k != "pixel_values" else v for k, v in batch.items()}
    close(logits(model, batch)[order], logits(model, moved), 5e-5)


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("beams", [1, 3])
def test_4_cached_equals_uncached(model: Any, cache: str | None, beams: int) -> None:
    wake(model)
    inputs = request(model, MIXED, side="left")
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "num_beams": beams}
    slow = model.generate(**inputs, **options, use_cache=False)
    fast = model.generate(**inputs, **options, cache_implementation=cache)
    assert torch.equal(slow, fast)


def test_4_a_prompt_may_be_read_in_parts(model: Any) -> None:
    wake(model)
    inputs = request(model, [[4, "i", 6, "i", 5]])
    close(in_parts(model, inputs, (5, 9)), logits(model, inputs), 5e-5)


def test_4_a_second_turn_with_a_second_picture(model: Any) -> None:
    wake(model)
    inputs = request(model, [[4, "i", 6, "i", 5]])
    whole, cut = logits(model, inputs), int((inputs["image_index"][0] == 1).nonzero()[0])
    first = {k: inputs[k][:, :cut] for k in ("input_ids", "token_kind", "image_index", "attention_mask")}
    with torch.no_grad():
        one = model(**first, pixel_values=inputs["pixel_values"][:1], use_cache=True)
        second = {k: inputs[k][:, cut:] for k in ("input_ids", "token_kind", "image_index")}
        second["image_index"] = torch.where(second["image_index"] == 1, 0, second["image_index"])
        two = model(
            **second,
            attention_mask=inputs["attention_mask"],
            pixel_values=inputs["pixel_values"][1:],
            cache=one.cache,
            use_cache=True,
        )
    close(torch.cat([one.logits, two.logits], 1), whole, 5e-5)


def test_4_a_picture_after_a_conversation_of_text(model: Any) -> None:
    wake(model)
    inputs = request(model, [[5, "i", 4]])
    whole = logits(model, inputs)
    with torch.no_grad():
        text = model(input_ids=inputs["input_ids"][:, :5], use_cache=True)
    if not all(g.prefix_exact for g in model.grafts):  # the text's keys and values would be others now
        with pytest.raises(tsugiki.errors.PromptError, match="Encode the conversation again"):
            model(**inputs, cache=cache_of(text), use_cache=True)
        return
    with torch.no_grad():
        rest = {k: inputs[k][:, 5:] for k in ("input_ids", "token_kind", "image_index")}
        out = model(
            **rest,
            attention_mask=inputs["attention_mask"],
            pixel_values=inputs["pixel_values"],
            cache=cache_of(text),
            use_cache=True,
        )
    close(torch.cat([text.logits, out.logits], 1), whole, 5e-5)


def test_4_a_cache_refuses_another_branch_and_follows_its_rows(model: Any) -> None:
    wake(model)
    inputs = request(model, MIXED, side="left")
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).cache
    with pytest.raises(tsugiki.errors.PromptError, match="branch"):
        cache.refuse_other_branch("grounding")
    step = torch.full((2, 1), 9)
    rows = torch.tensor([3, 0])
    cache.batch_select_indices(rows)
    mask = torch.cat([inputs["attention_mask"][rows], torch.ones(2, 1, dtype=torch.long)], 1)
    got = logits(model, {"input_ids": step, "attention_mask": mask}, cache=cache, use_cache=True)
    for i, row in enumerate(rows.tolist()):
        single, _ = alone(inputs, row, "left")
        added = {"input_ids": 9, "attention_mask": 1, "token_kind": TEXT, "image_index": -1}
        longer = {k: torch.cat([single[k], torch.full((1, 1), value)], 1) for k, value in added.items()}
        want = logits(model, longer | {"pixel_values": single["pixel_values"]})[:, -1:]
        close(got[i : i + 1], want, 5e-5)


# -- 5 memory, 6 labels, 7 placeholders, 8 branches, 14 positions ------------------------------------------------------


class _Shapes(TorchDispatchMode):
    """Every operator of a forward, and the largest last two axes of a float result."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.square = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        self.names.append(str(function))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dim() == 4:
                self.square = max(self.square, min(tensor.shape[-2:]))
        return out


def test_5_no_matrix_of_all_positions_per_head(name: str) -> None:
    model = tiny_model(name, "llama", **SMALL.get(name, {}))
    wake(model)
    inputs = request(model, [[120, "i", 120]])
    with torch.no_grad(), _Shapes() as seen:
        model(**inputs)
    assert any("scaled_dot_product" in n for n in seen.names)
    assert seen.square < 100, "a float tensor [.., ~n, ~n] was made"


def test_6_labels_cost_only_their_own_positions(model: Any) -> None:
    wake(model)
    inputs = request(model, MIXED)
    labels = torch.where(inputs["token_kind"] == TEXT, inputs["input_ids"], -100)
    labels[:, :4] = -100
    out = model(**inputs, labels=labels)
    everywhere = logits(model, inputs)
    total, count = 0.0, 0
    for b in range(labels.shape[0]):
        for t in range(1, labels.shape[1]):
            if labels[b, t] != -100:
                scores = everywhere[b, t - 1].double()
                total += float(torch.logsumexp(scores, 0) - scores[labels[b, t]])
                count += 1
    assert out.logits.shape[1] == count == len(out.label_ids)
    assert out.loss.item() == pytest.approx(total / count, rel=1e-5)
    assert model(**inputs, labels=labels, num_items_in_batch=7).loss.item() == pytest.approx(total / 7, rel=1e-5)


def test_6_labels_of_text_alone(model: Any) -> None:
    inputs = request(model, [[9], [6]])
    labels = torch.where(inputs["attention_mask"] == 1, inputs["input_ids"], -100)
    with model.detached() as llm:
        want = llm(**inputs, labels=labels).loss
    assert model(**inputs, labels=labels).loss.item() == pytest.approx(want.item(), rel=1e-5)


def test_7_the_vocabulary_is_not_resized_and_the_placeholder_never_generated(model: Any) -> None:
    rows = model.language_model.get_input_embeddings().weight.shape[0]
    inputs = request(model, [[3, "i", 5]])
    if model.placeholder_id < rows:
        head = model.language_model.get_output_embeddings()
        push = head.register_forward_hook(
            lambda _, a, out: out.index_add(
                -1, torch.tensor([model.placeholder_id]), torch.full((*out.shape[:-1], 1), 1e4)
            )
        )
        out = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        push.remove()
        assert (out[:, inputs["input_ids"].shape[1] :] != model.placeholder_id).all()
    assert rows == 272


def test_7_counts_must_match(model: Any) -> None:
    if not model.splices:
        pytest.skip("an image is one tag here")
    inputs = request(model, [[3, "i", 5]])
    short = {k: torch.cat([v[:, :3], v[:, 4:]], 1) if k != "pixel_values" else v for k, v in inputs.items()}
    with pytest.raises(tsugiki.errors.PromptError, match="placeholders for an image"):
        model(**short)
    del inputs["pixel_values"]
    with pytest.raises(tsugiki.errors.PromptError, match="no image came"):
        model(**inputs)


ALLOWED = {("_experts.py", "dispatch")}
"""Tokens sorted by expert have to know how many each expert gets."""


class _Branches(TorchFunctionMode):
    """Tensors asked for their truth or value, which would be a branch on data."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in {"__bool__", "item", "tolist", "nonzero", "__int__", "__float__"}:
            frame = sys._getframe(1)
            while frame is not None and "tsugiki" not in frame.f_code.co_filename:
                frame = frame.f_back  # type: ignore[assignment]
            if (
                frame is not None
                and "/grafts/" in frame.f_code.co_filename
                and "_context" not in frame.f_code.co_filename
                and (frame.f_code.co_filename.rpartition("/")[2], frame.f_code.co_name) not in ALLOWED
            ):
                self.asked.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
        return function(*args, **(kwargs or {}))


def test_8_no_branch_on_data_inside_a_layer(name: str) -> None:
    model = tiny_model(name, "llama", **SMALL.get(name, {}))
    inputs = request(model, MIXED)
    with torch.no_grad(), _Branches() as seen:
        model(**inputs)
    assert seen.asked == []


def test_8_parameters_are_touched_in_their_own_forward_only(name: str) -> None:
    model = tiny_model(name, "llama", **SMALL.get(name, {}))
    running: list[torch.nn.Module] = []
    owners = {id(p): m for g in model.grafts for m in g.modules() for p in m.parameters(recurse=False)}

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            for a in args:
                asked = getattr(function, "__self__", None)  # what a tensor is, is no touch
                if isinstance(a, torch.nn.Parameter) and id(a) in owners and asked is not Tensor.dtype:
                    assert owners[id(a)] in running, f"{function} on a parameter outside its module"
            return function(*args, **(kwargs or {}))

    for graft in model.grafts:
        for m in graft.modules():
            m.register_forward_pre_hook(lambda m, a: running.append(m))
            m.register_forward_hook(lambda m, a, o: running.remove(m))
    with torch.no_grad(), Watch():
        model(**request(model, MIXED))


def test_14_positions_are_ids_not_places_in_a_buffer(model: Any) -> None:
    wake(model)
    row = request(model, [[4, "i", 5]])
    left = request(model, [[4, "i", 5], [4, "i", 20]], side="left")
    single, where = alone(left, 0, "left")
    assert torch.equal(single["input_ids"], row["input_ids"])
    close(logits(model, left)[:1, where], logits(model, row), 5e-5)


# -- dtypes, checkpointing, threads, operators -------------------------------------------------------------------------


def test_bf16(name: str, family: str) -> None:
    model = made(name, family, llm={"dtype": torch.bfloat16})
    wake(model)
    text = request(model, [[7]])
    assert torch.equal(logits(model, text), bare(model, text))
    inputs = request(model, MIXED)
    out = logits(model, inputs)
    assert out.dtype == torch.bfloat16 and out.isfinite().all()
    labels = torch.where(inputs["token_kind"] == TEXT, inputs["input_ids"], -100)
    model(**inputs, labels=labels).loss.backward()
    grads = [p.grad for p in model.frontend.projector.parameters() if p.grad is not None]
    assert grads and all(g.isfinite().all() for g in grads)


def test_gradient_checkpointing_changes_no_gradient(model: Any) -> None:
    wake(model)
    inputs = request(model, MIXED)
    labels = torch.where(inputs["token_kind"] == TEXT, inputs["input_ids"], -100)
    parts = [p for part in (model.grafts, model.frontend.projector) for p in part.parameters()]

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model.train()
        model(**inputs, labels=labels).loss.backward()
        return [p.grad.clone() for p in parts if p.grad is not None]

    plain = gradients()
    model.enable_checkpointing()
    recomputed = gradients()
    checkpointed = [bool(getattr(m, "gradient_checkpointing", False)) and m.training for m in model.decoder.layers]
    # A frozen OPT layer would drop values of its own in training mode, so it is not recomputed.
    assert all(checkpointed) is (model.decoder.name != "OPTForCausalLM")
    assert current() is None
    for a, b in zip(plain, recomputed, strict=True):
        close(a, b, 1e-5)


def test_two_threads_two_pictures(model: Any) -> None:
    wake(model)
    requests = [request(model, [[3, "i", 5]], first_image=i) for i in range(2)]
    want = [logits(model, r) for r in requests]
    got: list[list[Tensor]] = [[], []]

    def run(i: int) -> None:
        for _ in range(5):
            got[i].append(logits(model, requests[i]))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    for i in range(2):
        assert len(got[i]) == 5
        for out in got[i]:
            close(out, want[i], 1e-6)


def test_a_text_request_runs_the_bare_llms_operators(model: Any) -> None:
    inputs = request(model, [[7], [4]])
    with torch.no_grad(), _Shapes() as ours:
        model(**inputs)
    with model.detached() as llm, torch.no_grad(), _Shapes() as theirs:
        llm(**inputs)
    assert ours.names == theirs.names


def test_grafts_stack(family: str) -> None:
    model = tiny_model("projector", family)
    inputs = request(model, [[4, "i", 5]])
    alone_ = logits(model, inputs)
    model = tsugiki.attach(model, "cross_attention", **SMALL["cross_attention"])
    assert [g.name for g in model.grafts] == ["projector", "cross_attention"]
    assert torch.equal(logits(model, inputs), alone_)  # it starts as identity on top of what was there
    wake(model)
    assert not torch.allclose(logits(model, inputs), alone_)
    assert model.frontend.tower.name == TinyTower().name


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox", "gpt2"])
def test_a_site_without_keywords_finds_its_request_when_recomputed(family: str) -> None:
    """An FFN gets no keywords: under checkpointing its site has to be told the request again, or it would not run."""
    model = tiny_model("projector", family)
    factor = torch.nn.Parameter(torch.tensor(1.5))
    calls: list[int] = []

    class Probe(Graft):
        def sites(self, decoder: Any) -> Iterator[Site]:
            yield Site("around", decoder.blocks[1].ffn, self.scale)

        def scale(self, call: Any, x: Tensor, context: Any) -> Tensor:
            calls.append(len(context.visual))
            return factor * call(x)

    probe = Probe(None, model.decoder)
    probe.attach(model.decoder)
    inputs = request(model, MIXED)
    labels = torch.where(inputs["token_kind"] == TEXT, inputs["input_ids"], -100)

    def gradient() -> Tensor:
        factor.grad = None
        model.train()
        model(**inputs, labels=labels).loss.backward()
        assert factor.grad is not None
        return factor.grad.clone()

    plain, once = gradient(), len(calls)
    model.enable_checkpointing()
    close(gradient(), plain, 1e-6)
    assert len(calls) == once + 2, "forward and recomputation"
    probe.detach()
