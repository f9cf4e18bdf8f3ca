"""The streamed safetensors file read by the library."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from tsugiki import identity
from tsugiki.mixing._writer import Entry, write

NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64", torch.bool: "BOOL"}


def entry(name: str, tensor: torch.Tensor, size: int = 3) -> Entry:
    flat = tensor.reshape(-1)
    return Entry(name, NAMES[tensor.dtype], tensor, lambda: (flat[i : i + size] for i in range(0, len(flat), size)))


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.text("ab.Ω接", min_size=1, max_size=6),
        st.tuples(st.sampled_from(list(NAMES)), st.lists(st.integers(0, 4), max_size=3)),
        min_size=1,
        max_size=6,
    )
)
def test_the_library_reads_the_file(
    tmp_path_factory: pytest.TempPathFactory, forms: dict[str, tuple[torch.dtype, list[int]]]
) -> None:
    folder = tmp_path_factory.mktemp("files")
    tensors = {name: (7 * torch.randn(shape)).to(dtype) for name, (dtype, shape) in forms.items()}
    hashes = write(folder / "ours", [entry(name, tensor) for name, tensor in tensors.items()])
    read = load_file(folder / "ours")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and read[name].shape == tensor.shape
        assert identity.hash_tensor(read[name]) == identity.hash_tensor(tensor) == hashes[name]


def test_wide_tensors_come_first_and_the_format_is_said(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(3, dtype=torch.bool), "b": torch.ones(2, dtype=torch.float16), "c": torch.ones(1)}
    write(tmp_path / "f", [entry(name, tensor) for name, tensor in tensors.items()])
    with safe_open(tmp_path / "f", framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}
        assert list(opened.offset_keys()) == ["c", "b", "a"]
