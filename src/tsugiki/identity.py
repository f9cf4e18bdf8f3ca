"""Which language model is this? SHA-256 of every tensor, as the source checkpoint's files store it.

A tensor's hash covers dtype, shape and raw bytes. Files are read tensor by tensor through safetensors' memory map, and
their hashes are kept in the cache folder under path, size and time of change. An LLM without source files, or one that
was changed after loading, is hashed as it is in memory.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tsugiki.assets import cache_dir
from tsugiki.data.files import atomic_write
from tsugiki.decoder import is_peft, unwrapped
from tsugiki.errors import StoreError

logger = logging.getLogger("tsugiki")

Identity = dict[str, Any]

CACHED_FROM = 2**22
"""Bytes: a smaller file is hashed faster than its hashes are kept."""
SHORT = 16  # hex digits of a tensor's hash inside an identity: enough to name the first difference
_PROBE = (
    'The quick brown fox, aged 42, said: "it\'s 3.14!"\n\n\tdef f(x): return x**2  # ok\r\n'
    "接ぎ木は、古い木に新しい目を与える。 Ünïcödé — “quotes” 🙂 <|im_start|> <image> </s>"
)
VOLATILE = {
    "_name_or_path", "transformers_version", "dtype", "torch_dtype", "_commit_hash", "use_cache", "architectures",
    "_attn_implementation", "_from_model_config", "output_attentions", "output_hidden_states", "return_dict",
}  # fmt: skip


def hash_tensor(tensor: Tensor) -> str:
    """SHA-256 of dtype, shape and raw bytes. A quantised tensor is the hash of the plain tensors that it is made of."""
    if hasattr(tensor, "__tensor_flatten__") and type(tensor) not in (Tensor, nn.Parameter):
        names, context = tensor.__tensor_flatten__()
        inner = [f"{name}:{hash_tensor(getattr(tensor, name))}" for name in names]
        return hash_text("\n".join([type(tensor).__name__, str(context), *inner]))
    plain = tensor.detach().cpu().contiguous()
    digest = tensor_digest(plain.dtype, plain.shape)
    digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return str(digest.hexdigest())


def tensor_digest(dtype: torch.dtype, shape: Sequence[int]) -> Any:
    """The start of `hash_tensor` for a tensor whose raw bytes come in pieces."""
    return hashlib.sha256(f"{_dtype(dtype)} {list(shape)} ".encode())


def hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def hash_json(value: Any) -> str:
    """SHA-256 of the canonical JSON: sorted keys, no spaces."""
    return hash_text(json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str))


def digest(hashes: Mapping[str, str]) -> str:
    """One SHA-256 over sorted names and hashes."""
    return hash_text("\n".join(f"{name} {hashes[name]}" for name in sorted(hashes)))


def llm_tensors(llm: nn.Module) -> dict[str, Tensor]:
    """The LLM's own tensors under the names of its checkpoint: state dict without adapters of PEFT."""
    tensors = {}
    wrapped = is_peft(llm)
    for name, tensor in llm.state_dict().items():
        if not isinstance(tensor, Tensor) or (wrapped and _of_adapter(llm, name)):
            continue
        if wrapped:
            name = name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".original_module.", ".")
            if ".modules_to_save." in name:
                continue
        tensors[name] = tensor
    return tensors


def tied_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Name of each tensor -> first name of the same memory (itself where nothing is tied)."""
    first: dict[tuple[Any, ...], str] = {}
    return {name: first.setdefault(_memory(name, t), name) for name, t in tensors.items()}


def tensor_hashes(source: nn.Module | str | Path, dtypes: Mapping[str, torch.dtype] | None = None) -> dict[str, str]:
    """Hash of every tensor of an LLM in memory, or of a folder's safetensors files.

    Args:
        source: a module (tied weights are hashed once and keep all their names), or a folder or file.
        dtypes: for a folder, the dtype to which a tensor is cast before it is hashed; as stored where absent.

    Raises:
        StoreError: the folder holds no safetensors file, or a damaged one.
    """
    if isinstance(source, nn.Module):
        tensors = llm_tensors(source)
        tied = tied_names(tensors)
        once = {name: hash_tensor(tensors[name]) for name in dict.fromkeys(tied.values())}
        return {name: once[first] for name, first in tied.items()}
    hashes: dict[str, str] = {}
    for file in tensor_files(Path(source)):
        hashes.update(_file_hashes(file, dtypes or {}))
    return hashes


def tensor_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint: those of its index, or `model.safetensors`, or all there are.

    Raises:
        StoreError: there is none, or one that the index names is missing.
    """
    if folder.is_file():
        return [folder]
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():
        files = sorted({folder / name for name in json.loads(index.read_text())["weight_map"].values()})
        missing = [f.name for f in files if not f.exists()]
        if missing:
            raise StoreError(f"{missing[0]} is missing", expected=f"{len(files)} files of the index", where=str(folder))
        return files
    files = [single] if single.exists() else sorted(folder.glob("*.safetensors"))
    if not files:
        raise StoreError("no safetensors file", expected="model.safetensors or an index of several", where=str(folder))
    return files


def source_folder(name: str, revision: str | None = None) -> Path | None:
    """Folder with the safetensors files of a local folder or a hub id (its snapshot in the local cache), if any."""
    if not name:
        return None
    folder = Path(name)
    if not folder.is_dir():
        from transformers.utils.hub import cached_file

        try:
            found = cached_file(name, "config.json", revision=revision, local_files_only=True)
        except (OSError, ValueError):
            return None
        folder = Path(found).parent if found else folder
    try:
        tensor_files(folder)
    except StoreError:
        return None
    return folder.absolute()


def find_source(llm: nn.Module, base: Mapping[str, Any]) -> Path | None:
    """Folder of a recorded base's source: where it was, or where this LLM was loaded from. None if it has none."""
    if not base.get("source"):
        return None
    recorded = source_folder(str(base["source"]), base.get("revision"))
    return recorded or source_folder(*_loaded_from(llm))


def against_source(llm: nn.Module, folder: Path) -> str | None:
    """First tensor of the LLM that is not what the folder's files store (cast to the LLM's dtype); "" = all equal.

    None = the two can't be compared by name (quantised, or renamed while loading).
    """
    tensors = llm_tensors(llm)
    names, problem = _stored_names(tensors, folder)
    if names is None:
        return problem or None
    for file in _open(folder):
        for key in file.keys():  # noqa: SIM118 - not a dict
            stored = None
            for name in names.get(key, ()):
                stored = file.get_tensor(key) if stored is None else stored
                if not torch.equal(stored.to(tensors[name].dtype), tensors[name].detach().cpu()):
                    return name
    return ""


def stored_tensors(llm: nn.Module, folder: Path) -> Iterator[tuple[str, Tensor]] | None:
    """The folder's tensors one by one, as stored, under their names in the LLM (each of a tied one's names).

    None = the two can't be compared by name.
    """
    names, _ = _stored_names(llm_tensors(llm), folder)
    if names is None:
        return None
    found = names
    return (
        (name, tensor)
        for file in _open(folder)
        for key in file.keys()  # noqa: SIM118 - not a dict
        if key in found
        for tensor in (file.get_tensor(key),)
        for name in found[key]
    )


def stored_hashes(llm: nn.Module, folder: Path) -> dict[str, str] | None:
    """What `tensor_hashes(llm)` has to be if the LLM is its source: the files' tensors in the LLM's dtypes and names.

    None = the two can't be compared by name.
    """
    tensors = llm_tensors(llm)
    names, _ = _stored_names(tensors, folder)
    if names is None:
        return None
    hashes = tensor_hashes(folder, {key: tensors[group[0]].dtype for key, group in names.items()})
    return {name: hashes[key] for key, group in names.items() for name in group}


def source_identity(llm: nn.Module, tokenizer: Any = None) -> Identity:
    """Who the base is: hashes of its tensors, configs, tokenizer and template, and where they came from.

    `source` is None where there are no source files, or where the LLM is not what they store any more; then the
    tensors are hashed as they are in memory. `tensors` holds the first 16 digits of each tensor's hash.
    """
    config, (name, revision) = _config(llm), _loaded_from(llm)
    folder, note = source_folder(name, revision), ""
    if folder is not None and (changed := against_source(llm, folder)):
        folder, note = None, f"changed after it was loaded from {name}: {changed}"
    if folder is None:
        tied = tied_names(llm_tensors(llm))
        hashes = {name: value for name, value in tensor_hashes(llm).items() if tied[name] == name}
    else:
        hashes = tensor_hashes(folder)
    quantised = getattr(config, "quantization_config", None)
    return {
        "name": name or type(unwrapped(llm)).__name__,
        "source": None if folder is None else name,
        "revision": revision,
        "tensors_sha256": digest(hashes),
        "count": len(hashes),
        "tensors": {name: value[:SHORT] for name, value in sorted(hashes.items())},
        "dtype": _dtype(next((p.dtype for p in llm.parameters() if p.is_floating_point()), torch.float32)),
        "quantisation": None if quantised is None else hash_json(quantised)[:SHORT],
        "config_sha256": hash_json(_plain(config)),
        "tokenizer_sha256": None if tokenizer is None else tokenizer_hash(tokenizer),
        "chat_template_sha256": template_hash(tokenizer),
        "generation_config_sha256": generation_hash(llm),
        "transformers": transformers.__version__,
        "gguf_sha256": _gguf_hash(folder),
        "peft": peft_hash(llm),
        "note": note,
    }


def tokenizer_hash(tokenizer: Any) -> str:
    """Vocabulary, special tokens and the ids of a fixed text: the same in every version of the tokenizers library."""
    content = [sorted(tokenizer.get_vocab().items()), tokenizer.special_tokens_map, tokenizer(_PROBE)["input_ids"]]
    return hash_json(content)


def template_hash(tokenizer: Any) -> str | None:
    template = getattr(tokenizer, "chat_template", None)
    return None if template is None else hash_json(template)


def generation_hash(llm: nn.Module) -> str | None:
    config = getattr(unwrapped(llm), "generation_config", None)
    return None if config is None else hash_json(_plain(config))


def peft_hash(llm: nn.Module) -> str | None:
    """Digest of the adapter's tensors and of how they act if the LLM is a PeftModel, else None."""
    if not is_peft(llm):
        return None
    state = {n: t for n, t in llm.state_dict().items() if ".modules_to_save." in n or _of_adapter(llm, n)}
    configs = {name: c.to_dict() for name, c in llm.peft_config.items()}  # type: ignore[union-attr, operator]
    hashes = {name: hash_tensor(t) for name, t in state.items()}
    # What PEFT can switch without touching a tensor: merged, disabled, chosen and scaled adapters.
    switches = ("merged_adapters", "disable_adapters", "active_adapters", "scaling")
    acting = [[n, *(getattr(m, s, None) for s in switches)] for n, m in llm.named_modules() if hasattr(m, "base_layer")]
    return hash_json([digest(hashes), {k: v.get("r") for k, v in configs.items()}, acting])


def first_difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """The first thing in which two bases differ, as a sentence; "" if a graft of one fits the other.

    The dtype or quantisation in memory, the template and the configs do not make another base: see `notice`.
    """
    if a["tensors_sha256"] != b["tensors_sha256"]:
        return _tensor_difference(a, b)
    if a.get("peft") != b.get("peft"):
        states = [("an adapter of PEFT" if x.get("peft") else "no adapter") for x in (a, b)]
        return f"the adapter differs ({states[0]}, {states[1]})"
    if None not in (a.get("tokenizer_sha256"), b.get("tokenizer_sha256")):
        return "" if a["tokenizer_sha256"] == b["tokenizer_sha256"] else "the tokenizer differs"
    return ""


def notice(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """What differs without making another base (form in memory, template, configs), as a sentence, or ""."""
    said = {
        "dtype": "dtype", "quantisation": "quantisation", "chat_template_sha256": "chat template",
        "generation_config_sha256": "generation config", "config_sha256": "config",
    }  # fmt: skip
    parts = []
    for key, word in said.items():
        if a.get(key) != b.get(key):
            values = "" if key.endswith("sha256") else f" {a.get(key)} -> {b.get(key)}"
            parts.append(word + values)
    return f"the base is the same, its form is not: {', '.join(parts)}" if parts else ""


def _tensor_difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    left, right = a.get("tensors") or {}, b.get("tensors") or {}
    for name in sorted({*left, *right}):
        if name not in right:
            return f"tensor {name} is missing"
        if name not in left:
            return f"tensor {name} is new"
        if left[name] != right[name]:
            return f"tensor {name} differs ({left[name]} expected, {right[name]} found)"
    return f"{a.get('count')} tensors expected, {b.get('count')} found"


def _stored_names(tensors: Mapping[str, Tensor], folder: Path) -> tuple[dict[str, list[str]] | None, str]:
    """Name in the files -> names in memory, tied ones included; or None, and what has another shape if that is why."""
    if any(type(t) not in (Tensor, nn.Parameter) for t in tensors.values()):
        return None, ""
    shapes = {k: list(f.get_slice(k).get_shape()) for f in _open(folder) for k in f.keys()}  # noqa: SIM118 - not a dict
    prefixes = {f"{name.split('.')[0]}." for name in tensors if "." in name}  # old files lack the body's name
    tied, keys = tied_names(tensors), {}
    for name, tensor in tensors.items():
        key = next((k for k in (name, *(name.removeprefix(p) for p in prefixes)) if k in shapes), None)
        if key is not None and shapes[key] != list(tensor.shape):
            return None, f"{name} has shape {list(tensor.shape)}, the file {shapes[key]}"
        if key is not None:
            keys[name] = key
    groups = {tied[name]: key for name, key in keys.items()}
    names: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        key = keys.get(name) or groups.get(tied[name])
        if key is None:  # renamed while loading: the one stored tensor of this shape that nobody has taken
            free = [k for k in shapes if k not in keys.values() and shapes[k] == list(tensor.shape)]
            if len(free) != 1:
                return None, ""
            key = groups[tied[name]] = free[0]
        names.setdefault(key, []).append(name)
    return names, ""


def _file_hashes(path: Path, dtypes: Mapping[str, torch.dtype]) -> dict[str, str]:
    path = path.resolve()
    status = path.stat()
    wanted = {name: _dtype(dtype) for name, dtype in dtypes.items()}
    key = hash_json([str(path), status.st_size, status.st_mtime_ns, 1])
    cache = cache_dir() / "hashes" / f"{key[:32]}.json"
    cached = status.st_size >= CACHED_FROM
    known: dict[str, str] = _read_cache(cache) if cached else {}
    hashes: dict[str, str] = {}
    fresh: dict[str, str] = {}
    with _opened(path) as file:
        for name in file.keys():  # noqa: SIM118 - not a dict
            form = f"{name}@{wanted.get(name, 'stored')}"
            if form not in known:
                tensor = file.get_tensor(name)
                fresh[form] = hash_tensor(tensor.to(dtypes[name]) if name in dtypes else tensor)
                if name not in dtypes:  # spares the hash when the LLM is in memory as stored
                    fresh[f"{name}@{_dtype(tensor.dtype)}"] = fresh[form]
            hashes[name] = fresh.get(form) or known[form]
    if fresh and cached:
        try:
            atomic_write(cache, json.dumps({**known, **fresh}))
        except StoreError as error:  # they are computed again the next time
            logger.warning("hashes are not kept: %s", error)
    return hashes


def _read_cache(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def _open(folder: Path) -> Iterator[Any]:
    for path in tensor_files(folder):
        with _opened(path) as file:
            yield file


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise StoreError(f"can't be read: {error}", expected="a safetensors file", where=str(path)) from error


def _plain(config: Any) -> dict[str, Any]:
    return {k: v for k, v in config.to_dict().items() if k not in VOLATILE and v is not None}


def _gguf_hash(folder: Path | None) -> str | None:
    """The GGUF's hash from the card of a converted asset."""
    for card in sorted(folder.glob("*.json")) if folder is not None else ():
        try:
            found = json.loads(card.read_text()).get("gguf_sha256")
        except (OSError, ValueError, AttributeError):
            continue
        if found:
            return str(found)
    return None


def _of_adapter(llm: nn.Module, name: str) -> bool:
    """Whether a tensor is an adapter's own: PEFT puts the adapter's name into the tensor's, whatever the method."""
    adapters: Any = llm.peft_config
    return ".lora_" in name or "prompt" in name or any(part in adapters for part in name.split(".")[-2:])


def _config(llm: nn.Module) -> Any:
    return unwrapped(llm).config


def _loaded_from(llm: nn.Module) -> tuple[str, str | None]:
    """Name or path, and revision, as transformers notes them while loading."""
    config = _config(llm)
    name = str(getattr(config, "_name_or_path", "") or "")
    return (str(Path(name).absolute()) if Path(name).is_dir() and name else name), getattr(config, "_commit_hash", None)


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _memory(name: str, tensor: Tensor) -> tuple[Any, ...]:
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.device.type == "meta" or not tensor.numel():
        return (name,)
    return tensor.data_ptr(), tuple(tensor.shape), tensor.dtype, tensor.stride(), str(tensor.device)
