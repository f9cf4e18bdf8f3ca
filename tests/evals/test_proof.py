"""`verify` holds for untouched models of every graft, and fails for each way in which a base can be changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

import tsugiki
from tsugiki import grafts, testing
from tsugiki.errors import DataError, InputError, ProofError
from tsugiki.evals import _claims, prompts, proof
from tsugiki.types import Proof

QUICK: dict[str, Any] = {"answers": 4, "max_new_tokens": 6}


@pytest.fixture
def all_prompts() -> None:
    """Asked for where the bundled prompts are not cut."""


@pytest.fixture(autouse=True)
def few_prompts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One in six of the bundled prompts, for speed."""
    if "all_prompts" not in request.fixturenames:
        monkeypatch.setattr(proof, "collect", lambda given=None: prompts.collect(given)[::6])


def source(folder: Path, **options: Any) -> Path:
    testing.tiny_llm(**options).save_pretrained(folder)
    testing.tiny_tokenizer().save_pretrained(folder)
    return folder


def loaded(folder: Path, graft: str = "projector", **options: Any) -> Any:
    llm = AutoModelForCausalLM.from_pretrained(folder, **options)
    return tsugiki.attach(llm, graft, vision=testing.TinyTower(), tokenizer=testing.tiny_tokenizer())


@pytest.fixture(params=["source", "no source"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return loaded(source(tmp_path)) if request.param == "source" else testing.tiny_model()


def failed(found: Proof) -> set[str]:
    return {c.name for c in found.checks if not c.holds}


@pytest.mark.parametrize("graft", grafts.available())
def test_verify_holds_for_every_graft_and_compares_enough(graft: str, tmp_path: Path, all_prompts: None) -> None:
    found = tsugiki.verify(loaded(source(tmp_path), graft))
    assert found.holds and found.guarantee == "exact", proof.describe(found)
    assert found.prompts >= 64 and found.answers >= 20
    names = [c.name for c in found.checks]
    assert names[:7] == ["base", "tensors", "keys", "tokenizer", "chat template", "generation config", "logits"]
    assert names[7] == "answers" and ("prefix" in names) == found.prefix_exact
    assert str(tmp_path) in next(c for c in found.checks if c.name == "logits").detail


@pytest.mark.parametrize("graft", grafts.available())
def test_verify_holds_after_the_graft_was_trained(graft: str) -> None:
    model = testing.tiny_model(graft)
    with torch.no_grad():
        for parameter in [*model.grafts.parameters(), *model.frontend.projector.parameters()]:
            parameter.add_(torch.randn_like(parameter))
    found = proof.verify(model, **QUICK)
    assert found.holds, proof.describe(found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_source_in_another_dtype_is_compared_in_that_form(dtype: torch.dtype, tmp_path: Path) -> None:
    found = proof.verify(loaded(source(tmp_path), dtype=dtype), **QUICK)
    assert found.holds, proof.describe(found)
    assert found.environment["dtype"] == str(dtype).removeprefix("torch.")


class Operators(TorchDispatchMode):
    """Notes the name of every operator that is dispatched, with the shapes that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        shapes = [tuple(a.shape) for a in args if isinstance(a, torch.Tensor)]
        self.seen.append(f"{function} {shapes}")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("graft", grafts.available())
@pytest.mark.parametrize("what", ["forward", "generate"])
def test_a_text_request_dispatches_the_bare_llm_s_operators(graft: str, what: str) -> None:
    model = testing.tiny_model(graft)
    ids = torch.tensor([model.tokenizer("What is a graft?")["input_ids"]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def operators(llm: Any) -> list[str]:
        with torch.no_grad(), Operators() as found:
            llm(**inputs) if what == "forward" else llm.generate(**inputs, max_new_tokens=4)
        return found.seen

    with model.detached() as bare:
        expected = operators(bare)
    assert operators(model) == expected and len(expected) > 100


def test_a_flipped_weight_bit_fails(model: Any) -> None:
    weight = next(iter(model.language_model.parameters()))
    weight.data.view(torch.int32).view(-1)[17] ^= 1  # the last bit of one number
    found = proof.verify(model, **QUICK)
    assert not found.holds and "tensors" in failed(found)
    assert "embed_tokens" in next(c.detail for c in found.checks if c.name == "tensors")


def test_a_hook_that_is_active_on_text_fails(model: Any) -> None:
    layer = model.decoder.layers[1]
    handle = layer.register_forward_hook(lambda m, args, output: output * (1 + 1e-6))
    found = proof.verify(model, **QUICK)
    assert failed(found) >= {"logits"}
    assert not failed(found) & {"tensors", "tokenizer"}
    handle.remove()
    assert proof.verify(model, **QUICK).holds


def test_a_changed_template_fails(model: Any) -> None:
    model.tokenizer.chat_template += " "
    found = proof.verify(model, **QUICK)
    assert "chat template" in failed(found)
    if model.base_identity["source"]:
        assert "answers" in failed(found)


def test_a_changed_generation_config_fails(model: Any) -> None:
    model.generation_config.eos_token_id = 65
    found = proof.verify(model, **QUICK)
    assert "generation config" in failed(found)


def test_a_stop_token_ends_the_answer_on_both_sides(tmp_path: Path) -> None:
    llm = testing.tiny_llm()
    llm.generation_config.eos_token_id = list(range(3, 200))  # most tokens stop
    llm.save_pretrained(tmp_path)
    testing.tiny_tokenizer().save_pretrained(tmp_path)
    model = loaded(tmp_path)
    found = proof.verify(model, **QUICK)
    assert found.holds and "(0 ended" not in next(c.detail for c in found.checks if c.name == "answers")
    model.generation_config.eos_token_id = 2
    assert failed(proof.verify(model, **QUICK)) == {"generation config", "answers"}


@pytest.mark.parametrize("has_source", [True, False])
def test_a_swapped_base_fails(has_source: bool, tmp_path: Path) -> None:
    if has_source:
        model = loaded(source(tmp_path / "a"))
        other = AutoModelForCausalLM.from_pretrained(source(tmp_path / "b", seed=1))
    else:
        model, other = testing.tiny_model(), testing.tiny_llm(seed=1)
    model.language_model.load_state_dict(other.state_dict())
    assert "tensors" in failed(proof.verify(model, **QUICK))


def test_a_source_whose_files_were_exchanged_fails(tmp_path: Path) -> None:
    model = loaded(source(tmp_path))
    source(tmp_path, seed=1)
    assert {"base", "tensors", "logits"} <= failed(proof.verify(model, **QUICK))


def test_an_edited_proof_is_recognised(tmp_path: Path) -> None:
    model = testing.tiny_model()
    model.tokenizer.chat_template += " "
    proof.verify(model, out=tmp_path, **QUICK)
    path = tmp_path / "proof.json"
    content = json.loads(path.read_text())
    assert not content["holds"] and not proof.check(path).holds
    content["holds"] = True
    path.write_text(json.dumps(content))
    with pytest.raises(ProofError, match="edited"):
        proof.check(path)


def test_an_edited_proof_with_a_new_hash_is_recognised_with_the_model(tmp_path: Path) -> None:
    model = testing.tiny_model()
    model.tokenizer.chat_template += " "
    found = proof.verify(model, **QUICK)
    checks = tuple(type(c)(name=c.name, holds=True, detail=c.detail) for c in found.checks)
    forged = proof.sealed(type(found)(**{**found.__dict__, "holds": True, "checks": checks}))
    path = proof.write(forged, tmp_path)
    assert proof.check(path).holds
    with pytest.raises(ProofError, match="differently"):
        proof.check(path, model)


def test_a_proof_is_checked_against_the_model(tmp_path: Path) -> None:
    model = testing.tiny_model()
    found = proof.verify(model, out=tmp_path / "sub" / "p.json", **QUICK)
    again = proof.check(tmp_path / "sub" / "p.json", model)
    assert again == found
    assert "holds" in (tmp_path / "sub" / "p.txt").read_text(encoding="utf-8")
    with pytest.raises(ProofError, match="base"):
        proof.check(tmp_path / "sub" / "p.json", testing.tiny_model(seed=1))
    with torch.no_grad():
        next(model.frontend.projector.parameters()).add_(1)
    with pytest.raises(ProofError, match="graft"):
        proof.check(tmp_path / "sub" / "p.json", model)


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[1]", b'{"holds": true}', b"\xff\xfe"])
def test_what_is_no_proof_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "proof.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ProofError, match="not a proof"):
        proof.check(path)


def test_changes_of_the_module_tree_fail() -> None:
    model = testing.tiny_model()
    model.language_model.add_module("extra", torch.nn.Linear(2, 2))
    found = proof.verify(model, **QUICK)
    assert {"keys", "tensors"} <= failed(found)


def test_prefix_fails_where_tokens_before_the_image_see_it() -> None:
    model = testing.tiny_model()
    original = model.language_model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if "tsugiki" in kwargs and kwargs["tsugiki"].has_image:
            output = original(*args, **kwargs)
            output.logits = output.logits + 1e-3
            return output
        return original(*args, **kwargs)

    model.language_model.__dict__["forward"] = forward
    assert failed(proof.verify(model, **QUICK)) == {"prefix"}


def test_an_llm_whose_training_was_declared_is_bounded(tmp_path: Path) -> None:
    model = loaded(source(tmp_path))
    model.freeze_llm(False)
    with torch.no_grad():
        next(iter(model.language_model.parameters())).add_(0.01)
    found = proof.verify(model, **QUICK)
    assert found.guarantee == "bounded" and found.holds
    assert "1 of 39 LLM tensors differ" in found.checks[1].detail and "declared" in found.checks[1].detail
    assert "measured" in found.note and found.prompts == 0
    model.tokenizer.chat_template += " "
    assert not proof.verify(model, **QUICK).holds


def test_against_a_parent_model_or_folder(tmp_path: Path) -> None:
    folder = source(tmp_path / "base")
    parent = loaded(folder)
    parent.save(tmp_path / "graft")
    child = loaded(folder, "cross_attention")
    for against in (parent, tmp_path / "graft", folder, str(folder)):
        found = proof.verify(child, against, **QUICK)
        assert found.holds, proof.describe(found)
        assert "parent" in found.environment["against"]
    other = source(tmp_path / "other", seed=1)
    assert {"tensors", "logits"} <= failed(proof.verify(child, other, **QUICK))
    with pytest.raises(InputError, match="nowhere"):
        proof.verify(child, tmp_path / "nowhere", **QUICK)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft on transformers 5.23
@pytest.mark.parametrize("merge", [False, True])
def test_a_base_with_its_own_adapter(merge: bool, tmp_path: Path) -> None:
    llm = AutoModelForCausalLM.from_pretrained(source(tmp_path))
    wrapped = peft.get_peft_model(llm, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False, r=2))
    model = tsugiki.attach(wrapped, "projector", vision=testing.TinyTower(), tokenizer=testing.tiny_tokenizer())
    assert model.base_identity["peft"] and model.base_identity["source"]
    found = proof.verify(model, **QUICK)
    assert found.holds, proof.describe(found)
    if merge:
        wrapped.merge_adapter()
    else:
        next(p for n, p in wrapped.named_parameters() if "lora_B" in n).data.add_(0.1)
    assert "tensors" in failed(proof.verify(model, **QUICK))


def test_a_base_handed_over_with_another_template_than_its_files(tmp_path: Path) -> None:
    llm = AutoModelForCausalLM.from_pretrained(source(tmp_path))
    tokenizer = testing.tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant", "tutor")
    model = tsugiki.attach(llm, "projector", vision=testing.TinyTower(), tokenizer=tokenizer)
    found = proof.verify(model, **QUICK)
    assert found.holds, proof.describe(found)
    assert "source's files hold another" in next(c.detail for c in found.checks if c.name == "chat template")


def test_a_base_without_a_template_is_compared_in_the_plain_form() -> None:
    tokenizer = testing.tiny_tokenizer()
    tokenizer.chat_template = None
    model = tsugiki.attach(testing.tiny_llm(), "projector", vision=testing.TinyTower(), tokenizer=tokenizer)
    found = proof.verify(model, **QUICK)
    assert found.holds, proof.describe(found)
    assert "no chat template" in next(c.detail for c in found.checks if c.name == "answers")


def test_a_generation_config_that_samples(tmp_path: Path) -> None:
    llm = testing.tiny_llm()
    llm.generation_config.do_sample, llm.generation_config.temperature = True, 0.9
    llm.save_pretrained(tmp_path)
    testing.tiny_tokenizer().save_pretrained(tmp_path)
    assert proof.verify(loaded(tmp_path), **QUICK).holds


def test_verify_leaves_the_model_as_it_was() -> None:
    model = testing.tiny_model()
    model.train()
    before, modes = torch.random.get_rng_state(), {n: m.training for n, m in model.named_modules()}
    proof.verify(model, **QUICK)
    assert modes == {n: m.training for n, m in model.named_modules()}
    assert torch.equal(before, torch.random.get_rng_state())
    assert "generate" not in model.__dict__


def test_own_prompts_come_first_and_never_replace_the_bundled_ones(tmp_path: Path, all_prompts: None) -> None:
    file = tmp_path / "own.txt"
    file.write_text("傷はどこですか。\n\nIs it broken?\n", encoding="utf-8")
    own = prompts.collect(file)
    assert [p.text for p in own[:2]] == ["傷はどこですか。", "Is it broken?"] and len(own) == len(prompts.bundled()) + 2
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    (tmp_path / "own.json").write_text(json.dumps(["x", turns]))
    assert prompts.collect(tmp_path / "own.json")[1].turns == (("user", "a"), ("assistant", "b"), ("user", "c"))
    found = proof.verify(testing.tiny_model(), prompts=["x"], out=tmp_path, **QUICK)
    assert found.prompts == len(prompts.bundled()) + 1
    with pytest.raises(ProofError, match="other prompts"):
        proof.check(tmp_path / "proof.json", testing.tiny_model())
    assert proof.check(tmp_path / "proof.json", testing.tiny_model(), prompts=["x"]).holds


@pytest.mark.parametrize(
    "given", [[3], [""], [[{"role": "assistant", "content": "x"}]], "missing.txt", [[{"x": 1}]], [[]]]
)
def test_unusable_prompts_are_refused_in_one_line(given: Any) -> None:
    with pytest.raises(DataError) as error:
        prompts.collect(given)
    assert "\n" not in str(error.value)


def test_the_bundled_prompts() -> None:
    kinds = {p.kind for p in prompts.bundled()}
    assert len(prompts.bundled()) >= 64 and kinds >= {"english", "japanese", "code", "chat"}
    assert len({p.turns for p in prompts.bundled()}) == len(prompts.bundled())


def test_same_bits() -> None:
    x = torch.tensor([1.0, float("nan"), 0.0])
    assert _claims.same_bits(x, x.clone())
    assert not _claims.same_bits(x, torch.tensor([1.0, float("nan"), -0.0]))
    assert not _claims.same_bits(x, x.double())


def test_a_model_is_not_its_own_parent(tmp_path: Path) -> None:
    built = loaded(source(tmp_path))
    with pytest.raises(InputError, match=r"the model itself.*save it before"):
        proof.verify(built, against=built)
