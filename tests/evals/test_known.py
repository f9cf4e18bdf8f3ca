"""What can be measured, by name."""

from __future__ import annotations

from importlib.resources import files

from tsugiki.evals import _known, published, retention, task


def test_names_are_those_of_the_files() -> None:
    found = {f.name.removesuffix(".yaml") for f in files("tsugiki.evals").joinpath("lm_suites").iterdir()}
    assert set(_known.published()) == set(published.available()) == found and "mmlu" in found
    assert _known.tasks() == task.available() and "vqa" in _known.tasks()
    assert _known.SUITES == retention.SUITES
