"""Retention: nothing lost is measured as nothing, damage is seen, a budget judges the bad end of the interval."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import tsugiki
from tsugiki import grafts, testing
from tsugiki.errors import DataError, InputError, UnknownNameError
from tsugiki.evals import budget, power, prompts, retention, rules
from tsugiki.evals._sides import CONTINUE, Sides, joined
from tsugiki.evals.harness import LEAD
from tsugiki.evals.text_items import Choice
from tsugiki.types import Score

TEXTS = [f"The number {i} comes after {i - 1} and before {i + 1}." for i in range(10, 16)]
CHOICES = [Choice(f"c{i}", f"{i} and one is", ("1", "22", "333", "4444"), i % 4) for i in range(8)]
MATERIAL = retention.Material(
    texts=TEXTS,
    choices={"title_choice": CHOICES, "next_sentence": CHOICES},
    instructions=rules.instructions(2),
    prompts=prompts.bundled()[:4],
    pictures=testing.tiny_images(2),
)
QUICK: dict[str, Any] = {"material": MATERIAL, "max_new_tokens": 6}


def by_name(scores: list[Score]) -> dict[str, Score]:
    return {f"{s.task}.{s.metric}": s for s in scores}


@pytest.mark.parametrize("graft", grafts.available())
def test_an_exact_model_lost_exactly_nothing_on_text(graft: str) -> None:
    model = testing.tiny_model(graft)
    with torch.no_grad():
        for parameter in [*model.grafts.parameters(), *model.frontend.projector.parameters()]:
            parameter.add_(0.1 * torch.randn_like(parameter))
    scores = by_name(retention.retention(model, **QUICK))
    text = {name: s for name, s in scores.items() if retention.AFTER not in name}
    assert set(text) == {
        "wiki.loss",
        "wiki.kl",
        "title_choice.accuracy",
        "next_sentence.accuracy",
        "instructions.accuracy",
        "answers.agreement",
    }
    assert {f"{n.split('.')[0]}{retention.AFTER}.{n.split('.')[1]}" for n in text} == set(scores) - set(text)
    for score in text.values():
        assert score.difference == 0 and score.difference_low == 0 and score.difference_high == 0, score
        assert (
            score.base is not None and score.n > 0 and "not measured" not in score.note and score.detectable is not None
        )
    assert scores["wiki@picture.kl"].value > 0, "the picture reaches the LLM"


def test_what_is_proven_need_not_be_measured_again() -> None:
    model = testing.tiny_model()
    measured = by_name(retention.retention(model, after_picture=False, **QUICK))
    taken = by_name(retention.retention(model, after_picture=False, measure_exact=False, **QUICK))
    for name, score in taken.items():
        assert "not measured again" in score.note
        assert replace(score, note="") == replace(measured[name], note="")
    model.freeze_llm(False)
    found = retention.retention(model, base=testing.tiny_llm(), suites=["wiki"], measure_exact=False, **QUICK)
    assert not any("not measured" in s.note for s in found)


def test_chance_level_questions_are_uninformative() -> None:
    scores = by_name(retention.retention(testing.tiny_model(), suites=["title_choice"], after_picture=False, **QUICK))
    assert not scores["title_choice.accuracy"].informative
    found = retention.apply_budget(list(scores.values()), {"title_choice.accuracy": 0.1})
    assert "can't be judged" in str(found[0])
    blind = retention.power_check(testing.tiny_model(), budget={"accuracy": 0.1}, suites=["title_choice"], **QUICK)
    assert not blind.holds and blind.violations


@pytest.mark.parametrize("place", ["", "@picture"])
def test_instructions_are_greedy_answers_in_a_conversation_judged_by_the_rules(place: str) -> None:
    model, items = testing.tiny_model(seed=3), rules.instructions(4)
    material = replace(MATERIAL, instructions=items)
    scores = by_name(retention.retention(model, suites=["instructions"], material=material))
    base: list[str] = []
    for item in items:
        text = (LEAD if place else "") + item.prompt
        prompt = model.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
        )
        ids = torch.tensor([model.tokenizer(prompt)["input_ids"]])
        new = model.language_model.generate(ids, do_sample=False, max_new_tokens=64)[0, ids.shape[1] :]
        base.append(model.tokenizer.decode(new, skip_special_tokens=True))
    score = scores[f"instructions{place}.accuracy"]
    kept = [rules.follows(answer, item.checks) for answer, item in zip(base, items, strict=True)]
    assert score.base == pytest.approx(sum(kept) / 4) and score.n == 4
    chance = sum(rules.follows(base[(i + 1) % 4], item.checks) for i, item in enumerate(items)) / 4
    assert f"chance {chance:.2f}" in score.note and not score.informative


def test_a_budget_that_would_judge_nothing_is_refused_before_the_run() -> None:
    told: list[str] = []
    for limits, suites, after in (({"wiki.loss": 1}, ["answers"], True), ({"loss@picture": 1}, ["wiki"], False)):
        with pytest.raises(DataError, match="judges nothing"):
            retention.retention(
                testing.tiny_model(), budget=limits, suites=suites, after_picture=after, progress=told.append, **QUICK
            )
    assert not told


@torch.no_grad()
def test_loss_and_divergence_are_those_of_a_loop() -> None:
    model = testing.tiny_model()
    damaged = retention.damaged_copy(model.language_model, 0.3)
    found = joined(Sides(model, own=damaged).text_losses(TEXTS, batch_size=3))
    for i, text in enumerate(TEXTS):
        ids = [model.tokenizer.bos_token_id, *model.tokenizer(text)["input_ids"]]
        own, base = (m(torch.tensor([ids])).logits[0].double().log_softmax(-1) for m in (damaged, model.language_model))
        loss, reference, divergence = 0.0, 0.0, 0.0
        for t in range(1, len(ids)):
            loss -= float(own[t - 1, ids[t]])
            reference -= float(base[t - 1, ids[t]])
            divergence += sum(float(b.exp() * (b - o)) for o, b in zip(own[t - 1], base[t - 1], strict=True))
        assert found.tokens[i] == len(ids) - 1
        assert (found.own[i], found.base[i]) == pytest.approx((loss, reference), rel=1e-5)
        assert found.divergence[i] == pytest.approx(divergence, rel=1e-3)


@torch.no_grad()
def test_after_a_picture_the_base_reads_the_same_words() -> None:
    model = testing.tiny_model()
    found = joined(Sides(model).picture_losses(TEXTS[:2], MATERIAL.pictures))
    tokenizer = model.tokenizer
    for i, text in enumerate(TEXTS[:2]):
        cut = text.rfind(" ", 0, len(text) // 2 + 1)
        turns = [{"role": "user", "content": LEAD + CONTINUE + text[:cut]}]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        start = len(tokenizer(prompt)["input_ids"])
        ids = tokenizer(prompt + text[cut:].strip() + "<|im_end|>")["input_ids"]
        logprobs = model.language_model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        assert found.tokens[i] == len(ids) - start
        expected = -sum(float(logprobs[t - 1, ids[t]]) for t in range(start, len(ids)))
        assert found.base[i] == pytest.approx(expected, rel=1e-5)
        assert found.own[i] != pytest.approx(expected, rel=1e-9)


def test_a_damaged_copy_fails_the_gate_and_a_blind_gate_is_told() -> None:
    model = testing.tiny_model()
    before = {n: t.clone() for n, t in model.language_model.state_dict().items()}
    suites = ("wiki", "answers")
    found = retention.power_check(
        model, budget={"wiki.kl": 1e-4, "loss@picture": 1.0}, noise=0.3, suites=suites, **QUICK
    )
    assert found.holds and "over the budget" in str(found.violations[0])
    assert "over the budget" in next(s for s in found.scores if s.metric == "kl").note
    blind = retention.power_check(model, budget={"wiki.kl": 100.0}, noise=0.3, suites=suites, **QUICK)
    assert not blind.holds and not blind.violations
    assert all(torch.equal(t, before[n]) for n, t in model.language_model.state_dict().items())


def test_a_trained_llm_is_compared_with_its_source(tmp_path: Path) -> None:
    testing.tiny_llm().save_pretrained(tmp_path)
    llm = AutoModelForCausalLM.from_pretrained(tmp_path)
    model = tsugiki.attach(llm, "projector", vision=testing.TinyTower(), tokenizer=testing.tiny_tokenizer())
    model.freeze_llm(False)
    with torch.no_grad():
        for parameter in model.language_model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    options: dict[str, Any] = {"suites": ["wiki", "answers"], "after_picture": False, **QUICK}
    scores = by_name(retention.retention(model, budget={"kl": 0.0}, **options))
    assert scores["wiki.kl"].value > 0 and scores["wiki.loss"].difference != 0
    assert scores["answers.agreement"].value < 1 and "over the budget" in scores["wiki.kl"].note
    given = by_name(retention.retention(model, base=testing.tiny_llm(), **options))
    assert given["wiki.kl"].value == scores["wiki.kl"].value
    other = testing.tiny_model()
    other.freeze_llm(False)
    with pytest.raises(InputError, match="base="):
        retention.retention(other, **options)


def score(metric: str, difference: float, half: float, **fields: Any) -> Score:
    ends = {"difference_low": difference - half, "difference_high": difference + half}
    return Score(
        task="wiki", metric=metric, value=1.0, stderr=0.1, n=50, base=1.0, difference=difference, **{**ends, **fields}
    )


@pytest.mark.parametrize(
    ("metric", "difference", "half", "limit", "verdict"),
    [
        ("loss", 0.01, 0.005, 0.02, ""),
        ("loss", 0.03, 0.005, 0.02, "over the budget"),
        ("loss", 0.01, 0.02, 0.02, "don't show"),
        ("loss", -0.5, 0.1, 0.0, ""),
        ("accuracy", -0.01, 0.005, 0.02, ""),
        ("accuracy", -0.03, 0.005, 0.02, "over the budget"),
        ("accuracy", -0.01, 0.02, 0.02, "don't show"),
        ("accuracy", 0.5, 0.1, 0.0, ""),
        ("accuracy", 0.0, 0.0, 0.0, ""),
        ("loss", float("nan"), float("nan"), 1.0, "don't show"),
    ],
)
def test_a_drop_has_to_be_shown_to_be_within_the_budget(
    metric: str, difference: float, half: float, limit: float, verdict: str
) -> None:
    found = retention.apply_budget([score(metric, difference, half)], {metric: limit})
    assert bool(found) == bool(verdict)
    if verdict:
        assert verdict in str(found[0]) and f"wiki.{metric}" in str(found[0])


def test_the_closest_line_of_a_budget_judges() -> None:
    text, after = score("loss", 0.1, 0.0), replace(score("loss", 0.3, 0.0), task="wiki@picture")
    assert not retention.apply_budget([text, after], {"wiki.loss": 0.2, "loss@picture": 0.4})
    found = retention.apply_budget([text, after], {"loss": 0.05, "wiki@picture.loss": 0.1})
    assert [v.key for v in found] == ["loss", "wiki@picture.loss"]
    with pytest.raises(DataError, match="kl judges nothing"):
        retention.apply_budget([text, after], {"loss": 0.2, "kl": 0.1})
    quantised = [replace(s, task=f"{s.task}@int8") for s in (text, after)]
    lines = {"loss": 1.0, "loss@picture": 1.0, "wiki@int8.loss": 0.05, "loss@picture@int8": 0.2}
    verdicts = budget.judge([text, after, *quantised], lines)
    assert [(v.key, v.holds) for v in verdicts] == [
        ("loss", True),
        ("loss@picture", True),
        ("wiki@int8.loss", False),
        ("loss@picture@int8", False),
    ]


def test_what_a_budget_asks_for() -> None:
    assert budget.suites_of({"wiki.loss": 0.1}) == (["wiki"], False, False)
    assert budget.suites_of({"agreement@picture": 0.1}) == (["answers"], True, False)
    assert budget.suites_of({"arithmetic@picture@int8.accuracy": 0, "wiki.kl": 1}) == (
        ["wiki", "arithmetic"],
        True,
        True,
    )
    assert budget.places(True, True) == ["", "@picture", "@int8", "@picture@int8"]
    assert budget.places(False, True) == ["", "@int8"] and budget.places(True, False) == ["", "@picture"]


def test_too_few_items_are_told_with_how_many_it_takes() -> None:
    (found,) = retention.apply_budget([score("loss", 0.01, 0.02, spread=0.1)], {"loss": 0.02})
    needed = power.items_needed(0.02, 0.1, binary=False)
    assert str(found).endswith(f"; it takes about {needed:.0f}") and needed > 50
    record = found.record()
    assert record["items_needed"] == needed and record["figure"] == "wiki.loss" and record["holds"] is False
    (none,) = retention.apply_budget([score("loss", 0.01, 0.02, spread=0.1)], {"loss": 0.0})
    assert none.record()["items_needed"] is None


def test_budget_files(tmp_path: Path) -> None:
    file = tmp_path / "budget.yaml"
    file.write_text("# drops\nwiki.loss: 0.02\naccuracy: 0.05\nwiki@picture.kl: 1\n")
    assert retention.load_budget(file) == {"wiki.loss": 0.02, "accuracy": 0.05, "wiki@picture.kl": 1.0}
    file.write_text("mmlu.accuracy: 0.01\nown_answers@picture@int8.loss: 0\nloss@int8: 0.02\n")
    assert set(retention.load_budget(file)) == {"mmlu.accuracy", "own_answers@picture@int8.loss", "loss@int8"}
    for text, error, match in (
        ("wiki.los: 1", UnknownNameError, "wiki.loss"),
        ("loss: -1", DataError, "loss"),
        ("loss: true", DataError, "number"),
        ("loss: .nan", DataError, "number"),
        ("loss: low", DataError, "number"),
        ("- a", DataError, "no budget"),
        ("", DataError, "no budget"),
        ("a: [", DataError, "can't be read"),
    ):
        file.write_text(text)
        with pytest.raises(error, match=match) as raised:
            retention.load_budget(file)
        assert "\n" not in str(raised.value)
    with pytest.raises(DataError, match="can't be read"):
        retention.load_budget(tmp_path / "missing.yaml")


def test_an_unknown_suite_is_named() -> None:
    with pytest.raises(UnknownNameError, match="answers"):
        retention.retention(testing.tiny_model(), suites=["answer"], **QUICK)


def test_the_model_is_left_as_it_was_and_progress_is_told() -> None:
    model = testing.tiny_model()
    model.train()
    modes, told = {n: m.training for n, m in model.named_modules()}, list[str]()
    retention.retention(model, suites=["wiki"], progress=told.append, **QUICK)
    assert modes == {n: m.training for n, m in model.named_modules()}
    assert [t.split(":")[0] for t in told] == ["wiki.loss", "wiki.kl", "wiki@picture.loss", "wiki@picture.kl"]


@pytest.mark.slow
@pytest.mark.assets("wiki", "smollm2-135m-instruct")
def test_real_text_tells_something_and_damage_is_seen() -> None:
    from transformers import AutoTokenizer

    from tsugiki import assets

    folder = assets.llm_folder("smollm2-135m-instruct")
    llm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = tsugiki.attach(llm, "projector", vision=testing.TinyTower(), tokenizer=tokenizer)
    suites = ("wiki", "next_sentence")
    found = retention.power_check(model, budget={"loss": 0.02}, suites=suites, n=24)
    scores = by_name(list(found.scores))
    assert found.holds and scores["wiki.loss"].base < 4  # type: ignore[operator]
    assert scores["next_sentence.accuracy"].base > 0.35  # type: ignore[operator]
