"""LoRA against its formula written out, what it leaves alone, which modules it takes, and PEFT's files both ways."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.grafts._requests import alone, in_parts, request, wake
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

import tsugiki
from tsugiki.errors import PromptError, StoreError, TsugikiError, UnknownNameError, UnsupportedError
from tsugiki.grafts import lora
from tsugiki.testing import TinyTower, tiny_llm, tiny_model, tiny_tokenizer
from tsugiki.types import BRANCHES

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's own
PARTS: dict[str, Any] = {"vision": TinyTower(), "tokenizer": tiny_tokenizer()}


def seeing(family: str = "llama", **options: Any) -> Any:
    model = tiny_model("lora", family, **{"rank": 4, **options})
    wake(model)
    return model


def logits(model: Any, inputs: dict[str, Tensor], **kwargs: Any) -> Tensor:
    with torch.no_grad():
        return model(**inputs, **kwargs).logits


def bare(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad(), model.detached() as llm:
        return llm(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits


def close(a: Tensor, b: Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# -- the formula -------------------------------------------------------------------------------------------------------


def written_out(x: Tensor, module: Any, update: lora.LowRank, scale: float) -> Tensor:
    """y[t, o] = sum_i W[o, i] x[t, i] + b[o] + s * sum_r B[o, r] * sum_i A[r, i] x[t, i], in loops."""
    w = module.weight if isinstance(module, nn.Linear) else module.weight.T
    a, b = update.down.weight, update.up.weight
    out = torch.zeros(len(x), len(w), dtype=torch.float64)
    for t in range(len(x)):
        code = [sum(float(p) * float(q) for p, q in zip(row, x[t], strict=True)) for row in a]
        for o in range(len(w)):
            y = sum(float(p) * float(q) for p, q in zip(w[o], x[t], strict=True))
            y += 0.0 if module.bias is None else float(module.bias[o])
            out[t, o] = y + scale * sum(float(p) * q for p, q in zip(b[o], code, strict=True))
    return out


@pytest.mark.parametrize(
    ("family", "options", "scale"),
    [
        ("llama", {}, 32 / 4),
        ("qwen2", {"alpha": 3.0}, 3 / 4),
        ("gpt2", {"alpha": 4, "use_rslora": True}, 4 / math.sqrt(4)),
        ("opt", {"rank": 2, "alpha": 5.0, "use_rslora": True}, 5 / math.sqrt(2)),
    ],
)
def test_equals_the_formula_written_out(family: str, options: dict[str, Any], scale: float) -> None:
    model = seeing(family, **options).double()
    graft, seen = model.grafts[-1], {}
    assert graft.scale == scale
    model.requires_grad_(False)
    places = lora.chosen(graft.config, model.decoder)
    handles = [m.register_forward_hook(lambda m, a, y, key=(i, p): seen.update({key: (a[0], y)})) for i, p, m in places]
    inputs = request(model, [[1, "i", 2]])
    inputs["pixel_values"] = inputs["pixel_values"].double()
    logits(model, inputs)
    [h.remove() for h in handles]
    assert len(seen) == len(places) == len([m for m in graft.modules() if isinstance(m, lora.LowRank)])
    for index, path, module in places:
        if index == 1:
            x, y = (v.reshape(-1, v.shape[-1])[-2:] for v in seen[index, path])
            close(y, written_out(x, module, graft.layers["1"][path.replace(".", "-")], scale), 1e-10)


# -- what it leaves alone ----------------------------------------------------------------------------------------------


def test_claims() -> None:
    model = tiny_model("lora", rank=4)
    assert (model.guarantee, model.how, model.prefix_exact, model.on_text) == ("exact", "switched", False, False)


def test_nothing_runs_on_text() -> None:
    model = seeing()
    calls: list[int] = []
    for module in model.grafts[-1].modules():
        if isinstance(module, lora.LowRank):
            module.register_forward_hook(lambda *_: calls.append(1))
    text, image = request(model, [[7], [4]]), request(model, [[3, "i", 5]])
    assert torch.equal(logits(model, text), bare(model, text)) and not calls
    assert not torch.allclose(logits(model, image)[:, :3], bare(model, image)[:, :3])
    assert len(calls) == 4 * 7


def test_trained_weights_change_requests_with_an_image_alone() -> None:
    model = tiny_model("lora", rank=4)
    text, image = request(model, [[7], [4]]), request(model, [[3, "i", 5]])
    before = logits(model, text), logits(model, image)
    optimiser = torch.optim.SGD(model.grafts.parameters(), lr=0.5)
    for _ in range(2):
        model.train()
        model(**image, labels=image["input_ids"]).loss.backward()
        optimiser.step()
    model.eval()
    assert torch.equal(logits(model, text), before[0])
    assert not torch.allclose(logits(model, image), before[1], atol=1e-4)


def test_a_row_without_an_image_is_the_bases_in_a_batch_with_pictures() -> None:
    model = seeing()
    batch = request(model, [[3, "i", 4], [9], [2, "i", 3]])
    assert torch.equal(logits(model, batch)[1, :9], bare(model, batch)[1, :9])


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("rows", [[[9, "i", 4]], [[9, "i", 4], [12]]])
def test_a_prompt_read_in_parts_knows_that_a_picture_comes(rows: Any, beams: int) -> None:
    model = seeing()
    inputs = request(model, rows, side="left")
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "num_beams": beams}
    whole = model.generate(**inputs, **options)
    assert torch.equal(model.generate(**inputs, **options, prefill_chunk_size=4), whole)
    assert torch.equal(model.generate(**inputs, **options, use_cache=False), whole)


def test_a_batch_read_in_parts_is_told_whose_picture_comes() -> None:
    model = seeing()
    inputs = request(model, [[6, "i", 5], [6, "i", 5]])
    coming = torch.full((2,), BRANCHES["image"])
    close(in_parts(model, inputs, (4,), branch=coming), logits(model, inputs), 5e-5)


def test_a_row_of_a_cache_that_gets_its_first_picture_is_refused() -> None:
    model = seeing()
    inputs = request(model, [[3, "i", 4], [11 + model.tokens_per_image]])
    late = request(model, [[3, "i"], [3, "i"]])
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).cache
    late["attention_mask"] = torch.cat([inputs["attention_mask"], late["attention_mask"]], 1)
    with pytest.raises(PromptError, match="gets its first one.*Encode the conversation again"):
        model(**late, cache=cache, use_cache=True)


def test_dropout_acts_while_the_graft_trains() -> None:
    model = seeing(dropout=0.5)
    inputs = request(model, [[3, "i", 5]])
    assert torch.equal(logits(model, inputs), logits(model, inputs))
    model.train()
    assert not torch.equal(logits(model, inputs), logits(model, inputs))
    model.adjust("lora", dropout=0.0)
    assert torch.equal(logits(model, inputs), logits(model, inputs))


# -- which modules -----------------------------------------------------------------------------------------------------


def paths(model: Any) -> set[str]:
    return {p for _, p, _ in lora.chosen(model.grafts[-1].config, model.decoder)}


@pytest.mark.parametrize(
    ("family", "want"),
    [
        ("llama", "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj mlp.gate_proj mlp.up_proj "
         "mlp.down_proj"),
        ("phi3", "self_attn.qkv_proj self_attn.o_proj mlp.gate_up_proj mlp.down_proj"),
        ("gpt_neox", "attention.query_key_value attention.dense mlp.dense_h_to_4h mlp.dense_4h_to_h"),
        ("opt", "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.out_proj fc1 fc2"),
        ("gpt2", "attn.c_attn attn.c_proj mlp.c_fc mlp.c_proj"),
    ],
)  # fmt: skip
def test_attention_and_ffn_by_structure(family: str, want: str) -> None:
    assert paths(seeing(family)) == set(want.split())


def test_names_as_in_peft() -> None:
    model = seeing(targets=["q_proj", "mlp.up_proj"], layers=[0, 2])
    assert paths(model) == {"self_attn.q_proj", "mlp.up_proj"} and set(model.grafts[-1].layers) == {"0", "2"}
    whole = seeing(targets=("model.layers.1.self_attn.v_proj",))
    assert [n for n, _ in whole.grafts[-1].named_parameters()] == [
        "layers.1.self_attn-v_proj.down.weight",
        "layers.1.self_attn-v_proj.up.weight",
    ]
    assert paths(seeing("gpt2", targets=("c_proj",))) == {"attn.c_proj", "mlp.c_proj"}


def test_parts_are_both_sides_and_all_of_it() -> None:
    graft = seeing().grafts[-1]
    parts = graft.parts()
    assert set(parts) == {"down", "up"} and all(n.endswith("up.weight") for n in parts["up"])
    assert sorted(n for names in parts.values() for n in names) == sorted(n for n, _ in graft.named_parameters())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"targets": ("qproj",)}, "lora.targets.*'qproj'.*k_proj.*Did you mean 'q_proj'"),
        ({"targets": ("lm_head",)}, "lora.targets.*lm_head"),
        ({"targets": "q_proj"}, "lora.targets.*a list of names"),
        ({"targets": ()}, "lora.targets"),
        ({"targets": (3,)}, "lora.targets.*a list of names"),
        ({"targets": 3}, "lora.targets.*a list of names"),
        ({"targets": ("model.layers.1.self_attn.v_proj",), "layers": (0,)}, "lora.targets.*no linear module"),
        ({"layers": (4,)}, "lora.layers.*from 0 to 3"),
        ({"layers": (1, 1)}, "lora.layers"),
        ({"layers": ()}, "lora.layers"),
        ({"rank": 0}, "lora.rank"),
        ({"rank": True}, "lora.rank"),
        ({"alpha": float("nan")}, "lora.alpha"),
        ({"alpha": "32"}, "lora.alpha"),
        ({"alpha": -1.0}, "lora.alpha"),
        ({"dropout": 1.0}, "lora.dropout"),
        ({"dropout": -0.1}, "lora.dropout"),
    ],
)
def test_a_wrong_setting_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(TsugikiError, match=said) as caught:
        tiny_model("lora", **options)
    assert "\n" not in str(caught.value)


class Int8Linear(nn.Module):
    """A linear module without a float weight, as quantisers make them."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scale = float(linear.weight.detach().abs().max()) / 127
        self.register_buffer("qweight", (linear.weight.detach() / self.scale).round().to(torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.qweight.to(x.dtype) * self.scale).T


def test_a_quantised_llm() -> None:
    """Other methods than the output's never touch the module, whatever its weight is."""
    llm = tiny_llm()
    for layer in llm.model.layers:
        layer.mlp.up_proj = Int8Linear(layer.mlp.up_proj)
    model = tsugiki.attach(llm, "lora", rank=4, **PARTS)
    assert "mlp.up_proj" in paths(model)
    wake(model)
    text, image = request(model, [[7]]), request(model, [[3, "i", 5]])
    assert torch.equal(logits(model, text), bare(model, text))
    model(**image, labels=image["input_ids"]).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.grafts[-1].parameters())


@pytest.mark.parametrize("family", ["falcon", "gptj", "bloom", "stablelm", "phi", "mixtral", "qwen2_moe"])
def test_any_family_is_exact_on_text(family: str) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 272, "n_head": 4}
    sizes |= {"n_embd": 32, "n_layer": 2, "rotary_dim": 4, "intermediate_size": 48, "pad_token_id": 0}
    sizes |= {"num_key_value_heads": 4, "num_local_experts": 4, "num_experts": 4, "moe_intermediate_size": 16}
    sizes |= {"shared_expert_intermediate_size": 16}
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes)).eval()
    model = tsugiki.attach(llm, "lora", rank=2, **PARTS)
    wake(model)
    batch = request(model, [[4, "i", 5], [3, "i"]])
    labels = batch["input_ids"].clone()
    model(**batch, labels=labels).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.grafts[-1].parameters())
    single, where = alone(batch, 1, "right")
    close(logits(model, batch)[1:, where], logits(model, single), 5e-5)
    text = request(model, [[7], [4]])
    assert torch.equal(logits(model, text), bare(model, text))


# -- saved, and PEFT's files -------------------------------------------------------------------------------------------


def test_saved_and_loaded(tmp_path: Path) -> None:
    model = seeing(layers=(0, 2), targets=("q_proj",), use_rslora=True, alpha=3)
    inputs = request(model, [[4, "i", 5]])
    want = logits(model, inputs)
    model.save(tmp_path / "graft")
    again = tsugiki.load(tmp_path / "graft", base=model.detach(), **PARTS)
    assert torch.equal(logits(again, inputs), want) and again.grafts[-1].scale == 1.5


def through_peft(model: Any, folder: Path, family: str, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits of the model, and those of PEFT's on the embeddings that the model's LLM reads."""
    seen: list[Tensor] = []
    handle = model.decoder.embed.register_forward_hook(lambda m, a, out: seen.append(out))
    own = logits(model, inputs)
    handle.remove()
    twin = peft.PeftModel.from_pretrained(tiny_llm(family), folder).eval()
    with torch.no_grad():
        return own, twin(inputs_embeds=seen[0], attention_mask=inputs["attention_mask"]).logits


BOTH = [
    ("llama", {}),
    ("llama", {"alpha": 3.5, "use_rslora": True}),
    ("qwen3", {"targets": ("q_proj", "down_proj"), "layers": (1, 2), "alpha": 5.0}),
    ("gemma2", {"use_rslora": True, "rank": 2}),
    ("phi3", {}),
    ("opt", {"alpha": 1.0}),
    ("gpt2", {"use_rslora": True}),
    ("gpt2", {"targets": ("attn.c_proj",)}),
]


@pytest.mark.parametrize(("family", "options"), BOTH)
def test_peft_reads_what_it_writes(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = seeing(family, **options)
    folder = lora.to_peft(model.grafts[-1], model.decoder, tmp_path / "adapter")
    assert sorted(p.name for p in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    own, theirs = through_peft(model, folder, family, request(model, [[4, "i", 6], [7, "i", 3]]))
    close(own, theirs)
    assert not torch.allclose(own, bare(model, request(model, [[4, "i", 6], [7, "i", 3]])), atol=1e-2)


@pytest.mark.parametrize(("family", "options"), BOTH)
def test_it_reads_what_peft_writes(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    names = {"alpha": "lora_alpha", "rank": "r", "targets": "target_modules", "layers": "layers_to_transform"}
    given = {names.get(k, k): list(v) if isinstance(v, tuple) else v for k, v in options.items()}
    given = {"r": 4, "target_modules": "all-linear", "fan_in_fan_out": family == "gpt2", **given}
    config = peft.LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.1, init_lora_weights=False, **given)
    peft.get_peft_model(tiny_llm(family), config).save_pretrained(tmp_path)
    llm = tiny_llm(family)
    settings, state = lora.from_peft(tmp_path, llm)
    assert settings.dropout == 0.1 and settings.layers == options.get("layers")
    model = tsugiki.attach(llm, "lora", **dataclasses.asdict(settings), **PARTS)
    model.graft("lora").load_state_dict(state)
    own, theirs = through_peft(model, tmp_path, family, request(model, [[4, "i", 6], [7, "i", 3]]))
    close(own, theirs)


def test_there_and_back_is_the_same(tmp_path: Path) -> None:
    model = seeing(layers=(0, 3), targets=("q_proj", "mlp.up_proj"), use_rslora=True, dropout=0.25)
    graft = model.grafts[-1]
    config, state = lora.from_peft(lora.to_peft(graft, model.decoder, tmp_path), model.language_model)
    assert dataclasses.replace(config, targets=graft.config.targets) == graft.config
    assert set(config.targets or ()) == {"self_attn.q_proj", "mlp.up_proj"}
    own = graft.state_dict()
    assert set(state) == set(own) and all(torch.equal(state[k], own[k]) for k in own)


def test_modules_that_differ_by_layer_keep_their_whole_names(tmp_path: Path) -> None:
    names = ("model.layers.0.self_attn.q_proj", "model.layers.2.mlp.up_proj")
    model = seeing(targets=names)
    folder = lora.to_peft(model.grafts[-1], model.decoder, tmp_path)
    assert json.loads((folder / "adapter_config.json").read_text())["target_modules"] == list(names)
    config, _ = lora.from_peft(folder, model.language_model)
    assert config.targets == names and config.layers is None
    close(*through_peft(model, folder, "llama", request(model, [[4, "i", 6]])))


def saved_by_peft(folder: Path, **options: Any) -> Path:
    config = peft.LoraConfig(**{"r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **options})
    peft.get_peft_model(tiny_llm("qwen2"), config).save_pretrained(folder, save_embedding_layers=False)
    return folder


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"use_dora": True}, "use_dora = True.*PeftModel"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "lora_only"}, "bias = 'lora_only'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'.*path_initial_model"),
        ({"init_lora_weights": "olora"}, "init_lora_weights = 'olora'"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head has a low-rank update"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"task_type": "FEATURE_EXTRACTION"}, "task_type"),
    ],
)
def test_what_a_plain_lora_is_not_is_refused(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = saved_by_peft(tmp_path, **options)
    with pytest.raises(UnsupportedError, match=said) as caught:
        lora.from_peft(folder, tiny_llm())
    assert "\n" not in str(caught.value) and caught.value.fix


@pytest.mark.parametrize("setting", [{"lora_bias": True}, {"a_later_idea": {"strength": 1}}])
def test_a_setting_that_is_not_known_is_refused_where_it_says_something(
    setting: dict[str, Any], tmp_path: Path
) -> None:
    file = saved_by_peft(tmp_path) / "adapter_config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, **dict.fromkeys(setting)}))
    assert lora.from_peft(tmp_path, tiny_llm())[0].rank == 4
    file.write_text(json.dumps({**content, **setting}))
    with pytest.raises(UnsupportedError, match=next(iter(setting))):
        lora.from_peft(tmp_path, tiny_llm())


def test_another_method_of_peft_is_refused(tmp_path: Path) -> None:
    config = peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
    peft.get_peft_model(tiny_llm(), config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match="peft_type = 'IA3'"):
        lora.from_peft(tmp_path, tiny_llm())


def test_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    folder = saved_by_peft(tmp_path / "adapter")
    weights, settings = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    with pytest.raises(StoreError, match=r"self_attn.q_proj: A \[4, 32\].*\[4, 64\]"):
        lora.from_peft(folder, tiny_llm(hidden_size=64))
    with pytest.raises(UnsupportedError, match="no linear module of a layer of GPT2"):
        lora.from_peft(folder, tiny_llm("gpt2"))
    content = json.loads(settings.read_text())
    for wrong in ({"r": "x"}, {"r": None}, {"lora_alpha": None}):
        settings.write_text(json.dumps({**content, **wrong}))
        with pytest.raises(StoreError, match=f"{next(iter(wrong))} = .*expected a number"):
            lora.from_peft(folder, tiny_llm())
    settings.write_text(json.dumps(content))
    tensors = load_file(weights)
    first = min(tensors)
    save_file({k: v for k, v in tensors.items() if k != first}, weights)
    with pytest.raises(StoreError, match="only one of A and B"):
        lora.from_peft(folder, tiny_llm())
    save_file(tensors | {"base_model.model.lm_head.weight": torch.zeros(2)}, weights)
    with pytest.raises(UnsupportedError, match=r"lm_head.weight is no A or B"):
        lora.from_peft(folder, tiny_llm())
    weights.write_bytes(b"{}")
    with pytest.raises(StoreError, match="not a safetensors file"):
        lora.from_peft(folder, tiny_llm())
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(StoreError, match="pickle"):
        lora.from_peft(folder, tiny_llm())
    settings.write_text("{}")
    with pytest.raises(StoreError, match="no settings of an adapter"):
        lora.from_peft(folder, tiny_llm())
    with pytest.raises(StoreError, match=r"no adapter_config.json"):
        lora.from_peft(tmp_path / "nowhere", tiny_llm())


def test_an_unknown_target_is_an_unknown_name() -> None:
    with pytest.raises(UnknownNameError) as caught:
        tiny_model("lora", "gpt2", targets=("q_proj",))
    assert "c_attn, c_fc, c_proj" in str(caught.value)
