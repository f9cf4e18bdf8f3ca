"""Demonstrations: every sampler against its rule written out, groups without the query's own picture, and the order of
parts in front of a question."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tsugiki.data import demos
from tsugiki.data.demos import SAMPLERS, Candidates, Groups, in_front
from tsugiki.errors import DataError, InputError, UnknownNameError
from tsugiki.types import Box, BoxPart, DemoPart, ImagePart, Message, Sample, TextPart


def candidates(n: int, seed: int, d: int = 5, classes: int = 3) -> Candidates:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n + 1, d))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = [f"c{rng.integers(classes)}" for _ in range(n)]
    hardness = rng.integers(0, 4, n).astype(float)
    return Candidates(labels=labels, rng=rng, vectors=vectors[:n], query=vectors[n], hardness=hardness)


def picture(seed: int, shade: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    noise = np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((6, 6, 1)))
    return Image.fromarray(np.clip(noise + shade, 0, 255).astype(np.uint8))


def labelled(n: int, tasks: tuple[str, ...] = ("a",), same: tuple[int, ...] = ()) -> list[Sample]:
    """n samples with a picture each; those in `same` show nearly what sample 0 shows."""
    found = []
    for i in range(n):
        image = picture(0, 4) if i in same else picture(i)
        messages = (Message.of("user", "?", (image,)), Message.of("assistant", f"c{i % 2}"))
        found.append(Sample(id=str(i), messages=messages, task=tasks[i % len(tasks)]))
    return found


# -- samplers ----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 12), st.integers(0, 15), st.integers(0, 99), st.sampled_from(sorted(SAMPLERS)))
def test_a_sampler_gives_different_candidates_and_no_more_than_there_are(n: int, k: int, seed: int, name: str) -> None:
    chosen = SAMPLERS[name](candidates(n, seed), k)
    assert len(chosen) == min(n, k) == len(set(chosen)) and set(chosen) <= set(range(n))
    assert chosen == SAMPLERS[name](candidates(n, seed), k)


@given(st.integers(1, 12), st.integers(1, 15), st.integers(0, 99), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_diverse_is_maximal_marginal_relevance(n: int, k: int, seed: int, balance: float) -> None:
    given_ = candidates(n, seed)
    assert given_.vectors is not None and given_.query is not None
    chosen: list[int] = []
    for _ in range(min(n, k)):
        best, highest = -1, -np.inf
        for i in range(n):
            if i in chosen:
                continue
            likest = max((float(given_.vectors[i] @ given_.vectors[j]) for j in chosen), default=0.0)
            worth = balance * float(given_.vectors[i] @ given_.query) - (1 - balance) * likest
            if worth > highest + 1e-12:
                best, highest = i, worth
        chosen.append(best)
    assert demos.diverse(given_, k, balance) == chosen


def test_diverse_passes_by_a_copy_of_what_is_chosen() -> None:
    vectors = np.array([[1.0, 0.0], [0.999, 0.0447], [0.6, 0.8]])
    given_ = Candidates(labels="aab", rng=np.random.default_rng(0), vectors=vectors, query=np.array([0.9, 0.436]))
    assert demos.nearest(given_, 2) == [1, 0] and demos.diverse(given_, 2) == [1, 2]


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_nearest_and_hard_are_sorted_with_the_first_of_equals_first(n: int, k: int, seed: int) -> None:
    given_ = candidates(n, seed)
    assert given_.vectors is not None and given_.query is not None and given_.hardness is not None
    near = [float(v @ given_.query) for v in given_.vectors]
    assert demos.nearest(given_, k) == sorted(range(n), key=lambda i: (-near[i], i))[:k]
    hardness = given_.hardness
    assert demos.hard(given_, k) == sorted(range(n), key=lambda i: (-hardness[i], i))[:k]


def test_hard_is_random_as_long_as_one_is_not_known() -> None:
    given_, same = candidates(9, 3), candidates(9, 3)
    assert given_.hardness is not None
    given_.hardness[4] = np.nan
    assert demos.hard(given_, 5) == demos.random(same, 5)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 99))
def test_balanced_has_as_many_of_each_answer_as_there_are(n: int, k: int, seed: int) -> None:
    given_ = candidates(n, seed)
    have, got = Counter(given_.labels), Counter(given_.labels[i] for i in demos.balanced(given_, k))
    most = max(got.values())
    assert all(got[label] >= min(have[label], most - 1) for label in have)


def test_random_takes_every_candidate_as_often() -> None:
    counts = Counter(demos.random(candidates(5, seed), 1)[0] for seed in range(1000))
    assert set(counts) == set(range(5)) and min(counts.values()) > 150  # 200 each, standard deviation 13


def test_samplers_say_what_they_lack() -> None:
    bare = Candidates(labels=["a"], rng=np.random.default_rng(0))
    with pytest.raises(InputError, match="'nearest' without feature vectors"):
        demos.nearest(bare, 1)
    with pytest.raises(InputError, match="'diverse' without feature vectors"):
        demos.diverse(bare, 1)
    with pytest.raises(InputError, match="without hardness"):
        demos.hard(bare, 1)


# -- groups ------------------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(st.integers(0, 5), st.sampled_from(sorted(SAMPLERS)), st.integers(0, 3))
def test_a_group_has_the_querys_task_and_never_its_picture(most: int, sampler: str, epoch: int) -> None:
    samples = labelled(9, ("a", "b"), same=(2, 4))
    rows = np.random.default_rng(0).standard_normal((9, 4))
    groups = Groups(samples=samples, most=most, sampler=sampler, vectors=rows, hardness=rows[:, 0], seed=3)
    for i in range(len(groups)):
        group = groups(i, epoch)
        assert group.query is samples[i] and group == groups(i, epoch)
        ids = {d.id for d in group.demos}
        assert len(ids) == len(group.demos) <= group.asked <= most
        assert all(d.task == samples[i].task for d in group.demos) and str(i) not in ids
        if str(i) in {"0", "2", "4"}:
            assert not ids & {"0", "2", "4"}


def test_the_number_of_demonstrations_is_uniform_and_drawn_anew_in_each_epoch() -> None:
    groups = Groups(samples=labelled(8), most=3)
    counts = Counter(groups(i, epoch).asked for i in range(8) for epoch in range(100))
    assert set(counts) == {0, 1, 2, 3} and min(counts.values()) > 150  # 200 each, standard deviation 12
    assert len({tuple(d.id for d in groups(0, epoch).demos) for epoch in range(20)}) > 5


def test_fewer_than_asked_for_are_used_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    groups = Groups(samples=labelled(3), most=9, seed=1)
    with caplog.at_level(logging.WARNING, "tsugiki"):
        found = [groups(i, epoch) for i in range(3) for epoch in range(5)]
    assert all(len(g.demos) == min(g.asked, 2) for g in found) and any(g.asked > 2 for g in found)
    assert len(caplog.records) == 1 and "2 other pictures" in caplog.text


def test_without_near_only_equal_pictures_are_kept_apart() -> None:
    near = Groups(samples=labelled(3, same=(1,)), most=2)
    equal = Groups(samples=labelled(3, same=(1,)), most=2, near=None)
    shown = {d.id for epoch in range(20) for d in near(0, epoch).demos}
    assert shown == {"2"} and {d.id for epoch in range(20) for d in equal(0, epoch).demos} == {"1", "2"}


def test_groups_refuse_what_does_not_fit() -> None:
    samples = labelled(3)
    with pytest.raises(UnknownNameError, match="Did you mean 'nearest'"):
        Groups(samples=samples, most=1, sampler="nearst")
    with pytest.raises(InputError, match="most=-1"):
        Groups(samples=samples, most=-1)
    with pytest.raises(InputError, match="2 rows of vectors"):
        Groups(samples=samples, most=1, vectors=np.ones((2, 4)))
    unlabelled = [Sample(id=s.id, messages=s.prompt, task=s.task) for s in samples]
    with pytest.raises(DataError, match="without an answer"):
        Groups(samples=unlabelled, most=1)


# -- in front of a question --------------------------------------------------------------------------------------------


def test_parts_stand_before_the_last_picture_and_boxes_keep_theirs() -> None:
    first, second, shown = Path("1.png"), Path("2.png"), Path("demo.png")
    messages = (
        Message("system", (TextPart("s"),)),
        Message("user", (ImagePart(first), TextPart("?"), BoxPart(Box(0, 0, 1, 1), image=0))),
        Message("assistant", (TextPart("!"),)),
        Message("user", (ImagePart(second), BoxPart(Box(0, 0, 2, 2), image=1), BoxPart(Box(0, 0, 1, 1), image=0))),
        Message("assistant", (BoxPart(Box(0, 0, 3, 3), image=1),)),
    )
    parts = (ImagePart(shown), TextPart("cat\n"), ImagePart(shown), TextPart("dog\n"))
    found = in_front(messages, parts)
    assert found[:3] == messages[:3]
    assert found[3].parts[:5] == (*parts, ImagePart(second))
    before, after = Sample(id="", messages=messages), Sample(id="", messages=found)
    shown_by = [before.images[b.image] for b in before.boxes]
    assert [after.images[b.image] for b in after.boxes] == shown_by == [first, second, first, second]


def test_without_a_picture_nothing_changes() -> None:
    messages = (Message.of("user", "?"),)
    assert in_front(messages, (TextPart("x"),)) == messages


def test_without_a_hub_a_demonstration_does_not_repeat_its_messages_question() -> None:
    same, other = (
        Sample(id=q, messages=(Message.of("user", q, (picture(i),)), Message.of("assistant", "c1")))
        for i, q in enumerate(("What?", "Which?"))
    )
    query = Sample(id="query", messages=(Message.of("user", "What?", (picture(2),)),))
    message = demos.plain(demos.shown(query, [same, other], "uni_modal").messages)[0]
    said = [part.text if isinstance(part, TextPart) else "picture" for part in message.parts]
    assert said == ["picture", "Which?\nc1\n", "picture", "c1\n", "picture", "What?"]
    assert not any(isinstance(part, DemoPart) for part in message.parts)
