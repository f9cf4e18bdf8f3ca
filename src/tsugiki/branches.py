"""Rows of a batch that take different branches: which takes which, and one forward or `generate` for each branch.

Hidden states differ by branch, so the rows of one run together and share nothing with the others. Rows without an image
take no branch: they run beside any. Shapes: B rows, T positions, L label positions, W words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tsugiki.configuration import TsugikiOutput
from tsugiki.errors import InputError, PromptError, UnknownNameError
from tsugiki.grafts._cache import TsugikiCache
from tsugiki.types import BRANCHES, PAD, TEXT

TEXT_ROW = BRANCHES["text"]
_ROWS = (
    "input_ids",
    "attention_mask",
    "token_kind",
    "image_index",
    "position_ids",
    "inputs_embeds",
    "labels",
    "branch",
)


def of_rows(
    model: Any,
    kinds: Tensor,
    branch: Tensor | str | None,
    past: Any = None,
    *,
    input_ids: Tensor | None = None,
    question: Tensor | None = None,
) -> Tensor | None:
    """The branch of each row, int64 [B], "text" for those without an image; None where all rows run alike.

    Args:
        kinds: int64 [B, T] of this forward.
        branch, question: as in the composite's forward.
        past: a cache; its branch and its rows with images go on.
        input_ids: int64 [B, T], for a graft that decides by the question's words.

    Raises:
        UnknownNameError, InputError: as `numbers`.
    """
    given = numbers(branch, len(kinds), kinds.device)
    if len(model.branches) == 1 and model.keeps_prefix:
        return None
    seen = ((kinds != TEXT) & (kinds != PAD)).any(1)
    cached = past if isinstance(past, TsugikiCache) and past.token_kind is not None else None
    if cached is not None and cached.rows is not None:
        seen = seen | cached.rows
    if given is None:
        if cached is not None:
            chosen = torch.full_like(kinds[:, 0], BRANCHES[cached.branch])
        elif question is not None and input_ids is not None and model.chooses_branch:
            chosen = _chosen(model, input_ids, question)
        else:
            chosen = torch.full_like(kinds[:, 0], BRANCHES["image"])
        return torch.where(seen, chosen, TEXT_ROW)
    known = torch.tensor([TEXT_ROW, *(BRANCHES[b] for b in model.branches)], device=given.device)
    given = torch.where(torch.isin(given, known), given, BRANCHES["image"])
    given = torch.where(seen & (given == TEXT_ROW), BRANCHES["image"], given)
    # Where numbers are given, the image of a row may come with a later part of its prompt: the caller knows.
    return torch.where(seen, given, TEXT_ROW) if isinstance(branch, str) else given


def _chosen(model: Any, input_ids: Tensor, question: Tensor) -> Tensor:
    """What the graft that decides says: ids and marks [B, T] -> int64 [B]."""
    chosen: Tensor = chooser(model).choose_branch(question_mean(model, input_ids, question))
    return chosen


def chooser(model: Any) -> Any:
    """The graft that decides on branches: the first one that does; the model has one."""
    return next(g for g in model.grafts if g.chooses_branch)


@torch.no_grad()
def question_mean(model: Any, input_ids: Tensor, question: Tensor) -> Tensor:
    """Mean word embedding of the marked tokens, what a graft decides by: ids and marks [B, T] -> float [B, D]."""
    words = model.decoder.embed(model._safe(input_ids)).float() * question[..., None]
    mean: Tensor = words.sum(1) / question.sum(1, keepdim=True).clamp(min=1)
    return mean


def numbers(branch: Tensor | str | None, rows: int, device: torch.device) -> Tensor | None:
    """What a caller names as branch, as int64 [B].

    Raises:
        UnknownNameError: no such branch.
        InputError: another number of rows, or a number of no branch.
    """
    if branch is None:
        return None
    if isinstance(branch, str):
        if branch not in BRANCHES:
            raise UnknownNameError("branch", branch, BRANCHES)
        return torch.full((rows,), BRANCHES[branch], device=device)
    if branch.shape != (rows,):
        raise InputError(f"branch of shape {tuple(branch.shape)}", expected=f"[{rows}], one number a row")
    for number in set(branch.tolist()):
        name_of(number)
    return branch.to(device)


def refuse_cache(past: Any, use_cache: bool | None) -> None:
    """Keys and values of several branches can't lie in one cache.

    Raises:
        PromptError: a cache is given or asked for.
    """
    if past is not None or use_cache:
        raise PromptError(
            "a cache for rows of several branches",
            expected="rows of one branch, or use_cache=False",
            fix="Run the branches one after the other; generate does so by itself.",
        )


def groups(branch: Tensor) -> list[tuple[str, Tensor]]:
    """The branches of a batch, each with its rows int64 [R] in order; rows of text are with the first.

    Args:
        branch: int64 [B].
    """
    found = [n for n in sorted(set(branch.tolist())) if n != TEXT_ROW] or [BRANCHES["image"]]
    rows = [branch == n for n in found]
    rows[0] = rows[0] | (branch == TEXT_ROW)
    return [(name_of(n), mask.nonzero()[:, 0]) for n, mask in zip(found, rows, strict=True)]


def name_of(number: int) -> str:
    """Name of a branch by its number.

    Raises:
        InputError: no branch has it.
    """
    found = next((name for name, n in BRANCHES.items() if n == number), None)
    if found is None:
        raise InputError(f"branch number {number}", expected=f"one of {BRANCHES}", where="branch")
    return found


def taken(inputs: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    """The inputs of some rows; pictures are shared by all."""
    return {k: v[rows] if k in _ROWS and isinstance(v, Tensor) else v for k, v in inputs.items()}


def forward(
    run: Callable[..., TsugikiOutput], inputs: Mapping[str, Any], branch: Tensor, items: Tensor | int | None
) -> TsugikiOutput:
    """One forward for each branch, and what they give put together as if all rows had run in one.

    Args:
        run: the composite's forward.
        inputs: its keywords for all rows.
        items: label tokens by which the summed loss is divided; None = those of this batch.

    Raises:
        InputError: hidden states or attentions are asked for, which differ in depth by branch.
    """
    if inputs.get("output_hidden_states") or inputs.get("output_attentions"):
        raise InputError(
            "rows of several branches, and hidden states or attentions are asked for",
            expected="rows of one branch, or logits and loss alone",
            fix="Run the branches one after the other.",
        )
    found = groups(branch)
    parts: list[Any] = [run(**taken(inputs, rows), num_items_in_batch=1) for _, rows in found]
    if inputs.get("labels") is None:
        logits = parts[0].logits.new_empty((len(branch), *parts[0].logits.shape[1:]))
        for (_, rows), part in zip(found, parts, strict=True):
            logits[rows] = part.logits
        return TsugikiOutput(logits=logits)
    label_rows = torch.cat([rows[part.label_rows] for (_, rows), part in zip(found, parts, strict=True)])
    order = label_rows.argsort(stable=True)
    added = [part.logits.new_zeros(len(part.label_ids)) if part.penalty is None else part.penalty for part in parts]
    return TsugikiOutput(
        penalty=torch.cat(added)[order] if any(part.penalty is not None for part in parts) else None,
        loss=torch.stack([part.loss for part in parts]).sum() / (items if items is not None else max(len(order), 1)),
        logits=torch.cat([part.logits for part in parts], dim=1)[:, order],
        label_ids=torch.cat([part.label_ids for part in parts])[order],
        label_rows=label_rows[order],
    )


def generate(run: Callable[..., Any], inputs: Mapping[str, Any], branch: Tensor, pad: int) -> Tensor:
    """`generate` for each branch, rows in their old order, padded on the right to one length.

    Args:
        run: the composite's generate.
        inputs: its keywords for all rows.
        pad: id behind an answer that is shorter than the longest.

    Raises:
        InputError: more than token ids is asked for.
    """
    config = inputs.get("generation_config")
    whole_output = inputs.get("return_dict_in_generate", getattr(config, "return_dict_in_generate", False))
    if whole_output or inputs.get("streamer") is not None:
        raise InputError(
            "rows of several branches, and more than their tokens is asked for",
            expected="one branch, or neither return_dict_in_generate nor a streamer",
            fix="Call generate once for each branch.",
        )
    found = [(rows, run(**taken(inputs, rows))) for _, rows in groups(branch)]
    each = len(found[0][1]) // len(found[0][0])  # num_return_sequences
    length = max(tokens.shape[1] for _, tokens in found)
    whole = found[0][1].new_full((len(branch), each, length), pad)
    for rows, tokens in found:
        whole[rows, :, : tokens.shape[1]] = tokens.unflatten(0, (len(rows), each))
    joined: Tensor = whole.flatten(0, 1)
    return joined
