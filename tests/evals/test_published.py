"""Published benchmarks: the files, what is drawn, what is asked of made-up data, and no network."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from tsugiki import testing
from tsugiki.errors import AssetError, UnknownNameError, UnsupportedError
from tsugiki.evals import harness, published, retention

OPTIONS = ["a cat", "b", "the dog", "b"]
ROWS = [{"question": f"Question {i}:", "options": OPTIONS, "label": i % 3} for i in range(5)]
SOLVED = "".join(f"{row['question']} {OPTIONS[row['label']]}\n\n" for row in ROWS)  # type: ignore[index]
SUMS = [{"question": f"{i} and {i}?", "answer": f"It is {2 * i}. #### {2 * i}"} for i in range(6)]


def made(name: str, rows: list[dict[str, Any]], **config: Any) -> Any:
    """A task of lm-eval on made-up rows."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    data = {"test": Dataset.from_list(rows), "train": Dataset.from_list(rows)}
    with harness.quiet():
        return ConfigurableTask(
            config={
                "task": name,
                "custom_dataset": lambda **_: data,
                "test_split": "test",
                "training_split": "train",
                "fewshot_split": "train",
                "fewshot_config": {"sampler": "first_n"},
                **config,
            }
        )


def choice(name: str) -> Any:
    return made(
        name, ROWS, output_type="multiple_choice", doc_to_text="{{question}}", doc_to_choice="options",
        doc_to_target="label", metric_list=[{"metric": "acc"}],
    )  # fmt: skip


def free(name: str) -> Any:
    return made(
        name, SUMS, output_type="generate_until", doc_to_text="{{question}}", doc_to_target="{{answer}}",
        metric_list=[{"metric": "exact_match", "regexes_to_ignore": ["(?s).*#### "]}],
        generation_kwargs={"until": ["Question:"], "do_sample": False, "max_gen_toks": 6},
        filter_list=[
            {"name": "strict-match", "filter": [{"function": "regex", "regex_pattern": "#### ([0-9]+)"},
                                                {"function": "take_first"}]},
            {"name": "flexible-extract", "filter": [{"function": "regex", "regex_pattern": "([0-9]+)"},
                                                    {"function": "take_first"}]},
        ],
    )  # fmt: skip


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up data in place of what a hub gives."""
    tasks = {"mmlu": ("one", "other"), "gsm8k": ("sums",)}

    def given(suite: published.Suite) -> dict[str, Any]:
        make = free if suite.name == "gsm8k" else choice
        return {name: make(name) for name in tasks[suite.name]}

    monkeypatch.setattr(published, "_tasks", given)


def test_the_files() -> None:
    known = published._manager().task_index
    assert published.available() == ["arc", "cmmlu", "gsm8k", "hellaswag", "mmlu", "race"]
    for name in published.available():
        suite = published.suite(name)
        assert all(task in known for task in suite.tasks), suite
        assert 0 <= suite.chance < 1 and suite.fewshot >= 0
    with pytest.raises(UnknownNameError, match="Did you mean 'mmlu'"):
        published.suite("mmul")


@pytest.mark.parametrize("name", ["arc", "gsm8k"])
def test_without_a_network_one_line_says_so(name: str) -> None:
    with pytest.raises(
        AssetError, match=f"suite {name}: its data can't be read .* a hub that can be reached"
    ) as raised:
        published.fetch(name, 5)
    assert "\n" not in str(raised.value)


def test_a_task_that_this_lm_eval_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = published.Suite(name="x", tasks=["no_such_task"], metric="acc", fewshot=0, chance=0.25)
    with pytest.raises(UnsupportedError, match="has no task no_such_task"):
        published._tasks(asked)


def test_tasks_are_drawn_in_turn() -> None:
    sizes = {"a": 3, "b": 50, "c": 50}
    whole, part = published._drawn(sizes, 60, 0), published._drawn(sizes, 20, 0)
    assert sum(map(len, whole.values())) == 60 and len(whole["a"]) == 3
    assert max(len(part["b"]), len(part["c"])) - min(len(part["b"]), len(part["c"])) <= 1
    for name, items in part.items():
        assert set(items) <= set(whole[name]) and items == sorted(set(items))
        assert max(items) < sizes[name]
    assert published._drawn(sizes, 60, 0) == whole != published._drawn(sizes, 60, 1)
    assert set(published._drawn(sizes, 2, 0)) < set(sizes)


@pytest.mark.usefixtures("local")
def test_questions_of_a_group_are_scored_one_by_one() -> None:
    model = testing.tiny_model()
    fetched = published.fetch("mmlu", 7)
    assert Counter(len(items) for items in fetched.items.values()) == {4: 1, 3: 1}
    found = published.run(harness.text_lm(model, model.tokenizer), fetched)
    expected = []
    for row in (ROWS[i] for items in fetched.items.values() for i in items):
        values = [_likelihood(model, f"{SOLVED}{row['question']}", option) for option in OPTIONS]
        expected.append(float(max(range(4), key=values.__getitem__) == row["label"]))
    assert found == expected
    assert found == published.run(harness.text_lm(model, model.tokenizer), fetched), "a second side is asked the same"


@torch.no_grad()
def _likelihood(model: Any, context: str, option: str) -> float:
    ids, start = model.tokenizer(f"{context} {option}")["input_ids"], len(model.tokenizer(context)["input_ids"])
    logprobs = model.language_model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(logprobs[t - 1, ids[t]]) for t in range(start, len(ids)))


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize("name", ["mmlu", "gsm8k"])
def test_as_a_suite_of_retention(name: str) -> None:
    model = testing.tiny_model(llm={"max_position_embeddings": 2048})
    material = retention.Material(pictures=testing.tiny_images(2))
    budget = {f"{name}.accuracy": 0.05}
    text, pictured = retention.retention(model, suites=[name], n=4, material=material, budget=budget)
    assert (text.task, pictured.task) == (name, f"{name}@picture")
    assert text.n == pictured.n == 4 and text.difference == 0
    assert "5 solved examples" in text.note and not text.informative and "can't be judged" in text.note


def test_an_answer_ends_where_its_task_says() -> None:
    assert harness._until("4 and more Question: next", ["Question:"]) == "4 and more "
    assert harness._until("4, so 5. And", [",", "."]) == "4"
    assert harness._until("4", []) == harness._until("4", None) == harness._until("4 x", " x") == "4"
