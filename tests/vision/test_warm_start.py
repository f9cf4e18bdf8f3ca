"""The warm start on made-up features: it finds the words, at their places, with the right norm, in any language."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tsugiki.errors import InputError, UnknownNameError
from tsugiki.testing import TinyTower
from tsugiki.vision.frontend import FrontEnd
from tsugiki.vision.warm_start import content_words, warm_start

WORDS = ["apple", "dog", "train", "crown", "りんご", "犬", "door", "tiger"]
_D = 48


class SplitTokenizer:
    """One id for each word between spaces."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def __call__(self, texts: list[str], add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
        assert not add_special_tokens
        return {"input_ids": [[self.ids.setdefault(w, len(self.ids)) for w in t.split()] for t in texts]}


def _scenes(n: int, patches: int = 16, width: int = 24) -> tuple[torch.Tensor, list[str], list[tuple[int, int]]]:
    """Features with a pattern for each word at one block of patches, captions, and (word, block of 2 x 2) of each."""
    generator = torch.Generator().manual_seed(0)
    patterns = 2 * torch.randn(len(WORDS), width, generator=generator)
    features = torch.randn(n, patches, width, generator=generator)
    texts, places = [], []
    for i in range(n):
        word, block = (int(torch.randint(0, k, (1,), generator=generator)) for k in (len(WORDS), 4))
        top, left = 2 * (block // 2), 2 * (block % 2)
        for patch in (4 * top + left, 4 * top + left + 1, 4 * top + left + 4, 4 * top + left + 5):
            features[i, patch] += patterns[word]
        texts.append(f"there is a {WORDS[word]} here")
        places.append((word, block))
    return features, texts, places


def _setup(n: int = 300, **fields: Any) -> Any:
    frontend = FrontEnd.build(TinyTower(), _D, 0.1, **fields)
    features, texts, places = _scenes(n)
    tokenizer = SplitTokenizer()
    tokenizer(texts, add_special_tokens=False)
    table = 0.1 * torch.randn(60, _D) + 0.05
    return frontend, features, texts, places, tokenizer, table


def _accuracy(frontend: FrontEnd, features: torch.Tensor, places: Any, tokenizer: Any, table: torch.Tensor) -> float:
    """Share of pictures whose word is the nearest one to the visual token at its place."""
    names = table[torch.tensor([tokenizer.ids[w] for w in WORDS])]
    with torch.no_grad():
        tokens = frontend(features=features).tokens
    hits = 0
    for i, (word, block) in enumerate(places):
        token = tokens[i].reshape(-1, _D)[block if len(tokens[i]) == 4 else 4 * (2 * (block // 2)) + 2 * (block % 2)]
        near = F.normalize(names - names.mean(0), dim=-1) @ F.normalize(token - names.mean(0), dim=-1)
        hits += int(near.argmax()) == word
    return hits / len(places)


@pytest.mark.parametrize("fields", [{}, {"projector": "mlp"}, {"projector": "linear"}, {"positions": True}])
def test_tokens_lie_at_the_words_of_their_place(fields: dict[str, Any]) -> None:
    frontend, features, texts, places, tokenizer, table = _setup(**fields)
    report = warm_start(frontend, features[:200], texts[:200], tokenizer, table)
    assert _accuracy(frontend, features[200:], places[200:], tokenizer, table) > 0.9
    assert report["matched"] and report["words"] == len(WORDS) and report["pictures"] == 200
    assert report["recall"] > 0.6 > 2 * report["recall_chance"] and report["r2"] > 0.3
    assert abs(report["rms"] - float(table.pow(2).mean().sqrt())) < 1e-3


def test_without_a_match_only_the_norm_is_set() -> None:
    frontend, features, texts, places, tokenizer, table = _setup()
    before = frontend.projector.linear_2.weight.clone()
    report = warm_start(frontend, features, texts, tokenizer, table, match=False, norm=0.5)
    after = frontend.projector.linear_2.weight
    torch.testing.assert_close(after / after.norm(), before / before.norm())
    assert not report["matched"] and abs(report["rms"] - 0.5 * float(table.pow(2).mean().sqrt())) < 1e-4
    assert _accuracy(frontend, features, places, tokenizer, table) < 0.5


@pytest.mark.parametrize("norm", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("positions", [False, True])
def test_norm_is_set_apart_from_directions(norm: float, positions: bool) -> None:
    frontend, features, texts, places, tokenizer, table = _setup(positions=positions)
    report = warm_start(frontend, features, texts, tokenizer, table, norm=norm)
    assert abs(report["rms"] / float(table.pow(2).mean().sqrt()) - norm) < 1e-3
    with torch.no_grad():
        tokens = frontend(features=features[:50]).tokens / norm
    other, *_ = _setup(positions=positions)
    warm_start(other, features, texts, tokenizer, table)
    with torch.no_grad():
        torch.testing.assert_close(other(features=features[:50]).tokens, tokens, rtol=1e-3, atol=1e-4)


def test_the_regression_s_own_norm() -> None:
    frontend, features, texts, _, tokenizer, table = _setup()
    report = warm_start(frontend, features, texts, tokenizer, table, norm=None)
    assert abs(report["rms"] / float(table.pow(2).mean().sqrt()) - 1) > 0.05


@pytest.mark.parametrize("hidden", [1, 20, 96, 130])
def test_any_hidden_width(hidden: int) -> None:
    frontend, features, texts, places, tokenizer, table = _setup(hidden=hidden)
    warm_start(frontend, features[:200], texts[:200], tokenizer, table)
    accuracy = _accuracy(frontend, features[200:], places[200:], tokenizer, table)
    assert accuracy > 0.9 or hidden == 1


def test_a_random_first_matrix_stays() -> None:
    frontend, features, texts, places, tokenizer, table = _setup(hidden=400)
    before = frontend.projector.linear_1.weight.clone()
    report = warm_start(frontend, features[:200], texts[:200], tokenizer, table, first="random")
    assert torch.equal(frontend.projector.linear_1.weight, before) and "lambda_1" not in report
    assert _accuracy(frontend, features[200:], places[200:], tokenizer, table) > 0.7


def test_same_captions_match_nothing_but_set_the_norm() -> None:
    frontend, features, _, _, tokenizer, table = _setup(40)
    report = warm_start(frontend, features, ["the same"] * 40, tokenizer, table)
    assert not report["matched"] and "do not differ" in report["reason"]
    assert abs(report["rms"] - float(table.pow(2).mean().sqrt())) < 1e-4


@pytest.mark.parametrize("n", [2, 5, 29])
def test_few_pictures(n: int) -> None:
    frontend, features, texts, _, tokenizer, table = _setup(n)
    report = warm_start(frontend, features, texts, tokenizer, table)
    assert torch.isfinite(frontend(features=features).tokens).all() and "recall" not in report


def test_limit_spreads_and_dtypes_are_kept() -> None:
    frontend, features, texts, *_, tokenizer, table = _setup()
    frontend.projector.to(torch.bfloat16)
    report = warm_start(frontend, features.half(), texts, tokenizer, table.to(torch.bfloat16), limit=100)
    assert report["pictures"] == 100 and frontend.projector.linear_2.weight.dtype == torch.bfloat16


def test_weights_are_idf_by_a_loop() -> None:
    texts = ["a dog", "a cat", "a dog dog", "", "a bird"] * 8
    tokenizer = SplitTokenizer()
    words = content_words(texts, tokenizer, power=1.0)
    names = {v: k for k, v in tokenizer.ids.items()}
    found = [names[i] for i in words.ids.tolist()]
    assert found == ["a", "dog", "cat", "bird"]
    a, dog, cat, _ = (torch.log(torch.tensor(40 / c)).item() for c in (32, 16, 8, 8))
    torch.testing.assert_close(words.weights[2], torch.tensor([a, dog, 0, 0]) / (a + dog))
    torch.testing.assert_close(words.weights[1], torch.tensor([a, 0, cat, 0]) / (a + cat))
    assert words.weights[3].sum() == 0


def test_words_that_are_everywhere_or_once_weigh_nothing() -> None:
    texts = [f"it is {w} number{i}" for i in range(20) for w in ("red", "blue")]
    tokenizer = SplitTokenizer()
    words = content_words([*texts, "it is unique red"], tokenizer)
    names = {v: k for k, v in tokenizer.ids.items()}
    kept = {names[i] for i in words.ids.tolist()}
    assert {"red", "blue"} <= kept and not kept & {"it", "is", "unique"}


def test_wrong_input_is_refused() -> None:
    frontend, features, texts, _, tokenizer, table = _setup(10)
    with pytest.raises(InputError, match="10 pictures and 9 texts"):
        warm_start(frontend, features, texts[:9], tokenizer, table)
    with pytest.raises(InputError, match="width 7"):
        warm_start(frontend, features, texts, tokenizer, table[:, :7])
    with pytest.raises(InputError, match=r"\[N, 16, 24\]"):
        warm_start(frontend, features[:, :5], texts, tokenizer, table)
    with pytest.raises(UnknownNameError, match="random"):
        warm_start(frontend, features, texts, tokenizer, table, first="rand")
