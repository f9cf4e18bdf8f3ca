"""Which way requests take through LynX (grafts/lynx.py): between its two paths, and among the experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tsugiki.branches import chooser, name_of, question_mean
from tsugiki.data.branch import branch_of
from tsugiki.types import BRANCHES, Sample

Confusion = dict[str, dict[str, int]]
"""What samples ask for -> what the model decides -> how many."""


def questions(model: Any, samples: Sequence[Sample]) -> tuple[list[Sample], Tensor, Tensor]:
    """What a gate reads before the forward.

    Returns:
        The samples with a picture, n of them; mean word embeddings of their last user turns, float [n, D]; and the
        numbers of the branches that they ask for, int64 [n].

    Raises:
        PromptError: a sample can't be encoded, with its place.
    """
    seen = [s for s in samples if s.images]
    collate, device = model.processor.collator(labels=False, question=True), model.device
    means = []
    for sample in seen:
        encoded = collate.encode(sample)
        rows = (torch.tensor([row], device=device) for row in (encoded.input_ids, encoded.question))
        means.append(question_mean(model, *rows)[0])
    branches = torch.tensor([BRANCHES[branch_of(s)] for s in seen], dtype=torch.long, device=device)
    return seen, torch.stack(means) if means else torch.zeros(0, model.decoder.embedding_size), branches


def confusion(model: Any, samples: Sequence[Sample]) -> Confusion:
    """Branches that samples with a picture ask for, and those that the model's gate gives them."""
    seen, means, wanted = questions(model, samples)
    return counted(wanted, chooser(model).choose_branch(means)) if seen and model.chooses_branch else {}


def counted(wanted: Tensor, chosen: Tensor) -> Confusion:
    """Numbers of branches, int64 [n] each, by their names."""
    found: Confusion = {}
    for want, got in zip(wanted.tolist(), chosen.tolist(), strict=True):
        row = found.setdefault(name_of(want), {})
        row[name_of(got)] = row.get(name_of(got), 0) + 1
    return found


@torch.no_grad()
def use(model: Any, samples: Sequence[Sample]) -> dict[str, dict[str, Any]]:
    """How much of each task goes which way, each sample on the branch that it asks for (or that the gate gives it).

    Returns:
        Task -> `samples`; `alpha`, the mean weight of the frozen path; and, where any sample reached them, `experts`:
        shares of the tokens, k of them for each token, mean over the layers. Samples without a picture are left out.

    Raises:
        UnknownNameError: no lynx among the model's grafts.
    """
    graft = model.graft("lynx")
    tasks: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.images:
            tasks.setdefault(sample.task, []).append(sample)
    training = model.training
    model.eval()
    try:
        return {task: _used(model, graft, content) for task, content in tasks.items()}
    finally:
        model.train(training)


def _used(model: Any, graft: Any, samples: Sequence[Sample]) -> dict[str, Any]:
    alphas, shares = [], []
    for sample in samples:  # one by one: no padding to leave out
        with _watched(graft) as (gate, layers):
            model(**model.encode_samples([sample]).inputs())
        alphas.append(gate[0] if gate else 0.0 if layers else 1.0)
        shares += layers
    found: dict[str, Any] = {"samples": len(samples), "alpha": sum(alphas) / len(alphas)}
    widths = {len(s) for s in shares}
    if len(widths) == 1:  # layers with different numbers of experts have no common share
        found["experts"] = torch.stack(shares).mean(0).tolist()
    return found


@contextmanager
def _watched(graft: Any) -> Iterator[tuple[list[float], list[Tensor]]]:
    """What one forward's gate says, and each layer's shares of the tokens, float [N]."""
    gate: list[float] = []
    layers: list[Tensor] = []

    def note_layer(_: Any, __: Any, output: Any) -> None:
        routing = output[1]
        if routing is None:
            layers.append(torch.ones(1))
            return
        counts = torch.bincount(routing.chosen.flatten(), minlength=routing.probabilities.shape[-1]).float().cpu()
        layers.append(counts / counts.sum())

    def note_gate(_: Any, __: Any, output: Tensor) -> None:
        gate.append(float(output.sigmoid().mean()))

    handles = [layer.register_forward_hook(note_layer) for layer in graft.layers]
    if graft.gate is not None:
        handles.append(graft.gate.register_forward_hook(note_gate))
    try:
        yield gate, layers
    finally:
        for handle in handles:
            handle.remove()


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The use of all tasks in lines for people."""
    lines = [f"{'task':<16} {'samples':>8} {'alpha':>6}  experts"]
    for task, row in found.items():
        shares = " ".join(f"{share:.0%}" for share in row.get("experts", ())) or "none"
        lines.append(f"{task:<16} {row['samples']:>8} {row['alpha']:>6.2f}  {shares}")
    return "\n".join(lines)
