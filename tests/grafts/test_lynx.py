"""LynX: the mixture it computes, its gate and branches, what it leaves alone, and what it refuses."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.grafts._requests import alone, in_parts, request, wake
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import tsugiki
from tsugiki.build import attach
from tsugiki.errors import InputError, PromptError, UnknownNameError, UnsupportedError
from tsugiki.grafts import _experts, lynx
from tsugiki.grafts._classifier import Classifier, logistic
from tsugiki.grafts._experts import Copies, LowRankExperts, Router, Routing
from tsugiki.testing import FAMILIES, TinyTower, tiny_images, tiny_llm, tiny_model, tiny_tokenizer
from tsugiki.training import losses
from tsugiki.types import BRANCHES, PAD, TEXT, Message

IMAGE, GROUNDING, NONE = BRANCHES["image"], BRANCHES["grounding"], BRANCHES["text"]
ROWS = [[3, "i", 4, "i", 2], [5, "i", 6], [9], [2, "i", 3]]
MIXED: dict[str, Any] = {"experts": 3, "top_k": 2, "every": 1}
SPARSE: dict[str, dict[str, Any]] = {
    "mixtral": {**FAMILIES["mistral"], "num_local_experts": 3, "num_experts_per_tok": 2},
    "qwen2_moe": {
        **FAMILIES["qwen2"], "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 24, "decoder_sparse_step": 2,
    },
}  # fmt: skip


@pytest.fixture
def sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    """LLMs that are mixtures of experts themselves."""
    for name, fields in SPARSE.items():
        monkeypatch.setitem(FAMILIES, name, fields)


def made(family: str = "llama", *, awake: bool = True, **options: Any) -> Any:
    built = tiny_model("lynx", family, **{**MIXED, **options})
    if awake:
        wake(built)
    return built


def logits(model: Any, inputs: dict[str, Tensor], **options: Any) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(**inputs, **options).logits
    return out


def labelled(inputs: dict[str, Tensor]) -> Tensor:
    return torch.where(inputs["token_kind"] == TEXT, inputs["input_ids"], -100)


def close(a: Tensor, b: Tensor, tolerance: float = 5e-5) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# -- the mixture -------------------------------------------------------------------------------------------------------


class Ffn(nn.Module):
    """Any FFN."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(dim, 12), nn.Linear(12, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(torch.tanh(self.up(x)))
        return out


def written_out(u: Tensor, scores: Tensor, k: int, experts: Any) -> Tensor:
    """Token by token, expert by expert, float64: u [n, D], scores [N, D]."""
    rows = []
    for token in u.double():
        p = [math.exp(float(s @ token)) for s in scores.double()]
        p = [x / sum(p) for x in p]
        best = sorted(range(len(p)), key=lambda e: -p[e])[:k]
        total = sum(p[e] for e in best)
        rows.append(sum(p[e] / total * experts[e](token) for e in best))
    return torch.stack(rows)  # type: ignore[arg-type]


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 2), st.integers(1, 7))
def test_copies_are_the_mixture_written_out(n: int, k: int, b: int, t: int) -> None:
    k = min(n, k)
    mixture = Copies(Ffn(), 8, n, k).double()
    with torch.no_grad():
        for p in mixture.parameters():
            p.copy_(torch.randn_like(p))
    u = torch.randn(b, t, 8, dtype=torch.float64)
    y, routing = mixture(u)
    scores = torch.zeros(1, 8) if mixture.router is None else mixture.router.scores.weight
    with torch.no_grad():
        want = written_out(u.flatten(0, 1), scores, k, [lambda x, e=e: e(x) for e in mixture.experts])
    torch.testing.assert_close(y.flatten(0, 1), want, rtol=1e-9, atol=1e-9)
    assert (routing is None) is (n == 1)


@given(st.integers(1, 4), st.integers(1, 4))
def test_low_rank_experts_are_a_difference_to_the_frozen_one(n: int, k: int) -> None:
    k, ffn = min(n, k), Ffn().double()
    mixture = LowRankExperts(8, 2, n, k).double()
    u = torch.randn(2, 5, 8, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(mixture(u, ffn(u))[0], ffn(u))  # B = 0
        for p in mixture.parameters():
            p.copy_(torch.randn_like(p))
    downs, ups = mixture.down.weight.split(2), mixture.up.weight.split(2, dim=1)

    def expert(e: int, x: Tensor) -> Tensor:
        inner = downs[e] @ x
        return ffn(x) + ups[e] @ (inner * torch.sigmoid(inner))

    scores = torch.zeros(1, 8) if mixture.router is None else mixture.router.scores.weight
    with torch.no_grad():
        want = written_out(u.flatten(0, 1), scores, k, [lambda x, e=e: expert(e, x) for e in range(n)])
    torch.testing.assert_close(mixture(u, ffn(u))[0].flatten(0, 1), want, rtol=1e-9, atol=1e-9)


def test_with_one_expert_a_token_the_weight_is_one_and_the_router_learns() -> None:
    router = Router(8, 3, 1)
    weights, routing = router(torch.randn(5, 8))
    assert torch.equal(weights, torch.ones(5, 1)) and routing.chosen.shape == (5, 1)
    (weights * torch.arange(1.0, 6)[:, None]).sum().backward()
    assert router.scores.weight.grad is not None and router.scores.weight.grad.abs().sum() > 0


def test_dispatch_runs_each_expert_on_its_tokens_alone_and_drops_none() -> None:
    sizes: list[int] = []

    class Counted(Ffn):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(x.shape[1])
            return super().forward(x)

    mixture = Copies(Counted(), 8, 4, 2)
    y, routing = mixture(torch.randn(2, 50, 8))
    assert routing is not None and sum(sizes) == 2 * 100 and y.shape == (2, 50, 8)
    assert sizes == torch.bincount(routing.chosen.flatten(), minlength=4).tolist()
    sizes.clear()
    mixture(torch.randn(1, 1, 8))
    assert sizes == [1, 1]  # an expert without tokens is not called


@given(st.integers(2, 4), st.integers(1, 3), st.integers(1, 9), st.data())
def test_the_terms_written_out(n: int, k: int, tokens: int, data: st.DataObject) -> None:
    k = min(n, k)
    p = torch.randn(tokens, n, dtype=torch.float64).softmax(-1)
    chosen = p.topk(k).indices
    real = torch.tensor(data.draw(st.lists(st.booleans(), min_size=tokens, max_size=tokens)), dtype=torch.float64)
    count = max(float(real.sum()), 1.0)
    total, spread = 0.0, 0.0
    for e in range(n):
        f = sum(float(real[i]) * (chosen[i] == e).sum().item() / k for i in range(tokens)) / count
        total += n * f * sum(float(real[i] * p[i, e]) for i in range(tokens)) / count
    for i in range(tokens):
        spread -= float(real[i]) * sum(float(x) * math.log(x) for x in p[i]) / count
    assert _experts.balance(Routing(p, chosen), real).item() == pytest.approx(total, abs=1e-12)
    assert _experts.entropy(Routing(p, chosen), real).item() == pytest.approx(spread, abs=1e-9)


def test_balance_is_one_for_even_use_and_n_for_a_single_expert() -> None:
    real = torch.ones(4)
    even = Routing(torch.full((4, 4), 0.25), torch.arange(4)[:, None])
    one = Routing(torch.eye(4)[[0, 0, 0, 0]].requires_grad_(), torch.zeros(4, 1, dtype=torch.long))
    assert _experts.balance(even, real).item() == pytest.approx(1) and _experts.balance(one, real).item() == 4
    entropy = _experts.entropy(one, real)
    entropy.backward()
    assert entropy.item() == 0 and one.probabilities.grad is not None and one.probabilities.grad.isfinite().all()


# -- in an LLM ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "opt"])
def test_a_fresh_graft_changes_noise_and_a_trained_one_only_its_branch(family: str) -> None:
    model = made(family, awake=False)
    parent = tiny_model("projector", family)
    inputs = request(model, ROWS)
    want = logits(parent, inputs)
    close(logits(model, inputs, branch="grounding"), want, 1e-5)
    wake(model)
    parent.frontend.projector.load_state_dict(model.frontend.projector.state_dict())
    got, want = logits(model, inputs, branch="grounding"), logits(parent, inputs)
    assert torch.equal(logits(model, inputs), want) and torch.equal(logits(model, inputs, branch="image"), want)
    assert not torch.allclose(got[0], want[0])
    close(got[2], want[2], 1e-6)  # the row without an image


@pytest.mark.parametrize("gate", ["task", "soft"])
def test_it_is_the_llm_with_that_ffn(gate: str) -> None:
    """Against a loop over the layers, the gate included."""
    model = made(gate=gate)
    graft, llm = model.graft("lynx"), model.language_model
    inputs = request(model, [[3, "i", 5]])
    states: list[Tensor] = []
    handle = llm.model.layers[0].register_forward_pre_hook(lambda _, a, k: states.append(a[0]), with_kwargs=True)
    got = logits(model, inputs, branch="grounding")
    handle.remove()
    alpha = torch.zeros(1) if graft.gate is None else torch.sigmoid(graft.gate(states[0]))
    with torch.no_grad(), model.detached():
        h = states[0]
        positions = torch.arange(h.shape[1])[None]
        rotary, mask = llm.model.rotary_emb(h, positions), torch.full((h.shape[1],) * 2, -torch.inf).triu(1)[None, None]
        for layer, experts in zip(llm.model.layers, graft.layers, strict=True):
            h = h + layer.self_attn(layer.input_layernorm(h), position_embeddings=rotary, attention_mask=mask)[0]
            u = layer.post_attention_layernorm(h)
            y = experts(u)[0]
            h = h + alpha * layer.mlp(u) + (1 - alpha) * y
        want = llm.lm_head(llm.model.norm(h))
    close(got, want, 1e-5)


class _Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_the_branch_image_runs_the_parents_operators_and_the_classifier() -> None:
    parent = tiny_model("projector")
    inputs = request(parent, [[3, "i", 5]])

    def operators(model: Any, **options: Any) -> list[str]:
        visual = model.frontend(pixel_values=inputs["pixel_values"])
        given = {k: v for k, v in inputs.items() if k != "pixel_values"}
        with torch.no_grad(), _Operators() as seen:
            model(**given, visual=visual, **options)
        return [n for n in seen.names if "detach" not in n]

    def heavy(names: list[str]) -> list[str]:  # what tells rows and branches apart is integer work on [B] and [B, T]
        return [n for n in names if any(k in n for k in (".mm", "addmm", "bmm", "matmul", "scaled_dot", "mul", "silu"))]

    want = heavy(operators(parent))
    assert heavy(operators(made(), branch="image")) == want
    classifier = made(gate="prompt")
    question = torch.zeros_like(inputs["input_ids"]).index_fill_(1, torch.tensor([2]), 1)
    extra = heavy(operators(classifier, question=question))
    assert extra[-len(want) :] == want and len(extra) - len(want) <= 2  # the mean of the words, and one product
    low = heavy(operators(made(experts=1, top_k=1, every=4), branch="grounding"))
    assert len(low) == len(want)  # one expert in the frozen FFN's place, which does not run


def test_gradients_are_lynxs_alone() -> None:
    model = made()
    inputs = request(model, ROWS)
    with_rows = torch.tensor([GROUNDING, GROUNDING, NONE, GROUNDING])
    model.train()
    model(**inputs, labels=labelled(inputs), branch=with_rows).loss.backward()
    names = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {n for n in names if n.startswith("grafts.")} == {n for n, _ in model.grafts.named_parameters("grafts")}
    assert {n.split(".")[0] for n in names} == {"grafts", "frontend"}


def test_experts_in_a_model_in_training_drop_nothing() -> None:
    model = made("gpt2")
    model.train()
    copies = model.graft("lynx").layers[0]
    assert copies.training and copies.router.training and not any(m.training for m in copies.experts.modules())


# -- branches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_another_rows_branch_changes_nothing(side: str) -> None:
    model = made()
    inputs = request(model, ROWS, side=side)
    first = torch.tensor([IMAGE, GROUNDING, NONE, GROUNDING])
    second = torch.tensor([GROUNDING, GROUNDING, NONE, IMAGE])
    a, b = logits(model, inputs, branch=first), logits(model, inputs, branch=second)
    close(a[1], b[1])
    close(a[2], b[2])
    assert not torch.allclose(a[0], b[0]) and not torch.allclose(a[3], b[3])
    for row in (0, 1, 3):
        single, where = alone(inputs, row, side)
        close(a[row : row + 1, where], logits(model, single, branch=first[row : row + 1]))


@pytest.mark.parametrize("options", [{"branch": "image"}, {"branch": "grounding"}, {"gate": "soft"}], ids=str)
@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("beams", [1, 3])
def test_cached_equals_uncached(options: dict[str, Any], cache: str | None, beams: int) -> None:
    model = made(gate=options.get("gate", "task"))
    inputs = request(model, ROWS, side="left")
    given = {"branch": torch.tensor([BRANCHES[options["branch"]]] * 4)} if "branch" in options else {}
    told = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "num_beams": beams}
    slow = model.generate(**inputs, **given, **told, use_cache=False)
    fast = model.generate(**inputs, **given, **told, cache_implementation=cache)
    assert torch.equal(slow, fast)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox", "gpt2"])
def test_a_prompt_of_the_grounding_branch_may_be_read_in_parts(family: str) -> None:
    model = made(family)
    inputs = request(model, [[4, "i", 6, "i", 5]])
    close(in_parts(model, inputs, (5, 9), branch="grounding"), logits(model, inputs, branch="grounding"))


def test_a_cache_of_the_other_branch_is_refused() -> None:
    model = made()
    inputs = request(model, [[3, "i", 5]])
    with torch.no_grad():
        cache = model(**inputs, branch="grounding", use_cache=True).cache
    assert cache.branch == "grounding"
    with pytest.raises(PromptError, match="computed under the branch 'grounding'"):
        model(input_ids=torch.tensor([[9]]), cache=cache, branch="image")
    model(input_ids=torch.tensor([[9]]), cache=cache)  # goes on where it was


def test_a_soft_gate_is_causal() -> None:
    model = made(gate="soft")
    inputs = request(model, [[4, "i", 3, "i", 6]])
    changed = {k: v.clone() for k, v in inputs.items()}
    changed["input_ids"][0, -3] = 77
    a, b = logits(model, inputs), logits(model, changed)
    close(a[:, :-3], b[:, :-3], 1e-6)
    assert not torch.allclose(a[:, -3:], b[:, -3:]) and model.branches == ("image",)


# -- loss terms --------------------------------------------------------------------------------------------------------


def test_the_terms_are_those_of_real_tokens_on_the_grounding_path() -> None:
    model = made(balance=0.5, gate_sparsity=0.25)
    inputs = request(model, ROWS, side="right")
    seen: list[Routing] = []
    for layer in model.graft("lynx").layers:
        layer.register_forward_hook(lambda _, __, output: seen.append(output[1]))
    rows = torch.tensor([GROUNDING, IMAGE, NONE, GROUNDING])
    labels = labelled(inputs)
    plain = model(**inputs, labels=labels, branch=rows)
    assert plain.penalty is None  # a loss that is only measured has no terms
    seen.clear()
    model.train()
    out = model(**inputs, labels=labels, branch=rows)
    on = torch.tensor([0, 3])  # rows 0 and 3 ran together; row 2 came with the first branch found, which is "image"
    real = (inputs["token_kind"][on] != PAD).flatten().float()
    terms = [0.5 * _experts.balance(r, real) + 0.25 * _experts.entropy(r, real) for r in seen]
    want = torch.stack(terms).mean()
    counts = (labels[:, 1:] != -100).sum(1)
    each = [want.item() if row in on.tolist() else 0.0 for row in range(len(ROWS)) for _ in range(int(counts[row]))]
    assert out.penalty.tolist() == pytest.approx(each, rel=1e-5)
    assert out.loss.item() == pytest.approx(plain.loss.item() + sum(each) / len(each), rel=1e-5)
    assert model(**inputs, labels=labels, branch=rows, num_items_in_batch=9).loss.item() == pytest.approx(
        out.loss.item() * int((labels[:, 1:] != -100).sum()) / 9, rel=1e-5
    )


def test_the_terms_of_a_row_do_not_depend_on_the_other_branchs_rows() -> None:
    """By steps, too, a batch of both branches is the sum of its rows alone, however long their answers are."""
    model = made(balance=0.5, gate_sparsity=0.25).train()
    rows = [[3, "i", 12], [4, "i", 2]]
    for branch in ([GROUNDING, IMAGE], [IMAGE, GROUNDING]):
        inputs = request(model, rows)  # type: ignore[arg-type]
        whole = inputs | {"labels": labelled(inputs), "branch": torch.tensor(branch)}
        for name in ("per_step", "per_token"):
            apart = 0.0
            for row in range(2):
                single, _ = alone(inputs, row, "right")
                given = single | {"labels": labelled(single), "branch": torch.tensor(branch[row : row + 1])}
                apart += losses.get(name)(model, given, 1 if name == "per_token" else 2).item()
            items = 1 if name == "per_token" else 2
            assert losses.get(name)(model, whole, items).item() == pytest.approx(apart, rel=1e-4)


@pytest.mark.parametrize("options", [{}, {"expert": "low_rank"}, {"gate": "soft"}], ids=str)
def test_recomputed_layers_count_once(options: dict[str, Any]) -> None:
    model = made(balance=3.0, gate_sparsity=2.0, **options)
    inputs = request(model, ROWS)
    rows = torch.tensor([GROUNDING, GROUNDING, NONE, GROUNDING])

    def gradients() -> tuple[float, list[Tensor]]:
        model.zero_grad()
        model.train()
        out = model(**inputs, labels=labelled(inputs), branch=rows)
        out.loss.backward()
        return out.penalty.mean().item(), [p.grad.clone() for p in model.grafts.parameters()]

    plain, want = gradients()
    model.enable_checkpointing()
    again, got = gradients()
    assert plain > 0 and again == pytest.approx(plain, rel=1e-6)
    for a, b in zip(got, want, strict=True):
        close(a, b, 1e-5)
    assert all(g.abs().sum() > 0 for g in want)


@pytest.mark.parametrize("options", [{}, {"expert": "low_rank"}, {"gate": "soft"}], ids=str)
def test_autocast(options: dict[str, Any]) -> None:
    model = made(**options)
    inputs = request(model, ROWS)
    rows = torch.tensor([GROUNDING, GROUNDING, NONE, GROUNDING])
    model.train()
    exact = model(**inputs, labels=labelled(inputs), branch=rows)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(**inputs, labels=labelled(inputs), branch=rows)
    out.loss.backward()
    assert out.penalty.dtype == torch.float32
    assert out.loss.item() == pytest.approx(exact.loss.item(), rel=0.02)
    assert all(p.grad.isfinite().all() for p in model.grafts.parameters())


def test_what_the_terms_do_to_a_router() -> None:
    """It starts by sending most tokens to one expert. Balance evens that out, and with a sparse gate it still does."""
    u, real = torch.randn(200, 8) + 0.5, torch.ones(200)

    def trained(balance: float, sparsity: float, steps: int = 200) -> tuple[float, float]:
        torch.manual_seed(1)
        router = Router(8, 4, 1)
        with torch.no_grad():
            router.scores.weight[0] += 1
        optimiser = torch.optim.Adam(router.parameters(), lr=0.02)
        for _ in range(steps):
            routing = router(u)[1]
            optimiser.zero_grad()
            (balance * _experts.balance(routing, real) + sparsity * _experts.entropy(routing, real)).backward()
            optimiser.step()
        routing = router(u)[1]
        return torch.bincount(routing.chosen[:, 0]).max().item() / 200, _experts.entropy(routing, real).item()

    start, alone_, even, both = trained(0, 0, 1), trained(0, 1), trained(1, 0), trained(1, 1)
    assert start[0] > 0.8 and alone_[0] > 0.8 and even[0] < 0.45 and both[0] < 0.45
    assert alone_[1] < both[1] < even[1]


# -- the gate that reads the prompt ------------------------------------------------------------------------------------


def test_logistic_regression_finds_the_minimum() -> None:
    x = torch.randn(60, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3 + 1
    yes = x @ torch.tensor([1.0, -2, 0, 0, 0.5], dtype=torch.float64) > 0.7
    w, b = logistic(x, yes, decay=0.1)
    scale, centre = x.std(0, correction=0), x.mean(0)

    def loss(w: Tensor, b: Tensor) -> float:
        total = 0.0
        for row, y in zip(x, yes, strict=True):
            sign = 1 if y else -1
            each = 0.5 / float(yes.sum() if y else (~yes).sum())
            total += each * math.log1p(math.exp(-sign * float(row @ w + b)))
        return total + 0.05 * float((w * scale).square().sum())

    best = loss(w, b)
    for i in range(5):
        for step in (-1e-3, 1e-3):
            moved = w.clone()
            moved[i] += step
            assert loss(moved, b - step * centre[i]) > best
    assert ((x @ w + b > 0) == yes).double().mean() > 0.9


def test_the_gate_decides_for_requests_that_name_no_branch_and_says_image_at_first() -> None:
    model = made(gate="prompt")
    image = tiny_images(1)

    def branch(text: str, **options: Any) -> str:
        inputs = model.processor.encode((Message.of("user", text, tuple(image)),), **options)
        with torch.no_grad():
            return str(model(**inputs, use_cache=True).cache.branch)

    assert branch("Where is the cup?") == "image" == branch("What is this?")
    asked = [f"{w} is the {t}?" for t in ("cup", "dog", "tree", "red car", "sun") for w in ("Where", "What")]
    words = model.language_model.get_input_embeddings()
    ids = [tiny_tokenizer()(text)["input_ids"] for text in asked]
    means = torch.stack([words(torch.tensor(i)).mean(0) for i in ids]).detach()
    model.graft("lynx").learn_branch(means, torch.tensor([GROUNDING, IMAGE] * 5))
    assert branch("Where is the moon?") == "grounding" and branch("What is the moon?") == "image"
    assert branch("What is the moon?", branch="grounding") == "grounding"  # a name given is what counts
    called = model.processor(images=image[0], text="<image>Where is the moon?")  # without a chat template
    assert int(called["question"].sum()) == len("Where is the moon?") and "branch" not in called
    half = copy.deepcopy(model).bfloat16()
    assert half.graft("lynx").choose_branch(means[:1].bfloat16()).tolist() == [GROUNDING]
    text = model.processor.encode((Message.of("user", "Where is it?"),))
    assert "question" not in text and "branch" not in text  # nothing is read where there is no picture


def test_an_unfitted_classifier_says_no() -> None:
    assert (Classifier(4)(torch.randn(3, 4)) == 0).all()


# -- where it stands, what is saved, what is refused -------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"gate": "prompt"}, {"gate": "soft"}, {"expert": "low_rank"}], ids=str)
def test_saved_and_loaded(tmp_path: Path, options: dict[str, Any]) -> None:
    model = made(**options)
    inputs = request(model, [[3, "i", 5]])
    if options.get("gate") == "prompt":
        model.graft("lynx").learn_branch(torch.randn(8, 32), torch.tensor([GROUNDING, IMAGE] * 4))
    model.save(tmp_path / "graft")
    twin = tsugiki.load(tmp_path / "graft", base=tiny_llm(), tokenizer=tiny_tokenizer(), vision=TinyTower())
    for branch in ("image", "grounding"):
        assert torch.equal(logits(twin, inputs, branch=branch), logits(model, inputs, branch=branch))
    for (name, a), (_, b) in zip(model.grafts.named_buffers(), twin.grafts.named_buffers(), strict=True):
        assert torch.equal(a, b) and a.abs().sum() > 0, name


def test_every_second_layer_of_a_dense_llm() -> None:
    assert made(every=None).graft("lynx").places == (0, 2)
    assert made(every=3).graft("lynx").places == (0, 3)
    assert made(layers=(3, 1)).graft("lynx").places == (1, 3)
    assert isinstance(made(experts=None, top_k=None).graft("lynx").layers[0], Copies)
    assert made(experts=None, top_k=None).graft("lynx").parts().keys() == {"experts"}  # nothing to route
    assert made(gate="soft").graft("lynx").parts().keys() == {"experts", "router", "gate"}


@pytest.mark.parametrize("family", list(SPARSE))
def test_a_base_that_is_a_mixture(sparse: None, family: str) -> None:
    model = made(family, awake=False, experts=None, top_k=None, every=None)
    parent, graft = tiny_model("projector", family), model.graft("lynx")
    assert graft.places == ((0, 1, 2, 3) if family == "mixtral" else (1, 3))
    own = model.decoder.blocks[graft.places[0]].ffn
    assert [p.shape for p in graft.layers[0].mixture.parameters()] == [p.shape for p in own.parameters()]
    inputs = request(model, ROWS)
    assert torch.equal(logits(model, inputs), logits(parent, inputs))
    close(logits(model, inputs, branch="grounding"), logits(parent, inputs), 1e-5)
    wake(model)
    model.train()
    rows = torch.tensor([GROUNDING, GROUNDING, NONE, GROUNDING])
    out = model(**inputs, labels=labelled(inputs), branch=rows)
    out.loss.backward()
    assert out.penalty.mean().item() > 0 and all(p.grad.abs().sum() > 0 for p in graft.parameters())
    assert all(p.grad is None for p in model.language_model.parameters())  # its own router included
    assert set(graft.parts()) == {"experts", "router"} and len(graft.parts()["router"]) == len(graft.places)
    thin = made(family, awake=False, experts=None, top_k=None, every=None, expert="low_rank")
    number = {"mixtral": 3, "qwen2_moe": 4}[family]
    assert (thin.graft("lynx").layers[0].experts, thin.graft("lynx").layers[0].router.top_k) == (number, 2)
    close(logits(thin, inputs, branch="grounding"), logits(parent, inputs), 1e-6)
    with pytest.raises(InputError, match="experts and top_k left out"):
        made(family, experts=2, top_k=1)


@pytest.mark.parametrize("under", ["projector", "wings", "iaa"])
def test_on_what_already_sees(under: str) -> None:
    options = {"wings": {"rank": 4, "width": 64}, "iaa": {"layers": (1, 3)}}.get(under, {})
    model, parent = tiny_model(under, **options), tiny_model(under, **options)
    wake(model)
    wake(parent)
    inputs = request(model, ROWS)
    want = logits(parent, inputs)
    model = attach(model, "lynx", experts=3, top_k=2)
    graft = model.graft("lynx")
    assert graft.inserted is (under == "iaa") and len(graft.layers) == 2
    if under == "iaa":  # every inserted layer, and no layer of the LLM
        ffns = {id(b.ffn) for b in model.decoder.inserted}
        assert {id(s.module) for s in graft.sites(model.decoder)} == ffns
    assert torch.equal(logits(model, inputs), want)
    close(logits(model, inputs, branch="grounding"), want, 2e-5)
    with torch.no_grad():
        for p in graft.parameters():
            p.add_(0.3 * torch.randn_like(p))
    assert torch.equal(logits(model, inputs), want)
    got = logits(model, inputs, branch="grounding")
    assert not torch.allclose(got[0], want[0])
    close(got[2], want[2], 1e-6)
    text = request(model, [[7], [4]])
    with model.detached() as llm, torch.no_grad():
        bare = llm(**text).logits
    assert torch.equal(logits(model, text), bare)


def test_inserted_layers_that_are_saved_with_it(tmp_path: Path) -> None:
    model = attach(tiny_model("iaa", layers=(1, 3)), "lynx", experts=2)
    wake(model)
    model.save(tmp_path / "graft")
    twin = tsugiki.load(tmp_path / "graft", base=tiny_llm(), tokenizer=tiny_tokenizer(), vision=TinyTower())
    inputs = request(model, [[3, "i", 5]])
    for branch in ("image", "grounding"):
        assert torch.equal(logits(twin, inputs, branch=branch), logits(model, inputs, branch=branch))
    told = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "branch": torch.tensor([GROUNDING])}
    assert torch.equal(model.generate(**inputs, **told), model.generate(**inputs, **told, use_cache=False))


def test_llm_or_inserted() -> None:
    model = attach(tiny_model("iaa", layers=(1, 3)), "lynx", inside="llm")
    assert not model.graft("lynx").inserted
    with pytest.raises(InputError, match="no graft before this one inserts layers"):
        made(inside="inserted")
    two = tiny_model("iaa", layers=(1, 3), branches=("image", "grounding"))
    with pytest.raises(UnsupportedError, match="several branches"):
        attach(two, "lynx")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"experts": 0}, "experts = 0; expected a number, at least 1"),
        ({"top_k": 4}, "top_k = 4 of 3 experts"),
        ({"every": True}, "every = True"),
        ({"layers": (4,)}, "different numbers from 0 to 3"),
        ({"layers": ()}, "different numbers"),
        ({"layers": 0}, "different numbers"),
        ({"layers": ("first",)}, "different numbers"),
        ({"rank": 0}, "rank = 0"),
        ({"balance": -1}, "balance = -1"),
        ({"gate_sparsity": float("nan")}, "gate_sparsity = nan"),
    ],
    ids=str,
)
def test_wrong_numbers_are_told(options: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        made(**options)


@pytest.mark.parametrize("options", [{"gate": "hard"}, {"expert": "copies"}, {"inside": "lmm"}], ids=str)
def test_wrong_names_are_told(options: dict[str, Any]) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean|one of"):
        made(**options)


def test_families_that_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedError, match="OPTForCausalLM hold the FFN's matrices themselves"):
        made("opt")
    monkeypatch.setitem(FAMILIES, "gpt_oss", {**FAMILIES["mistral"], "num_local_experts": 3, "num_experts_per_tok": 2})
    with pytest.raises(UnsupportedError, match="FFN of GptOssForCausalLM takes or gives more than hidden states"):
        made("gpt_oss")


def test_a_quantised_ffn_is_not_copied() -> None:
    llm = tiny_llm()
    for layer in llm.model.layers:
        layer.mlp.down_proj.weight = nn.Parameter(layer.mlp.down_proj.weight.to(torch.int8), requires_grad=False)
        layer.mlp.down_proj.forward = lambda x: x[..., :32]
    with pytest.raises(UnsupportedError, match="is quantised.*low_rank"):
        attach(llm, "lynx", vision=TinyTower(), tokenizer=tiny_tokenizer())
    model = attach(llm, "lynx", vision=TinyTower(), tokenizer=tiny_tokenizer(), expert="low_rank")
    assert logits(model, request(model, [[3, "i", 5]]), branch="grounding").isfinite().all()


def test_settings_of_a_stage() -> None:
    model = made()
    model.adjust("lynx", balance=0.0, gate_sparsity=0.0)
    assert model.graft("lynx").config == replace(model.graft("lynx").config, balance=0.0)
    with pytest.raises(InputError, match="balance"):
        model.adjust("lynx", balance=-1)
    assert lynx.PAPER == "arXiv:2410.10491"
