"""Shares of experts and branches by task, and the confusion matrix of a gate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.grafts._requests import wake

from tsugiki.errors import UnknownNameError
from tsugiki.evals import experts
from tsugiki.testing import tiny_images, tiny_model
from tsugiki.types import BRANCHES, Box, BoxPart, Message, Sample, TextPart


def samples() -> list[Sample]:
    """Two tasks with a picture, and one without."""
    picture = tiny_images(1)[0]
    places = ("cup", "dog", "tree")
    boxes = [
        Sample(
            id=f"box {thing}",
            task="box",
            messages=(
                Message.of("user", f"Where is the {thing}?", (picture,)),
                Message("assistant", (BoxPart(Box(4, 4, 20, 20)),)),
            ),
        )
        for thing in places
    ]
    asked = (Message.of("user", "What is it?", (picture,)), Message.of("assistant", "A cup."))
    said = (Message.of("user", "Hello?"), Message("assistant", (TextPart("Hello."),)))
    return [*boxes, Sample(id="vqa", task="vqa", messages=asked), Sample(id="text", messages=said)]


def made(**options: Any) -> Any:
    model = tiny_model("lynx", **{"experts": 3, "top_k": 2, "every": 2, **options})
    wake(model)
    return model


def test_use_counts_the_tokens_of_each_expert() -> None:
    model = made()
    found = experts.use(model, samples())
    assert set(found) == {"box", "vqa"} and found["vqa"] == {"samples": 1, "alpha": 1.0}
    counts = torch.zeros(2, 3)
    shares = []
    for sample in samples()[:3]:
        seen: list[Any] = []
        handles = [
            layer.register_forward_hook(lambda _, __, out, s=seen: s.append(out[1]))
            for layer in model.graft("lynx").layers
        ]
        with torch.no_grad():
            model(**model.encode_samples([sample]).inputs())
        for handle in handles:
            handle.remove()
        for place, routing in enumerate(seen):
            counts[place] = torch.stack([(routing.chosen == e).sum() for e in range(3)]) / routing.chosen.numel()
        shares.append(counts.mean(0).clone())
    assert found["box"]["experts"] == pytest.approx(torch.stack(shares).mean(0).tolist(), abs=1e-6)
    assert found["box"]["alpha"] == 0.0 and sum(found["box"]["experts"]) == pytest.approx(1)
    lines = experts.table(found).splitlines()
    assert lines[0].split() == ["task", "samples", "alpha", "experts"] and lines[2].split() == [
        "vqa",
        "1",
        "1.00",
        "none",
    ]


def test_use_of_a_soft_gate_and_of_one_expert() -> None:
    soft = made(gate="soft")
    seen: list[float] = []
    handle = soft.graft("lynx").gate.register_forward_hook(lambda _, __, out: seen.append(float(out.sigmoid().mean())))
    found = experts.use(soft, samples())
    handle.remove()
    assert found["box"]["alpha"] == pytest.approx(sum(seen[:3]) / 3) and found["vqa"]["alpha"] == seen[3]
    one = experts.use(made(experts=1, top_k=1), samples())
    assert one["box"]["experts"] == [1.0]
    with pytest.raises(UnknownNameError, match="lynx"):
        experts.use(tiny_model("projector"), samples())


def test_confusion_is_of_samples_with_a_picture() -> None:
    model = made(gate="prompt")
    assert experts.confusion(model, samples()) == {"grounding": {"image": 3}, "image": {"image": 1}}
    seen, means, branches = experts.questions(model, samples())
    assert [s.id for s in seen][-1] == "vqa" and branches.tolist() == [BRANCHES["grounding"]] * 3 + [BRANCHES["image"]]
    model.graft("lynx").learn_branch(means, branches)
    assert experts.confusion(model, samples()) == {"grounding": {"grounding": 3}, "image": {"image": 1}}
    assert experts.confusion(made(), samples()) == {}  # a model that is told decides nothing


def test_a_picture_without_a_word() -> None:
    silent = Sample(id="silent", messages=(Message.of("user", "", (tiny_images(1)[0],)),))
    assert torch.equal(experts.questions(made(gate="prompt"), [silent])[1], torch.zeros(1, 32))


def test_the_mean_is_what_the_model_decides_by() -> None:
    model = made(gate="prompt")
    asked: list[torch.Tensor] = []
    model.graft("lynx").classifier.register_forward_hook(lambda _, args, __: asked.append(args[0]))
    with torch.no_grad():
        model(**model.encode_samples(samples()[:1]).inputs())
    assert torch.allclose(asked[0], experts.questions(model, samples()[:1])[1], atol=1e-6)
