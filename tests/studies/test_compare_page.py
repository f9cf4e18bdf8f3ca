"""What is made of the arms' files: page, numbers, tables; and what becomes of files that do not belong."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.studies import _compared

from tsugiki.data.files import hold
from tsugiki.errors import InputError, StoreError
from tsugiki.studies import _compare_arm as arms
from tsugiki.studies import _compare_figures as figures
from tsugiki.studies import _compare_plan as plans
from tsugiki.studies import _compare_speed
from tsugiki.studies._compare_arm import Place
from tsugiki.studies.compare import Compared, compare, write
from tsugiki.training.run import LOCK

ROOT = Path(__file__).parents[2]
FILES = ("compare.html", "compare.md", "compare.json", "pareto.svg")


@pytest.fixture
def done(tmp_path: Path) -> Compared:
    return write(plans.load(_compared.finished(tmp_path, tmp_path / "out")), tmp_path / "out")


def test_the_same_arms_give_the_same_bytes(done: Compared) -> None:
    first = {name: (done.out / name).read_bytes() for name in FILES}
    write(done.plan, done.out)
    assert {name: (done.out / name).read_bytes() for name in FILES} == first
    assert first["pareto.svg"].startswith(b'<svg xmlns="http://www.w3.org/2000/svg"')


def test_numbers_against_loops(done: Compared) -> None:
    content = json.loads((done.out / "compare.json").read_text())
    for arm in content["arms"]:
        runs = done.found[arm["arm"]]
        right = [r for run in runs for r in run["items"]["squares: decisions"]["right"]]
        assert arm["pictures"]["value"] == pytest.approx(sum(right) / len(right))
        assert arm["text"]["value"] == pytest.approx(sum(run["text"][0]["difference"] for run in runs) / len(runs))
        turns = [run["iit"]["items"]["right"] for run in runs]
        assert arm["words after a picture"]["seeds"] == pytest.approx([(sum(t[9:]) - sum(t[:9])) / 9 for t in turns])
        assert arm["proven"] is (arm["arm"] != "full fine-tune 接ぎ木")
    assert [arm["seeds"] for arm in content["arms"]] == [[0, 1, 2]] * 3 + [[0, 1]]


def test_the_same_picture_is_one_group_in_every_task_and_under_every_seed(tmp_path: Path) -> None:
    """Files number pictures in the order of asking: another one in each task, and of conversations under each seed."""
    plan = plans.load(_compared.plan(tmp_path))
    known = figures.Pictures({"squares": {"a": "1.png", "b": "2.png", "c": "2.png"}}, {"v": "1.png", "w": "1.png"})

    def one(ids: list[str]) -> dict[str, Any]:
        return {"ids": ids, "pictures": list(range(len(ids))), "kinds": ["k"] * len(ids), "right": [0] * len(ids)}

    runs = [
        {"items": {"squares: decisions": one(asked), "squares: vqa": one(asked[::-1])}, "iit": {"items": one(turns)}}
        for asked, turns in ((["a", "b", "c"], ["v", "t", "w"]), (["a", "b", "c"], ["t", "w", "v"]))
    ]
    for run in (figures.by_picture(run, known) for run in runs):
        assert {i.name[-1]: i.picture for i in figures.of_run(run)} == {
            "a": "squares 1.png", "b": "squares 2.png", "c": "squares 2.png",
        }  # fmt: skip
        said = run["iit"]["items"]
        assert dict(zip(said["ids"], said["pictures"], strict=True)) == {"v": "1.png", "w": "1.png", "t": "words t"}
    read = figures.Pictures.of(plan)
    assert len(set(read.asked["squares"].values())) == len(read.asked["squares"]) > 5 and not read.last


def test_an_arm_whose_text_was_not_read_is_not_drawn(tmp_path: Path) -> None:
    plan = plans.load(_compared.finished(tmp_path, tmp_path / "out"))
    for seed in plan.seeds:
        _compared.write(plan, Place(out=tmp_path / "out", name="full fine-tune 接ぎ木", seed=seed), text=[])
    found = write(plan, tmp_path / "out")
    assert (tmp_path / "out" / "pareto.svg").read_text().count("<circle") == len(found.found) - 1 == 3


def test_arms_with_fewer_seeds_are_told(done: Compared) -> None:
    page = done.report.read_text()
    assert "iaa under 0, 1." in page and "projector under 0, 1, 2;" in page and "iaa-2" in page
    assert [t.seeds for t in done.tests] == [(0, 1), (0, 1, 2)]
    whole = write(done.plan.model_copy(update={"seeds": (0, 1)}), done.out)
    assert "which differ" not in whole.report.read_text()


@pytest.mark.parametrize("change", [{"key": "of another plan"}, {"version": 0}])
def test_a_file_of_another_plan_is_left_out_and_the_rest_goes_on(done: Compared, change: dict[str, Any]) -> None:
    place = Place(out=done.out, name="projector", seed=1)
    _compared.write(done.plan, place, **change)
    before = place.file.read_bytes()
    told: list[str] = []
    found = compare(done.plan, done.out, only=["projector:1"], say=told.append)
    assert place.file.read_bytes() == before
    assert [run["seed"] for run in found.found["projector"]] == [0, 2] and len(found.found["iaa"]) == 2
    assert list(found.left_out) == ["projector-1"] and "expected the same plan" in told[0]
    page = found.report.read_text()
    assert "projector-1 is left out: arms/projector-1.json" in page and str(done.out) not in page


def test_a_damaged_file_is_left_out(done: Compared) -> None:
    Place(out=done.out, name="iaa", seed=0).file.write_text("{")
    assert list(write(done.plan, done.out).left_out) == ["iaa-0"]


def test_files_of_other_plans_alone_are_nothing(done: Compared) -> None:
    other = done.plan.model_copy(update={"budget": plans.Budget(steps=7)})
    with pytest.raises(InputError, match="no arm is finished; projector-0: .*other settings or data"):
        write(other, done.out)


def test_an_arm_that_is_run_anew_keeps_what_was_there(done: Compared, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(out=done.out, name="projector", seed=1)
    _compared.write(done.plan, place, key="of another plan")
    old = place.file.read_bytes()
    place.run.mkdir(parents=True)
    (place.run / "proof.json").write_text("old")
    ran: list[str] = []

    def run(plan: plans.Plan, at: Place, **_: Any) -> None:
        ran.append(at.stem)
        assert not at.run.exists()
        _compared.write(plan, at)

    monkeypatch.setattr(arms, "run", run)
    found = compare(done.plan, done.out, only=["projector"], anew=True, make=dict, say=lambda _: None)
    assert ran == ["projector-1"] and not found.left_out and len(found.found["projector"]) == 3
    (kept,) = (done.out / "arms").glob("projector-1.*.json")
    assert kept.read_bytes() == old
    assert (done.out / "runs" / kept.stem / "proof.json").read_text() == "old"


def test_what_was_trained_leaves_before_its_file(done: Compared, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in between, the next call still sees that the arm is of another plan."""
    place = Place(out=done.out, name="projector", seed=1)
    _compared.write(done.plan, place, key="of another plan")
    place.run.mkdir(parents=True)
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self == place.file:
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", rename)
        compare(done.plan, done.out, only=["projector:1"], anew=True, make=dict, say=lambda _: None)
    assert not place.run.exists() and list(write(done.plan, done.out).left_out) == ["projector-1"]


def test_a_training_that_began_with_another_shared_stage_is_not_gone_on_with(tmp_path: Path) -> None:
    place = Place(out=tmp_path, name="wings", seed=0)
    arms._refuse_other_start(place, "a1")
    arms._refuse_other_start(place, "a1")
    with pytest.raises(StoreError, match="began with the shared stage a1, not b2"):
        arms._refuse_other_start(place, "b2")


def test_the_shared_stage_has_the_llm_of_the_arms(tmp_path: Path) -> None:
    plan = plans.load(_compared.plan(tmp_path, dtype="bfloat16"))
    seen: dict[str, Any] = {}

    def make(*_: Any, **options: Any) -> None:
        seen.update(options)
        raise InputError("that is enough")

    with pytest.raises(InputError, match="that is enough"):
        arms._learn_to_see(plan, 0, plan.arm("projector"), [], None, make, tmp_path / "shared", print)
    assert seen["dtype"] == torch.bfloat16


def test_small_numbers_reach_an_arms_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON writes 1e-05, which is a word to YAML: the arm's key was another one in its own process."""
    plan = plans.load(_compared.plan(tmp_path, arms={"wings": {"stage": {"weight_decay": 1.0e-5}}}, comparisons=[]))
    file = tmp_path / "kept.json"
    file.write_text(json.dumps(plan.model_dump(mode="json", exclude_unset=True)), encoding="utf-8")
    got: list[plans.Plan] = []
    monkeypatch.setattr(arms, "run", lambda given, *_, **__: got.append(given))
    monkeypatch.setattr(sys, "argv", ["arm", str(file), str(tmp_path), "wings", "0"])
    arms.main()
    assert "e-05" in file.read_text() and arms.key(got[0], "wings", 0) == arms.key(plan, "wings", 0)


def test_memory_is_that_of_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    used = {"now": 3e6, "most": 9e6}
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: used["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: used["most"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: used.update(most=used["now"]))
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    before = _compare_speed.taken(gpu)
    used["most"] = 8e6
    assert (before, _compare_speed.peak(gpu)) == (3.0, 8.0)
    assert _compare_speed.peak(cpu) >= _compare_speed.taken(cpu) > 10


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Programs of benchmarks/ as modules."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


def test_the_results_hold_command_machine_and_arms(done: Compared, tmp_path: Path, scripts: Any) -> None:
    results = tmp_path / "results"
    results.mkdir()
    scripts("compare").keep(done, results)
    first = {f.name: f.read_bytes() for f in results.glob("compare.*")}
    scripts("compare").keep(done, results)
    assert {f.name: f.read_bytes() for f in results.glob("compare.*")} == first and len(first) == 2
    content = json.loads(first["compare.json"])
    assert content["command"] == "python benchmarks/compare.py" and content["machine"]["cores"] > 0
    assert "`python benchmarks/compare.py`, 2026-01-02 to 2026-01-02" in first["compare.md"].decode()
    assert len(list((results / "compare").iterdir())) == 4 * 3 - 1


def test_the_readme_table_is_cut_from_the_results(done: Compared, tmp_path: Path, scripts: Any) -> None:
    scripts("compare").keep(done, tmp_path)
    found = json.loads((tmp_path / "compare.json").read_text())
    cut = scripts("readme_table")
    caption, _, heads, _, *rows = cut.table(found).splitlines()
    assert "100 steps of the projector alone, then 100 of 16" in caption and "seeds 0, 1, 2" in caption
    assert [len(row.split(" | ")) for row in rows] == [len(heads.split(" | "))] * 4
    wings, tuned = rows[1], rows[2]
    assert "| wings as published (as published) |" in wings and "| 0, proven |" in wings and "| 1.05 × |" in wings
    lost = np.mean([0.3, 0.31, 0.32])
    assert f"| {lost:+.3f} [{lost - 0.1:+.3f}, {lost + 0.1:+.3f}] |" in tuned
    alike = {**found, "arms": [{**arm, "words after a picture": None, "seeds": [0]} for arm in found["arms"]]}
    assert "seeds" not in cut.table(alike).splitlines()[2] and "about words" not in cut.table(alike)
    text = f"# x\n\n{cut.START}\n{cut.END}\n\nrest\n"
    placed = cut.placed(text, "a\n| b |")
    assert placed == f"# x\n\n{cut.START}\na\n| b |\n{cut.END}\n\nrest\n" and cut.placed(placed, "a\n| b |") == placed
    others = {**found, "arms": [{**arm, "seeds": [i]} for i, arm in enumerate(found["arms"])]}
    assert "| seeds |" in cut.table(others)  # as many, but not the same ones
    with pytest.raises(ValueError, match="in this order"):
        cut.placed("# x\n", "a")


def test_the_readme_holds_the_table_of_the_results(scripts: Any) -> None:
    cut = scripts("readme_table")
    readme = cut.README.read_text(encoding="utf-8")
    if not cut.RESULTS.is_file():
        assert cut.placed(readme, "") != ""  # the place for it is there
        pytest.skip("docs/results/compare.json is not measured yet")
    assert cut.placed(readme, cut.table(json.loads(cut.RESULTS.read_text(encoding="utf-8")))) == readme


@pytest.fixture
def begun(done: Compared) -> Place:
    """An arm that another plan has begun: then it was killed."""
    place = Place(out=done.out, name="projector", seed=1)
    place.file.unlink()
    other = done.plan.model_copy(update={"budget": plans.Budget(steps=7)})

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        arms.run(other, place, make=killed, say=lambda _: None)
    (place.run / "old").write_text("old")
    return place


def test_what_another_plan_has_begun_is_kept_aside(
    done: Compared, begun: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert arms.begun_otherwise(done.plan, begun)
    seen: list[bool] = []

    def run(plan: plans.Plan, at: Place, **_: Any) -> None:
        seen.append(at.run.exists())
        if seen[-1]:
            raise StoreError("a training of another plan")
        _compared.write(plan, at)

    monkeypatch.setattr(arms, "run", run)
    found = compare(done.plan, done.out, only=["projector"], make=dict, say=lambda _: None)
    assert found.failed["projector-1"].endswith("`--anew` (anew=True) keeps that aside and begins again.")
    with (begun.run / LOCK).open("a") as file, pytest.raises(StoreError, match="another process trains this arm"):
        hold(file, found="", expected="", fix="", where="")
        compare(done.plan, done.out, only=["projector"], anew=True, make=dict, say=lambda _: None)
    found = compare(done.plan, done.out, only=["projector"], anew=True, make=dict, say=lambda _: None)
    assert seen == [True, False] and not found.failed and len(found.found["projector"]) == 3
    assert (begun.run.with_name("projector-1.begun-1") / "old").read_text() == "old"


def test_a_plan_that_trained_nothing_leaves_the_arm_to_the_next(done: Compared, begun: Place) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        arms.run(done.plan, begun, make=killed, say=lambda _: None)
    assert not arms.begun_otherwise(done.plan, begun)


def test_what_the_same_plan_has_begun_goes_on(done: Compared, begun: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    (begun.run / arms.KEY).write_text(arms.key(done.plan, "projector", 1))
    monkeypatch.setattr(arms, "run", lambda plan, at, **_: _compared.write(plan, at) if at.run.exists() else None)
    assert not compare(done.plan, done.out, only=["projector"], anew=True, make=dict, say=lambda _: None).failed
    assert begun.file.is_file() and (begun.run / "old").is_file()
