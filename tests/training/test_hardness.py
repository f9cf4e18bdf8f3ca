"""The sampler `hard` in training: losses that the training has seen anyway, and a run that goes on as it would have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.training._tiny import cache, model, recipe, samples

from tsugiki.data.demos import Groups
from tsugiki.data.mixture import Mixture
from tsugiki.training import hardness
from tsugiki.training.groups import Draws
from tsugiki.training.hardness import Hardness, row_losses
from tsugiki.training.processes import Processes
from tsugiki.training.stream import Stream
from tsugiki.training.trainer import StepReport, TrainResult, train
from tsugiki.types import DemoPart, Sample

HUB: dict[str, Any] = {"layers": 2, "width": 16, "heads": 2, "hidden": 24, "queries": 4}


class Stop(Exception):
    """Stands for whatever ends a run too early."""


class Told(Processes):
    """Processes of which the others have heard this."""

    def __init__(self, others: list[Any]) -> None:
        super().__init__()
        self.others = others

    def collect(self, value: Any) -> list[Any]:
        return [value, *self.others]


def nan(n: int) -> hardness.Losses:
    return np.full(n, np.nan, np.float32)


def heard(known: Hardness, rows: list[hardness.Row], losses: list[float], here: Processes | None = None) -> None:
    """As if these rows had passed a forward with these losses."""
    known.expect(rows)
    known._heard = losses
    known.learn(here or Processes())


# -- what is kept ------------------------------------------------------------------------------------------------------


def test_the_loss_of_a_row_is_the_mean_over_its_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 11, generator=generator)
    targets, rows = torch.randint(0, 11, (7,), generator=generator), torch.tensor([0, 0, 0, 2, 2, 4, 4])
    found = row_losses(logits, targets, rows, 6)
    for row in range(6):
        own = []
        for at in range(7):
            if rows[at] == row:
                scores = logits[at].double()
                own.append(float(torch.log(torch.exp(scores).sum()) - scores[targets[at]]))
        assert found[row] == pytest.approx(sum(own) / len(own) if own else 0.0, abs=1e-6)


def test_the_latest_loss_counts_and_is_shown_when_it_is_asked_for() -> None:
    seen = {"a": nan(3), "b": nan(2)}
    known = Hardness(seen)
    others = [[(("b", 1), 7.0), (("c", 0), 9.0)]]
    heard(known, [("a", 2), ("c", 1), ("a", 0)], [1.0, 8.0, 2.0], Told(others))
    heard(known, [("a", 2)], [3.0])
    assert np.isnan(seen["a"]).all() and np.isnan(seen["b"]).all()
    known.show()
    assert np.array_equal(seen["a"], [2, np.nan, 3], equal_nan=True)
    assert np.array_equal(seen["b"], [np.nan, 7], equal_nan=True)


def test_its_state_is_json_and_bit_for_bit() -> None:
    known = Hardness({"a": nan(4)})
    heard(known, [("a", 1), ("a", 3)], [1 / 3, 1e-30])
    known.show()
    heard(known, [("a", 1)], [2 / 3])
    state = json.loads(json.dumps(known.state_dict()))
    other = Hardness({"a": nan(4)})
    other.load(state["seen"])
    other.show()
    other.load(state["latest"])
    assert other.seen["a"].tobytes() == known.seen["a"].tobytes()
    assert other.latest["a"].tobytes() == known.latest["a"].tobytes()
    assert other.latest["a"][1] == np.float32(2 / 3) and other.seen["a"][1] == np.float32(1 / 3)


# -- the stream --------------------------------------------------------------------------------------------------------


def stream_of(grouped: bool) -> Stream:
    """Batches of 2 over six samples; what is given for one says what its demonstrations are."""
    own = samples(6)
    groups = Groups(samples=own, most=2, sampler="hard", hardness=nan(6), seed=1, near=None)
    draws = Draws(groups, "visual_guided_text", model().processor.codec)

    def given_as(rows: list[Sample], **_: Any) -> list[tuple[str, list[str]]]:
        return [(s.id, [p.text for m in s.messages for p in m.parts if isinstance(p, DemoPart)]) for s in rows]

    return Stream(
        Mixture({"a": own}, drawn={"a": draws}),
        batch_size=2,
        collate=given_as,
        length=(lambda s: len(s.images)) if grouped else None,
        seed=4,
        hardness=Hardness({"a": groups.hardness}),  # type: ignore[dict-item]
    )


def taken(stream: Stream, n: int, first: int = 0) -> list[Any]:
    """The next n batches; of each the losses are heard, which differ with every step."""
    found, batches = [], iter(stream)
    for step in range(first, first + n):
        found.append(next(batches))
        assert stream.hardness is not None
        stream.hardness._heard = [((int(id_) * 7 + step * 5) % 11) / 3 for id_, _ in found[-1]]
        stream.hardness.learn(Processes())
    return found


@settings(max_examples=12, deadline=None)
@given(stop=st.integers(0, 40), grouped=st.booleans())
def test_a_stream_that_goes_on_shows_what_it_would_have_shown(stop: int, grouped: bool) -> None:
    expected = taken(stream_of(grouped), 44)
    first = stream_of(grouped)
    assert taken(first, stop) == expected[:stop]
    state = json.loads(json.dumps(first.state_dict()))
    again = stream_of(grouped)
    again.load_state_dict(state)
    again.load_state_dict(state)  # a run does it twice
    assert taken(again, 44 - stop, stop) == expected[stop:]


def test_the_hardest_come_first_once_all_are_known() -> None:
    stream, own = stream_of(grouped=False), {s.id: s for s in samples(6)}
    known: dict[str, np.float32] = {}
    by_hand = 0
    for step, batch in enumerate(taken(stream, 30)):
        for id_, texts in batch:
            others = [i for i in own if i != id_]
            if all(i in known for i in others):
                order = sorted(others, key=lambda i: -known[i])[: len(texts)]
                said = [own[i].messages[1].parts[0].text for i in reversed(order)]  # type: ignore[union-attr]
                assert [text.rpartition("\n")[2] for text in texts] == said
                by_hand += len(texts)
        known |= {id_: np.float32(((int(id_) * 7 + step * 5) % 11) / 3) for id_, _ in batch}
    assert by_hand > 20


# -- training ----------------------------------------------------------------------------------------------------------


def hub_model(seed: int = 0) -> Any:
    return model(seed=seed, projector="hub", hub=HUB, llm={"max_position_embeddings": 2048})


def fields(sampler: str, **stage: Any) -> dict[str, Any]:
    shown = {"train": {"demos": {"most": 3, "sampler": sampler}}}
    return recipe(data=shown, **{"loss": "per_query", "steps": 8, "length_grouping": False, **stage})


def run(plan: dict[str, Any], folder: Path, name: str, built: Any = None, **options: Any) -> TrainResult:
    built = hub_model() if built is None else built
    given_ = {"data": samples(8), "progress": False, "features": cache(built, folder), **options}
    return train(built, plan, folder / name, **given_)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_it_hears_the_losses_of_the_rows(accumulated: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step's loss is their mean: the loss of the answer that is learned, not of the demonstrations."""
    batches: list[dict[int, float]] = []
    real = Hardness.learn

    def learn(self: Hardness, here: Processes) -> None:
        rows = self._expected[0]
        real(self, here)
        batches.append({number: float(self.latest[name][number]) for name, number in rows})

    monkeypatch.setattr(Hardness, "learn", learn)
    built = hub_model()
    result = run(fields("hard", gradient_accumulation=accumulated), tmp_path, "a", built)
    assert len(batches) == 8 * accumulated and all(len(batch) == 4 for batch in batches)
    for step, loss in enumerate(result.losses):
        own = [value for batch in batches[step * accumulated : (step + 1) * accumulated] for value in batch.values()]
        assert loss == pytest.approx(sum(own) / len(own), rel=1e-5)
    assert not built._forward_hooks  # nothing stays at the model


def test_the_first_epoch_is_random_and_the_next_is_not(tmp_path: Path) -> None:
    found = {sampler: run(fields(sampler), tmp_path, sampler).losses for sampler in ("random", "hard")}
    assert found["hard"][:2] == found["random"][:2]  # two batches of four are all eight
    assert found["hard"][2:] != found["random"][2:]
    assert run(fields("hard"), tmp_path, "again").losses == found["hard"]


@pytest.mark.parametrize("stopped", [1, 3, 6])
def test_a_run_that_goes_on_is_the_same_bit_for_bit(stopped: int, tmp_path: Path) -> None:
    whole = hub_model()
    expected = run(fields("hard"), tmp_path, "whole", whole)

    def stop(report: StepReport) -> None:
        if report.step == stopped:
            raise Stop

    with pytest.raises(Stop):
        run(fields("hard"), tmp_path, "again", on_step=stop)
    built = hub_model(seed=9)
    assert run(fields("hard"), tmp_path, "again", built).losses == expected.losses
    assert all(torch.equal(a, b) for a, b in zip(built.parameters(), whole.parameters(), strict=True))


def test_beside_a_source_without_demonstrations_and_another_loss(tmp_path: Path) -> None:
    plan = fields("hard", loss="per_token", length_grouping=True, steps=18)
    plan["stages"][0]["data"]["bare"] = 1
    result = run(plan, tmp_path, "mixed", data={"train": samples(8), "bare": samples(8)})
    assert len(result.losses) == 18 and all(np.isfinite(result.losses))
