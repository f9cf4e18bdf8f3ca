"""tsugiki.mix over plain LLMs, exports, grafts whose LLM was trained, and their base."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.mixing._folders import llm, trained
from transformers import AutoModelForCausalLM

import tsugiki
from tsugiki import identity, store
from tsugiki.errors import BaseMismatchError, InputError, StoreError
from tsugiki.mixing import linear
from tsugiki.mixing.linear import mix
from tsugiki.testing import TinyTower

FILE = "model.safetensors"


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {k: t for file in identity.tensor_files(folder) for k, t in load_file(file).items()}


def raw(file: Path) -> bytes:
    """The bytes of all tensors of a file, in their order."""
    content = file.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


@pytest.fixture(scope="module")
def llms(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("llms")
    return [llm(folder / name, noise=i) for i, name in enumerate("abc")]


@pytest.fixture(scope="module")
def grafts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base, and two grafts whose LLM was trained; the words of the base are tied."""
    folder = tmp_path_factory.mktemp("grafts")
    base = llm(folder / "base", tie_word_embeddings=True)
    return [base, *(trained(folder / name, base, noise=i) for i, name in enumerate("ab", 1))]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(weights=st.lists(st.integers(0, 20), min_size=3, max_size=3).filter(any))
def test_llms_are_averaged_as_written_out(llms: list[Path], tmp_path: Path, weights: list[int]) -> None:
    out = mix(llms, weights, tmp_path / "mixed", normalise=True)
    given, mixed = [tensors(folder) for folder in llms], tensors(out)
    assert mixed.keys() == given[0].keys()
    for name, tensor in mixed.items():
        for i in range(0, tensor.numel(), 97):
            total = sum(w * float(g[name].flatten()[i].double()) for w, g in zip(weights, given, strict=True))
            assert float(tensor.flatten()[i]) == pytest.approx(total / sum(weights), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_fp32(tmp_path: Path, dtype: torch.dtype) -> None:
    folders = [llm(tmp_path / name, noise=i, dtype=dtype) for i, name in enumerate("abc", 1)]
    mixed = tensors(mix(folders, [0.2, 0.3, 0.5], tmp_path / "mixed"))
    a, b, c = (tensors(folder) for folder in folders)
    for name, tensor in mixed.items():
        exact = 0.2 * a[name].double() + 0.3 * b[name].double() + 0.5 * c[name].double()
        assert tensor.dtype == dtype
        # One rounding to the dtype, at the end: half a step from the exact sum, and what fp32 loses of the terms.
        step = torch.finfo(dtype).eps * exact.abs().clamp_min(torch.finfo(dtype).tiny)
        lost = 1e-7 * (a[name].double().abs() + b[name].double().abs() + c[name].double().abs())
        assert ((tensor.double() - exact).abs() <= 0.5 * step + lost).all()


@pytest.mark.parametrize("weights", [[1.0, 0.0], [0.0, 1.0]])
def test_all_weight_copies_the_bytes(llms: list[Path], tmp_path: Path, weights: list[float]) -> None:
    out = mix(llms[:2], weights, tmp_path / "mixed")
    assert raw(out / FILE) == raw(llms[weights.index(1.0)] / FILE)


def test_all_weight_copies_the_bytes_of_another_dtype_and_of_what_is_not_a_number(tmp_path: Path) -> None:
    a, b = llm(tmp_path / "a"), llm(tmp_path / "b", noise=1, dtype=torch.float16)
    changed = load_file(b / FILE)
    changed["model.norm.weight"][:4] = torch.tensor([float("nan"), float("inf"), -0.0, 1e-7], dtype=torch.float16)
    save_file(changed, b / FILE, metadata={"format": "pt"})
    assert raw(mix([a, b], [0.0, 1.0], tmp_path / "mixed") / FILE) == raw(b / FILE)


def test_what_is_the_same_in_all_stays_so(llms: list[Path], tmp_path: Path) -> None:
    out = mix([llms[1], llms[1], llms[1]], [0.1, 0.2, 0.7], tmp_path / "mixed")
    assert raw(out / FILE) == raw(llms[1] / FILE)


def test_the_result_loads_and_says_what_it_is_made_of(llms: list[Path], tmp_path: Path) -> None:
    out = mix(llms[:2], [0.3, 0.7], tmp_path / "mixed", parts={"llm.layers.0-1": 1.0})
    loaded = AutoModelForCausalLM.from_pretrained(out)
    first = AutoModelForCausalLM.from_pretrained(llms[0])
    assert torch.equal(loaded.model.layers[1].mlp.up_proj.weight, first.model.layers[1].mlp.up_proj.weight)
    assert not torch.equal(loaded.model.layers[2].mlp.up_proj.weight, first.model.layers[2].mlp.up_proj.weight)
    record = json.loads((out / "mix.json").read_text())
    assert [s["sha256"] for s in record["sources"]] == [
        identity.digest(identity.tensor_hashes(folder)) for folder in llms[:2]
    ]
    assert record["tensors_sha256"] == identity.digest(identity.tensor_hashes(out))
    assert record["parts"] == {"llm.layers.0-1": [1.0, 0.0]}
    card = (out / "README.md").read_text()
    assert "| a | 0.3 |" in card and "`llm.layers.0-1`: 1, 0" in card
    assert (out / "tokenizer.json").read_bytes() == (llms[0] / "tokenizer.json").read_bytes()


def test_several_files_stay_several_and_may_be_cut_otherwise(llms: list[Path], tmp_path: Path) -> None:
    cut = llm(tmp_path / "cut", shards=True)
    out = mix([cut, llms[1]], [0.5, 0.5], tmp_path / "mixed")
    names = {file.name for file in identity.tensor_files(cut)}
    assert len(names) > 2 and {file.name for file in identity.tensor_files(out)} == names
    assert not (out / FILE).exists()
    whole = tensors(mix([llms[0], llms[1]], [0.5, 0.5], tmp_path / "whole"))
    mixed = tensors(out)
    assert all(torch.equal(mixed[name], tensor) for name, tensor in whole.items())
    AutoModelForCausalLM.from_pretrained(out)


def test_blocks_do_not_show(llms: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = mix(llms[:2], [0.3, 0.7], tmp_path / "whole")
    monkeypatch.setattr(linear, "BLOCK", 7)
    assert (mix(llms[:2], [0.3, 0.7], tmp_path / "cut") / FILE).read_bytes() == (whole / FILE).read_bytes()


# --- grafts whose LLM was trained, and their base ---


def test_trained_llms_are_mixed_and_the_hash_is_the_models(grafts: list[Path], tmp_path: Path) -> None:
    base, a, b = grafts
    out = mix([a, b], [0.25, 0.75], tmp_path / "mixed")
    model = tsugiki.load(out, base=base, vision=TinyTower())
    assert model.guarantee == "bounded"
    facts = json.loads((out / "config.json").read_text())["tsugiki"]
    assert store.graft_sha256(model) == facts["graft_sha256"]
    assert facts["graft_sha256"] in (out / "README.md").read_text()


def test_the_base_pulls_the_llm_and_leaves_the_rest(grafts: list[Path], tmp_path: Path) -> None:
    base, a, b = grafts
    out = mix(["base", a, b], [0.5, 0.125, 0.375], tmp_path / "mixed")
    x, y, z, mixed = tensors(base), load_file(a / FILE), load_file(b / FILE), load_file(out / FILE)
    assert any(name.startswith("language_model.") for name in mixed)
    for name, tensor in mixed.items():
        if name.startswith("language_model."):
            wanted = 0.5 * x[name.removeprefix("language_model.")] + 0.125 * y[name] + 0.375 * z[name]
        else:
            wanted = 0.25 * y[name] + 0.75 * z[name]
        torch.testing.assert_close(tensor, wanted)
    sources = json.loads((out / "config.json").read_text())["tsugiki"]["mixed"]["sources"]
    assert [s["name"] for s in sources] == ["base", "a", "b"]
    assert sources[0]["sha256"] == identity.digest(identity.tensor_hashes(base))


def test_the_base_alone_gives_the_llm_back_bit_for_bit(grafts: list[Path], tmp_path: Path) -> None:
    base, a, b = grafts
    own, source = load_file(mix([a, "base"], [0.0, 1.0], tmp_path / "mixed") / FILE), tensors(base)
    for name, tensor in own.items():
        there = source[name.removeprefix("language_model.")] if name.startswith("language_model.") else None
        assert torch.equal(tensor, load_file(a / FILE)[name] if there is None else there)
    with pytest.raises(InputError, match=r"the base has all the weight, and it has no frontend\.projector.*--part"):
        mix(["base", a, b], [1.0, 0.0, 0.0], tmp_path / "none")
    parts = {"frontend": [0, 0.5, 0.5]}
    mix(["base", a, b], [1.0, 0.0, 0.0], tmp_path / "parts", parts=parts)


def test_a_base_that_is_not_theirs_or_has_nothing_to_give(grafts: list[Path], tmp_path: Path) -> None:
    base, a, b = grafts
    other = llm(tmp_path / "other", noise=9, tie_word_embeddings=True)
    with pytest.raises(BaseMismatchError, match="not for .*other: tensor .* differs"):
        mix(["base", a], [0.5, 0.5], tmp_path / "mixed", base=other)
    with pytest.raises(StoreError, match="no safetensors files here"):
        mix(["base", a], [0.5, 0.5], tmp_path / "mixed", base=tmp_path / "nowhere")
    with pytest.raises(InputError, match="base named twice"):
        mix(["base", a, "base"], [0.2, 0.3, 0.5], tmp_path / "mixed")
    frozen = tmp_path / "frozen"
    tsugiki.load(mix([a, b], [0.5, 0.5], tmp_path / "m"), base=base, vision=TinyTower())
    model = tsugiki.attach(AutoModelForCausalLM.from_pretrained(base), "projector", vision=TinyTower())
    model.save(frozen)
    with pytest.raises(InputError, match="left the LLM as it was"):
        mix(["base", frozen], [0.5, 0.5], tmp_path / "mixed")
    with pytest.raises(InputError, match="llm_trained is true in .*a and false in"):
        mix([a, frozen], [0.5, 0.5], tmp_path / "mixed")


def test_the_base_of_plain_llms_is_named(llms: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="do not say what their base is"):
        mix(["base", llms[1]], [0.5, 0.5], tmp_path / "mixed")
    out = mix(["base", llms[1]], [0.5, 0.5], tmp_path / "mixed", base=llms[0])
    assert raw(out / FILE) == raw(mix(llms[:2], [0.5, 0.5], tmp_path / "same") / FILE)


def test_exports_become_an_export(grafts: list[Path], tmp_path: Path) -> None:
    base = grafts[0]
    a, b = (trained(tmp_path / name, base, noise=i, full=True) for i, name in enumerate("ab", 1))
    out = mix([a, b], [0.5, 0.5], tmp_path / "mixed")
    model = tsugiki.load(out, vision=TinyTower())
    inside = AutoModelForCausalLM.from_pretrained(out / "base")
    for (name, own), other in zip(model.language_model.named_parameters(), inside.parameters(), strict=True):
        assert torch.equal(own, other), name
    (tmp_path / "plain").mkdir()
    plain = mix([a, grafts[2]], [0.5, 0.5], tmp_path / "plain" / "mixed")
    assert not (plain / "base").exists()
    assert "exported" not in json.loads((plain / "config.json").read_text())["tsugiki"]


# --- refusals ---


def changed(folder: Path, **fields: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    return folder


def test_llms_that_differ_are_refused_by_the_first_difference(llms: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "mixed"
    with pytest.raises(BaseMismatchError, match=r"config\.rms_norm_eps is 1e-06 and 0\.5"):
        mix([llms[0], changed(llm(tmp_path / "eps"), rms_norm_eps=0.5)], [0.5, 0.5], out)
    words = llm(tmp_path / "words")
    tokenizer = json.loads((words / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["new"] = len(tokenizer["model"]["vocab"])
    (words / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(BaseMismatchError, match="the tokenizer differs"):
        mix([llms[0], words], [0.5, 0.5], out)
    lacking = llm(tmp_path / "lacking")
    state = load_file(lacking / FILE)
    del state["model.layers.1.mlp.up_proj.weight"], state["model.layers.2.mlp.up_proj.weight"]
    save_file(state, lacking / FILE)
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.up_proj\.weight is .* in .*a and absent in .*lacking"):
        mix([llms[0], lacking], [0.5, 0.5], out)
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.up_proj\.weight is absent in .*lacking and"):
        mix([lacking, llms[0]], [0.5, 0.5], out)
    shaped = llm(tmp_path / "shaped")
    save_file({**load_file(shaped / FILE), "model.norm.weight": torch.ones(3)}, shaped / FILE)
    with pytest.raises(InputError, match=r"model\.norm\.weight is \[32\] in .*a and \[3\] in .*shaped"):
        mix([llms[0], shaped], [0.5, 0.5], out)
    assert not out.exists()


def test_an_llm_and_a_graft_are_not_mixed(llms: list[Path], grafts: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is an LLM and .* is a graft"):
        mix([llms[0], grafts[1]], [0.5, 0.5], tmp_path / "mixed")


def test_a_folder_with_other_files_is_not_overwritten(llms: list[Path], tmp_path: Path) -> None:
    out = llm(tmp_path / "other")
    before = raw(out / FILE)
    with pytest.raises(StoreError, match="holds other files"):
        mix(llms[:2], [0.5, 0.5], out)
    assert raw(out / FILE) == before
    first = raw(mix(llms[:2], [0.5, 0.5], tmp_path / "mixed") / FILE)
    assert raw(mix(llms[:2], [0.2, 0.8], tmp_path / "mixed") / FILE) != first


def test_whole_numbers_have_to_be_the_same(llms: list[Path], tmp_path: Path) -> None:
    folders = [llm(tmp_path / name, noise=i) for i, name in enumerate("ab")]
    for i, folder in enumerate(folders):
        save_file({**load_file(folder / FILE), "model.table": torch.tensor([1, i])}, folder / FILE)
    with pytest.raises(InputError, match=r"model\.table holds whole numbers that differ"):
        mix(folders, [0.5, 0.5], tmp_path / "mixed")
    assert [p.name for p in tmp_path.iterdir() if p.name not in "ab"] == []
    assert tensors(mix(folders, [0.0, 1.0], tmp_path / "mixed"))["model.table"].tolist() == [1, 1]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_killed_half_way_leaves_the_old_mix_whole(llms: list[Path], tmp_path: Path) -> None:
    out = mix(llms[:2], [0.2, 0.8], tmp_path / "mixed")
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    command = [sys.executable, "-m", "tests.mixing._killed", *map(str, (*llms[:2], out))]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    with safe_open(out / FILE, framework="pt") as opened:
        assert len(opened.keys()) == len(tensors(llms[0]))
