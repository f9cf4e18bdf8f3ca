"""tsugiki.train: what it trains, what it leaves alone, what it writes, and how it goes on after an interruption."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import SafetensorError
from tests.training._tiny import cache, model, recipe, samples, state
from transformers import TrainingArguments

import tsugiki
from tsugiki.data import schema
from tsugiki.errors import DataError, PromptError, RecipeError, StoreError, UnknownNameError, UnsupportedError
from tsugiki.testing import TinyTower, tiny_images, tiny_llm, tiny_tokenizer
from tsugiki.training import checkpoints
from tsugiki.training import recipe as recipes
from tsugiki.training.stage_trainer import StageTrainer
from tsugiki.training.trainer import StepReport, TrainResult, train
from tsugiki.types import Box, BoxPart, Message, Sample


class Stop(Exception):
    """Stands for whatever ends a run too early."""


def run(built: Any, fields: dict[str, Any], tmp_path: Path, name: str = "run", **options: Any) -> TrainResult:
    given = {"data": samples(), "progress": False, "features": cache(built, tmp_path), **options}
    return train(built, fields, tmp_path / name, **given)


def stop_at(step: int, stage: str = "0") -> Any:
    def on_step(report: StepReport) -> None:
        if (report.stage, report.step) == (stage, step):
            raise Stop

    return on_step


# -- what trains, and what does not --------------------------------------------------------------------------------


@pytest.mark.parametrize("graft", ["projector", "cross_attention"])
def test_only_what_is_named_trains_and_the_loss_falls(graft: str, tmp_path: Path) -> None:
    built = model(graft)
    before, flags = state(built), {n: p.requires_grad for n, p in built.named_parameters()}
    parts = ["projector"] if graft == "projector" else ["graft.cross_attention"]
    result = run(built, recipe(*parts, steps=20), tmp_path)
    changed = {n for n, p in built.named_parameters() if not torch.equal(p, before[n])}
    prefix = "frontend.projector." if graft == "projector" else "grafts.0."
    assert changed and all(n.startswith(prefix) for n in changed)
    assert result.steps == len(result.losses) == 20
    assert sum(result.losses[-4:]) < sum(result.losses[:4])
    assert {n: p.requires_grad for n, p in built.named_parameters()} == flags
    assert not any(module.training for module in built.modules())
    assert all(p.grad is None for p in built.parameters())


def test_the_base_is_as_before(tmp_path: Path) -> None:
    built = model()
    settings = built.language_model.config.to_dict(), built.generation_config.to_dict(), built.config.to_dict()
    answer = built.chat("Hello", max_new_tokens=5, do_sample=False)
    run(built, recipe(), tmp_path)
    assert built.chat("Hello", max_new_tokens=5, do_sample=False) == answer
    now = built.language_model.config.to_dict(), built.generation_config.to_dict(), built.config.to_dict()
    assert now == settings


def test_training_the_llm_makes_the_guarantee_bounded(tmp_path: Path) -> None:
    built = model()
    before = state(built)
    run(built, recipe("llm", steps=2), tmp_path)
    assert built.guarantee == "bounded"
    assert not torch.equal(before["language_model.lm_head.weight"], built.language_model.lm_head.weight)


def test_a_continued_run_knows_that_the_llm_was_trained(tmp_path: Path) -> None:
    whole = model()
    run(whole, recipe("llm", steps=3), tmp_path)
    again = model()
    result = run(again, recipe("llm", steps=3), tmp_path)
    assert again.guarantee == "bounded" and not any(p.requires_grad for p in again.language_model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    loaded = tsugiki.load(result.graft, base=tiny_llm(), tokenizer=tiny_tokenizer(), vision=TinyTower())
    assert torch.equal(loaded.language_model.lm_head.weight, whole.language_model.lm_head.weight)


def test_each_part_has_its_rate_and_the_table_says_so(tmp_path: Path) -> None:
    built = model("cross_attention")
    fields = recipe(steps=2)
    fields["stages"][0]["train"] = {"projector": 1e-3, "graft.cross_attention": 5e-4, "llm": 0}
    run(built, fields, tmp_path)
    rows = {row["part"]: row for row in json.loads((tmp_path / "run/parts.json").read_text())["0"]}
    assert {part: row["lr"] for part, row in rows.items()} == {
        "tower": None, "projector": 1e-3, "graft.cross_attention": 5e-4, "llm": None,
    }  # fmt: skip
    assert rows["llm"]["parameters"] == sum(p.numel() for p in built.language_model.parameters())
    assert rows["projector"]["tensors"] == len(list(built.frontend.projector.parameters()))


def test_gradient_accumulation_is_the_larger_batch(tmp_path: Path) -> None:
    one = run(model(), recipe(batch_size=8, steps=3, length_grouping=False), tmp_path, "a")
    fields = recipe(batch_size=4, gradient_accumulation=2, steps=3, length_grouping=False)
    two = run(model(), fields, tmp_path, "b")
    assert two.losses == pytest.approx(one.losses, rel=1e-4)


@pytest.mark.parametrize("graft", ["projector", "cross_attention"])
def test_gradient_checkpointing_changes_no_number(graft: str, tmp_path: Path) -> None:
    parts = ("projector",) if graft == "projector" else ("projector", "graft.cross_attention")
    one = run(model(graft), recipe(*parts, steps=3), tmp_path, "a")
    built = model(graft)
    two = run(built, recipe(*parts, steps=3, gradient_checkpointing=True), tmp_path, "b")
    assert two.losses == pytest.approx(one.losses, rel=1e-5)
    assert not any(getattr(m, "gradient_checkpointing", False) for m in built.modules())


def test_the_tower_runs_once_for_each_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = model()
    seen: list[int] = []
    encode = built.frontend.tower.encode
    monkeypatch.setattr(built.frontend.tower, "encode", lambda pixels: seen.append(len(pixels)) or encode(pixels))
    result = run(built, recipe(steps=8), tmp_path)
    assert result.steps == 8 and sum(seen) <= 16  # eight pictures, the last batch padded


def of_source(source: str) -> list[Sample]:
    """Samples that ask for the branch of which a recipe's source is made; every second of `train` for places."""
    if source in ("text", "language"):  # every second answers a question, which a picture can stand before
        asked = (Message.of("user", "How many words?"),)
        said = [Message.of("assistant", f"Some words, {i} times.") for i in range(24)]
        return [Sample(id=f"t{i}", messages=(*asked[: i % 2], answer)) for i, answer in enumerate(said)]
    if source in ("names", "scenes"):  # places in the front-end are fitted to boxes
        where = Message("assistant", (BoxPart(Box(4, 4, 20, 20)),))
        return [replace(s, messages=(*s.prompt, where)) if i % 3 == 0 else s for i, s in enumerate(samples(24))]
    every = {"grounding": 1, "train": 2}.get(source, 0)
    branches = ["grounding" if every and i % every == 0 else "image" for i in range(24)]
    return [replace(sample, meta={"branch": branch}) for sample, branch in zip(samples(24), branches, strict=True)]


@pytest.mark.parametrize("name", recipes.available())
def test_every_shipped_recipe_runs_on_fakes(name: str, tmp_path: Path) -> None:
    plan = recipes.load(name)
    hub = {"projector": "hub", "hub": {"layers": 2, "width": 16, "heads": 2, "hidden": 24, "queries": 4}}
    built = model(plan.model.grafts[-1], **plan.model.options, **(hub if name.startswith("mmict") else {}))
    sources = {source: of_source(source) for stage in plan.stages for source in stage.data}
    # Retention is measured on texts of its own; see test_retained.py.
    short = ["steps=2", "batch_size=2", "retention=null"]
    short += [
        f"stages.{stage.name}.data.{source}.pack_length=64"  # the fake reads 512 tokens at most
        for stage in plan.stages
        for source, settings in stage.data.items()
        if settings.replay == "packed"
    ]
    result = train(
        built, name, tmp_path / "run", data=sources, overrides=short, progress=False,
        features=cache(built, tmp_path),
    )  # fmt: skip
    assert result.steps == 2 * len(plan.stages)
    for stage in plan.stages:
        if stage.warm_start is not None:
            assert result.reports[stage.name]["matched"] is stage.warm_start.options.get("match", True)


# -- what is written -----------------------------------------------------------------------------------------------


def test_the_run_folder(tmp_path: Path) -> None:
    built = model()
    result = run(built, recipe(), tmp_path)
    out = tmp_path / "run"
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert {"stage", "step", "loss", "lr", "seconds", "tokens", "label_tokens"} <= set(rows[0])
    assert tuple(row["loss"] for row in rows) == result.losses
    assert recipes.load(out / "recipe.yaml").stages[0].steps == 8
    about = json.loads((out / "run.json").read_text())
    assert about["seed"] == 0 and len(about["data"]["0"]["train"]) == 64 and about["versions"]["torch"]
    assert json.loads((out / "result.json").read_text())["steps"] == 8
    assert len(list((out / "checkpoints").iterdir())) == 2  # old ones are gone
    assert list((out / "tensorboard").rglob("events*"))


def test_the_saved_graft_is_the_trained_one(tmp_path: Path) -> None:
    built = model()
    result = run(built, recipe(), tmp_path)
    loaded = tsugiki.load(result.graft, base=tiny_llm(), tokenizer=tiny_tokenizer(), vision=TinyTower())
    for (name, a), (_, b) in zip(built.named_parameters(), loaded.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_checkpoints_hold_trained_parts_and_optimiser_only(tmp_path: Path) -> None:
    built = model("cross_attention")
    run(built, recipe("graft.cross_attention", steps=3), tmp_path)
    found = sorted((tmp_path / "run/checkpoints").iterdir())[0]
    checkpoint = checkpoints.Checkpoint(found, checkpoints.Position(stage=0, step=2), {})
    weights, optimiser = checkpoint.tensors(checkpoints.WEIGHTS), checkpoint.tensors(checkpoints.OPTIMIZER)
    assert weights and all(name.startswith("grafts.0.") for name in weights)
    assert {name.rpartition("/")[0] for name in optimiser} <= set(weights)
    assert not [p for p in found.iterdir() if p.suffix not in {".safetensors", ".json"}]


def test_on_step_reports(tmp_path: Path) -> None:
    reports: list[StepReport] = []
    result = run(model(), recipe(), tmp_path, on_step=reports.append)
    assert [r.loss for r in reports] == list(result.losses)
    assert [r.progress for r in reports] == pytest.approx([(i + 1) / 8 for i in range(8)])


def test_the_console_tells_loss_and_time_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(model(), recipe(), tmp_path, progress=True)
    said = capsys.readouterr().err
    assert "projector" in said and "frozen" in said and "left" in said and "loss" in said


# -- interrupted and continued -------------------------------------------------------------------------------------

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("projector", {}),
    ("projector", {"gradient_accumulation": 2, "length_grouping": False, "scheduler": "cosine"}),
    ("cross_attention", {"weight_decay": 0.1, "warmup": 0.4, "scheduler": "constant_decay"}),
]


@pytest.mark.parametrize(("graft", "stage"), VARIANTS)
@pytest.mark.parametrize("stops", [(1,), (5,), (3, 8)])
def test_resumed_is_uninterrupted(graft: str, stage: dict[str, Any], stops: tuple[int, ...], tmp_path: Path) -> None:
    parts = ("projector",) if graft == "projector" else ("projector", "graft.cross_attention")
    fields = recipe(*parts, **stage)
    whole = model(graft, dropout=0.2)
    expected = run(whole, fields, tmp_path, "whole")
    for i, step in enumerate(stops):
        with pytest.raises(Stop):
            # Another start each time: all of it has to come from the checkpoint.
            run(model(graft, dropout=0.2, seed=i), fields, tmp_path, on_step=stop_at(step))
    built = model(graft, dropout=0.2, seed=9)
    torch.rand(5)  # the caller's random numbers do not matter
    result = run(built, fields, tmp_path)
    assert result.resumed and result.losses == expected.losses
    for name, tensor in state(whole).items():
        assert torch.equal(tensor, dict(built.named_parameters())[name]), name
    logs = [[json.loads(x) for x in (tmp_path / n / "log.jsonl").read_text().splitlines()] for n in ("whole", "run")]
    same = [[(r["step"], r["loss"], r["lr"], r["grad_norm"], r["tokens"]) for r in log] for log in logs]
    assert same[0] == same[1]


def two_stages(steps: int = 4) -> dict[str, Any]:
    first = {"name": "first", "train": {"projector": 1e-2}, "data": {"train": 1}, "batch_size": 4, "steps": steps}
    second = {**first, "name": "second", "train": {"graft.cross_attention": 1e-2}, "batch_size": 3}
    return {"save_steps": 2, "stages": [first, second]}


@pytest.mark.parametrize(("stage", "step"), [("first", 1), ("first", 4), ("second", 1), ("second", 3)])
def test_stages_are_resumed_too(stage: str, step: int, tmp_path: Path) -> None:
    whole = model("cross_attention")
    expected = run(whole, two_stages(), tmp_path, "whole")
    assert expected.steps == 8
    with pytest.raises(Stop):
        run(model("cross_attention"), two_stages(), tmp_path, on_step=stop_at(step, stage))
    built = model("cross_attention", seed=5)
    assert run(built, two_stages(), tmp_path).losses == expected.losses
    assert all(torch.equal(a, b) for a, b in zip(built.parameters(), whole.parameters(), strict=True))


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    whole = model("cross_attention")
    expected = run(whole, two_stages(), tmp_path)
    built, seen = model("cross_attention", seed=3), []
    again = run(built, two_stages(), tmp_path, on_step=seen.append)
    assert again.losses == expected.losses and not seen and again.seconds == pytest.approx(expected.seconds)
    assert all(torch.equal(a, b) for a, b in zip(built.parameters(), whole.parameters(), strict=True))


def test_resume_false_refuses_a_run(tmp_path: Path) -> None:
    run(model(), recipe(), tmp_path)
    with pytest.raises(StoreError, match="there is a run already"):
        run(model(), recipe(), tmp_path, resume=False)


def test_another_recipe_data_or_base_does_not_continue_a_run(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(model(), recipe(), tmp_path, on_step=stop_at(4))
    with pytest.raises(RecipeError, match=r"stages\.0\.batch_size is 2, but .* started with 4"):
        run(model(), recipe(batch_size=2), tmp_path)
    with pytest.raises(RecipeError, match=r"data\.0\.train"):
        run(model(), recipe(), tmp_path, data=samples(20))
    with pytest.raises(RecipeError, match=r"base\.tensors_sha256"):
        run(model(llm={"initializer_range": 0.5}), recipe(), tmp_path)
    with pytest.raises(RecipeError, match="grafts"):
        run(model("cross_attention"), recipe(), tmp_path)
    assert run(model(), {**recipe(), "save_steps": 3, "keep": 1}, tmp_path).steps == 8  # how it is saved may change


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    expected = run(model(), recipe(), tmp_path, "whole")
    with pytest.raises(Stop):
        run(model(), recipe(), tmp_path, on_step=stop_at(6))
    newest = sorted((tmp_path / "run/checkpoints").iterdir())[-1]
    raw = bytearray((newest / checkpoints.OPTIMIZER).read_bytes())
    raw[-1] ^= 1
    (newest / checkpoints.OPTIMIZER).write_bytes(bytes(raw))
    assert run(model(), recipe(), tmp_path).losses == expected.losses


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_line_and_loses_nothing(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(model(), recipe(), tmp_path, "whole")
    save, calls = checkpoints.save_file, []

    def full(*args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) == 14:  # in the middle of the fifth checkpoint
            raise error
        save(*args, **kwargs)

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(StoreError, match="the disk is full") as caught:
        run(model(), recipe(), tmp_path)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    folder = tmp_path / "run/checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["stage-0-step-00000002", "stage-0-step-00000003"]
    assert run(model(), recipe(), tmp_path).losses == expected.losses


# -- by the clock --------------------------------------------------------------------------------------------------


def test_minutes_end_by_the_clock_and_go_on_where_they_stopped(tmp_path: Path) -> None:
    fields = recipe(minutes=0.02, warmup=0.1)
    reports: list[StepReport] = []

    def stop_half(report: StepReport) -> None:
        reports.append(report)
        if report.progress > 0.5:
            raise Stop

    with pytest.raises(Stop):
        run(model(), fields, tmp_path, on_step=stop_half)
    result = run(model(), fields, tmp_path, on_step=reports.append)
    rows = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds) and [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert 0.8 < result.seconds < 10
    rates = [row["lr"] for row in rows]
    assert rates[0] > 0 and rates[-1] < 0.3 * max(rates)
    first = next(r for r in reports[1:] if r.step <= len(reports) and r.progress > 0.45)
    assert first.progress < 1


# -- bad input -----------------------------------------------------------------------------------------------------


def text_only(n: int = 3) -> list[Sample]:
    return [
        Sample(id=f"t{i}", messages=(Message.of("user", f"What is {i} + 1?"), Message.of("assistant", str(i + 1))))
        for i in range(n)
    ]


def nothing_written(tmp_path: Path) -> bool:
    return not (tmp_path / "run").exists()


def test_text_only_replay_on_an_exact_graft_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"stages\.0\.data\.train: 3 of 27 samples are text only .*'t0'.*in_picture"):
        run(model(), recipe(), tmp_path, data=[*samples(), *text_only()])
    assert nothing_written(tmp_path)


def test_text_only_is_fine_where_the_llm_trains(tmp_path: Path) -> None:
    assert run(model(), recipe("llm", steps=2), tmp_path, data=text_only()).steps == 2


def test_replay_in_picture(tmp_path: Path) -> None:
    built = model()
    fields = recipe(steps=3, data={"train": 1, "text": {"replay": "in_picture", "answer_tokens": 4}})
    result = run(built, fields, tmp_path, data={"train": samples(), "text": text_only()})
    kept = json.loads((tmp_path / "run/replay/0/text.json").read_text())
    own = built.chat("What is 1 + 1?", max_new_tokens=4, do_sample=False)
    assert result.steps == 3 and len(kept) == 3 and own in kept.values()


@pytest.mark.parametrize(
    ("train_part", "said"),
    [
        ({"projectr": 1.0}, "Did you mean 'projector'"),
        ({"graft.projector": 1.0}, "has no weights, so it trains nothing"),
        ({"tower": 1.0}, "train_tower=True"),
        ({"graft.wings": 1.0}, "unknown part 'graft.wings'"),
    ],
)
def test_parts_that_can_not_train(train_part: dict[str, float], said: str, tmp_path: Path) -> None:
    fields = recipe()
    fields["stages"][0]["train"] = train_part
    with pytest.raises(RecipeError) as caught:
        run(model(), fields, tmp_path)
    assert said in str(caught.value) and "stages.0.train" in str(caught.value) and nothing_written(tmp_path)


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'projector'"):
        train(model(), "projectr", tmp_path / "run")
    with pytest.raises(UnknownNameError, match=r"stages\.0\.loss: unknown loss"):
        run(model(), recipe(loss="per_word"), tmp_path)
    with pytest.raises(UnknownNameError, match="data source 'trian'.*Did you mean 'train'"):
        run(model(), recipe(), tmp_path, data={"trian": samples()})
    assert nothing_written(tmp_path)


def test_missing_and_empty_data(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data source 'train' is not given.*--data train=file\.jsonl"):
        run(model(), recipe(), tmp_path, data=None)
    with pytest.raises(DataError, match="no samples"):
        run(model(), recipe(), tmp_path, data=[])
    with pytest.raises(RecipeError, match="one for each of the recipe's sources: a, b"):
        run(model(), recipe(data={"a": 1, "b": 1}), tmp_path)
    assert nothing_written(tmp_path)


def test_data_from_a_file_and_its_errors(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    schema.write(file, samples(8))
    assert run(model(), recipe(steps=2), tmp_path, data=file).steps == 2
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe(steps=2, data={"train": "train.jsonl"})))
    built = model()
    options: dict[str, Any] = {"progress": False, "features": cache(built, tmp_path)}
    assert train(built, tmp_path / "r.yaml", tmp_path / "from_yaml", **options).steps == 2
    file.write_text(file.read_text() + "{\n")
    with pytest.raises(DataError, match=r"train\.jsonl:9"):
        run(model(), recipe(), tmp_path, "bad", data=file)


def test_samples_that_can_not_be_used_are_named_before_the_first_step(tmp_path: Path) -> None:
    long = Sample(id="long", messages=(Message.of("user", "x" * 200, (tiny_images(1)[0],)), samples(1)[0].messages[1]))
    with pytest.raises(PromptError, match="sample 'long'"):
        run(model(), recipe(max_length=150), tmp_path, data=[*samples(), long], on_step=stop_at(1))
    mute = Sample(id="mute", messages=(Message.of("user", "?", (tiny_images(1)[0],)),))
    with pytest.raises(DataError, match="sample 'mute' has no answer"):
        run(model(), recipe(), tmp_path, data=[*samples(), mute])


def test_bf16_autocast_leaves_no_trace(tmp_path: Path) -> None:
    built = model()
    plain = run(model(), recipe(), tmp_path, "plain")
    result = run(built, {**recipe(), "precision": "bf16"}, tmp_path)
    assert result.losses != plain.losses and result.losses == pytest.approx(plain.losses, rel=0.02)
    assert "forward" not in vars(built) and all(p.dtype == torch.float32 for p in built.parameters())


def test_bf16_holds_in_every_stage_and_no_error_leaves_it_behind(tmp_path: Path) -> None:
    fields = recipe(steps=2)["stages"][0]
    plan = {"precision": "bf16", "stages": [{**fields, "name": "0"}, {**fields, "name": "1"}]}
    whole = run(model(), plan, tmp_path, "whole")
    built = model()
    with pytest.raises(Stop):
        run(built, plan, tmp_path, on_step=stop_at(1, "1"))
    assert not {"forward", "_original_forward", "_is_accelerate_prepared"} & set(vars(built))
    assert run(model(), plan, tmp_path).losses == whole.losses


def test_processes_that_no_launcher_counts_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda self: 2))
    with pytest.raises(UnsupportedError, match="training in 2 processes, and WORLD_SIZE says 1.*torchrun"):
        run(model(), recipe(), tmp_path)


def test_a_file_that_moved_continues_its_run(tmp_path: Path) -> None:
    for name in ("one.jsonl", "two.jsonl"):
        schema.write(tmp_path / name, samples(8))
        for picture in (tmp_path / "one_images").glob("*"):
            (tmp_path / "two_images").mkdir(exist_ok=True)
            (tmp_path / "two_images" / picture.name).write_bytes(picture.read_bytes())
    (tmp_path / "two.jsonl").write_bytes((tmp_path / "one.jsonl").read_bytes())
    with pytest.raises(Stop):
        run(model(), recipe(data={"train": str(tmp_path / "one.jsonl")}), tmp_path, data=None, on_step=stop_at(3))
    result = run(model(), recipe(data={"train": str(tmp_path / "two.jsonl")}), tmp_path, data=None)
    assert result.resumed and result.steps == 8


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    built = model()

    def poison(report: StepReport) -> None:
        if report.step == 3:
            with torch.no_grad():
                next(iter(built.frontend.projector.parameters())).fill_(float("nan"))

    with pytest.raises(RecipeError, match="the loss became nan at step 4.*Lower the learning rate"):
        run(built, {**recipe(), "save_steps": 2}, tmp_path, on_step=poison)


def test_one_process_a_folder(tmp_path: Path) -> None:
    def again(report: StepReport) -> None:
        run(model(), recipe(), tmp_path)

    with pytest.raises(StoreError, match="another process trains into this folder"):
        run(model(), recipe(), tmp_path, on_step=again)


def test_pictures_that_are_not_there_are_named(tmp_path: Path) -> None:
    one = Sample(id="x", messages=(Message.of("user", "?", (tmp_path / "none.png",)), Message.of("assistant", "a")))
    with pytest.raises(tsugiki.errors.ImageError, match=r"none\.png"):
        run(model(), recipe(), tmp_path, data=[one])


def test_a_run_killed_before_its_stage_was_closed_takes_no_further_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = StageTrainer.save

    def killed(self: StageTrainer, *, finished: bool = False) -> None:
        if finished:
            raise Stop
        own(self, finished=finished)

    built = model()
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(StageTrainer, "save", killed)
        run(built, recipe(steps=3), tmp_path)
    trained, again = state(built), model(seed=1)
    result = run(again, recipe(steps=3), tmp_path)
    assert result.resumed and result.steps == 3
    assert all(torch.equal(p, trained[n]) for n, p in again.named_parameters())


@pytest.mark.parametrize("stop", [None, 2, 3])
def test_on_step_ends_the_stage(stop: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the step where it says so; killed before that step's checkpoint, after it or not at all."""

    def at_three(report: StepReport) -> bool:
        if stop == 2 and report.step == 2:
            raise Stop
        return report.step >= 3

    own = StageTrainer.save

    def killed(self: StageTrainer, *, finished: bool = False) -> None:
        if finished:
            raise Stop
        own(self, finished=finished)

    fields, built = {**recipe(), "save_steps": 1}, model()
    if stop is not None:
        with monkeypatch.context() as patch, pytest.raises(Stop):
            patch.setattr(StageTrainer, "save", killed)
            run(built, fields, tmp_path, on_step=at_three)
    again = model(seed=1 if stop is not None else 0)
    result = run(again, fields, tmp_path, on_step=lambda report: report.step >= 3)
    assert result.steps == 3 and result.resumed == (stop is not None)
    if stop == 3:
        assert all(torch.equal(p, state(built)[n]) for n, p in again.named_parameters())


def test_fixed_position_vectors_do_not_train(tmp_path: Path) -> None:
    built = model(positions="sincos")
    before = built.frontend.projector.positions.clone()
    run(built, recipe(steps=2), tmp_path)
    assert torch.equal(built.frontend.projector.positions, before)
