"""A company's own LoRA on its LLM as the base: the PeftModel as handed over is what text requests keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tests.grafts._requests import request, wake
from tests.training._tiny import cache, samples
from torch import Tensor
from transformers import AutoModelForCausalLM

import tsugiki
from tsugiki import identity, testing
from tsugiki.errors import BaseMismatchError, RecipeError, TsugikiError, UnsupportedError
from tsugiki.evals import proof
from tsugiki.grafts import lora
from tsugiki.training import parts
from tsugiki.training.trainer import train

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's own
PARTS: dict[str, Any] = {"vision": testing.TinyTower(), "tokenizer": testing.tiny_tokenizer()}
QUICK = {"answers": 2, "max_new_tokens": 4}
SMALL: dict[str, dict[str, Any]] = {
    "projector": {},
    "cross_attention": {"every": 2, "heads": 2, "ffn_ratio": 1.0},
    "wings": {"rank": 4, "width": 64},
    "lora": {"rank": 4},
}
TARGETS = {"gpt2": ["c_attn", "c_fc"], "opt": ["q_proj", "fc1"], "gpt_neox": ["query_key_value", "dense_h_to_4h"]}


def company(family: str = "llama", llm: Any = None, seed: int = 3) -> Any:
    """A PeftModel with a LoRA that matters."""
    targets = TARGETS.get(family, ["q_proj", "v_proj", "up_proj"])
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules=targets, init_lora_weights=False, fan_in_fan_out=family == "gpt2"
    )
    llm = llm if llm is not None else testing.tiny_llm(family)
    torch.manual_seed(seed)
    return peft.get_peft_model(llm, config).eval()


def logits(model: Any, inputs: dict[str, Tensor], **kwargs: Any) -> Tensor:
    with torch.no_grad():
        return model(**inputs, **kwargs).logits


@pytest.fixture(params=SMALL)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox", "opt", "gpt2"])
def test_text_is_the_peft_models_and_pictures_reach_the_logits(name: str, family: str) -> None:
    base = company(family)
    plain = {"input_ids": torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]]), "attention_mask": torch.ones(2, 4).long()}
    greedy = {"max_new_tokens": 4, "do_sample": False}
    want, answer = logits(base, plain), base.generate(**plain, **greedy)
    assert not torch.allclose(want, logits(testing.tiny_llm(family), plain))
    model = tsugiki.attach(base, name, **SMALL[name], **PARTS)
    wake(model)
    assert torch.equal(logits(model, plain), want)
    assert torch.equal(model.generate(**plain, **greedy), answer)
    batch = request(model, [[3, "i", 4], [6], [2, "i"]], side="left")
    other = request(model, [[3, "i", 4], [6], [2, "i"]], side="left", first_image=2)
    assert not torch.allclose(logits(model, batch), logits(model, other))
    uncached = model.generate(**batch, **greedy, use_cache=False)
    assert torch.equal(model.generate(**batch, **greedy), uncached)
    assert torch.equal(model.generate(**batch, **greedy, cache_implementation="static"), uncached)
    model(**batch, labels=batch["input_ids"]).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.grafts.parameters())
    assert all(p.grad is None for p in base.parameters())
    assert torch.equal(logits(model.detach(), plain), want)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox", "opt", "gpt2"])
def test_the_decoder_is_described_as_without_the_adapter(family: str) -> None:
    plain = tsugiki.decoder.DecoderSpec(testing.tiny_llm(family))
    base = company(family)
    wrapped = tsugiki.decoder.DecoderSpec(base)
    assert wrapped.name == plain.name and wrapped.llm is base.get_base_model()
    assert (wrapped.block_kind, wrapped.attention_ends) == (plain.block_kind, plain.attention_ends)
    assert type(wrapped.norm) is type(plain.norm) and (wrapped.blocks[0].ffn is None) is (plain.blocks[0].ffn is None)
    assert [*lora.linear_modules(wrapped.blocks[0])] == [*lora.linear_modules(plain.blocks[0])]


def test_positions_are_not_shifted_by_padding() -> None:
    """A PeftModel's forward names fewer keywords than its LLM's."""
    model = tsugiki.attach(company("gpt2"), "projector", **PARTS)
    left, alone = (
        request(model, [[4, "i", 5], [4, "i", 20]], side="left"),
        request(model, [[4, "i", 5], [4, "i", 20]], side="right"),
    )
    length = int(alone["attention_mask"][0].sum())
    torch.testing.assert_close(logits(model, left)[0, -length:], logits(model, alone)[0, :length], rtol=0, atol=5e-5)


def test_lora_acts_on_the_output_after_the_companys() -> None:
    """y = (W + s' B' A') x + s B A x with both in place, and what the wrapper gives without the graft's."""
    base = company()
    model = tsugiki.attach(base, "lora", rank=4, targets=("q_proj",), **PARTS)
    wake(model)
    module: Any = base.get_base_model().model.layers[1].self_attn.q_proj
    assert isinstance(module, peft.tuners.lora.Linear)
    seen: list[tuple[Tensor, Tensor]] = []
    handle = module.register_forward_hook(lambda m, a, y: seen.append((a[0], y)))
    logits(model, request(model, [[3, "i", 4]]))
    handle.remove()
    x, y = seen[0]
    update = model.grafts[-1].layers["1"]["self_attn-q_proj"]
    a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
    whole = module.base_layer.weight + module.scaling["default"] * b @ a + 8 * update.up.weight @ update.down.weight
    torch.testing.assert_close(y, x @ whole.T, rtol=1e-4, atol=1e-4)


def test_chat() -> None:
    base = company()
    model = tsugiki.attach(base, "lora", rank=4, **PARTS)
    wake(model)
    tokenizer = PARTS["tokenizer"]
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "何ですか。"}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    with model.detached() as llm:
        out = llm.generate(**ids, max_new_tokens=6)
    want = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert model.chat("何ですか。", max_new_tokens=6) == want
    assert isinstance(model.chat("What?", images=testing.tiny_images(1), max_new_tokens=6), str)
    assert "".join(model.chat("何ですか。", max_new_tokens=6, stream=True)).strip() == want


# -- proof and identity ------------------------------------------------------------------------------------------------


def source(folder: Path) -> Any:
    testing.tiny_llm().save_pretrained(folder)
    testing.tiny_tokenizer().save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder)


def change(base: Any, how: str) -> None:
    if how == "merge":
        base.merge_adapter()
    elif how == "merge and unload":
        base.merge_and_unload()
    elif how == "disable":
        base.base_model.disable_adapter_layers()
    elif how == "scale":
        next(m for m in base.modules() if hasattr(m, "set_scale")).set_scale("default", 2.0)
    elif how == "another adapter":
        base.add_adapter("other", peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
        base.set_adapter("other")
    else:
        next(p for n, p in base.named_parameters() if "lora_B" in n).data.add_(0.1)


CHANGES = ["merge", "merge and unload", "disable", "scale", "another adapter", "train"]


@pytest.mark.parametrize("stored", [True, False], ids=["from files", "without files"])
def test_verify_holds_and_a_changed_adapter_is_found(name: str, stored: bool, tmp_path: Path) -> None:
    base = company(llm=source(tmp_path) if stored else None)
    model = tsugiki.attach(base, name, **SMALL[name], **PARTS)
    wake(model)
    found = proof.verify(model, **QUICK)
    assert found.holds, proof.describe(found)
    change(base, "train")
    failed = {c.name for c in proof.verify(model, **QUICK).checks if not c.holds}
    assert "tensors" in failed


@pytest.mark.parametrize("how", CHANGES)
def test_every_change_of_the_adapter_is_found_by_verify(how: str, tmp_path: Path) -> None:
    base = company(llm=source(tmp_path))
    model = tsugiki.attach(base, "lora", rank=4, **PARTS)
    change(base, how)
    assert "tensors" in {c.name for c in proof.verify(model, **QUICK).checks if not c.holds}


@pytest.mark.parametrize("how", CHANGES)
def test_every_change_of_the_adapter_is_refused_by_load(how: str, tmp_path: Path) -> None:
    base = company(llm=source(tmp_path / "base"))
    model = tsugiki.attach(base, "projector", **PARTS)
    model.save(tmp_path / "graft")
    model.detach()
    unloaded = base.merge_and_unload() if how == "merge and unload" else base
    if unloaded is base:
        change(base, how)
    with pytest.raises(BaseMismatchError, match="adapter differs|differs"):
        tsugiki.load(tmp_path / "graft", base=unloaded, **PARTS)


def test_saved_and_loaded_onto_the_same_adapter_from_its_files(name: str, tmp_path: Path) -> None:
    base = company(llm=source(tmp_path / "base"))
    base.save_pretrained(tmp_path / "adapter")
    model = tsugiki.attach(base, name, **SMALL[name], **PARTS)
    wake(model)
    inputs = request(model, [[3, "i", 4]])
    want = logits(model, inputs)
    model.save(tmp_path / "graft")
    llm = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    again = tsugiki.load(tmp_path / "graft", base=peft.PeftModel.from_pretrained(llm, tmp_path / "adapter"), **PARTS)
    assert torch.equal(logits(again, inputs), want)
    assert proof.verify(again, **QUICK).holds
    with pytest.raises(BaseMismatchError, match="an adapter of PEFT, no adapter"):
        tsugiki.load(tmp_path / "graft", **PARTS)  # the source's files alone are another base


def test_an_adapters_hash_is_of_what_it_does() -> None:
    base = company()
    before = identity.peft_hash(base)
    base.train()
    base.requires_grad_(False)
    assert identity.peft_hash(base) == before == identity.peft_hash(company())
    with base.disable_adapter():
        assert identity.peft_hash(base) != before
    assert identity.peft_hash(base) == before


def test_grafts_stack_on_it_and_to_peft_names_the_llms_modules(tmp_path: Path) -> None:
    model = tsugiki.attach(company(), "wings", rank=4, width=64, **PARTS)
    model = tsugiki.attach(model, "lora", rank=4)
    wake(model)
    assert proof.verify(model, **QUICK).holds
    lora.to_peft(model.graft("lora"), model.decoder, tmp_path)
    _, state = lora.from_peft(tmp_path, testing.tiny_llm())
    assert all(torch.equal(t, model.graft("lora").state_dict()[n]) for n, t in state.items())


def test_a_recipe_trains_on_it(tmp_path: Path) -> None:
    base = company(llm=source(tmp_path / "base"))
    model = tsugiki.attach(base, "lora", rank=4, **PARTS)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    options = {"overrides": ["steps=2", "batch_size=2", "warmup=0"], "features": cache(model, tmp_path)}
    train(model, "lora", tmp_path / "run", data=samples(4), progress=False, **options)
    changed = {n.split(".")[0] for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"frontend", "grafts"}
    assert proof.verify(model, **QUICK).holds


# -- what can't be -----------------------------------------------------------------------------------------------------


def test_virtual_tokens_are_refused() -> None:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    base = peft.get_peft_model(testing.tiny_llm(), config)
    with pytest.raises(UnsupportedError, match="PROMPT_TUNING.*tokens of its own"):
        tsugiki.attach(base, "projector", **PARTS)


def test_it_stays_frozen_and_is_not_exported_whole(tmp_path: Path) -> None:
    model = tsugiki.attach(company(), "projector", **PARTS)
    with pytest.raises(UnsupportedError, match="merge_and_unload"):
        model.freeze_llm(False)
    assert model.guarantee == "exact"
    with pytest.raises(UnsupportedError, match="merge_and_unload"):
        model.export(tmp_path / "all")
    assert not (tmp_path / "all").exists()
    with pytest.raises(RecipeError, match="merge_and_unload") as caught:
        parts.check(model, {"llm": 1e-5}, where="stages.0")
    assert isinstance(caught.value, TsugikiError)
