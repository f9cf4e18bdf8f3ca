"""For all tests: no network, one thread, the same seed, real assets only where they are in the cache."""

from __future__ import annotations

import os

# Before anything imports transformers.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["PIP_NO_INDEX"] = "1"  # for what a test starts

import random
import socket
from collections.abc import Iterator
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
import transformers

from tsugiki import assets

torch.set_num_threads(1)
hypothesis.settings.register_profile("tsugiki", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("tsugiki")

_EVERYDAY = [name for name in assets.ASSETS if name != "minilm"]
_LOCAL = {"localhost", "127.0.0.1", "::1", "0.0.0.0", ""}


def pytest_configure(config: pytest.Config) -> None:
    """The run on an older transformers fails if it would silently test the newest."""
    wanted = os.environ.get("TSUGIKI_TEST_TRANSFORMERS")
    if wanted and transformers.__version__ != wanted:
        raise pytest.UsageError(f"transformers {transformers.__version__} is imported, expected {wanted}")


def pytest_report_header() -> str:
    return f"torch {torch.__version__}, transformers {transformers.__version__}, cache {assets.cache_dir()}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    for marker in item.iter_markers("assets"):
        missing = [name for name in marker.args or _EVERYDAY if not assets.is_fetched(name)]
        if missing and os.environ.get("TSUGIKI_TEST_ASSETS") == "required":
            pytest.fail(f"not in the cache: {', '.join(missing)}", pytrace=False)
        if missing:
            pytest.skip(f"not in the cache; run: tsugiki assets fetch {' '.join(missing)}")


@pytest.fixture(autouse=True)
def seed() -> int:
    """Every test starts from the same random numbers."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    return 0


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Only this machine may be reached."""
    with pytest.MonkeyPatch.context() as patch:
        connect, resolve = socket.socket.connect, socket.getaddrinfo

        def guarded_connect(self: socket.socket, address: Any) -> None:
            if self.family in {socket.AF_INET, socket.AF_INET6}:
                _local_only(address[0])
            connect(self, address)

        def guarded_connect_ex(self: socket.socket, address: Any) -> int:
            guarded_connect(self, address)
            return 0

        def guarded_resolve(host: Any, *args: Any, **kwargs: Any) -> Any:
            _local_only(host)
            return resolve(host, *args, **kwargs)

        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
        patch.setattr(socket, "getaddrinfo", guarded_resolve)
        yield


def _local_only(host: Any) -> None:
    name = host.decode() if isinstance(host, bytes) else host
    if name is not None and name not in _LOCAL and name != socket.gethostname():
        raise RuntimeError(f"tests have no network: {name!r}")
