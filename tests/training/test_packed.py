"""Packed text replay: as if each document stood alone; batches of one kind; continued exactly."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training._tiny import cache, model, samples, state

from tsugiki.data import packing
from tsugiki.data.collate import pad
from tsugiki.errors import RecipeError
from tsugiki.testing import FAMILIES, tiny_model
from tsugiki.training import feed, packed
from tsugiki.training.processes import Processes
from tsugiki.training.recipe import Stage
from tsugiki.training.trainer import train
from tsugiki.types import Message, Sample

DOCUMENTS = [Sample(id=f"d{i}", messages=(Message.of("assistant", "word " * (1 + i % 7) + str(i)),)) for i in range(30)]
STAGE: dict[str, Any] = {
    "train": {"projector": 0.01, "llm": 0.01},
    "data": {"train": 1, "text": {"weight": 1, "replay": "packed", "pack_length": 48}},
    "batch_size": 2, "steps": 8,
}  # fmt: skip


def fields(**changes: Any) -> dict[str, Any]:
    return {"save_steps": 1, "stages": [STAGE | changes]}


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "opt"])
def test_loss_and_gradients_are_those_of_the_documents_alone(family: str) -> None:
    """Also across the 4096-token window's mask, which these families build by the same positions."""
    built = tiny_model(family=family)
    assert packed.keeps_apart(built)
    built.freeze_llm(False)
    rows = packed.rows(built, DOCUMENTS[:9], 60, seed=0, where="")

    def loss(encoded: list[Any]) -> torch.Tensor:
        batch = pad(encoded, pad_id=0)
        return built(**batch.inputs(), num_items_in_batch=1).loss

    def gradients(total: torch.Tensor) -> dict[str, torch.Tensor]:
        built.zero_grad()
        total.backward()
        return {n: p.grad.clone() for n, p in built.language_model.named_parameters() if p.grad is not None}

    together = loss([r.encoded for r in rows])
    own = gradients(together)
    alone = [e for s in DOCUMENTS[:9] for e in packing.document(s, built.tokenizer, 60)]
    apart = torch.stack([loss([e]) for e in alone]).sum()
    other = gradients(apart)
    assert len(rows) < len(alone)
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)
    for name, value in other.items():
        torch.testing.assert_close(own[name], value, rtol=1e-3, atol=2e-4, msg=name)


def test_an_llm_that_reads_a_row_as_one_is_refused(tmp_path: Path) -> None:
    built = tiny_model(family="opt")
    assert not packed.keeps_apart(built)
    with pytest.raises(RecipeError, match=r"stages\.0\.data\.text\.replay: .*does not tell documents apart"):
        train(built, fields(), tmp_path / "run", data={"train": samples(4), "text": DOCUMENTS}, progress=False)


@pytest.mark.parametrize(
    ("changes", "content", "said"),
    [
        ({}, samples(4), "4 of 4 samples have a picture"),
        ({"loss": "per_step"}, DOCUMENTS, "loss: per_step counts rows"),
        ({"train": {"projector": 0.01}}, DOCUMENTS, "the text path is frozen"),
    ],
)
def test_what_cannot_be_packed(changes: dict[str, Any], content: list[Sample], said: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=said):
        train(model(), fields(**changes), tmp_path / "r", data={"train": samples(4), "text": content}, progress=False)


def test_the_share_of_text_is_counted(tmp_path: Path) -> None:
    built = model()
    before = state(built)
    result = train(
        built, fields(), tmp_path / "run", data={"train": samples(8), "text": DOCUMENTS}, progress=False,
        features=cache(built, tmp_path),
    )  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert all(r["text_label_tokens"] in (0, r["label_tokens"]) for r in rows)  # each batch of one kind
    assert {r["text_label_tokens"] > 0 for r in rows} == {True, False}
    text, every = sum(r["text_label_tokens"] for r in rows), sum(r["label_tokens"] for r in rows)
    assert result.reports["0"]["text"] == {"label_tokens": every, "text_label_tokens": text, "share": text / every}
    stored = json.loads((tmp_path / "run/result.json").read_text())
    assert stored["reports"]["0"]["text"]["share"] == text / every
    assert built.guarantee == "bounded" and any(not torch.equal(p, before[n]) for n, p in built.named_parameters())


@pytest.mark.parametrize("at", [1, 3, 6])
def test_a_stopped_run_continues_to_the_same_weights(at: int, tmp_path: Path) -> None:
    def run(name: str, stop: int | None = None) -> Any:
        built = model()

        def watch(report: Any) -> None:
            if report.step == stop:
                raise KeyboardInterrupt

        data = {"train": samples(8), "text": DOCUMENTS}
        options = {"progress": False, "features": cache(built, tmp_path), "on_step": watch}
        train(built, fields(temperature=2.0), tmp_path / name, data=data, **options)
        return built

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("cut", at)
    assert all(torch.equal(a, b) for a, b in zip(run("cut").parameters(), whole.parameters(), strict=True))
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "cut")]
    assert [[json.loads(x)["loss"] for x in log] for log in logs][0] == [json.loads(x)["loss"] for x in logs[1]]


def _stream(built: Any, content: dict[str, list[Sample]], **changes: Any) -> Any:
    data = dict.fromkeys(content, 1) | changes.pop("data", {})
    stage = Stage(**(STAGE | {"data": data, **changes}))
    return feed.stream(built, stage, content, None, seed=0, here=Processes())


@pytest.mark.parametrize("grouped", [True, False])
def test_batches_of_one_kind_keep_the_shares(grouped: bool) -> None:
    built = model()
    talk = [
        Sample(id=f"t{i}", messages=(Message.of("user", "?"), Message.of("assistant", "!" * i))) for i in range(1, 5)
    ]
    content = {"a": samples(6), "b": [*samples(3), *talk]}
    stream = _stream(built, content, homogeneous=True, length_grouping=grouped, data={"a": 3, "b": 7})
    stream.collate = lambda rows: rows
    batches = list(islice(stream, 960))
    assert all(len({bool(s.images) for s in rows}) == 1 and len(rows) == 2 for rows in batches)
    share = sum(not s.images for rows in batches for s in rows) / 1920
    assert abs(share - 0.7 * 4 / 7) < 0.05  # b's weight, by its samples of each kind
    kinds = Counter(bool(rows[0].images) for rows in batches[:16])
    assert len(kinds) == 2  # also within one draw


@pytest.mark.parametrize("at", [0, 1, 5, 16, 37])
def test_a_stream_of_kinds_continues(at: int) -> None:
    built = model()
    content = {"a": samples(6), "b": DOCUMENTS[:5]}
    streams = [_stream(built, content, homogeneous=True) for _ in range(2)]
    for stream in streams:
        stream.collate = lambda rows: [s.id for s in rows]
    whole = list(islice(streams[0], 60))
    first = _stream(built, content, homogeneous=True)
    first.collate = lambda rows: [s.id for s in rows]
    list(islice(first, at))
    streams[1].load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert list(islice(streams[1], 60 - at)) == whole[at:]


def test_a_weight_by_size_and_its_temperature() -> None:
    built = model()
    content = {"a": samples(16), "b": samples(4)}
    by_size = {"a": {"weight": "size"}, "b": {"weight": "size"}}
    plain = _stream(built, content, data=by_size).mixture.weights
    assert plain["a"] / plain["b"] == 4
    warm = _stream(built, content, data=by_size, temperature=2.0).mixture.weights
    assert warm["a"] / warm["b"] == pytest.approx(2)
