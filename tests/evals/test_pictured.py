"""`verify` against a parent that sees: the branch "image" is the parent's, and the claim fails where it is not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.grafts._requests import wake
from transformers import AutoModelForCausalLM

from tsugiki.build import attach
from tsugiki.evals import _pictured, prompts, proof
from tsugiki.grafts import lynx
from tsugiki.grafts._sites import Site
from tsugiki.testing import TinyTower, tiny_llm, tiny_model, tiny_tokenizer
from tsugiki.types import Check

QUICK: dict[str, Any] = {"answers": 2, "max_new_tokens": 4}
UNDER: dict[str, dict[str, Any]] = {
    "projector": {}, "wings": {"rank": 4, "width": 256}, "iaa": {"layers": (1, 3)},
}  # fmt: skip


@pytest.fixture(autouse=True)
def few_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "collect", lambda given=None: prompts.collect(given)[::16])


def pair(under: str = "projector", **options: Any) -> tuple[Any, Any]:
    """A parent, and LynX, trained, on one like it."""
    parent, child = (tiny_model(under, **UNDER[under]) for _ in range(2))
    wake(parent)
    wake(child)
    child = attach(child, "lynx", **{"experts": 2, **options})
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in child.graft("lynx").parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return parent, child


def claim(child: Any, parent: Any) -> Check | None:
    found = proof.verify(child, parent, **QUICK)
    return next((c for c in found.checks if c.name == "pictures"), None)


@pytest.mark.parametrize("under", list(UNDER))
def test_pictures_come_out_as_the_parents(under: str) -> None:
    parent, child = pair(under, gate="prompt")
    found = proof.verify(child, parent, **QUICK)
    assert found.holds, proof.describe(found)
    assert "logits and answers of 9 caption and question requests" in found.checks[-1].detail
    assert proof.verify(child, **QUICK).holds  # and against the base, whose text it keeps


def test_against_a_saved_parent(tmp_path: Path) -> None:
    tiny_llm().save_pretrained(tmp_path / "llm")
    tiny_tokenizer().save_pretrained(tmp_path / "llm")
    llm = AutoModelForCausalLM.from_pretrained(tmp_path / "llm")
    model = attach(llm, "projector", vision=TinyTower(), tokenizer=tiny_tokenizer())
    wake(model)
    model.save(tmp_path / "parent")
    child = attach(model, "lynx")
    found = proof.verify(child, tmp_path / "parent", **QUICK)
    assert found.holds and found.checks[-1].name == "pictures"
    proof.write(found, tmp_path / "proof.json")
    assert proof.check(tmp_path / "proof.json", child, against=tmp_path / "parent").holds


def test_an_expert_that_leaks_into_the_branch_image_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    parent, child = pair()
    sites = lynx.Graft.sites

    def leaking(self: Any, decoder: Any) -> Iterator[Site]:
        for site in sites(self, decoder):
            yield replace(site, branches=None)

    child._unhook()
    monkeypatch.setattr(lynx.Graft, "sites", leaking)
    child._hook()
    failed = claim(child, parent)
    assert failed is not None and not failed.holds and "9 (request 1 (logits)" in failed.detail
    assert not proof.verify(child, parent, **QUICK).holds


def test_a_projector_that_went_on_training_is_found() -> None:
    parent, child = pair()
    with torch.no_grad():
        next(child.frontend.projector.parameters()).add_(1e-2)
    failed = claim(child, parent)
    assert failed is not None and not failed.holds


def test_the_claim_is_made_only_where_it_is_promised() -> None:
    parent, child = pair(gate="soft")
    assert claim(child, parent) is None  # a soft gate mixes into every request with a picture
    parent, child = pair()
    assert claim(child, parent.language_model) is None  # a parent without eyes
    assert claim(child, tiny_model("wings", rank=4, width=256)) is None  # not what it stands on
    assert claim(attach(tiny_model(), "cross_attention", every=2), tiny_model()) is None


def test_a_request_about_two_pictures_only_where_it_fits() -> None:
    model = tiny_model()
    asked = _pictured.requests(model, 4)
    assert len(asked) == 9 and [len(s.images) for s in asked] == [1] * 8 + [2]
    assert len(_pictured.requests(model, 512)) == 8
