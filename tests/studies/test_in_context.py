"""fit with demonstrations: in front in training and when asked, none of them of who is asked, and kept as a bank."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.studies._kills import Killed, killing
from tests.studies._pictures import folder, picture
from tests.studies.test_arms import hub_model, plain_model

from tsugiki import store
from tsugiki.data.bank import Bank
from tsugiki.data.demos import plain
from tsugiki.data.images import pixel_key
from tsugiki.data.splits import THRESHOLD
from tsugiki.errors import DataError, InputError, RecipeError, StoreError, UnsupportedError
from tsugiki.evals.options import OptionScorer
from tsugiki.studies import _arms, _divide, _in_context, _own, _training
from tsugiki.studies import bank as banks
from tsugiki.studies._divide import Parts
from tsugiki.studies._making import Maker
from tsugiki.studies.curve import curve
from tsugiki.studies.fit import FitResult, fit
from tsugiki.studies.neighbours import BankDemos
from tsugiki.studies.predict import predict
from tsugiki.testing import TinyTower, tiny_llm, tiny_tokenizer
from tsugiki.training import groups
from tsugiki.training import recipe as recipes
from tsugiki.training.stream import Encoder
from tsugiki.types import Box, BoxPart, ImagePart, Message, Sample, TextPart
from tsugiki.vision.cache import FeatureCache

RECIPE: dict[str, Any] = {
    "save_steps": 1,
    "stages": [{"train": {"projector": 0.01}, "data": "train", "batch_size": 8, "steps": 3, "warm_start": True}],
}
QUESTION = "どれですか。"
Front = list[tuple[str, str]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSUGIKI_CACHE", str(tmp_path / "cache"))


def run(data: Any, out: Path, **options: Any) -> FitResult:
    given = {"recipe": RECIPE, "answers": 1, "progress": False, "vision": TinyTower(), "demos": 3, **options}
    llm = tiny_llm(initializer_range=0.1, max_position_embeddings=2048)
    return fit(data, base=llm, tokenizer=tiny_tokenizer(), out=out, **given)


def sample(number: int, source: Any, label: str, split: str | None = None) -> Sample:
    messages = (Message.of("user", QUESTION, (source,)), Message.of("assistant", label))
    meta = {"split": split} if split else {}
    return Sample(id=str(number), messages=messages, options=("良品", "不良"), task="decision", meta=meta)


class Seen:
    """Who was learned from, and what stood in front of each sample as the model got it, in its order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trained: list[Parts] = []
        self.learned: list[tuple[str, Front]] = []
        """The sample's own pixels, and those in front with their labels."""
        self.asked: list[tuple[Parts, str, Front]] = []
        """As `learned`, with the parts of the training at that time."""
        train, item, rows = Maker.train, Encoder.item, OptionScorer._rows

        def training(maker: Maker, method: Any, parts: Parts, *args: Any, **options: Any) -> Any:
            self.trained.append(parts)
            return train(maker, method, parts, *args, **options)

        def learned(encoder: Encoder, sample: Sample) -> Any:
            self.learned.append((pixel_key(sample.images[-1]), front(sample)))
            return item(encoder, sample)

        def asked(scorer: OptionScorer, sample: Sample) -> Any:
            if scorer.demos is not None:  # the bare LLM is asked without pictures
                self.asked.append((self.trained[-1], pixel_key(sample.images[-1]), front(sample)))
            return rows(scorer, sample)

        monkeypatch.setattr(Maker, "train", training)
        monkeypatch.setattr(Encoder, "item", learned)
        monkeypatch.setattr(OptionScorer, "_rows", asked)


def front(sample: Sample) -> Front:
    """Pixels and label of each picture before the one that is asked about, as a model without a hub gets them."""
    parts = plain(sample.messages)[0].parts
    last = max(i for i, p in enumerate(parts) if isinstance(p, ImagePart))
    assert parts[last + 1 :] == (TextPart(parts[last + 1].text),) and last % 2 == 0  # type: ignore[union-attr]
    found = []
    for shown, said in zip(parts[:last:2], parts[1:last:2], strict=True):
        assert isinstance(shown, ImagePart) and isinstance(said, TextPart) and said.text.endswith("\n")
        found.append((pixel_key(shown.source), said.text[:-1]))
    return found


def keys(samples: Sequence[Sample]) -> dict[str, str]:
    """Pixels -> label."""
    return {pixel_key(s.images[0]): _arms.short_answer(s) for s in samples}


@pytest.mark.parametrize("hub", [False, True])
def test_what_is_learned_has_the_form_in_which_a_bank_shows(hub: bool, tmp_path: Path) -> None:
    """The recipe's demonstrations and those of `tsugiki fewshot`, part by part."""
    model = hub_model() if hub else plain_model()
    samples = _own.read(folder(tmp_path / "p", (6, 6))).samples
    (stage,) = _in_context.drawn(recipes.load(RECIPE), 3, THRESHOLD).stages
    features = FeatureCache(model.frontend)
    draws = groups.drawn(model, stage, {"train": samples}, {"train": "train"}, features, seed=0)["train"]
    place, counts = _arms.as_shown(model), set()
    for epoch in range(4):
        for i in range(len(samples)):
            group = draws.groups(i, epoch)
            assert list(plain(draws(i, epoch).messages)) == list(plain(place(group.query, group.demos).messages))
            counts.add(len(group.demos))
    assert counts == {0, 1, 2, 3}


def test_demonstrations_stand_in_front_in_training_and_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the training pictures alone, with their own labels: of the inner ones for the hold-out, of all in the end."""
    seen = Seen(monkeypatch)
    result = run(folder(tmp_path / "p"), tmp_path / "run")
    (parts,) = seen.trained
    train, inner, held = keys(parts.train), keys(parts.inner), keys(parts.held)
    assert {len(before) for _, before in seen.learned} == {0, 1, 2, 3}
    for own, before in seen.learned:
        assert all(key != own and train[key] == label for key, label in before)
    assert len(seen.asked) == len(result.trained.marks) * len(held) + len(parts.test)
    for i, (_, own, before) in enumerate(seen.asked):
        of = inner if i < len(result.trained.marks) * len(held) else train
        assert len(before) == 3 and own not in of and all(of[key] == label for key, label in before)
    accuracy = next(s for s in result.scores if s.metric == "accuracy")
    assert accuracy.n == len(parts.test) and {"probe", "k-NN"} <= set(accuracy.yardsticks)
    assert not [*(tmp_path / "run").rglob(f".{_in_context.SHOWN}.*")]


def test_no_label_of_a_test_picture_reaches_an_answer(tmp_path: Path) -> None:
    """With the labels of the test pictures turned round every answer stays, to the last bit."""
    samples = [
        sample(10 * label + i, picture(label, 10 * label + i), ("良品", "不良")[label], "test" if i > 5 else "train")
        for label in (0, 1)
        for i in range(10)
    ]
    turned = {"良品": "不良", "不良": "良品"}
    other = [
        replace(s, messages=(s.messages[0], Message.of("assistant", turned[_arms.short_answer(s)])))
        if s.meta["split"] == "test"
        else s
        for s in samples
    ]
    answers, right, weights = [], [], []
    for name, data in (("a", samples), ("b", other)):
        result = run(data, tmp_path / name)
        with banks.open_bank(result.model, result.bank or "") as bank:
            test = [s for s in data if s.meta["split"] == "test"]
            scorer = OptionScorer(result.model, demos=BankDemos(result.model, bank, k=3))
            answers.append({s.id: found.logprobs for s, found in zip(test, scorer(test), strict=True)})
        right.append(next(s for s in result.scores if s.metric == "accuracy").value)
        weights.append(store.graft_sha256(result.model))
    assert answers[0] == answers[1] and weights[0] == weights[1]
    assert right[0] == pytest.approx(1 - right[1])


def test_what_shows_nearly_the_same_as_the_asked_picture_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A split that the data names may part two pictures of one thing, and the one would give the other away."""
    seen = Seen(monkeypatch)
    samples = [
        sample(10 * label + i, picture(label, 10 * label + i), ("良品", "不良")[label], "test" if i > 6 else "train")
        for label in (0, 1)
        for i in range(10)
    ]
    asked = samples[-1].images[0]
    assert isinstance(asked, Image.Image)
    twin = asked.point(lambda v: min(255, v + 3))
    run([*samples, sample(99, twin, "不良", "train")], tmp_path / "run")
    last = {own: before for parts, own, before in seen.asked if own in keys(parts.test)}
    assert pixel_key(twin) in keys(seen.trained[-1].train) and len(last) == 6
    assert all(len(before) == 3 for before in last.values())
    assert pixel_key(twin) not in dict(last[pixel_key(asked)])


def near_twins(label: int, n: int) -> list[Sample]:
    """Nearly the same picture n times."""
    twins = [picture(label, 0).point(lambda v, i=i: min(v + i, 255)) for i in range(n)]
    return [sample(10 * label + i, twin, ("良品", "不良")[label]) for i, twin in enumerate(twins)]


def test_with_a_fixed_camera_only_equal_pictures_are_kept_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each class looks nearly the same: without its own in front, every label in front would be the wrong one."""
    seen = Seen(monkeypatch)
    run([*near_twins(0, 10), *near_twins(1, 10)], tmp_path / "run")
    train = keys(seen.trained[-1].train)
    assert {len(before) for _, before in seen.learned} == {0, 1, 2, 3}
    assert all(key != own for own, before in seen.learned for key, _ in before)
    shown = [label == train[own] for own, before in seen.learned for _, label in before]
    assert sum(shown) > len(shown) / 2
    assert seen.asked and all(len(before) == 3 for _, _, before in seen.asked)


def test_check_and_training_call_the_same_pictures_alike() -> None:
    """By all training pictures, also where those that chose the step count are left out."""
    parts = Parts(train=[*near_twins(0, 6), *labels(6)[1:]], hold=(3, 4, 5), test=[])
    assert parts.near is None and _divide.nearness(parts.inner) == THRESHOLD
    _in_context.enough([parts], 7)
    with pytest.raises(DataError, match="8 different pictures to learn from, and demos 8"):
        _in_context.enough([parts], 8)


def test_every_call_has_a_bank_of_its_own(tmp_path: Path) -> None:
    """A second run in a folder is refused by the training's lock; until then it takes nothing from the first."""
    model = plain_model()
    parts, asked = Parts(train=labels(6), hold=(0, 1), test=[]), [sample(0, picture(0, 9), "良品")]
    with _in_context.asked_with(model, parts, tmp_path, 2, None, inner=True) as first:
        with _in_context.asked_with(model, parts, tmp_path, 2, None) as second:
            assert first is not None and second is not None and (len(first.bank), len(second.bank)) == (4, 6)
        assert len(front(first(asked)[0])) == 2
    assert not [*tmp_path.glob(".*")]


def test_in_folds_and_in_the_choice_between_methods_only_those_learned_from_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen(monkeypatch)
    photos = folder(tmp_path / "p", (12, 12))
    options: dict[str, Any] = {
        "folds": 2, "inner": 2, "method": "projector,cross_attention", "recipe": None, "refit": False, "demos": 2,
        "overrides": ["steps=2", "batch_size=4"],
    }  # fmt: skip
    result = run(photos, tmp_path / "run", **options)
    assert len(seen.trained) == 2 * (2 * 2 + 1) + 2 * 2 + 1  # in each fold, for the choice and once; then for the graft
    for parts, own, before in seen.asked:
        of = keys(parts.train if own in keys(parts.test) else parts.inner)
        assert len(before) == 2 and own not in of and all(of[key] == label for key, label in before)
    assert next(s for s in result.scores if s.metric == "accuracy").n == 24
    # A finished run is not made again.
    asked, trained = len(seen.asked), len(seen.trained)
    again = run(photos, tmp_path / "run", **options)
    assert [s.value for s in again.scores] == [s.value for s in result.scores]
    assert (len(seen.asked), len(seen.trained)) == (asked, trained + 1)  # the saved graft's is read again
    study = json.loads((tmp_path / "run" / "folds" / "study.json").read_text(encoding="utf-8"))
    assert study["demos"] == 2
    for demos in (3, 0):
        with pytest.raises(RecipeError, match=r"demos|nearest"):
            run(photos, tmp_path / "run", **{**options, "demos": demos})


def test_without_demos_the_keys_of_a_study_are_as_ever() -> None:
    plan = Maker(base="b", recipe=RECIPE).content([("projector",)])
    assert list(plan) == ["base", "vision", "recipe", "methods", "options", "refit", "patience"]
    assert plan["recipe"] == [recipes.load(RECIPE, ["seed=0"]).to_yaml()]
    assert Maker(base="b", recipe=RECIPE, demos=2).content([("projector",)]) == {"demos": 2, **plan}


def test_stopped_anywhere_it_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = folder(tmp_path / "p")
    whole = run(photos, tmp_path / "whole")
    kills = [("choose", 1), ("choose", 2), ("run", 1), ("bank", 0)]
    monkeypatch.setattr(_training, "train", killing(_training.train, kills))
    build = banks.build

    def building(model: Any, data: Any, place: Path, **options: Any) -> Any:
        done = build(model, data, place, **options)
        if kills == [("bank", 0)] and place.name == _in_context.BANK:
            kills.pop()
            raise Killed
        return done

    monkeypatch.setattr(banks, "build", building)
    for _ in range(4):
        with pytest.raises(Killed):
            run(photos, tmp_path / "run")
    again = run(photos, tmp_path / "run")
    assert (
        not kills
        and again.trained.marks == whole.trained.marks
        and store.graft_sha256(again.model) == store.graft_sha256(whole.model)
    )
    assert [s.value for s in again.scores] == [s.value for s in whole.scores]
    with pytest.raises(RecipeError, match="demos"):
        run(photos, tmp_path / "run", demos=2)
    with pytest.raises(RecipeError, match="demos"):
        run(photos, tmp_path / "run", demos=0)


def test_the_bank_is_kept_and_answers_as_it_was_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen(monkeypatch)
    lines: list[str] = []
    photos = folder(tmp_path / "p")
    result = run(photos, tmp_path / "run", say=lines.append, question=QUESTION)
    (parts,) = seen.trained
    place = tmp_path / "run" / "bank"
    assert result.bank == place and f"--bank {place} --neighbours 3" in "\n".join(lines)
    with Bank.open(place) as bank:
        assert bank.answers == ("不良", "良品") and len(bank) == len(parts.train)
        assert {e.picture: e.label for e in bank.entries()} == keys(parts.train)
        assert all(place in (bank.picture(e) or Path()).parents for e in bank.entries())
    with banks.open_bank(result.model, place) as bank:
        found = predict(result.model, photos, bank=BankDemos(result.model, bank, k=3))
    files = {Path(str(s.images[0])): _arms.short_answer(s) for s in parts.test}
    label = {f"{file.parent.name}/{file.name}": said for file, said in files.items()}
    right = [p.answer == label[p.image] for p in found if p.image in label]
    assert len(right) == len(label)
    assert sum(right) / len(right) == next(s for s in result.scores if s.metric == "accuracy").value
    picture(0, 77).save(tmp_path / "new.png")
    banks.add(result.model, place, tmp_path / "new.png", label="良品")
    run(photos, tmp_path / "run", question=QUESTION)  # the same call: what was added stays
    with Bank.open(place) as bank:
        assert len(bank) == len(parts.train) + 1
    shutil.rmtree(place)
    place.mkdir()
    (place / "accounts.txt").write_text("money", encoding="utf-8")
    with pytest.raises(StoreError, match="no bank in it"):
        run(photos, tmp_path / "run", question=QUESTION)
    assert [file.name for file in place.iterdir()] == ["accounts.txt"]


def test_a_curve_with_demos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen(monkeypatch)
    llm = tiny_llm(max_position_embeddings=2048)
    options: dict[str, Any] = {"recipe": RECIPE, "overrides": ["steps=2"], "sizes": (16,), "folds": 2, "demos": 2}
    curve(
        folder(tmp_path / "p"), base=llm, tokenizer=tiny_tokenizer(), vision=TinyTower(), out=tmp_path / "run",
        progress=False, **options,
    )  # fmt: skip
    assert len(seen.trained) == 2 and all(len(before) == 2 for _, _, before in seen.asked)
    assert sum(own in keys(parts.test) for parts, own, _ in seen.asked) == 16


def boxes(n: int) -> list[Sample]:
    part = BoxPart(Box(1, 1, 9, 9))
    return [
        Sample(id=str(i), messages=(Message.of("user", "?", (picture(0, i),)), Message("assistant", (part,))))
        for i in range(n)
    ]


def labels(n: int = 16) -> list[Sample]:
    return [sample(i, picture(i % 2, i), ("良品", "不良")[i % 2]) for i in range(n)]


def text(s: Sample) -> Sample:
    return replace(s, messages=(Message.of("user", QUESTION), s.messages[1]))


def asks(s: Sample, words: str) -> Sample:
    return replace(s, messages=(Message.of("user", words, s.images), s.messages[1]))


def behind(s: Sample) -> Sample:
    return replace(s, messages=(Message("system", (TextPart("短く。"),)), *s.messages))


def words_first(s: Sample) -> Sample:
    return replace(s, messages=(Message("user", (TextPart(QUESTION), ImagePart(s.images[0]))), s.messages[1]))


@pytest.mark.parametrize(
    ("data", "options", "error", "says"),
    [
        (labels(), {"demos": -1}, InputError, "demos -1"),
        (labels(), {"demos": 16}, DataError, r"\d+ different pictures to learn from, and demos 16.*17 or more"),
        (labels(), {"demos": 8, "folds": 2}, DataError, "8 different pictures to learn from, and demos 8"),
        (boxes(16), {}, DataError, "none of 16 samples asks a closed question about one picture"),
        ([*labels(), text(labels(17)[-1])], {}, DataError, "other questions than a closed one about one picture"),
        ([*labels(), asks(labels(17)[-1], "?")], {}, DataError, "several questions"),
        ([*map(behind, labels())], {}, DataError, "not one message with the picture first.*no system message"),
        ([*map(words_first, labels())], {}, DataError, "not one message with the picture first"),
        ([*labels(), sample(17, picture(0, 0), "不良")], {}, DataError, "same pixels as one labelled '良品'"),
        (labels(), {"vision": {"towers": [TinyTower(), TinyTower()]}}, UnsupportedError, "several towers"),
        (labels(), {"recipe": {"stages": [{**RECIPE["stages"][0], "train": {"tower": 1e-3}}]}}, RecipeError, "tower"),
    ],
)
def test_mistakes(data: Any, options: dict[str, Any], error: type[Exception], says: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=says) as caught:
        run(data, tmp_path / "run", **options)
    assert "\n" not in str(caught.value) and not (tmp_path / "run" / "graft").exists()
