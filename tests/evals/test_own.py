"""Own prompts: a line's kind and its errors; each kind of score against its definition, written out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tsugiki import grafts, testing
from tsugiki.errors import DataError
from tsugiki.evals import retention
from tsugiki.evals.harness import LEAD
from tsugiki.evals.own import Own, read
from tsugiki.types import Score

TALK = [
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "What does E42 mean?"},
]
LINES: list[dict[str, Any]] = [
    {"prompt": "Which part?", "options": ["belt", "chain", "部品"], "answer": "chain"},
    {"prompt": "Is it on?", "options": ["yes", "no"], "answer": "no"},
    {"prompt": TALK, "answer": "The belt slips."},
    {"prompt": "なぜですか。", "answer": "ベルトです。"},
    {"prompt": "Greet a customer."},
    {"prompt": TALK},
]
MATERIAL = retention.Material(pictures=testing.tiny_images(2))
TOKENS = 5


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "own.jsonl"
    path.write_text("\n\n".join(json.dumps(line, ensure_ascii=False) for line in LINES), encoding="utf-8")
    return path


def measured(model: Any, own: Any, **options: Any) -> dict[str, Score]:
    scores = retention.retention(model, suites=(), own=own, material=MATERIAL, max_new_tokens=TOKENS, **options)
    return {f"{s.task}.{s.metric}": s for s in scores}


def turns(line: dict[str, Any], place: str = "") -> str:
    """The prompt as text, as the base reads it."""
    asked = line["prompt"] if isinstance(line["prompt"], list) else [{"role": "user", "content": line["prompt"]}]
    lead = LEAD if place else ""
    asked = [{**asked[0], "content": lead + asked[0]["content"]}, *asked[1:]]
    text = testing.tiny_tokenizer().apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    assert isinstance(text, str)
    return text


@torch.no_grad()
def logprobs(llm: Any, ids: list[int], start: int) -> list[float]:
    """Of each token from `start`, position by position."""
    out = llm(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return [float(out[t - 1, ids[t]]) for t in range(start, len(ids))]


def said(model: Any, line: dict[str, Any], answer: str, place: str = "") -> list[float]:
    prompt, tokenizer = turns(line, place), model.tokenizer
    ids, start = tokenizer(f"{prompt}{answer}<|im_end|>")["input_ids"], len(tokenizer(prompt)["input_ids"])
    return logprobs(model.language_model, ids, start)


def test_lines(file: Path) -> None:
    items = read(file)
    assert [i.suite for i in items] == ["own_options"] * 2 + ["own_answers"] * 2 + ["own_prompts"] * 2
    assert items[0].options == ("belt", "chain", "部品") and items[0].answer == "chain"
    assert items[2].prompt.turns == tuple((t["role"], t["content"]) for t in TALK)
    assert [i.where.rpartition(":")[2] for i in items] == ["1", "3", "5", "7", "9", "11"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "own.jsonl:2: not JSON"),
        ("[]", "own.jsonl:2: []; expected a map"),
        ('{"prompt": "a", "anser": "b"}', "own.jsonl:2: unknown field 'anser'.*Did you mean 'answer'"),
        ('{"answer": "b"}', "own.jsonl:2 prompt: missing"),
        ('{"prompt": ""}', "own.jsonl:2: no question to answer"),
        ('{"prompt": [{"role": "assistant", "content": "x"}]}', "own.jsonl:2: no question to answer"),
        ('{"prompt": [{"role": "bot", "content": "x"}]}', r"own.jsonl:2 prompt\[0\]: unknown role 'bot'"),
        ('{"prompt": [{"role": "user", "content": [1]}]}', r"own.jsonl:2 prompt\[0\] content: \[1\]; expected a text"),
        ('{"prompt": "a", "answer": 4}', "own.jsonl:2 answer: 4; expected a text"),
        ('{"prompt": "a", "answer": " "}', "own.jsonl:2 answer: an empty answer"),
        ('{"prompt": "a", "options": ["b", "c"]}', "own.jsonl:2 answer: no answer; expected one of the options 'b'"),
        ('{"prompt": "a", "options": ["b", "c"], "answer": "d"}', "own.jsonl:2 answer: 'd'; expected one of"),
        ('{"prompt": "a", "options": ["b", "b"], "answer": "b"}', "own.jsonl:2 options: the options 'b', 'b'"),
        ('{"prompt": "a", "options": [], "answer": "b"}', "own.jsonl:2 options: no options"),
        ('{"prompt": "a", "options": "bc", "answer": "b"}', "own.jsonl:2 options: 'bc'; expected a list"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(f'{{"prompt": "good"}}\n{line}\n')
    with pytest.raises(DataError, match=says.replace("[]", r"\[\]")):
        read(path)


def test_no_prompts(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text("\n")
    with pytest.raises(DataError, match="own.jsonl: no prompts"):
        read(tmp_path / "own.jsonl")
    with pytest.raises(DataError, match="does not exist"):
        read(tmp_path / "none.jsonl")


@pytest.mark.parametrize("place", ["", "@picture"])
def test_figures_of_the_base_are_those_of_the_definitions(file: Path, place: str) -> None:
    model = testing.tiny_model()
    scores = measured(model, file)
    right = [
        max(line["options"], key=lambda o: sum(said(model, line, o, place))) == line["answer"] for line in LINES[:2]
    ]
    assert scores[f"own_options{place}.accuracy"].base == sum(right) / 2
    assert "chance 0.42" in scores[f"own_options{place}.accuracy"].note

    given = [p for line in LINES[2:4] for p in said(model, line, line["answer"], place)]
    assert scores[f"own_answers{place}.loss"].base == pytest.approx(-sum(given) / len(given), rel=1e-5)

    greedy: list[float] = []
    for line in LINES[4:]:
        ids = model.tokenizer(turns(line, place))["input_ids"]
        whole = model.language_model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=TOKENS)[0].tolist()
        greedy += logprobs(model.language_model, whole, len(ids))
    assert scores[f"own_prompts{place}.loss"].base == pytest.approx(-sum(greedy) / len(greedy), rel=1e-5)
    assert scores[f"own_prompts{place}.agreement"].n == 2


@pytest.mark.parametrize("graft", grafts.available())
def test_an_exact_model_lost_nothing_on_text_and_is_changed_by_a_picture(file: Path, graft: str) -> None:
    model = testing.tiny_model(graft)
    with torch.no_grad():
        for parameter in [*model.grafts.parameters(), *model.frontend.projector.parameters()]:
            parameter.add_(0.1 * torch.randn_like(parameter))
    scores = measured(model, file)
    for name in ("own_options.accuracy", "own_answers.kl", "own_prompts.kl", "own_prompts.agreement"):
        assert scores[name].difference == scores[name].difference_low == scores[name].difference_high == 0
    assert scores["own_answers@picture.kl"].value > 0 < scores["own_prompts@picture.kl"].value


def test_a_budget_judges_them(file: Path) -> None:
    model = testing.tiny_model()
    model.freeze_llm(False)
    with torch.no_grad():
        for parameter in model.language_model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    scores = measured(model, file, base=testing.tiny_llm(), budget={"own_answers.kl": 0.0, "loss": 100.0})
    assert "over the budget of 0 (own_answers.kl)" in scores["own_answers.kl"].note
    with pytest.raises(DataError, match="own_options.accuracy judges nothing"):
        measured(model, read(file)[2:], base=testing.tiny_llm(), budget={"own_options.accuracy": 0.1})


def test_what_is_proven_is_not_measured_again(file: Path) -> None:
    model = testing.tiny_model()
    whole = measured(model, file, after_picture=False)
    taken = measured(model, file, after_picture=False, measure_exact=False)
    assert {n: (s.value, s.base) for n, s in whole.items()} == {n: (s.value, s.base) for n, s in taken.items()}
    assert all("not measured again" in s.note for s in taken.values())


def test_given_in_memory() -> None:
    from tsugiki.evals.prompts import prompt_of

    items = [Own(prompt_of("One?", "own", ""), answer="Two."), Own(prompt_of("Two?", "own", ""), answer="Three.")]
    scores = measured(testing.tiny_model(), items, after_picture=False)
    assert set(scores) == {"own_answers.loss", "own_answers.kl"} and scores["own_answers.loss"].n == 2
