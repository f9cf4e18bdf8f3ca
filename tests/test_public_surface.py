"""What `import tsugiki` promises: the names are there, are what they say, and no module hides one of them."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
import types
from collections.abc import Iterator

import pytest

import tsugiki

VERBS = ["attach", "evaluate", "load", "mix", "predict", "train", "verify"]
EXTRAS = [
    *("accelerate", "datasets", "peft", "tensorboard", "resvg_py", "lm_eval", "faster_coco_eval", "sacrebleu"),
    *(
        "pycocoevalcap",
        "jiwer",
        "rapidfuzz",
        "scipy",
        "statsmodels",
        "sklearn",
        "matplotlib",
        "optuna",
        "torchvision",
        "timm",
    ),
]


def modules() -> Iterator[types.ModuleType]:
    for found in pkgutil.walk_packages(tsugiki.__path__, "tsugiki."):
        if not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)


def test_names_are_sorted_and_there() -> None:
    assert list(tsugiki.__all__) == sorted(tsugiki.__all__)
    for name in tsugiki.__all__:
        assert getattr(tsugiki, name) is not None
    assert set(tsugiki.__all__) <= set(dir(tsugiki))


def test_no_submodule_hides_a_public_name() -> None:
    """Importing `tsugiki.x` sets the attribute x of the package: a function of that name would be gone."""
    everything = list(modules())
    assert everything
    for name in tsugiki.__all__:
        assert not isinstance(getattr(tsugiki, name), types.ModuleType), name
    for module in everything:
        parent, _, name = module.__name__.rpartition(".")
        assert getattr(sys.modules[parent], name) is module, f"{parent} has a {name} that hides the module"
        names = getattr(module, "__all__", [])
        assert all(hasattr(module, name) for name in names), module.__name__


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_can_be_called_after_all_imports(verb: str) -> None:
    list(modules())
    with pytest.raises(TypeError, match=r"missing \d+ required"):
        getattr(tsugiki, verb)()


def test_lists_of_names() -> None:
    list(modules())
    grafts, presets = tsugiki.available(), tsugiki.methods()
    assert {"cross_attention", "projector"} <= set(grafts)
    assert set(grafts) <= set(presets)
    assert list(grafts) == sorted(grafts)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        tsugiki.no_such_name  # noqa: B018


def test_everything_imports_without_the_extras() -> None:
    """A fresh process that finds none of the optional packages imports every module of ours."""
    program = f"""
import importlib, importlib.machinery, pkgutil
find = importlib.machinery.PathFinder.find_spec
hidden = set({EXTRAS!r})
importlib.machinery.PathFinder.find_spec = staticmethod(
    lambda name, *rest: None if name.partition(".")[0] in hidden else find(name, *rest)
)
import tsugiki
for found in pkgutil.walk_packages(tsugiki.__path__, "tsugiki."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
