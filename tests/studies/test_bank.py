"""A demo bank at work: filled, asked, put in front of questions by predict, chat and eval, named in every answer."""

from __future__ import annotations

import csv
import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.studies._pictures import folder, picture

from tsugiki.data.bank import Bank
from tsugiki.data.images import open_image, pixel_key
from tsugiki.errors import BaseMismatchError, DataError, ImageError, InputError, StoreError, UnknownNameError
from tsugiki.evals import yardsticks
from tsugiki.evals.options import OptionScorer
from tsugiki.evals.task import measure
from tsugiki.studies import bank as banks
from tsugiki.studies import neighbours
from tsugiki.studies.neighbours import BankDemos, Recent, pooled
from tsugiki.studies.predict import predict
from tsugiki.testing import TinyTower, tiny_model
from tsugiki.types import DEMO, IMAGE, DemoPart, ImagePart, Message, Sample, TextPart


@pytest.fixture(scope="module")
def model() -> Any:
    built = tiny_model(llm={"max_position_embeddings": 2048})
    with torch.no_grad():  # so that pictures matter
        built.frontend.projector.linear_2.weight.mul_(30)
    return built


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSUGIKI_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def bank(model: Any, tmp_path: Path) -> Path:
    banks.build(model, folder(tmp_path / "写真", (5, 4)), tmp_path / "bank")
    return tmp_path / "bank"


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    place = tmp_path / "queries"
    place.mkdir()
    for label in range(3):
        picture(label, 70).save(place / f"{label}.png")
    return place


def asked(source: Any, answer: str = "", options: tuple[str, ...] = ()) -> Sample:
    messages = (Message.of("user", "どれですか。", (source,)), *([Message.of("assistant", answer)] if answer else []))
    return Sample(id=str(source), messages=messages, options=options, task="decision")


# -- filling -----------------------------------------------------------------------------------------------------------


def test_build_keeps_labels_vectors_and_pictures(model: Any, bank: Path, tmp_path: Path) -> None:
    with banks.open_bank(model, bank) as opened:
        assert opened.counts() == {"不良": 4, "良品": 5} and opened.answers == ("不良", "良品")
        for entry in opened.entries():
            source, kept = Path(entry.source), opened.picture(entry)
            assert kept is not None and kept.read_bytes() == source.read_bytes() and bank in kept.parents
            assert entry.picture == pixel_key(source)
            features = model.frontend.encode(model.frontend.transform(open_image(source))[None])[0].double().numpy()
            mean = np.zeros(features.shape[1])
            for row in features:  # over the positions
                mean += row / len(features)
            (found,) = opened.search(mean, 1)
            assert found.entry.id == entry.id and found.distance == pytest.approx(0, abs=1e-3)


def test_given_features_are_taken(model: Any, bank: Path, tmp_path: Path) -> None:
    given: list[str] = []

    def features(source: Any) -> torch.Tensor:
        given.append(Path(source).name)
        return Recent(model, 1)(source)

    done = banks.build(model, tmp_path / "写真", tmp_path / "other", features=features)
    assert done.added == len(given) == 9
    with banks.open_bank(model, bank) as cached, banks.open_bank(model, tmp_path / "other") as other:
        vector = pooled(Recent(model, 1)(picture(0, 1)))
        far = [[n.distance for n in one.search(vector, 9)] for one in (cached, other)]
    assert far[0] == pytest.approx(far[1], abs=1e-3)


def test_thumbnails_and_references(model: Any, bank: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.mkdir()
    picture(1, 90, 400).save(new / "a.png")
    banks.add(model, bank, new, label="不良", keep="thumbnail")
    picture(1, 91, 400).save(new / "a.png")
    banks.add(model, bank, new / "a.png", label="不良", keep="reference")
    banks.add(model, bank, [asked(picture(1, 92), "不良")], keep="reference")  # an open picture has no path
    with banks.open_bank(model, bank) as opened:
        small, other, whole = (opened.picture(e) for e in opened.entries()[-3:])
        assert small is not None and max(open_image(small).size) == model.frontend.tower.view_size
        assert other == new / "a.png" and whole is not None and bank in whole.parents


def test_an_added_class_is_used_without_training(model: Any, bank: Path, queries: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.mkdir()
    for i in range(4):
        picture(2, i).save(new / f"{i}.png")
    with pytest.raises(DataError, match="'傷' is not in the answer set"):
        banks.add(model, bank, new, label="傷")
    before = predict(model, queries, bank=bank)
    done = banks.add(model, bank, new, label="傷", new_classes=True)
    assert (done.added, done.known) == (4, 0) and banks.add(model, bank, new, label="傷").known == 4
    after = predict(model, queries, bank=bank)
    assert "傷" not in before[2].probabilities and set(after[2].probabilities) == {"不良", "良品", "傷"}
    assert [label for _, label, _ in after[2].neighbours] == ["傷"] * 4


def test_near_duplicates_are_told(model: Any, bank: Path, tmp_path: Path) -> None:
    brighter = Image.fromarray(np.clip(np.asarray(picture(0, 0)).astype(int) + 6, 0, 255).astype(np.uint8))
    done = banks.add(model, bank, [asked(brighter, "良品"), asked(picture(0, 99), "良品")])
    assert done.added == 2 and len(done.alike) == 1
    assert done.alike[0][0] == "an open picture" and len(done.alike[0]) == 2


def test_what_can_not_be_put_in(model: Any, bank: Path, tmp_path: Path) -> None:
    photos = folder(tmp_path / "more", (2, 2))
    with pytest.raises(StoreError, match="something is there already"):
        banks.build(model, photos, bank)
    with pytest.raises(DataError, match="'不良' is not in the answer set"):
        banks.build(model, photos, tmp_path / "other", answers=["良品", "x"])
    assert not (tmp_path / "other").exists()  # nothing half-made
    with pytest.raises(DataError, match="0 pictures, answer 'b'"):
        banks.add(model, bank, [Sample(id="1", messages=(Message.of("user", "a"), Message.of("assistant", "b")))])
    with pytest.raises(DataError, match="in the bank as '良品' .entry [0-9]+., and here as '不良'"):
        banks.add(model, bank, [asked(picture(0, 0), "不良")])
    with pytest.raises(DataError, match="none: no picture; expected a picture or a folder of them"):
        banks.add(model, bank, tmp_path / "none", label="良品")
    with pytest.raises(ImageError, match="damaged"):
        (tmp_path / "cut.png").write_bytes((bank.parent / "写真" / "良品" / "写真 0.png").read_bytes()[:60])
        banks.add(model, bank, tmp_path / "cut.png", label="良品")
    with banks.open_bank(model, bank) as opened:
        assert len(opened.entries()) == 9


def test_a_bank_of_another_tower_is_refused_by_both_names(bank: Path, queries: Path) -> None:
    other = tiny_model(vision=TinyTower(width=16))
    with pytest.raises(BaseMismatchError, match="tiny-tower-4x4-24-0.*tiny-tower-4x4-16-0"):
        predict(other, queries, bank=bank)


def test_query_gives_the_nearest(model: Any, bank: Path) -> None:
    found = banks.query(model, bank, picture(1, 2), 3)
    assert found[0].distance == pytest.approx(0, abs=1e-3) and [n.entry.label for n in found] == ["不良"] * 3


# -- in front of questions ---------------------------------------------------------------------------------------------


def test_pictures_stand_in_front_the_nearest_next_to_the_question(model: Any, bank: Path, queries: Path) -> None:
    demos = BankDemos(model, bank, k=3)
    (shown,) = demos.show([asked(queries / "0.png")])
    parts = shown.sample.messages[0].parts
    assert [type(p) for p in parts] == [ImagePart, TextPart] * 4
    assert parts[6:] == (ImagePart(queries / "0.png"), TextPart("どれですか。"))
    nearest = [demos.bank.picture(n.entry) for n in shown.neighbours]
    assert [p.source for p in parts[:6:2] if isinstance(p, ImagePart)] == nearest[::-1]
    assert [n.distance for n in shown.neighbours] == sorted(n.distance for n in shown.neighbours)
    batch = model.encode_samples([shown.sample])
    assert batch.image_index is not None and batch.token_kind is not None
    assert int(batch.image_index.max()) == 3 and int((batch.token_kind == IMAGE).sum()) == 4 * model.tokens_per_image


def test_the_prompt_with_a_bank_is_that_of_a_conversation_written_by_hand(
    model: Any, bank: Path, queries: Path
) -> None:
    demos = BankDemos(model, bank, k=2)
    options = ("良品", "不良")
    near = demos.neighbours(asked(queries / "1.png", options=options))
    parts: list[Any] = []
    for n in reversed(near):
        parts += [ImagePart(demos.bank.picture(n.entry)), TextPart(f"{n.entry.label}\n")]  # type: ignore[arg-type]
    parts += [ImagePart(queries / "1.png"), TextPart("どれですか。")]
    by_hand = Sample(id="1", messages=(Message("user", tuple(parts)),), options=options)
    (expected,) = OptionScorer(model)([by_hand])
    (found,) = predict(model, [asked(queries / "1.png", options=options)], bank=demos)
    for option, probability in expected.probabilities().items():
        assert found.probabilities[option] == pytest.approx(probability, abs=1e-4)
    assert found.neighbours == tuple((n.entry.id, n.entry.label, round(n.distance, 6)) for n in near)


@pytest.mark.parametrize("form", ["visual_guided_text", "uni_modal"])
def test_through_a_hub_each_picture_is_read_with_its_own_label(form: str, bank: Path, queries: Path) -> None:
    hub = {"layers": 2, "width": 16, "heads": 2, "hidden": 24, "queries": 4, "demos": form}
    model = tiny_model(projector="hub", hub=hub, llm={"max_position_embeddings": 2048})
    demos = BankDemos(model, bank, k=3)
    query = asked(queries / "0.png")
    (shown,) = demos.show([query])
    pictures = [demos.bank.picture(n.entry) for n in reversed(shown.neighbours)]
    labels = [n.entry.label for n in reversed(shown.neighbours)]
    expected = [DemoPart(p, f"どれですか。\n{label}", form) for p, label in zip(pictures, labels, strict=True)]  # type: ignore[arg-type]
    assert shown.sample.messages[0].parts == (*expected, *query.messages[0].parts)
    reader, collator = model.processor.reader, model.processor.collator()
    said = reader(shown.sample.messages)
    assert said[-1] == reader(query.messages)[0]  # the question is guided by its own words, not by labels
    assert [s.ids for s in said[:-1]] == [reader.ids(f"どれですか。\n{label}") for label in labels]
    batch = collator([shown.sample])
    kinds = [int((batch.token_kind == kind).sum()) for kind in (IMAGE, DEMO)]
    assert kinds == [4, sum(s.tokens(4) for s in said[:-1])]
    assert demos.show([shown.sample])[0].neighbours == shown.neighbours  # the query is still what is asked about
    assert predict(model, [query], bank=demos)[0].neighbours


def test_words_say_labels_and_likenesses_in_the_questions_language(model: Any, bank: Path, queries: Path) -> None:
    demos = BankDemos(model, bank, k=2, form="words")
    near = demos.neighbours(asked(queries / "0.png"))
    said = [f"{n.entry.label} ({1 - n.distance:.2f})" for n in near]
    (japanese,) = demos([asked(queries / "0.png")])
    assert japanese.messages[0].parts[0] == TextPart(f"似た写真：{said[0]}、{said[1]}。\n")
    english = Sample(id="1", messages=(Message.of("user", "Which?", (queries / "0.png",)),))
    assert demos([english])[0].messages[0].parts[0] == TextPart(f"Similar pictures: {said[0]}, {said[1]}.\n")
    assert demos([english])[0].messages[0].parts[1:] == english.messages[0].parts


def test_the_querys_own_picture_is_never_shown(model: Any, bank: Path, tmp_path: Path) -> None:
    picture(0, 0).save(tmp_path / "same.bmp")  # another format, the same pixels
    (near,) = (s.neighbours for s in BankDemos(model, bank, k=9).show([asked(tmp_path / "same.bmp")]))
    assert len(near) == 8 and pixel_key(tmp_path / "same.bmp") not in {n.entry.picture for n in near}


def test_apart_leaves_out_what_shows_nearly_the_same(model: Any, bank: Path) -> None:
    brighter = Image.fromarray(np.clip(np.asarray(picture(0, 0)).astype(int) + 6, 0, 255).astype(np.uint8))
    own = pixel_key(picture(0, 0))
    together, apart = (BankDemos(model, bank, k=4, apart=a).neighbours(asked(brighter)) for a in (False, True))
    assert own in {n.entry.picture for n in together} and own not in {n.entry.picture for n in apart}
    assert len(apart) == 4


def test_fewer_neighbours_are_told_once(
    model: Any, bank: Path, queries: Path, caplog: pytest.LogCaptureFixture
) -> None:
    demos = BankDemos(model, bank, k=7)
    with caplog.at_level(logging.WARNING, "tsugiki"):
        shown = demos.show([asked(queries / "0.png", options=("不良", "other"))] * 2)
    assert [len(s.neighbours) for s in shown] == [4, 4] and {n.entry.label for n in shown[0].neighbours} == {"不良"}
    assert caplog.text.count("4 demonstrations of 7 asked for") == 1


def test_a_picture_that_is_gone_is_not_shown(model: Any, bank: Path, queries: Path) -> None:
    demos = BankDemos(model, bank, k=2)
    first = demos.neighbours(asked(queries / "0.png"))[0]
    demos.bank.picture(first.entry).unlink()  # type: ignore[union-attr]
    assert first.entry.id not in {n.entry.id for n in demos.neighbours(asked(queries / "0.png"))}


def test_settings_that_can_not_be(model: Any, bank: Path, queries: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'words'"):
        BankDemos(model, bank, form="word")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="k=0"):
        BankDemos(model, bank, k=0)
    with pytest.raises(InputError, match="a bank of '不良', '良品'; expected entries of 'x', 'y'"):
        BankDemos(model, bank)([asked(queries / "0.png", options=("x", "y"))])
    with Bank.open(bank) as opened:
        opened.withdraw([e.id for e in opened.entries()])
    with pytest.raises(DataError, match="the bank is empty"):
        BankDemos(model, bank)


def test_a_conversation_without_a_picture_is_left_alone(model: Any, bank: Path) -> None:
    messages = (Message.of("user", "Hello"),)
    shown = BankDemos(model, bank).front(messages)
    assert shown.sample.messages == messages and shown.neighbours == ()


# -- predict, chat, eval -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_rows_name_the_entries_and_a_changed_bank_is_another_run(
    model: Any, bank: Path, queries: Path, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"answers.{suffix}"
    found = predict(model, queries, bank=bank, out=out)
    assert predict(model, queries, bank=bank, out=out) == found  # from the file
    text = out.read_text(encoding="utf-8-sig")
    rows = map(json.loads, text.splitlines()) if suffix == "jsonl" else csv.DictReader(io.StringIO(text))
    for row, p in zip(rows, found, strict=True):
        near = row["neighbours"] if suffix == "jsonl" else json.loads(row["neighbours"])
        assert len(near) == 4 and tuple(map(tuple, near)) == p.neighbours
    with Bank.open(bank) as opened:
        opened.withdraw([1])
    with pytest.raises(InputError, match="another state of the bank"):
        predict(model, queries, bank=bank, out=out)
    with pytest.raises(InputError, match="it holds"):
        predict(model, queries, options=found[0].probabilities, out=out)  # type: ignore[arg-type]


def test_a_withdrawal_holds_for_a_run_that_goes_on(model: Any, bank: Path, queries: Path) -> None:
    demos = BankDemos(model, bank, k=9)
    first = predict(model, queries, bank=demos)[0].neighbours[0][0]
    with Bank.open(bank) as opened:
        opened.withdraw([first])
    assert first not in {i for i, _, _ in predict(model, queries, bank=demos)[0].neighbours}


def test_chat_shows_the_bank_with_every_question_about_a_picture(model: Any, bank: Path, queries: Path) -> None:
    demos = BankDemos(model, bank, k=2)
    seen = []

    def front(messages: Any) -> Any:
        seen.append(demos.front(messages))
        return seen[-1].sample.messages

    answer = model.chat("どれ？", [queries / "1.png"], demos=front, max_new_tokens=4)
    history = [Message.of("user", "どれ？", (queries / "1.png",)), Message.of("assistant", "不良")]
    model.chat("なぜ？", history=history, demos=front, max_new_tokens=4)
    assert isinstance(answer, str) and seen[0].neighbours == seen[1].neighbours and len(seen[0].neighbours) == 2
    assert seen[1].sample.messages[0].parts[-2] == ImagePart(queries / "1.png")


def test_eval_scores_with_the_bank_and_against_its_vote(model: Any, bank: Path) -> None:
    options = ("良品", "不良")
    samples = [asked(picture(label, 50 + i), options[label], options) for label in (0, 1) for i in range(6)]
    samples = [Sample(id=str(i), messages=s.messages, options=options, task=s.task) for i, s in enumerate(samples)]
    demos = BankDemos(model, bank, k=3, apart=True)
    result = measure(model, "decisions", samples, demos=demos, features=demos.features, tolerance=None)["decisions"]
    direct = {p.id: p.answer for p in predict(model, samples, bank=BankDemos(model, bank, k=3, apart=True))}
    assert {a.sample.id: a.text for a in result.answers} == direct
    accuracy = next(s for s in result.scores if s.metric == "accuracy")
    assert accuracy.yardsticks["bank vote"] == 1.0  # the colours of the classes differ
    assert any(s.metric == "accuracy minus bank vote" for s in result.scores)
    assert all(a.sample.images == s.images for a in result.answers for s in samples if s.id == a.sample.id)


def test_the_vote_is_the_commonest_label_and_of_equals_the_nearest() -> None:
    near = [("a", 0.1), ("b", 0.2), ("b", 0.3), ("c", 0.4), ("c", 0.5)]
    assert yardsticks.bank_vote([near, near, near[:2], []], [(), ("a", "c"), (), ("x", "y")]) == ["b", "c", "a", "x"]


def test_tower_outputs_of_shown_pictures_are_remembered(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    encode = model.frontend.encode
    monkeypatch.setattr(model.frontend, "encode", lambda pixels: calls.append(1) or encode(pixels))
    recent, pictures = Recent(model, most=2), [picture(0, i) for i in range(3)]
    first = recent(pictures[0])
    assert torch.equal(recent(pictures[0]), first) and len(calls) == 1
    recent(pictures[1]), recent(pictures[2])
    assert torch.equal(recent(pictures[0]), first) and len(calls) == 4  # the oldest of three had gone
    assert pooled(first).shape == (model.frontend.tower.width,)
    assert neighbours.FORMS == ("pictures", "words")
