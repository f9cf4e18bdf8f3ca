"""tsugiki.mix against sums written out, and its refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tsugiki
from tsugiki import store
from tsugiki.data.files import sha256_file
from tsugiki.errors import BaseMismatchError, InputError, StoreError
from tsugiki.mixing import _base
from tsugiki.mixing.linear import average, mix
from tsugiki.testing import TinyTower, tiny_llm, tiny_model, tiny_tokenizer


def saved(folder: Path, name: str, *, noise: int = 0, graft: str = "cross_attention", **options: Any) -> Path:
    """A tiny graft whose trained weights are moved by seeded noise."""
    model = tiny_model(graft, **options)
    generator = torch.Generator().manual_seed(noise)
    with torch.no_grad():
        for parameter in (*model.grafts.parameters(), *model.frontend.projector.parameters()):
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return Path(model.save(folder / name))


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    return saved(tmp_path, "a", noise=1), saved(tmp_path, "b", noise=2)


def test_average_is_the_sum_written_out(two: tuple[Path, Path], tmp_path: Path) -> None:
    out = tsugiki.mix(two, [0.25, 0.75], tmp_path / "mixed")
    a, b, mixed = (load_file(folder / "model.safetensors") for folder in (*two, out))
    assert mixed.keys() == a.keys()
    for name, tensor in mixed.items():
        for x, y, z in zip(a[name].flatten()[:50], b[name].flatten()[:50], tensor.flatten()[:50], strict=True):
            assert float(z) == pytest.approx(0.25 * float(x) + 0.75 * float(y), rel=1e-6, abs=1e-7)


def test_all_weight_on_one_graft_gives_it_back_bit_for_bit(two: tuple[Path, Path], tmp_path: Path) -> None:
    out = mix(two, [0.0, 1.0], tmp_path / "mixed")
    b, mixed = load_file(two[1] / "model.safetensors"), load_file(out / "model.safetensors")
    assert all(torch.equal(b[k], v) for k, v in mixed.items())
    old, new = (json.loads((f / "config.json").read_text())["tsugiki"] for f in (two[1], out))
    assert old["graft_sha256"] == new["graft_sha256"]


def test_three_grafts_and_an_extrapolation(two: tuple[Path, Path], tmp_path: Path) -> None:
    third = saved(tmp_path, "c", noise=3)
    out = mix([*two, third], [1.0, 0.5, -0.5], tmp_path / "mixed", extrapolate=True)
    a, b, c, mixed = (load_file(f / "model.safetensors") for f in (*two, third, out))
    for name, tensor in mixed.items():
        torch.testing.assert_close(tensor, a[name] + 0.5 * b[name] - 0.5 * c[name])


def test_the_result_is_a_graft_that_loads_and_says_what_it_is_made_of(two: tuple[Path, Path], tmp_path: Path) -> None:
    out = mix(two, [0.5, 0.5], tmp_path / "mixed")
    facts = json.loads((out / "config.json").read_text())["tsugiki"]
    assert facts["mixed"]["weights"] == [0.5, 0.5]
    assert [s["name"] for s in facts["mixed"]["sources"]] == ["a", "b"]
    assert facts["weights_sha256"] == sha256_file(out / "model.safetensors")
    assert "| a | 0.5 |" in (out / "README.md").read_text()
    model = tsugiki.load(out, base=tiny_llm(), tokenizer=tiny_tokenizer(), vision=TinyTower())
    stored = load_file(out / "model.safetensors")
    own = dict(model.named_parameters())
    assert all(torch.equal(own[name], stored[name]) for name in stored if name in own)


def test_sums_are_taken_in_fp32() -> None:
    parts = [torch.full((4,), v, dtype=torch.float16) for v in (2048.0, 1.0, 1.0)]
    # In fp16, 2048 + 1 = 2048: only a wider sum sees both ones.
    assert average(parts, [1.0, 1.0, 1.0]).tolist() == [2050.0] * 4
    assert average(parts, [1.0, 1.0, 1.0]).dtype == torch.float16


def test_whole_numbers_must_be_the_same() -> None:
    same = torch.tensor([1, 2])
    assert torch.equal(average([same, same.clone()], [0.5, 0.5]), same)
    with pytest.raises(InputError, match="whole numbers that differ"):
        average([same, same + 1], [0.5, 0.5], "table")


@pytest.mark.parametrize("weights", [[0.5, 0.6], [0.5], [float("nan"), 1.0], [1.0, float("inf")]])
def test_weights_that_do_not_sum_to_one(weights: list[float], two: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mix\(weights\)"):
        mix(two, weights, tmp_path / "mixed")
    assert not (tmp_path / "mixed").exists()


def test_another_base_is_refused(tmp_path: Path) -> None:
    one, other = saved(tmp_path, "a"), saved(tmp_path, "b", seed=1)
    with pytest.raises(BaseMismatchError, match="made for"):
        mix([one, other], [0.5, 0.5], tmp_path / "mixed")


def test_another_graft_or_setting_is_refused_by_name(tmp_path: Path) -> None:
    one, other = saved(tmp_path, "a"), saved(tmp_path, "b", graft="projector")
    with pytest.raises(InputError, match="grafts"):
        mix([one, other], [0.5, 0.5], tmp_path / "mixed")
    setting = saved(tmp_path, "c", every=2)
    with pytest.raises(InputError, match=r"grafts\.0\.config\.every is 4 .* and 2"):
        mix([one, setting], [0.5, 0.5], tmp_path / "mixed")


def seal(folder: Path) -> None:
    """As if the weights that are there had been saved."""
    settings = json.loads((folder / "config.json").read_text())
    settings["tsugiki"]["weights_sha256"] = sha256_file(folder / "model.safetensors")
    (folder / "config.json").write_text(store.config_text(settings))


def test_a_damaged_graft_is_refused_in_one_line(two: tuple[Path, Path], tmp_path: Path) -> None:
    (two[1] / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(StoreError, match=r"b.model\.safetensors: the weights are not those"):
        mix(two, [0.5, 0.5], tmp_path / "mixed")


def test_another_shape_is_refused_by_name(two: tuple[Path, Path], tmp_path: Path) -> None:
    file = two[1] / "model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[0]
    tensors[name] = torch.zeros(3)
    save_file(tensors, file)
    seal(two[1])
    with pytest.raises(InputError, match=rf"{name} is \[.*\] in .*a and \[3\] in .*b"):
        mix(two, [0.5, 0.5], tmp_path / "mixed")


def test_fewer_than_two_no_graft_and_the_source_as_target(two: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two or more"):
        mix(two[:1], [1.0], tmp_path / "mixed")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match=r"config\.json"):
        mix([two[0], tmp_path / "empty"], [0.5, 0.5], tmp_path / "mixed")
    with pytest.raises(StoreError, match="another folder"):
        mix(two, [0.5, 0.5], two[0])


def test_a_method_is_its_file_and_its_signature() -> None:
    assert _base.get("linear") is mix
    assert mix.paper == "arXiv:2311.07575"  # type: ignore[attr-defined]

    def bare(folders, out):  # type: ignore[no-untyped-def]
        return out

    with pytest.raises(TypeError, match="with types"):
        _base.method(paper=None)(bare)


def test_tensors_that_are_equal_take_the_dtype_of_the_result(two: tuple[Path, Path], tmp_path: Path) -> None:
    first = tmp_path / "first"
    shutil.copytree(two[0], first)
    narrow = {k: v.bfloat16() for k, v in load_file(first / "model.safetensors").items()}
    save_file(narrow, first / "model.safetensors", metadata={"format": "pt"})
    seal(first)
    mixed = load_file(mix([first, two[1], two[1]], [0.0, 0.5, 0.5], tmp_path / "mixed") / "model.safetensors")
    b = load_file(two[1] / "model.safetensors")
    assert all(tensor.dtype == torch.bfloat16 and torch.equal(tensor, b[k].bfloat16()) for k, tensor in mixed.items())


def test_a_folder_that_holds_other_things_stays_as_it_is(two: tuple[Path, Path], tmp_path: Path) -> None:
    project, inside = tmp_path / "project", tmp_path / "runs" / "tower"
    (project / "base").mkdir(parents=True)
    (project / "base" / "data.txt").write_text("mine")
    with pytest.raises(StoreError, match="holds another model"):
        mix(two, [0.5, 0.5], project)
    shutil.copytree(two[0], inside)
    with pytest.raises(StoreError, match="holds one of the parents"):
        mix([inside, two[1]], [0.5, 0.5], inside.parent)
    assert (project / "base" / "data.txt").read_text() == "mine" and (inside / "model.safetensors").is_file()
