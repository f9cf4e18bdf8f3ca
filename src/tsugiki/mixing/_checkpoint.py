"""Tensors of a checkpoint as maps of its files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tsugiki import identity
from tsugiki.errors import StoreError
from tsugiki.mixing._weights import LLM


class Checkpoint:
    """The tensors of a folder's safetensors files.

    Args:
        folder: of one file, or of several with an index.
        prefix: put before the names that the files have.

    Raises:
        StoreError: no safetensors file, or a damaged one.
    """

    def __init__(self, folder: Path, prefix: str = "") -> None:
        self.folder, self.prefix = folder, prefix
        self.layout: dict[str, list[str]] = {}
        """File name -> names of its tensors."""
        self._files: dict[str, Any] = {}
        for path in identity.tensor_files(folder):
            try:
                opened: Any = safe_open(path, framework="pt")
                names = [prefix + name for name in opened.keys()]  # noqa: SIM118 - not a dict
            except (SafetensorError, OSError) as error:
                raise StoreError(f"not a safetensors file ({error})", fix="Save it again.", where=str(path)) from error
            self.layout[path.name] = names
            self._files.update(dict.fromkeys(names, opened))

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def tensor(self, name: str) -> Tensor:
        """A map of it; its values are read when they are used."""
        found: Tensor = self._files[name].get_tensor(name.removeprefix(self.prefix))
        return found

    def dtype(self, name: str) -> str:
        """As safetensors calls it."""
        return str(self._files[name].get_slice(name.removeprefix(self.prefix)).get_dtype())

    def shape(self, name: str) -> list[int]:
        return list(self._files[name].get_slice(name.removeprefix(self.prefix)).get_shape())


class Renamed(Checkpoint):
    """A base's files under the names that its LLM has in a saved graft: old files lack the body's name, `model.`."""

    def __init__(self, folder: Path, graft: Checkpoint) -> None:
        super().__init__(folder, LLM)
        wanted = [name for name in graft if name.startswith(LLM)]
        bodies = {name.removeprefix(LLM).partition(".")[0] + "." for name in wanted}
        self._stored = {}
        for name in wanted:
            short = name.removeprefix(LLM)
            tried = (short, *(short.removeprefix(body) for body in sorted(bodies)))
            key = next((LLM + t for t in tried if LLM + t in self._files), None)
            if key is not None:
                self._stored[name] = key

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def tensor(self, name: str) -> Tensor:
        return super().tensor(self._stored[name])

    def dtype(self, name: str) -> str:
        return super().dtype(self._stored[name])

    def shape(self, name: str) -> list[int]:
        return super().shape(self._stored[name])
