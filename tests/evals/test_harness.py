"""lm-eval's figures of our models: those of its own definitions, written out."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from tsugiki import testing
from tsugiki.errors import DataError, UnknownNameError, UnsupportedError
from tsugiki.evals import harness
from tsugiki.evals._sides import Sides, joined
from tsugiki.evals.options import without_pictures
from tsugiki.types import Message, Sample

OPTIONS = (("a cat", "b", "the dog", "cd"), ("x", "yes, it is", "no", "q"), ("one", "two", "three", "four"))
DOCUMENTS = [{"context": f"Question {i}:", "options": list(o), "answer": i % 4} for i, o in enumerate(OPTIONS)]


@pytest.fixture(scope="module")
def model() -> Any:
    return testing.tiny_model()


@torch.no_grad()
def likelihoods(llm: Any, tokenizer: Any, context: str, options: tuple[str, ...]) -> list[float]:
    """Log-likelihood of each option after the context, position by position."""
    out = []
    for option in options:
        ids, start = tokenizer(f"{context} {option}")["input_ids"], len(tokenizer(context)["input_ids"])
        logprobs = llm(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        out.append(sum(float(logprobs[t - 1, ids[t]]) for t in range(start, len(ids))))
    return out


def test_accuracy_on_text_is_that_of_the_definition(model: Any) -> None:
    found = harness.run(
        harness.text_lm(model, model.tokenizer), {"title_choice": DOCUMENTS, "next_sentence": DOCUMENTS}
    )
    for i, options in enumerate(OPTIONS):
        values = likelihoods(model.language_model, model.tokenizer, DOCUMENTS[i]["context"], options)  # type: ignore[arg-type]
        best = max(range(4), key=values.__getitem__)
        per_byte = max(range(4), key=lambda k: values[k] / len(options[k]))
        assert found["title_choice"][i] == (best == i % 4)
        assert found["next_sentence"][i] == (per_byte == i % 4)


def test_the_loss_is_the_sum_over_tokens_and_ours(model: Any) -> None:
    texts = ["a text of some length", "接ぎ木は木である。", "short"]
    found = harness.run(harness.text_lm(model, model.tokenizer), {"wiki_loss": [{"text": t} for t in texts]})[
        "wiki_loss"
    ]
    ours = joined(Sides(model).text_losses(texts))
    assert found == pytest.approx(ours.own, rel=1e-5)
    first = model.tokenizer.bos_token_id
    for text, value in zip(texts, found, strict=True):
        ids = [first, *model.tokenizer(text)["input_ids"]]
        with torch.no_grad():
            logprobs = model.language_model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        assert value == pytest.approx(-sum(float(logprobs[t - 1, ids[t]]) for t in range(1, len(ids))), rel=1e-5)


def test_after_a_picture_the_base_reads_the_same_question(model: Any) -> None:
    pictures = testing.tiny_images(2)
    lm = harness.chat_lm(model, pictures)
    bare = harness.chat_lm(model, pictures, llm=model.language_model)
    requests = [_Request(i, (d["context"], f" {o}")) for i, d in enumerate(DOCUMENTS) for o in d["options"]]  # type: ignore[attr-defined]
    own, base = lm.loglikelihood(requests), bare.loglikelihood(requests)
    assert len(own) == len(base) == 12
    tokenizer = model.tokenizer
    for i, document in enumerate(DOCUMENTS):
        turns = [{"role": "user", "content": harness.LEAD + document["context"]}]  # type: ignore[operator]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        for k, option in enumerate(document["options"]):  # type: ignore[arg-type, var-annotated]
            ids, start = tokenizer(f"{prompt}{option}<|im_end|>")["input_ids"], len(tokenizer(prompt)["input_ids"])
            with torch.no_grad():
                logprobs = model.language_model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            value = sum(float(logprobs[t - 1, ids[t]]) for t in range(start, len(ids)))
            assert base[4 * i + k][0] == pytest.approx(value, rel=1e-4)
    assert all(a[0] != b[0] for a, b in zip(own, base, strict=True))


def test_generated_answers_are_greedy_ones_and_judged_by_the_rules(model: Any) -> None:
    prompts = [f"Say {word}." for word in ("one", "two", "three")]
    pictures = testing.tiny_images(2)
    for shown in ((), pictures):
        for llm in (None, model.language_model):
            expected = []
            for i, prompt in enumerate(prompts):
                turns = (Message.of("user", prompt),)
                turns = harness.after_picture(turns, shown[i % 2]) if shown else turns
                sample = Sample(id="", messages=turns)
                sample = sample if llm is None else without_pictures(sample)
                inputs = model.encode_samples([sample], add_generation_prompt=True).inputs()
                ids = (llm or model).generate(**inputs, do_sample=False, max_new_tokens=64)
                new = ids[0, inputs["input_ids"].shape[1] :]
                expected.append(model.tokenizer.decode(new, skip_special_tokens=True).strip())
            checks = [
                [["one_of", {"options": [expected[0]]}]],
                [["one_of", {"options": ["no such"]}]],
                [["words_at_least", {"n": 0}]],
            ]
            documents = [{"context": p, "checks": json.dumps(c)} for p, c in zip(prompts, checks, strict=True)]
            found = harness.outcomes(harness.chat_lm(model, shown, llm=llm), {"instructions": documents})[
                "instructions"
            ]
            assert [o.text for o in found] == expected
            assert [o.value for o in found] == [1.0, 0.0, 1.0]


class _Request:
    """A request as lm-eval makes it."""

    def __init__(self, doc_id: int, args: tuple[Any, ...]) -> None:
        self.task_name, self.doc_id, self.args = "t", doc_id, args


def test_what_can_t_be_asked_is_refused(model: Any) -> None:
    lm = harness.chat_lm(model, testing.tiny_images(1))
    with pytest.raises(UnsupportedError):
        harness.run(lm, {"wiki_loss": [{"text": "x"}]})
    with pytest.raises(UnknownNameError, match="title_choice"):
        harness.run(lm, {"title_choise": DOCUMENTS})
    with pytest.raises(DataError, match="no documents"):
        harness.run(lm, {"title_choice": []})


def test_the_tokenizer_is_left_alone(model: Any) -> None:
    side = model.tokenizer.padding_side
    harness.run(harness.text_lm(model, model.tokenizer), {"title_choice": DOCUMENTS})
    assert model.tokenizer.padding_side == side


def test_local_tasks() -> None:
    assert harness.tasks() == [
        "arithmetic",
        "definition_choice",
        "instructions",
        "next_sentence",
        "title_choice",
        "wiki_loss",
    ]


@pytest.mark.assets("wiki")
def test_items_from_wikipedia() -> None:
    from tsugiki.evals import text_items

    train, test = ({a.title for a in text_items.articles(s)} for s in ("train", "test"))
    assert not train & test and len(test) > 2500
    for make in (text_items.title_choice, text_items.next_sentence, text_items.definition_choice):
        items = make(200)
        assert items == make(200) and items != make(200, seed=1)
        assert len({i.id for i in items}) == 200 and all(len(set(i.options)) == 4 for i in items)
        counts = [sum(i.answer == k for i in items) for k in range(4)]
        assert min(counts) > 25
        assert {i.id.split("-", 1)[1] for i in items} <= test
    for item in text_items.title_choice(200):
        assert item.options[item.answer].lower() not in item.context.lower()
    texts = text_items.passages(200)
    assert len(set(texts)) == 200 and all(200 <= len(t) <= 500 for t in texts)
    with pytest.raises(DataError, match="expected 100000"):
        text_items.passages(100_000)
