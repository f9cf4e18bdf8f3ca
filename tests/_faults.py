"""A disk that refuses: every way in which the library's writers reach it counts, and from the k-th call on all fail."""

from __future__ import annotations

import builtins
import io
import os
from typing import Any

import pytest
import safetensors.torch

WRITES = frozenset("wxa+")


class Disk:
    """Refuses from call `at` on with an error number; `calls` were made."""

    def __init__(self, at: int, number: int) -> None:
        self.at, self.number, self.calls = at, number, 0

    @property
    def refused(self) -> bool:
        return self.calls >= self.at

    def count(self, path: Any = None) -> None:
        self.calls += 1
        if self.refused:
            raise OSError(self.number, os.strerror(self.number), path)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for name in ("fsync", "replace", "mkdir", "link"):
            patch.setattr(os, name, self._counted(getattr(os, name)))
        real_os_open, real_open, save = os.open, io.open, safetensors.torch.serialize_file

        def os_open(path: Any, flags: int, *rest: Any, **options: Any) -> int:
            if flags & os.O_CREAT:
                self.count(path)
            return real_os_open(path, flags, *rest, **options)

        def opened(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
            if not WRITES & set(mode):
                return real_open(file, mode, *rest, **options)
            self.count(file if isinstance(file, str) else None)
            return _File(real_open(file, mode, *rest, **options), self)

        def serialize_file(tensors: Any, path: Any, *rest: Any, **options: Any) -> None:
            try:
                self.count(path)
            except OSError as error:
                text = f"Error while serializing: I/O error: {error.strerror} (os error {self.number})"
                raise safetensors.SafetensorError(text) from None
            save(tensors, path, *rest, **options)

        patch.setattr(os, "open", os_open)
        patch.setattr(io, "open", opened)
        patch.setattr(builtins, "open", opened)
        patch.setattr(safetensors.torch, "serialize_file", serialize_file)

    def _counted(self, function: Any) -> Any:
        def call(path: Any, *rest: Any, **options: Any) -> Any:
            self.count(path if isinstance(path, str) else None)
            return function(path, *rest, **options)

        return call


class _File:
    """An open file whose writes count; a refused one leaves half of what it was given."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self._file, self._disk = file, disk

    def write(self, content: Any) -> Any:
        try:
            self._disk.count()
        except OSError:
            self._file.write(content[: len(content) // 2])
            raise
        return self._file.write(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
