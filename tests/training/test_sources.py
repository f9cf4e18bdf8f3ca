"""From a stage's sources to a stream of batches that continues exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.training._tiny import cache, marked, model, samples

from tsugiki.data import schema
from tsugiki.data.mixture import Mixture
from tsugiki.errors import DataError, RecipeError
from tsugiki.testing import tiny_images
from tsugiki.training import feed
from tsugiki.training.processes import Processes
from tsugiki.training.recipe import load as load_recipe
from tsugiki.training.sources import digest, in_picture, load, replayed
from tsugiki.training.stream import GROUP, Encoder, Stream
from tsugiki.types import ImagePart, Message, Sample, TextPart


def texts(n: int, name: str = "t") -> list[Sample]:
    """Text-only samples; the length of the answer is that of the id's number."""
    return [
        Sample(id=f"{name}{i}", messages=(Message.of("user", "?"), Message.of("assistant", "a" * (1 + i * 7 % 40))))
        for i in range(n)
    ]


def length(sample: Sample) -> int:
    return len(sample.messages[1].parts[0].text)  # type: ignore[union-attr]


def ids(batch: list[Sample]) -> list[str]:
    return [sample.id for sample in batch]


def stream(*, grouped: bool = True, size: int = 4, seed: int = 0, **options: Any) -> Stream:
    mixture = Mixture({"a": texts(50), "b": texts(13, "b")}, {"a": 3, "b": 1}, seed=seed)
    chosen = length if grouped else None
    return Stream(mixture, batch_size=size, collate=ids, length=chosen, seed=seed, **options)


def take(endless: Stream, n: int) -> list[list[str]]:
    found = iter(endless)
    return [next(found) for _ in range(n)]


@given(st.booleans(), st.integers(1, 5), st.integers(0, 3), st.integers(0, 40), st.integers(1, 20))
def test_a_stream_continues_exactly(grouped: bool, size: int, seed: int, before: int, after: int) -> None:
    one = stream(grouped=grouped, size=size, seed=seed)
    take(one, before)
    state = one.state_dict()
    expected = take(one, after)
    two = stream(grouped=grouped, size=size, seed=seed)
    two.load_state_dict(state)
    assert two.state_dict() == state
    assert take(two, after) == expected


def test_a_state_is_taken_in_the_midst_of_an_iteration() -> None:
    one = stream()
    walk = iter(one)
    for _ in range(GROUP + 3):
        next(walk)
    state = one.state_dict()
    expected = [next(walk) for _ in range(GROUP)]
    two = stream()
    two.load_state_dict(state)
    assert take(two, GROUP) == expected


def test_grouping_keeps_the_samples_and_saves_padding() -> None:
    plain, grouped = take(stream(grouped=False), GROUP), take(stream(), GROUP)
    assert sorted(sum(plain, [])) == sorted(sum(grouped, []))
    lengths = {s.id: length(s) for s in [*texts(50), *texts(13, "b")]}

    def padded(batches: list[list[str]]) -> int:
        return sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)

    assert padded(grouped) < 0.75 * padded(plain)


def test_seeds_differ() -> None:
    assert take(stream(seed=0), 3) != take(stream(seed=1), 3) and take(stream(), 3) == take(stream(), 3)


def test_tokens_are_made_once() -> None:
    built, calls = model(), []
    collator = built.processor.collator(labels=True)

    class Counted:
        def item(self, sample: Sample) -> Any:
            calls.append(sample.id)
            return collator.item(sample)

    encoder = Encoder(Counted(), remember=3)  # type: ignore[arg-type]
    data = samples(4)
    assert [encoder.length(s) for s in data[:3]] * 2 == [encoder.length(s) for s in data[:3] * 2]
    assert calls == ["0", "1", "2"]
    encoder.length(data[3])  # the first is forgotten
    encoder.length(data[2])
    encoder.length(data[0])
    assert calls == ["0", "1", "2", "3", "0"]


def test_encoder_gives_what_the_collator_gives() -> None:
    built, data = model(), samples(5)
    collator = built.processor.collator(labels=True, padding_side="right")
    expected, found = collator(data).inputs(), Encoder(collator)(data)
    assert found.keys() == expected.keys() and all(found[k].equal(v) for k, v in expected.items())


def test_digests_tell_words_pictures_and_files_apart(tmp_path: Path) -> None:
    data = samples(3)
    assert digest(data) == digest(samples(3)) != digest(data[:2])
    changed = Sample(id="0", messages=(Message.of("user", "?", (tiny_images(1, seed=5)[0],)), data[0].messages[1]))
    assert digest([changed]) != digest(data[:1])
    schema.write(tmp_path / "a.jsonl", data)
    assert digest(tmp_path / "a.jsonl") == digest(str(tmp_path / "a.jsonl"))


# -- replay -----------------------------------------------------------------------------------------------------------


def stage(**source: Any) -> Any:
    data = {"train": 1, "text": {"replay": "in_picture", **source}}
    return load_recipe({"stages": [{"train": {"projector": 1}, "data": data, "steps": 1}]}).stages[0]


def test_in_picture_asks_after_a_picture_and_answers_with_the_bases_words() -> None:
    pictures = tiny_images(3)
    system = Message.of("system", "Be brief.")
    asked = Sample(id="x", messages=(system, Message.of("user", "1 + 1?"), Message.of("assistant", "three")))
    seen = samples(1)[0]
    out = in_picture([asked, seen], pictures, seed=0, answer=lambda s: f"own {s.id}")
    assert out[1] is seen and [m.role for m in out[0].messages] == ["system", "user", "assistant"]
    picture, question = out[0].messages[1].parts
    assert isinstance(picture, ImagePart) and picture.source in pictures and question == TextPart("1 + 1?")
    assert out[0].messages[2] == Message.of("assistant", "own x")
    kept = in_picture([asked], pictures, seed=0, answer=None)
    assert kept[0].messages[2] == asked.messages[2] and kept[0].images == out[0].images
    pick = [in_picture([asked] * 8, pictures, seed=s, answer=None) for s in (0, 0, 1)]
    assert [s.images for s in pick[0]] == [s.images for s in pick[1]] != [s.images for s in pick[2]]


def test_another_answer_has_no_marks_of_the_old_ones_steps() -> None:
    asked = Sample(
        id="x",
        messages=(Message.of("user", "?"), Message("assistant", (TextPart("a\n"), TextPart("b")))),
        meta={"steps": [1, 1], "step_weights": [1, 2], "level": 3},
    )
    (own,), (given_,) = (in_picture([asked], tiny_images(1), seed=0, answer=a) for a in (lambda _: "own", None))
    assert own.meta == {"level": 3} and given_.meta == asked.meta


def test_the_bases_answers_are_asked_for_once(tmp_path: Path) -> None:
    calls: list[str] = []

    class Base:
        def chat(self, text: str, history: Any, **_: Any) -> str:
            calls.append(text)
            return f"<{text}>"

    sources = {"train": samples(4), "text": texts(2)}
    for _ in range(2):
        out = replayed(sources, stage(), Base(), seed=0, folder=tmp_path, where="stages.0")
    assert len(calls) == 2
    assert [s.answer.parts[0].text for s in out["text"]] == ["<?>", "<?>"]  # type: ignore[union-attr]
    given_ = replayed(sources, stage(answers="given"), Base(), seed=0, folder=tmp_path, where="stages.0")
    assert [s.answer for s in given_["text"]] == [s.answer for s in sources["text"]] and len(calls) == 2


def test_replay_needs_a_picture_somewhere(tmp_path: Path) -> None:
    sources = {"train": texts(1), "text": texts(2)}
    with pytest.raises(RecipeError, match="no picture in any source"):
        replayed(sources, stage(), None, seed=0, folder=tmp_path, where="stages.0")


def test_load_prefers_what_is_given(tmp_path: Path) -> None:
    schema.write(tmp_path / "a.jsonl", samples(3))
    fields = {"train": {"projector": 1}, "data": {"a": str(tmp_path / "a.jsonl")}, "steps": 1}
    one = load_recipe({"stages": [fields]}).stages[0]
    assert len(load(one, {}, where="stages.0")["a"]) == 3
    assert len(load(one, {"a": texts(2)}, where="stages.0")["a"]) == 2


# -- by levels --------------------------------------------------------------------------------------------------------


def staged(**stage: Any) -> Any:
    fields = {"train": {"projector": 1}, "data": {"a": {"order": "staged"}, "b": 1}, "batch_size": 4, **stage}
    return load_recipe({"stages": [fields]}).stages[0]


def test_a_stage_takes_the_levels_in_order(tmp_path: Path) -> None:
    built = model()
    given = {"a": marked(), "b": samples(4)}
    plan = staged(steps=6, gradient_accumulation=2, length_grouping=False)
    assert plan.draws == 48
    endless = feed.stream(built, plan, given, cache(built, tmp_path), seed=0, here=Processes())
    endless.collate = lambda rows, **_: [s.meta.get("level") for s in rows]
    walk = iter(endless)
    levels = [level for _ in range(12) for level in next(walk) if level is not None]
    assert levels == sorted(levels) and set(levels) == {1, 2, 3}


def test_a_staged_source_needs_steps_and_levels() -> None:
    with pytest.raises(RecipeError, match="order: staged divides the stage's steps"):
        staged(minutes=1)
    with pytest.raises(DataError, match="sample '0' has no level"):
        load(staged(steps=1), {"a": samples(2), "b": samples(2)}, where="stages.0")
    with pytest.raises(RecipeError, match="'shuffled' or 'staged'"):
        staged(steps=1, data={"a": {"order": "sorted"}})
