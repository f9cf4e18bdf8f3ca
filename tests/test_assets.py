"""Fetching with a pip that is a function of the test; the wheel is made here. Real assets at the end."""

from __future__ import annotations

import base64
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tsugiki import _gguf, _wheels, assets
from tsugiki.errors import AssetError, UnknownNameError

FILES = {"toy/data.txt": b"words", "toy/deep/pixels.bin": bytes(range(256)) * 40}
METADATA = {
    "toy_wheel-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: toy-wheel\nVersion: 1.0\nRequires-Dist: nil\n",
    "toy_wheel-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: toy\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
}
EVERYTHING = len(FILES) + len(METADATA)
REFUSED = "connection broken by 'NewConnectionError(\"Failed to establish a new connection\")'"
RUN_PIP = _wheels.run_pip
NOT_THERE = "ERROR: No matching distribution found for toy-wheel==1.0"


def make_wheel(file: Path, files: dict[str, bytes]) -> tuple[str, str]:
    """Write a wheel; the SHA-256 of it and of its RECORD."""

    def digest(data: bytes) -> str:
        return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")

    files = files | METADATA
    record = "".join(f"{name},sha256={digest(data)},{len(data)}\n" for name, data in files.items())
    record += "toy_wheel-1.0.dist-info/RECORD,,\n"
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr("toy_wheel-1.0.dist-info/RECORD", record)
    return hashlib.sha256(file.read_bytes()).hexdigest(), hashlib.sha256(record.encode()).hexdigest()


class FakePip:
    """Copies a wheel instead of downloading it, or fails as it is told."""

    def __init__(self, wheel: Path) -> None:
        self.wheel, self.calls, self.failure = wheel, 0, (0, "")
        self.arguments: list[str] = []
        self.before: Callable[[], object] = lambda: None

    def __call__(self, arguments: list[str], *, temporary: Path) -> tuple[int, str]:
        self.calls, self.arguments = self.calls + 1, arguments
        self.before()
        if not self.failure[0]:
            shutil.copy(self.wheel, arguments[arguments.index("--dest") + 1])
        return self.failure


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePip:
    """An asset "toy" in the table, an empty cache, and the pip that has its wheel."""
    wheel = tmp_path / "toy_wheel-1.0-py3-none-any.whl"
    sha256, record = make_wheel(wheel, FILES)
    toy = assets.Asset(
        name="toy", kind="text", package="toy-wheel", version="1.0", licence="MIT", sha256=sha256, record=record,
        size=wheel.stat().st_size, unpacked=sum(map(len, FILES.values())), note="",
    )  # fmt: skip
    monkeypatch.setitem(assets.ASSETS, "toy", toy)
    monkeypatch.setenv("TSUGIKI_CACHE", str(tmp_path / "cache"))
    fake = FakePip(wheel)
    monkeypatch.setattr(_wheels, "run_pip", fake)
    return fake


def leftovers(folder: Path) -> list[str]:
    return [str(f) for f in folder.rglob("*") if ".tmp-" in f.name or f.suffix == ".whl"]


def test_fetched_once(pip: FakePip, tmp_path: Path) -> None:
    assert not assets.is_fetched("toy")
    told: list[str] = []
    folder = assets.fetch("toy", told.append)
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert "toy-wheel==1.0" in told[0]
    assert assets.is_fetched("toy")
    assert assets.fetch("toy") == assets.path("toy") == Path(assets.resolve("toy")) == folder
    assert pip.calls == 1
    assert {"--no-deps", "--only-binary", "toy-wheel==1.0"} <= set(pip.arguments)
    assert folder.is_relative_to(tmp_path / "cache")
    assert leftovers(tmp_path / "cache") == []


def test_another_file_than_the_pinned_one(pip: FakePip, tmp_path: Path) -> None:
    make_wheel(pip.wheel, {"toy/data.txt": b"other words"})
    found = hashlib.sha256(pip.wheel.read_bytes()).hexdigest()
    with pytest.raises(AssetError, match=found) as error:
        assets.fetch("toy")
    assert assets.ASSETS["toy"].sha256 in str(error.value)
    assert not assets.is_fetched("toy")
    assert leftovers(tmp_path / "cache") == []


@pytest.mark.parametrize(
    ("stderr", "says"),
    [
        (f"WARNING: {REFUSED}\n{NOT_THERE}", r"no connection to the package index.*network.*PIP_FIND_LINKS"),
        (NOT_THERE, r"the package index does not have it.*PIP_INDEX_URL"),
        ("python: No module named pip", r"no pip.*ensurepip"),
        ("OSError: [Errno 28] No space left on device: '/x'", r"the disk of .* is full.*TSUGIKI_CACHE"),
        (
            "ERROR: first\nERROR: the last line",
            r"pip failed: ERROR: the last line.*pip download --no-deps toy-wheel==1\.0",
        ),
        ("", r"pip failed: no message"),
    ],
)
def test_pip_fails(pip: FakePip, stderr: str, says: str) -> None:
    pip.failure = (1, stderr)
    with pytest.raises(AssetError, match=says) as error:
        assets.fetch("toy")
    assert "\n" not in str(error.value)
    assert not assets.is_fetched("toy")


def test_pip_that_says_yes_and_brings_nothing(pip: FakePip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_wheels, "run_pip", lambda *_, **__: (0, ""))
    with pytest.raises(AssetError, match="pip failed"):
        assets.fetch("toy")


def test_the_real_pip(pip: FakePip, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The messages that are read above are those of the installed pip; a folder of wheels serves without a network."""
    monkeypatch.setattr(_wheels, "run_pip", RUN_PIP)
    for variable in [v for v in os.environ if v.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setattr(_wheels, "_PIP", _wheels._PIP.replace("--retries 3", "--retries 1"))
    with pytest.raises(AssetError, match="no connection to the package index"):
        assets.fetch("toy")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(AssetError, match="does not have it"):
        assets.fetch("toy")
    monkeypatch.setenv("PIP_FIND_LINKS", str(pip.wheel.parent))
    assets.fetch("toy")
    assert assets.verify("toy") == EVERYTHING
    assert leftovers(tmp_path / "cache") == []


def test_full_disk_is_seen_before_the_download(pip: FakePip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(AssetError, match=r"is full; expected \d+ MB free"):
        assets.fetch("toy")
    assert pip.calls == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_while_unpacking(pip: FakePip, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int) -> None:
    def full(self: zipfile.ZipFile, to: Path) -> None:
        to.mkdir()
        (to / "half").write_bytes(b"x")
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(zipfile.ZipFile, "extractall", full)
    with pytest.raises(AssetError, match=r"is full.*Make room"):
        assets.fetch("toy")
    assert not assets.is_fetched("toy")
    assert leftovers(tmp_path / "cache") == []


def test_cache_that_can_not_be_written(pip: FakePip, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("TSUGIKI_CACHE", str(tmp_path / "file"))
    with pytest.raises(AssetError, match=r"can't write to .*Set TSUGIKI_CACHE"):
        assets.fetch("toy")


@pytest.mark.parametrize("name", ["../out", "toy/../../out", "/out", "c:\\out", "..\\out", "link"])
def test_members_outside_of_the_folder(tmp_path: Path, name: str) -> None:
    wheel = tmp_path / "bad.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        member = zipfile.ZipInfo(name)
        member.external_attr = 0o120777 << 16 if name == "link" else 0o644 << 16
        archive.writestr(member, "/etc")
    with pytest.raises(AssetError, match="outside of its folder"):
        _wheels.unzip(wheel, tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_not_a_zip_file(tmp_path: Path) -> None:
    (tmp_path / "bad.whl").write_bytes(b"<html>")
    with pytest.raises(AssetError, match="not a wheel"):
        _wheels.unzip(tmp_path / "bad.whl", tmp_path / "to")


def test_names(pip: FakePip, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(AssetError, match=r"Run: tsugiki assets fetch toy"):
        assets.path("toy")
    with pytest.raises(UnknownNameError, match="Did you mean 'smollm2-135m-instruct'"):
        assets.fetch("smollm2-135m-instuct")
    with pytest.raises(UnknownNameError, match="LLM asset"):
        assets.llm_folder("toy")
    for name in ["google/siglip2-base-patch16-256", "gpt2", str(tmp_path), "./toy"]:
        assert assets.resolve(name) == name
    with pytest.raises(UnknownNameError, match="efficientnet-lite0"):
        assets.resolve("efficientnet_lite0")
    with pytest.raises(AssetError, match="not in the cache"):  # HF_HUB_OFFLINE is set in tests
        assets.resolve("toy")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert Path(assets.resolve("toy")).is_dir()


def test_cache_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TSUGIKI_CACHE", raising=False)
    assert assets.cache_dir() == Path.home() / ".cache" / "tsugiki"
    monkeypatch.setenv("TSUGIKI_CACHE", "~/elsewhere")
    assert assets.cache_dir() == Path.home() / "elsewhere"


def test_verify(pip: FakePip) -> None:
    with pytest.raises(AssetError, match="not in the cache"):
        assets.verify("toy")
    folder = assets.fetch("toy")
    assert assets.verify("toy") == EVERYTHING
    file, record = folder / "toy/deep/pixels.bin", folder / "toy_wheel-1.0.dist-info/RECORD"
    for damaged in (file, record):
        good = damaged.read_bytes()
        damaged.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(AssetError, match=rf"{damaged.name}.*Delete that folder.*tsugiki assets fetch toy"):
            assets.verify("toy")
        damaged.write_bytes(good)
    assert assets.verify("toy") == EVERYTHING
    file.unlink()
    with pytest.raises(AssetError, match=r"pixels\.bin"):
        assets.verify("toy")


def test_the_table_is_whole() -> None:
    for name, asset in assets.ASSETS.items():
        assert asset.name == name
        assert len(asset.sha256) == len(asset.record) == 64
        assert 0 < asset.size <= asset.unpacked
        assert asset.licence
        assert asset.note
    assert {"smollm2-135m-instruct", "efficientnet-lite0", "fabric", "openmoji", "wiki"} <= set(assets.ASSETS)


# --- several at once, and one that is killed ---


def test_several_fetch_at_once(pip: FakePip, tmp_path: Path) -> None:
    gate = threading.Barrier(4)
    pip.before = gate.wait  # all have found an empty cache
    folders: list[Path] = []
    threads = [threading.Thread(target=lambda: folders.append(assets.fetch("toy"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 4
    assert len(set(folders)) == 1
    assert assets.verify("toy") == EVERYTHING
    assert leftovers(tmp_path / "cache") == []


PROGRAM = """
import shutil, sys, time, types
from pathlib import Path
package = types.ModuleType("tsugiki")  # the modules alone, without what tsugiki/__init__ imports
package.__path__ = [sys.argv[1]]
sys.modules["tsugiki"] = package
from tsugiki import _wheels
wheel, target, flag = (Path(argument) for argument in sys.argv[2:5])
sha256, seconds = sys.argv[5], float(sys.argv[6])
def pip(arguments, *, temporary):
    shutil.copy(wheel, temporary)
    flag.touch()
    time.sleep(seconds)
    return 0, ""
_wheels.run_pip = pip
with _wheels.staging(target, need=1) as work:
    _wheels.unzip(_wheels.download("toy-wheel==1.0", sha256, work), work / "content")
    _wheels.publish(work / "content", target)
"""


@pytest.fixture
def start(pip: FakePip, tmp_path: Path) -> Iterator[Callable[[str, float], subprocess.Popen[bytes]]]:
    """Fetch "toy" in another process that says by a file when it is in the middle, and stays there for some seconds."""
    running: list[subprocess.Popen[bytes]] = []

    def run(flag: str, seconds: float) -> subprocess.Popen[bytes]:
        toy = assets.ASSETS["toy"]
        target = assets.cache_dir() / "assets" / f"toy-{toy.sha256[:12]}"
        arguments = [Path(_wheels.__file__).parent, pip.wheel, target, tmp_path / flag, toy.sha256, seconds]
        running.append(subprocess.Popen([sys.executable, "-W", "error", "-c", PROGRAM, *map(str, arguments)]))
        end = time.monotonic() + 30
        while not (tmp_path / flag).exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        return running[-1]

    yield run
    for process in running:
        process.kill()
        process.wait()


def test_two_processes(start: Callable[[str, float], subprocess.Popen[bytes]]) -> None:
    first, second = start("one", 0.5), start("two", 0.3)
    assert first.wait(30) == second.wait(30) == 0
    assert assets.verify("toy") == EVERYTHING


def test_a_killed_process(start: Callable[[str, float], subprocess.Popen[bytes]], tmp_path: Path) -> None:
    process = start("killed", 60)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    assert not assets.is_fetched("toy")
    (left,) = (assets.cache_dir() / "assets").glob(".tmp-*")
    assets.fetch("toy")
    assert assets.verify("toy") == EVERYTHING
    assert left.exists()  # it could still be at work
    os.utime(left, (0, 0))
    shutil.rmtree(assets.path("toy"))
    assets.fetch("toy")
    assert not left.exists()


# --- GGUF ---


def write_gguf(file: Path) -> None:
    """A random Llama of two layers and a byte-level tokenizer, quantised as the real asset is."""
    width, heads, words, rng = 64, 4, 320, np.random.default_rng(0)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count(heads)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_vocab_size(words)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "ab"]
    tokens += [f"<unused{i}>" for i in range(words - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (words - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{% for m in messages %}{{ m['role'] + m['content'] + '<|im_end|>' }}{% endfor %}")
    shapes = {"token_embd": (words, width), "output_norm": (width,)}
    for i in range(2):
        shapes |= {f"blk.{i}.attn_norm": (width,), f"blk.{i}.ffn_norm": (width,)}
        shapes |= {f"blk.{i}.attn_q": (width, width), f"blk.{i}.attn_output": (width, width)}
        shapes |= {f"blk.{i}.attn_k": (width // 2, width), f"blk.{i}.attn_v": (width // 2, width)}
        shapes |= {f"blk.{i}.ffn_gate": (96, width), f"blk.{i}.ffn_up": (96, width), f"blk.{i}.ffn_down": (width, 96)}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape).astype(np.float32) * 0.1
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", values)
        else:
            kind = gguf.GGMLQuantizationType.Q4_1
            writer.add_tensor(f"{name}.weight", gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def toy_llm(pip: FakePip, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> bytes:
    """The asset "toy" is an LLM; the bytes of its GGUF."""
    write_gguf(tmp_path / "toy.gguf")
    data = (tmp_path / "toy.gguf").read_bytes()
    sha256, record = make_wheel(pip.wheel, {"toy/toy.gguf": data})
    toy = dataclasses.replace(assets.ASSETS["toy"], kind="llm", sha256=sha256, record=record)
    monkeypatch.setitem(assets.ASSETS, "toy", toy)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    return data


def test_llm_folder(toy_llm: bytes) -> None:
    folder = assets.llm_folder("toy")
    card = json.loads((folder / "card.json").read_text())
    assert card["gguf_sha256"] == hashlib.sha256(toy_llm).hexdigest()
    assert (card["licence"], card["dtype"], card["gguf"]) == ("MIT", "float32", "toy.gguf")
    written = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    assert written <= set(card["files"])
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())

    llm = AutoModelForCausalLM.from_pretrained(folder)
    assert llm.dtype == torch.float32
    assert llm.config.tie_word_embeddings
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "userhi<|im_end|>"
    assert tokenizer.model_max_length == 128
    assert GenerationConfig.from_pretrained(folder).eos_token_id == tokenizer.eos_token_id == 2
    # the weights are those that gguf's own code makes of the file
    reader = gguf.GGUFReader(assets.path("toy") / "toy/toy.gguf")
    stored = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    ours = llm.state_dict()
    np.testing.assert_array_equal(ours["model.embed_tokens.weight"], stored["token_embd.weight"])
    np.testing.assert_array_equal(ours["model.layers.1.mlp.down_proj.weight"], stored["blk.1.ffn_down.weight"])

    assert assets.llm_folder("toy") == folder == Path(assets.resolve("toy"))
    assert assets.verify("toy") == 1 + len(METADATA) + len(card["files"])
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(AssetError, match=r"model\.safetensors"):
        assets.verify("toy")
    (folder / "card.json").write_text("{")
    with pytest.raises(AssetError, match=r"card\.json"):
        assets.verify("toy")


def test_a_conversion_that_changes_the_llm_is_not_kept(toy_llm: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = iter([torch.zeros(1), torch.full((1,), 0.5)])
    monkeypatch.setattr(_gguf, "_logits", lambda *_: next(numbers))
    with pytest.raises(AssetError, match=r"differs from toy\.gguf by 5\.00e-01"):
        assets.llm_folder("toy")
    assert not any((assets.cache_dir() / "llm").iterdir())


def test_full_disk_while_converting(toy_llm: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(_gguf, "convert", full)
    with pytest.raises(AssetError, match="is full"):
        assets.llm_folder("toy")


@pytest.mark.assets("smollm2-135m-instruct")
@pytest.mark.slow
def test_the_real_llm() -> None:
    folder = assets.llm_folder("smollm2-135m-instruct")
    assert assets.verify("smollm2-135m-instruct") > 10
    (source,) = assets.path("smollm2-135m-instruct").rglob("*.gguf")
    bare = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32).eval()
    ours = AutoModelForCausalLM.from_pretrained(folder).eval()
    texts = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    talk = [{"role": "user", "content": "机の上に何がありますか。 <|im_end|>"}]
    prompt = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    assert prompt == texts.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    assert ids.tolist() == texts(prompt, return_tensors="pt").input_ids.tolist()
    with torch.no_grad():
        assert torch.equal(bare(ids).logits, ours(ids).logits)
    assert ours.generation_config.eos_token_id == bare.generation_config.eos_token_id


@pytest.mark.assets("fabric", "openmoji", "wiki")
def test_the_real_data() -> None:
    photographs = list(assets.path("fabric").rglob("*.jpg"))
    assert len(photographs) == 2000
    assert len(list(assets.path("openmoji").rglob("*.svg"))) == 4495
    assert assets.verify("wiki") == 14
