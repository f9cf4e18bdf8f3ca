"""Tuning in context: groups drawn when they are needed, the same after an interruption, and none as if there were no
demonstrations at all."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from tests.training._tiny import cache, model, recipe, samples, state
from torch import Tensor

from tsugiki.data.demos import SAMPLERS
from tsugiki.data.mixture import Mixture
from tsugiki.errors import PromptError, RecipeError, UnknownNameError
from tsugiki.testing import tiny_images
from tsugiki.training import feed, groups, losses
from tsugiki.training._demos import Demos
from tsugiki.training.processes import Processes
from tsugiki.training.recipe import load
from tsugiki.training.stream import Encoder
from tsugiki.training.trainer import StepReport, TrainResult, train
from tsugiki.types import DEMO, DEMO_FORMS, DemoPart, Message, Sample

HUB: dict[str, Any] = {"layers": 2, "width": 16, "heads": 2, "hidden": 24, "queries": 4}
LONG = {"max_position_embeddings": 2048}


class Stop(Exception):
    """Stands for whatever ends a run too early."""


def hub_model(seed: int = 0, **options: Any) -> Any:
    return model(seed=seed, projector="hub", hub=HUB, llm=LONG, **options)


def fields(demos: dict[str, Any] | None, **stage: Any) -> dict[str, Any]:
    return recipe(data={"train": {"demos": demos}}, loss="per_query", **{"steps": 5, **stage})


def run(built: Any, plan: dict[str, Any], folder: Path, name: str = "run", **options: Any) -> TrainResult:
    given = {"data": samples(), "progress": False, "features": cache(built, folder), **options}
    return train(built, plan, folder / name, **given)


def draws(built: Any, folder: Path, data: list[Sample] | None = None, **demos: Any) -> groups.Draws:
    stage = load(fields(demos)).stages[0]
    content = {"train": samples() if data is None else data}
    groups.check(built, stage, content, where="stages.0")
    features: Any = cache(built, folder)
    return groups.drawn(built, stage, content, {"train": "train"}, features, seed=3)["train"]


def demos_of(sample: Sample) -> list[DemoPart]:
    return [p for m in sample.messages for p in m.parts if isinstance(p, DemoPart)]


# -- training ----------------------------------------------------------------------------------------------------------


def test_none_at_most_is_ordinary_training_of_the_hub_bit_for_bit(tmp_path: Path) -> None:
    built = [hub_model(), hub_model()]
    found = [run(b, fields(d), tmp_path, str(d)) for b, d in zip(built, (None, {"most": 0}), strict=True)]
    assert found[0].losses == found[1].losses and len(found[0].losses) == 5
    assert all(torch.equal(a, b) for a, b in zip(state(built[0]).values(), state(built[1]).values(), strict=True))
    assert run(hub_model(), fields({"most": 2}), tmp_path, "two").losses != found[0].losses


@pytest.mark.parametrize("sampler", ["random", "diverse"])
def test_a_run_that_goes_on_draws_the_groups_it_would_have_drawn(sampler: str, tmp_path: Path) -> None:
    plan = fields({"most": 3, "sampler": sampler})
    whole = hub_model()
    expected = run(whole, plan, tmp_path, "whole")

    def stop(report: StepReport) -> None:
        if report.step == 3:
            raise Stop

    with pytest.raises(Stop):
        run(hub_model(), plan, tmp_path, on_step=stop)
    built = hub_model(seed=9)
    assert run(built, plan, tmp_path).losses == expected.losses
    assert all(torch.equal(a, b) for a, b in zip(built.parameters(), whole.parameters(), strict=True))
    with pytest.raises(RecipeError, match=r"data\.train\.demos\.most is 2"):
        run(hub_model(), fields({"most": 2, "sampler": sampler}), tmp_path)


def test_a_model_without_a_hub_is_tuned_with_pictures_and_their_texts(tmp_path: Path) -> None:
    built = model(llm=LONG)
    found = run(built, fields({"most": 2, "form": "uni_modal"}, steps=12), tmp_path)
    assert sum(found.losses[-4:]) < sum(found.losses[:4])
    rows = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    run(model(llm=LONG), fields(None, steps=12), tmp_path, "bare")
    bare = [json.loads(line) for line in (tmp_path / "bare/log.jsonl").read_text().splitlines()]
    assert sum(r["tokens"] for r in rows) > sum(r["tokens"] for r in bare)


def test_a_mixed_stage_shows_them_where_they_are_asked_for(tmp_path: Path) -> None:
    built = hub_model()
    plan = load(fields({"most": 2}) | {"stages": [fields({"most": 2})["stages"][0] | {
        "data": {"shown": {"demos": {"most": 2}}, "bare": 1},
    }]}).stages[0]  # fmt: skip
    data = {"shown": samples(8), "bare": samples(8)}
    stream = feed.stream(built, plan, data, cache(built, tmp_path), seed=0, here=Processes())
    drawn = [stream.mixture.draw() for _ in range(60)]
    assert any(demos_of(s) for name, s in drawn if name == "shown")
    assert not any(demos_of(s) for name, s in drawn if name == "bare")


# -- the loss ----------------------------------------------------------------------------------------------------------


def loss_of(built: Any, inputs: dict[str, Tensor]) -> float:
    with torch.no_grad():
        return float(losses.get("per_query")(built, inputs, None))


def groups_of(built: Any, folder: Path) -> list[Sample]:
    """Four queries with zero to three demonstrations."""
    drawn = draws(built, folder, most=3)
    found = {len(demos_of(s)): s for i in range(24) for s in [drawn(i, 0)]}
    return [found[n] for n in range(4)]


def test_labels_are_the_querys_answer_alone(tmp_path: Path) -> None:
    built = hub_model()
    for sample in groups_of(built, tmp_path):
        inputs = built.encode_samples([sample], labels=True).inputs()
        alone = replace(sample, messages=samples()[int(sample.id)].messages)
        labels, bare = (
            i["labels"][i["labels"] >= 0] for i in (inputs, built.encode_samples([alone], labels=True).inputs())
        )
        assert torch.equal(labels, bare)
        assert not (inputs["labels"][inputs["token_kind"] == DEMO] >= 0).any()


def test_the_loss_of_a_group_is_the_same_in_any_batch(tmp_path: Path) -> None:
    built = hub_model()
    with torch.no_grad():  # so that demonstrations are more than their text
        for block in built.frontend.hub.modules():
            if isinstance(getattr(block, "gate", None), torch.nn.Parameter):
                block.gate.fill_(0.5)
    rows = groups_of(built, tmp_path)
    alone = [loss_of(built, built.encode_samples([row], labels=True).inputs()) for row in rows]
    for side in ("left", "right"):
        together = built.encode_samples(rows, labels=True, padding_side=side).inputs()
        assert (together["attention_mask"] == 0).any()
        assert loss_of(built, together) == pytest.approx(sum(alone) / len(alone), rel=1e-4)


# -- groups ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [None, "textual_guided_visual", "both"])
def test_draws_put_others_before_the_query_in_the_asked_form(form: str | None, tmp_path: Path) -> None:
    drawn = draws(hub_model(), tmp_path, most=3, form=form)
    own = samples()
    counts = set()
    for i in range(24):
        sample = drawn(i, 1)
        parts = demos_of(sample)
        counts.add(len(parts))
        assert sample.id == own[i].id and sample.answer == own[i].answer
        assert {p.form for p in parts} <= {form or "visual_guided_text"}
        assert sample is drawn.groups.samples[i] or parts
        assert sample.images[-1] not in [p.source for p in parts]
    assert counts == {0, 1, 2, 3}


def test_nearest_are_those_of_the_mean_features(tmp_path: Path) -> None:
    built = hub_model()
    drawn = draws(built, tmp_path, most=2, sampler="nearest")
    features = cache(built, tmp_path)
    means = []
    for sample in drawn.groups.samples:
        rows = features(sample.images[0]).double().numpy()  # type: ignore[arg-type]
        total = np.zeros(rows.shape[1])
        for row in rows:
            total += row / len(rows)
        means.append(total / np.linalg.norm(total))
    for i in range(24):
        group = drawn.groups(i, 0)
        others = drawn.groups.others(i)
        wanted = sorted((float(means[j] @ means[i]) for j in others), reverse=True)[: len(group.demos)]
        numbers = [int(demo.id) for demo in group.demos]
        assert [float(means[j] @ means[i]) for j in numbers] == pytest.approx(wanted, abs=1e-4)


def test_fewer_than_asked_for_are_used_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    few = samples(3)
    with caplog.at_level(logging.WARNING, "tsugiki"):
        found = run(hub_model(), fields({"most": 9}), tmp_path, data=few)
    assert found.steps == 5 and caplog.text.count("2 other pictures") == 1


def test_what_would_be_too_long_is_found_before_the_first_step(tmp_path: Path) -> None:
    seen: list[StepReport] = []
    with pytest.raises(PromptError, match="at most 120"):
        run(hub_model(), fields({"most": 6}, max_length=120), tmp_path, on_step=seen.append)
    assert not seen
    run(hub_model(), fields(None, max_length=120), tmp_path, "bare")


def test_a_group_is_remembered_until_its_batch_is_made_and_no_longer(tmp_path: Path) -> None:
    built = hub_model()
    encoder = Encoder(built.processor.collator(labels=True), ahead=4)
    drawn = draws(built, tmp_path, most=3)
    queries = drawn.groups.samples
    for epoch in range(3):
        for i in range(24):
            encoder.length(drawn(i, epoch))
    assert len(encoder._groups) == 4 and 0 < len(encoder._items) <= len(queries)
    last = next(s for s in (drawn(i, 9) for i in range(24)) if demos_of(s))
    assert encoder.item(last) is encoder.item(last)


def test_a_mixture_hands_out_what_is_drawn_for_its_sample_and_epoch() -> None:
    own = samples(3)
    calls: list[tuple[int, int]] = []

    def shown(index: int, epoch: int) -> Sample:
        calls.append((index, epoch))
        return own[index]

    mixture = Mixture({"a": own}, drawn={"a": shown})
    for _ in range(6):
        next(mixture)
    assert sorted(calls) == [(i, epoch) for i in range(3) for epoch in range(2)]
    with pytest.raises(UnknownNameError, match="'b'"):
        Mixture({"a": own}, drawn={"b": shown})


# -- what can not be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"demos": {"most": -1}}, "greater than or equal to 0"),
        ({"demos": {"most": 1, "samplr": "random"}}, "Did you mean 'sampler'"),
        ({"demos": {"most": 1, "sampler": "nearst"}}, "'nearest'"),
        ({"demos": {"most": 1, "form": "words"}}, "'visual_guided_text'"),
        ({"demos": {"most": 1}, "replay": "in_picture"}, "a source of its own"),
    ],
)
def test_settings_that_can_not_be(source: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(recipe(data={"train": source}))
    assert said in str(caught.value) and "stages.0.data.train" in str(caught.value)


def test_a_recipe_can_ask_for_every_form_and_every_sampler() -> None:
    form, sampler = (Demos.model_fields[name].annotation for name in ("form", "sampler"))
    assert get_args(get_args(form)[0]) == DEMO_FORMS
    assert set(get_args(sampler)) == set(SAMPLERS)


def test_models_and_samples_that_can_not_be(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"demos\.form: form 'both' for a model without a hub"):
        draws(model(), tmp_path, most=1, form="both")
    trains = hub_model(train_tower=True)
    with pytest.raises(RecipeError, match="'nearest' beside a tower that trains"):
        draws(trains, tmp_path, most=1, sampler="nearest")
    pictures = tuple(tiny_images(2))
    two = Sample(id="two", messages=(Message.of("user", "?", pictures), Message.of("assistant", "a")))
    with pytest.raises(RecipeError, match="sample 'two' has 2 pictures; expected one picture"):
        draws(hub_model(), tmp_path, [*samples(2), two], most=1)
    open_end = Sample(id="end", messages=(*samples(1)[0].messages, Message.of("user", "?")))
    with pytest.raises(RecipeError, match="1 pictures and no answer at its end"):
        draws(hub_model(), tmp_path, [open_end], most=1)
