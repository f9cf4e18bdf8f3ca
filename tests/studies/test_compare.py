"""Methods side by side on tiny models that lie in folders, as a user's do."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
import yaml
from tests.mixing._folders import llm
from tests.studies._pictures import folder as pictures

from tsugiki.data import schema
from tsugiki.data.convert import imagefolder
from tsugiki.errors import DataError, InputError, RecipeError, UnknownNameError
from tsugiki.evals import stats
from tsugiki.studies import _compare_arm as arms
from tsugiki.studies import _compare_figures as figures
from tsugiki.studies import _compare_plan as plans
from tsugiki.studies.compare import Compared, compare
from tsugiki.synth import iit
from tsugiki.types import Message, Sample

ARMS: dict[str, Any] = {
    "projector": {},
    "wings": {"options": {"rank": 2}},
    "full_finetune": {"train": {"projector": 1e-3, "llm": 1e-2}},
    "pulled back": {"mix_of": "full_finetune", "beta": 0.5},
}


def conversations(pictures: list[Sample]) -> list[Sample]:
    """Of five sums and five pictures."""
    sums = [
        Sample(
            id=f"sum{i}",
            messages=(Message.of("user", f"{i} and {i}?"), Message.of("assistant", str(100 + 2 * i))),
            options=(str(100 + 2 * i), str(200 + 2 * i)),
        )
        for i in range(8)
    ]
    return iit.generate(sums, pictures, lambda texts: torch.ones(len(texts), 1), n=5)


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan beside its data, a base and a tower."""
    root = tmp_path_factory.mktemp("comparison")
    llm(root / "llm")
    config = hf.ViTConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
    )
    hf.ViTModel(config).save_pretrained(root / "tower")
    (root / "tower" / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 32, "width": 32}})
    )
    samples = imagefolder.convert(pictures(root / "pictures", (8, 8)))
    schema.write(root / "train.jsonl", samples[::2])
    schema.write(root / "ask.jsonl", samples[1::2])
    schema.write(root / "iit.jsonl", conversations(samples[1::2]))
    content = {
        "base": str(root / "llm"),
        "vision": str(root / "tower"),
        "data": {"train": "train.jsonl", "ask": "ask.jsonl", "iit": "iit.jsonl"},
        "shared": {"steps": 2, "warm_start": False},
        "budget": {"steps": 2, "batch_size": 4},
        "seeds": [0, 1],
        "arms": ARMS,
        "comparisons": [["wings", "projector"], ["full_finetune", "projector", "decisions"]],
        "asked": {"tasks": ["decisions"], "retention": [], "answers": 0, "shown": 3},
    }
    (root / "plan.yaml").write_text(yaml.safe_dump(content, allow_unicode=True, sort_keys=False))
    return root / "plan.yaml"


@pytest.fixture(scope="module")
def done(plan_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """The whole comparison, in this process."""
    fields = plans.load(plan_file)
    return compare(fields, tmp_path_factory.mktemp("done"), say=lambda _: None)


def fields(plan_file: Path, **changes: Any) -> dict[str, Any]:
    """The plan as a dict, its paths whole."""
    content = yaml.safe_load(plan_file.read_text())
    content["data"] = {k: str(plan_file.parent / v) for k, v in content["data"].items()}
    return {**content, **changes}


def test_every_arm_and_seed_is_trained_asked_and_proven(done: Compared) -> None:
    assert {name: [run["seed"] for run in runs] for name, runs in done.found.items()} == {n: [0, 1] for n in ARMS}
    assert not done.failed and not done.waiting
    for name, runs in done.found.items():
        for run in runs:
            exact = name in ("projector", "wings")
            assert run["proof"]["guarantee"] == ("exact" if exact else "bounded")
            assert run["proof"]["holds"] and run["proof"]["prompts"] > 0 or not exact
            assert len(run["items"]["decisions"]["ids"]) == 8
            assert run["speed"]["first"]["ratio"] > 0 and run["stored_mb"] > 0


def test_arms_of_a_seed_begin_with_the_same_front_end(done: Compared) -> None:
    shared = list((done.out / "shared").glob(f"*/{arms.FRONTEND}"))
    assert len(shared) == 2  # one front-end, two seeds


def test_a_mixed_arm_takes_the_run_of_the_other(done: Compared) -> None:
    for mixed, whole in zip(done.found["pulled back"], done.found["full_finetune"], strict=True):
        assert mixed["losses"] == whole["losses"] and mixed["beta"] == 0.5


def test_the_same_call_runs_nothing_again(done: Compared) -> None:
    told: list[str] = []
    again = compare(done.plan, done.out, say=told.append)
    assert not told
    assert [t.pvalue for t in again.tests] == [t.pvalue for t in done.tests]


def test_the_same_seed_gives_the_same_answers(done: Compared, tmp_path: Path) -> None:
    again = compare(done.plan, tmp_path, only=["wings:1"], say=lambda _: None)
    assert again.found["wings"][0]["losses"] == done.found["wings"][1]["losses"]
    assert again.found["wings"][0]["items"] == done.found["wings"][1]["items"]
    assert "projector-0" in again.waiting


def test_an_arm_has_a_process_of_its_own(plan_file: Path, done: Compared, tmp_path: Path) -> None:
    found = compare(plan_file, tmp_path, only=["projector:0"], say=lambda _: None)
    assert found.found["projector"][0]["items"] == done.found["projector"][0]["items"]
    assert found.found["projector"][0]["peak_mb"] >= 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
def test_an_arm_ends_with_who_started_it_and_the_same_call_goes_on(
    plan_file: Path, done: Compared, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "tsugiki.cli", "compare", str(plan_file), "--out", str(tmp_path)]
    with subprocess.Popen(
        [*command, "--only", "projector:0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as parent:
        assert parent.stdout is not None
        lines = iter(parent.stdout)
        assert any("2 steps of 4" in line for line in lines)  # the arm is training
        assert processes(tmp_path) > 1
        parent.terminate()
    while processes(tmp_path):  # a hang ends with the test's own limit
        time.sleep(0.05)
    assert not (tmp_path / "arms" / "projector-0.json").exists()
    found = compare(done.plan, tmp_path, only=["projector:0"], say=lambda _: None)
    assert found.found["projector"][0]["losses"] == done.found["projector"][0]["losses"]
    assert found.found["projector"][0]["items"] == done.found["projector"][0]["items"]


def processes(out: Path) -> int:
    """How many have the comparison's folder among their arguments."""
    count = 0
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            count += str(out).encode() in file.read_bytes().split(b"\0")
    return count


def test_last_turns_of_conversations_are_told_apart_from_pictures(done: Compared) -> None:
    runs = done.found["wings"]
    items = runs[0]["iit"]["items"]
    assert Counter(items["kinds"]) == dict.fromkeys(("T", "TT", "TTT", "VT", "V", "TV", "TTV"), 5)
    right = [
        {(kind, name): right for kind, name, right in zip(i["kinds"], i["ids"], i["right"], strict=True)}
        for i in (run["iit"]["items"] for run in runs)
    ]
    gaps = [[of[kind, name] - of["T", name] for kind, name in of if kind == "VT"] for of in right]
    found = figures.interleaved(runs, "VT", "T")
    assert found is not None
    assert found.seeds == tuple(sum(gap) / 5 for gap in gaps)
    assert found.value.value == pytest.approx(sum(map(sum, gaps)) / 10)
    assert "IIT VT - T" in done.report.read_text()
    assert figures.interleaved([{"iit": {"items": {}, "scores": []}}], "T") is None


def test_the_page_is_whole_and_shows_every_arm(done: Compared) -> None:
    page = done.report.read_text()
    assert all(name in page for name in ARMS)
    assert page.count("<figure>") == 3
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources and all(source.startswith("data:") for source in sources)
    markdown = (done.out / "compare.md").read_text()
    assert markdown.count("\n| ") >= len(ARMS)
    content = json.loads((done.out / "compare.json").read_text())
    assert [row["arm"] for row in content["rows"]] == list(ARMS)


def test_an_arm_that_fails_is_told_and_the_others_go_on(plan_file: Path, tmp_path: Path) -> None:
    broken = {"projector": {}, "broken": {"method": "wings", "stage": {"loss": "no such loss"}}}
    plan = fields(plan_file, arms=broken, seeds=[0], comparisons=[["broken", "projector"]])
    compare(plan, tmp_path, say=lambda _: None)
    found = compare(plan, tmp_path, only=["projector"], say=lambda _: None)  # told again by the next call
    assert [t.first for t in found.untested] == ["broken"] and "Not tested" in found.report.read_text()
    assert list(found.found) == ["projector"]
    assert "no such loss" in found.failed["broken-0"]
    assert "no such loss" in found.report.read_text()


def test_nothing_finished_is_one_line(plan_file: Path, tmp_path: Path) -> None:
    broken = {"broken": {"method": "wings", "stage": {"loss": "no such loss"}}}
    with pytest.raises(InputError, match="no arm is finished; broken-0"):
        compare(fields(plan_file, arms=broken, seeds=[0], comparisons=[]), tmp_path, say=lambda _: None)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"arms": {"wing": {}}, "comparisons": []}, UnknownNameError, "wings"),
        ({"asked": {"tasks": ["decision"]}}, UnknownNameError, "decisions"),
        ({"asked": {"retention": ["wikis"]}}, UnknownNameError, "wiki"),
        ({"comparisons": [["wings", "iaa"]]}, RecipeError, "'iaa'"),
        ({"comparisons": [["wings", "projector"]] * 7}, RecipeError, "at most 6"),
        ({"arms": {"a/b": {"method": "wings"}}, "comparisons": []}, RecipeError, "'a/b'"),
        ({"data": {"train": "no.jsonl", "ask": "no.jsonl"}}, RecipeError, "no such file"),
        ({"data": "photos"}, RecipeError, "expected keys: train, ask"),
        (
            {"arms": {"m": {"mix_of": "p", "method": "wings"}, "p": {"method": "wings"}}, "comparisons": []},
            RecipeError,
            "'method' of its own|has method of its own",
        ),
        ({"asked": {"tasks": ["grounding"]}}, DataError, "0 samples for grounding"),
        ({"comparisons": [["wings", "projector", "", "x"]]}, RecipeError, "comparisons"),
        ({"seeds": [1, 1]}, RecipeError, "stands twice"),
        ({"arms": {"projector": {"replay": 1}}, "comparisons": []}, RecipeError, "data.text"),
        ({"arms": {"m": {"mix_of": "x"}}, "comparisons": []}, RecipeError, "no arm that is trained"),
        ({"bugdet": {}}, RecipeError, "'budget'"),
    ],
)
def test_bad_plans(plan_file: Path, change: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        plans.load(fields(plan_file, **change))


def test_unknown_arm_and_seed(plan_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="wings"):
        compare(plan_file, tmp_path, only=["wing"])
    with pytest.raises(InputError, match="seed '7'"):
        compare(plan_file, tmp_path, only=["wings:7"])
    with pytest.raises(InputError, match="seed '²'"):
        compare(plan_file, tmp_path, only=["wings:²"])


@pytest.mark.parametrize("content", ["[]", "null", "{"])
def test_a_damaged_arm_is_one_line(plan_file: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "arms").mkdir()
    (tmp_path / "arms" / "projector-0.json").write_text(content)
    with pytest.raises(InputError, match="no arm is finished; projector-0: .*Delete it"):
        compare(plan_file, tmp_path, only=["projector:0"])


def test_a_file_with_one_id_twice_is_refused(plan_file: Path, tmp_path: Path) -> None:
    samples = schema.load(plan_file.parent / "ask.jsonl")
    schema.write(tmp_path / "ask.jsonl", [samples[0], samples[0]])
    data = {"train": str(plan_file.parent / "train.jsonl"), "ask": str(tmp_path / "ask.jsonl")}
    with pytest.raises(DataError, match="twice"):
        plans.load(fields(plan_file, data=data))


def run(arm: str, seed: int, right: Mapping[str, int], **text: float) -> dict[str, Any]:
    """An arm's file, as far as figures read it."""
    ids = list(right)
    items = {"decisions": {"ids": ids, "kinds": ["x"] * len(ids), "pictures": list(range(len(ids))),
                           "right": [right[i] for i in ids]}}  # fmt: skip
    lost = [{"task": "wiki", "metric": "loss", "n": 9, **text}] if text else []
    proof = {"guarantee": "bounded", "holds": True}
    return {"arm": arm, "seed": seed, "items": items, "text": lost, "proof": proof}


def test_figures_against_loops() -> None:
    rng = np.random.default_rng(0)
    values = {(arm, seed): {f"i{k}": int(rng.random() < p) for k in range(40)}
              for arm, p in (("a", 0.9), ("b", 0.4), ("c", 0.85)) for seed in (0, 1)}  # fmt: skip
    found = {arm: [run(arm, seed, values[arm, seed]) for seed in (0, 1)] for arm in "abc"}
    plan = plans.Plan.model_validate(
        {"base": "x", "data": {"train": "t", "ask": "a"}, "arms": {"a": {}, "b": {}, "c": {}},
         "comparisons": [["a", "b"], ["a", "c"]]}
    )  # fmt: skip
    mean = figures.vision(found["a"])
    assert mean is not None
    total = sum(sum(values["a", seed].values()) for seed in (0, 1))
    assert mean.value.value == pytest.approx(total / 80)
    assert mean.seeds == tuple(sum(values["a", seed].values()) / 40 for seed in (0, 1))
    tests, untested = figures.tested(plan, found)
    assert not untested
    gaps = [sum(values["a", s][f"i{k}"] - values["b", s][f"i{k}"] for k in range(40)) for s in (0, 1)]
    assert tests[0].difference.value == pytest.approx(sum(gaps) / 80)
    small, large = sorted(t.pvalue for t in tests)
    assert sorted(t.corrected for t in tests) == pytest.approx([min(1, 2 * small), max(2 * small, large)])
    assert tests[0].told_apart and not tests[1].told_apart
    assert any("not told apart" in line for line in figures.findings(tests, found))


def test_questions_about_one_picture_are_no_independent_items() -> None:
    one = run("a", 0, {f"i{k}": 1 for k in range(12)})
    other = run("b", 0, {f"i{k}": int(k >= 6) for k in range(12)})
    for each in (one, other):
        each["items"]["decisions"]["pictures"] = [k // 6 for k in range(12)]
    fields = {"base": "x", "data": {"train": "t", "ask": "a"}, "arms": {"a": {}, "b": {}}, "comparisons": [["a", "b"]]}
    tests, _ = figures.tested(plans.Plan.model_validate(fields), {"a": [one], "b": [other]})
    assert tests[0].difference.value == 0.5 and tests[0].pvalue == 1.0  # two pictures, one of them differs
    mean = figures.vision([other])
    assert mean is not None and (mean.value.low, mean.value.high) == (0.0, 1.0)


def test_what_waits_counts_in_holm_and_a_score_that_nothing_has_is_an_error() -> None:
    runs = {"a": [run("a", 0, {f"i{k}": 1 for k in range(9)})], "b": [run("b", 0, {f"i{k}": 0 for k in range(9)})]}
    plan = {"base": "x", "data": {"train": "t", "ask": "a"}, "arms": {"a": {}, "b": {}, "c": {}}}
    tests, waiting = figures.tested(plans.Plan.model_validate({**plan, "comparisons": [["a", "b"], ["a", "c"]]}), runs)
    assert tests[0].corrected == pytest.approx(2 * tests[0].pvalue) and [t.second for t in waiting] == ["c"]
    with pytest.raises(UnknownNameError, match="decisions/x"):
        figures.tested(plans.Plan.model_validate({**plan, "comparisons": [["a", "b", "decisions/y"]]}), runs)


def test_text_is_the_mean_of_seeds_and_of_their_intervals() -> None:
    ends = [(0.1, 0.05, 0.15), (0.3, 0.2, 0.5)]
    runs = [run("a", i, {"x": 1}, value=3.0, difference=d, difference_low=low, difference_high=high)
            for i, (d, low, high) in enumerate(ends)]  # fmt: skip
    lost = figures.text(runs)
    assert lost is not None and lost.seeds == (0.1, 0.3)
    assert (lost.value.value, lost.value.low, lost.value.high) == pytest.approx((0.2, 0.125, 0.325))
    assert any(line.startswith("a costs text: +0.200") for line in figures.findings([], {"a": runs}))
    assert stats.ALPHA == 0.05
