"""Identity: the same base is recognised in any form and place, another one is named by its first difference."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from tsugiki import identity, testing
from tsugiki.errors import StoreError


def saved(folder: Path, family: str = "llama", **options: Any) -> Path:
    testing.tiny_llm(family, **options).save_pretrained(folder)
    return folder


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **options)


def test_a_hash_covers_dtype_shape_and_bytes() -> None:
    x = torch.tensor([[1.0, 2.0]])
    written_out = hashlib.sha256(b"float32 [1, 2] " + x.numpy().tobytes()).hexdigest()
    assert identity.hash_tensor(x) == written_out
    assert identity.hash_tensor(x.T.contiguous().T) == written_out  # memory layout is no content
    others = [x.reshape(2, 1), x.double(), x.view(torch.int32), -x, x.bfloat16()]
    assert len({identity.hash_tensor(o) for o in others} | {written_out}) == 6
    assert identity.hash_tensor(torch.tensor(3)) != identity.hash_tensor(torch.tensor([3]))
    assert identity.hash_tensor(torch.zeros(0, 2)) != identity.hash_tensor(torch.zeros(2, 0))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", sorted(testing.FAMILIES))
def test_files_and_memory_have_the_same_hashes(family: str, tied: bool, tmp_path: Path) -> None:
    saved(tmp_path, family, tie_word_embeddings=tied)
    for dtype in (torch.float32, torch.bfloat16):
        llm = load(tmp_path, dtype=dtype)
        assert identity.stored_hashes(llm, tmp_path) == identity.tensor_hashes(llm)
        assert identity.against_source(llm, tmp_path) == ""
    found = identity.source_identity(llm, testing.tiny_tokenizer())
    assert found["source"] == str(tmp_path) and found["note"] == ""
    assert found["tensors_sha256"] == identity.digest(identity.tensor_hashes(tmp_path))


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    llm = testing.tiny_llm()
    llm.save_pretrained(tmp_path / "one")
    llm.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(identity.tensor_files(tmp_path / "many")) > 2
    assert identity.tensor_hashes(tmp_path / "one") == identity.tensor_hashes(tmp_path / "many")
    identity.tensor_files(tmp_path / "many")[0].unlink()
    with pytest.raises(StoreError, match="missing"):
        identity.tensor_hashes(tmp_path / "many")


def test_old_files_without_the_body_s_name_are_matched(tmp_path: Path) -> None:
    saved(tmp_path, "gpt2")
    llm = load(tmp_path)
    state = {n.removeprefix("transformer."): t for n, t in llm.state_dict().items() if n != "lm_head.weight"}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    llm = load(tmp_path)
    assert identity.stored_hashes(llm, tmp_path) == identity.tensor_hashes(llm)


def test_one_bit_is_found_and_named(tmp_path: Path) -> None:
    tokenizer = testing.tiny_tokenizer()
    llm = load(saved(tmp_path))
    before = identity.source_identity(llm, tokenizer)
    weight = llm.model.layers[2].mlp.up_proj.weight
    weight.data.view(torch.int32)[3, 4] ^= 1
    after = identity.source_identity(llm, tokenizer)
    assert after["source"] is None and "layers.2.mlp.up_proj" in after["note"]
    assert "model.layers.2.mlp.up_proj.weight" in identity.first_difference(before, after)


def test_an_llm_with_a_resized_vocabulary_is_not_its_source(tmp_path: Path) -> None:
    llm = load(saved(tmp_path))
    llm.resize_token_embeddings(300, mean_resizing=False)
    found = identity.source_identity(llm)
    assert found["source"] is None and "shape" in found["note"]


def test_another_form_is_the_same_base(tmp_path: Path) -> None:
    tokenizer = testing.tiny_tokenizer()
    a = identity.source_identity(load(saved(tmp_path)), tokenizer)
    b = identity.source_identity(load(tmp_path, dtype=torch.bfloat16), tokenizer)
    assert identity.first_difference(a, b) == "" and "float32 -> bfloat16" in identity.notice(a, b)
    tokenizer.chat_template += " "
    c = identity.source_identity(load(tmp_path), tokenizer)
    assert identity.first_difference(a, c) == "" and "chat template" in identity.notice(a, c)
    assert identity.notice(a, dict(a)) == ""


def test_another_tokenizer_is_another_base() -> None:
    llm, tokenizer = testing.tiny_llm(), testing.tiny_tokenizer()
    a = identity.source_identity(llm, tokenizer)
    tokenizer.add_tokens(["新しい"])
    assert identity.first_difference(a, identity.source_identity(llm, tokenizer)) == "the tokenizer differs"


def test_padding_and_truncation_of_a_tokenizer_are_no_content() -> None:
    tokenizer = testing.tiny_tokenizer()
    before = identity.tokenizer_hash(tokenizer)
    tokenizer(["a", "abc"], padding=True, truncation=True, max_length=2)
    tokenizer.padding_side = "left"
    assert identity.tokenizer_hash(tokenizer) == before


def test_a_missing_or_new_tensor_is_named() -> None:
    a = {"tensors_sha256": "1", "tensors": {"x": "1", "y": "2"}, "count": 2}
    b = {"tensors_sha256": "2", "tensors": {"x": "1"}, "count": 1}
    assert identity.first_difference(a, b) == "tensor y is missing"
    assert identity.first_difference(b, a) == "tensor y is new"
    assert "2 tensors expected, 1 found" in identity.first_difference({**a, "tensors": {}}, {**b, "tensors": {}})


def test_large_files_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSUGIKI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(identity, "CACHED_FROM", 0)
    folder = saved(tmp_path / "llm")
    first = identity.tensor_hashes(folder)
    calls: list[int] = []
    original = identity.hash_tensor
    monkeypatch.setattr(identity, "hash_tensor", lambda t: (calls.append(1), original(t))[1])
    assert identity.tensor_hashes(folder) == first and not calls
    load(folder)  # the form in memory is the stored one: nothing is hashed again
    assert identity.tensor_hashes(folder, dict.fromkeys(first, torch.float32)) == first and not calls
    assert identity.tensor_hashes(folder, dict.fromkeys(first, torch.float16)) != first and calls
    calls.clear()
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert identity.tensor_hashes(folder) == first and calls
    (next((tmp_path / "cache" / "hashes").iterdir())).write_text("{broken")
    assert identity.tensor_hashes(folder) == first


def test_a_folder_without_safetensors_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no safetensors"):
        identity.tensor_hashes(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not a tensor file")
    with pytest.raises(StoreError, match="safetensors") as error:
        identity.tensor_hashes(tmp_path)
    assert "\n" not in str(error.value)


def test_an_identity_is_json_and_finds_its_source_again(tmp_path: Path) -> None:
    llm = load(saved(tmp_path / "here"))
    found = json.loads(json.dumps(identity.source_identity(llm, testing.tiny_tokenizer())))
    assert identity.find_source(llm, found) == tmp_path / "here"
    (tmp_path / "here").rename(tmp_path / "there")
    moved = load(tmp_path / "there")
    assert identity.find_source(moved, found) == tmp_path / "there"
    assert identity.find_source(testing.tiny_llm(), found) is None


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's own
def test_every_kind_of_adapter_counts() -> None:
    peft = pytest.importorskip("peft")
    options = {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
    llm = peft.get_peft_model(testing.tiny_llm(), peft.IA3Config(**options))
    assert set(identity.llm_tensors(llm)) == set(identity.llm_tensors(testing.tiny_llm()))
    before = identity.peft_hash(llm)
    with torch.no_grad():
        next(p for n, p in llm.named_parameters() if "ia3" in n).add_(1.0)
    assert identity.peft_hash(llm) != before
