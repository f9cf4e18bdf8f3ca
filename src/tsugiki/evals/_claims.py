"""The single claims of a proof: each compares a model with the bare LLM it was made from, and says what it found.

Shapes: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from tsugiki import identity
from tsugiki.data.prompt import plain_messages, text_ids
from tsugiki.errors import TsugikiError
from tsugiki.evals._pace import Tell, counted
from tsugiki.evals._reference import Reference, recorded, word_hashes
from tsugiki.evals._reference import load_bare as load_bare
from tsugiki.evals.prompts import Prompt
from tsugiki.types import Check, ImagePart, Message, Sample, TextPart

BATCH = 8
"""Rows of a padded batch."""


def tensors(model: Any, ref: Reference) -> Check:
    """Every LLM tensor has the hash of the source's."""
    llm, base = model.language_model, model.base_identity
    found = identity.tensor_hashes(llm)
    if ref.hashes is None:
        tied = identity.tied_names(identity.llm_tensors(llm))
        found = {name: value for name, value in found.items() if tied[name] == name}
        expected: Mapping[str, str] = base.get("tensors") or {}
        wrong = _differences({k: v[:16] for k, v in found.items()}, expected)
        holds = not wrong and identity.digest(found) == base.get("tensors_sha256")
    else:
        wrong = _differences(found, ref.hashes)
        holds = not wrong
    if identity.peft_hash(llm) != base.get("peft") and not ref.parent:
        holds, wrong = False, [*wrong, "the adapter handed over with the LLM"]
    form = f"{base.get('dtype', '?')}" if ref.hashes is None else str(llm.dtype).removeprefix("torch.")
    if holds:
        whose = f"those of {ref.origin}" if ref.hashes is not None else "those recorded at attach"
        detail = f"SHA-256 of all {len(found)} LLM tensors ({form}) equal {whose}"
        return Check(name="tensors", holds=True, detail=detail)
    return Check(
        name="tensors", holds=False, detail=_several(wrong, len(found), "LLM tensors differ") or "digest differs"
    )


def recorded_base(model: Any, ref: Reference) -> Check:
    """The source is the base that the graft was attached to."""
    base = model.base_identity
    if ref.source is None:
        return Check(name="base", holds=True, detail=f"recorded at attach: {_short(base.get('tensors_sha256'))}")
    stored = identity.tensor_hashes(ref.source)
    holds = identity.digest(stored) == base.get("tensors_sha256")
    wrong = _differences({k: v[:16] for k, v in stored.items()}, base.get("tensors") or {})
    detail = f"{ref.source} is the base of the graft: {_short(base.get('tensors_sha256'))}"
    if not holds:
        detail = f"{ref.source} is not the base of the graft: {_several(wrong, len(stored), 'stored tensors differ')}"
    return Check(name="base", holds=holds, detail=detail)


def changed_tensors(model: Any, ref: Reference) -> Check:
    """For `bounded`: LLM tensors that changed are declared."""
    own = identity.tensor_hashes(model.language_model)
    wrong = _differences(own, ref.hashes) if ref.hashes is not None else []
    declared = bool(getattr(model.config, "llm_trained", False))
    detail = f"{len(wrong)} of {len(own)} LLM tensors differ from {ref.origin}; training of the LLM is "
    return Check(
        name="tensors", holds=declared or not wrong, detail=detail + ("declared" if declared else "not declared")
    )


def keys(model: Any, ref: Reference) -> Check:
    """State-dict keys and module tree of the LLM are the base's."""
    llm = model.language_model
    with ref.bare(model) as bare:
        other = getattr(bare, "language_model", bare)
        wrong = sorted(set(llm.state_dict()) ^ set(other.state_dict()))
        wrong += sorted(_tree(llm) ^ _tree(other))
    detail = f"{len(llm.state_dict())} state-dict keys and the module tree are the base's"
    return Check(name="keys", holds=not wrong, detail=detail if not wrong else f"differ: {', '.join(wrong[:3])}")


def words(model: Any, ref: Reference) -> Iterator[Check]:
    """Tokenizer, chat template and generation config are the base's."""
    for name, own in word_hashes(model.tokenizer, model.language_model).items():
        other, given = (ref.words or {}).get(name), recorded(model, name)
        if ref.parent:
            compared = name == "generation config" or ref.tokenizer is not None
            holds = not compared or own == other
            detail = "equal to the parent's" if compared else "the parent was given without a tokenizer"
            if not holds:
                detail = f"{_short(own)} is not the parent's {_short(other)}"
        else:
            holds = own == given
            detail = "as handed over" if holds else f"{_short(own)} is not what was handed over, {_short(given)}"
            if holds and ref.words is not None and own == other:
                detail = "equal to the source's"
            elif holds and ref.words is not None and other is not None:
                detail += " (the source's files hold another one)"
        yield Check(name=name, holds=holds, detail=detail)


@torch.no_grad()
def logits(model: Any, ref: Reference, prompts: Sequence[Prompt], tokenizer: Any, tell: Tell) -> Check:
    """Logits of every prompt bit for bit, each alone and in padded batches of like shapes."""
    rows = [ids for p in prompts if (ids := _ids(model, p, tokenizer))]
    device = model.device
    pad = getattr(tokenizer, "pad_token_id", None) or 0
    batches = [torch.tensor([row]) for row in rows]
    masks = [torch.ones_like(b) for b in batches]
    for start in range(0, len(rows), BATCH):
        padded, real = _padded(rows[start : start + BATCH], pad)
        batches.append(padded)
        masks.append(real)
    wrong = []
    for n, (ids, mask) in enumerate(counted(list(_zip(batches, masks)), "logits", tell)):
        inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        own = model(**inputs).logits
        with ref.bare(model) as bare:
            other = bare(**inputs).logits
        if not same_bits(own, other):
            place = f"prompt {n + 1}" if n < len(rows) else f"batch {n - len(rows) + 1}"
            wrong.append(f"{place} (by up to {_distance(own, other):.2g})")
    what = f"logits of {len(rows)} prompts, alone and in {len(batches) - len(rows)} padded batches"
    if not wrong:
        return Check(name="logits", holds=True, detail=f"{what}, equal bit for bit those of {ref.origin}")
    return Check(name="logits", holds=False, detail=f"{what}: {_several(wrong, len(batches), 'differ')}")


@torch.no_grad()
def answers(
    model: Any, ref: Reference, prompts: Sequence[Prompt], n: int, max_new_tokens: int, seed: int, tell: Tell
) -> Check:
    """Whole answers of `chat(text)` against the bare tokenizer, template and generation config: ids, stops and text."""
    tokenizer = ref.tokenizer or model.tokenizer
    asked = _answerable(prompts, tokenizer, model, max_new_tokens)[:n]
    numbered = enumerate(counted(asked, "answers of the model", tell))
    own = [_seeded(seed + i, lambda p=p: _chat(model, p, max_new_tokens)) for i, p in numbered]
    wrong, stopped = [], 0
    with ref.bare(model) as bare:
        for i, (prompt, mine) in enumerate(counted(list(_zip(asked, own)), "answers of the bare LLM", tell)):
            other = _seeded(seed + i, lambda p=prompt: _bare_answer(bare, tokenizer, p, max_new_tokens))
            stopped += len(other[1]) < max_new_tokens
            if mine != other:
                part = ("prompt's tokens", "answer's tokens", "text")[
                    [a == b for a, b in _zip(mine, other)].index(False)
                ]
                wrong.append(f"answer {i + 1} ({part})")
    what = f"{len(asked)} answers of up to {max_new_tokens} tokens ({stopped} ended by a stop token)"
    form = "" if getattr(tokenizer, "chat_template", None) else " (no chat template: the plain form on both sides)"
    if not wrong and len(asked) >= min(n, len(prompts)):
        return Check(name="answers", holds=True, detail=f"{what} equal those of the bare tokenizer and LLM{form}")
    short = [] if len(asked) == n else [f"only {len(asked)} of {n} prompts could be asked"]
    return Check(name="answers", holds=False, detail=f"{what}: {_several([*wrong, *short], len(asked), 'differ')}")


@torch.no_grad()
def prefix(model: Any, ref: Reference, prompts: Sequence[Prompt], n: int = 4) -> Check:
    """On a request with an image, tokens before the first image have the base's logits."""
    wrong, compared = [], 0
    for i, prompt in enumerate([p for p in prompts if p.plain][:n]):
        parts = (TextPart(prompt.text + "\n"), ImagePart(picture(i)), TextPart("What is it?"))
        batch = model.encode_samples([Sample(id="prefix", messages=(Message("user", parts),))])
        first = int((batch.image_index[0] >= 0).nonzero()[0])
        ids = torch.where(batch.image_index >= 0, torch.zeros_like(batch.input_ids), batch.input_ids)
        own = model(**batch.inputs()).logits[:, :first]
        with ref.bare(model) as bare:
            other = bare(input_ids=ids, attention_mask=batch.attention_mask).logits[:, :first]
        compared += first
        if not same_bits(own, other):
            wrong.append(f"prompt {i + 1} (by up to {_distance(own, other):.2g})")
    detail = f"logits of {compared} tokens before an image equal the base's bit for bit"
    return Check(
        name="prefix", holds=not wrong, detail=detail if not wrong else _several(wrong, n, "differ before the image")
    )


def picture(seed: int = 0, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A made-up picture that shows nothing."""
    noise = torch.randint(
        0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    return Image.frombytes("RGB", size, noise.numpy().tobytes())


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal shapes, dtypes and bytes (so NaN equals NaN, and 0 is not -0)."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).abs().max()) if a.shape == b.shape else float("inf")


def _chat(model: Any, prompt: Prompt, max_new_tokens: int) -> tuple[list[int], list[int], str]:
    """Ids of the prompt and the answer, and its text, as `chat` gives them."""
    seen: list[tuple[Tensor, Tensor]] = []
    generate = model.generate

    def record(*args: Any, **kwargs: Any) -> Any:
        output = generate(*args, **kwargs)
        seen.append((args[0] if args else kwargs["input_ids"], output))
        return output

    history = tuple(Message.of(role, text) for role, text in prompt.turns[:-1])  # type: ignore[arg-type]
    model.__dict__["generate"] = record
    try:
        text = model.chat(prompt.text, history=history, max_new_tokens=max_new_tokens)
    finally:
        del model.__dict__["generate"]
    ids, output = seen[-1]
    return ids[0].tolist(), output[0, ids.shape[1] :].tolist(), text


def _bare_answer(llm: Any, tokenizer: Any, prompt: Prompt, max_new_tokens: int) -> tuple[list[int], list[int], str]:
    if hasattr(llm, "language_model"):
        return _chat(llm, prompt, max_new_tokens)
    ids = torch.tensor([_chat_ids(tokenizer, prompt)], device=llm.device)
    output = llm.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens)
    new = output[0, ids.shape[1] :]
    return ids[0].tolist(), new.tolist(), tokenizer.decode(new, skip_special_tokens=True).strip()


def _chat_ids(tokenizer: Any, prompt: Prompt) -> list[int]:
    if getattr(tokenizer, "chat_template", None):
        encoded = tokenizer.apply_chat_template(prompt.messages, add_generation_prompt=True, return_dict=True)
        return list(encoded["input_ids"])
    messages = [Message.of(role, text) for role, text in prompt.turns]  # type: ignore[arg-type]
    return text_ids(plain_messages(messages), tokenizer, add_generation_prompt=True)


def _answerable(prompts: Sequence[Prompt], tokenizer: Any, model: Any, max_new_tokens: int) -> list[Prompt]:
    """Prompts that the template takes and that fit the context, spread over all kinds."""
    room = _context(model) - max_new_tokens
    fit = []
    for prompt in prompts:
        try:
            if 0 < len(_chat_ids(tokenizer, prompt)) <= room:
                fit.append(prompt)
        except Exception:  # a template may refuse a role, in its own words
            continue
    kinds: dict[str, list[Prompt]] = {}
    for prompt in fit:
        kinds.setdefault(prompt.kind, []).append(prompt)
    longest = max(map(len, kinds.values()), default=0)
    return [group[i] for i in range(longest) for group in kinds.values() if i < len(group)]


def _ids(model: Any, prompt: Prompt, tokenizer: Any) -> list[int]:
    """Token ids of a prompt: a bare text, or a conversation through the template."""
    try:
        ids = list(tokenizer(prompt.text)["input_ids"]) if prompt.plain else _chat_ids(tokenizer, prompt)
    except Exception as error:  # a template may refuse a role, in its own words
        if isinstance(error, TsugikiError):
            raise
        ids = list(tokenizer("\n".join(text for _, text in prompt.turns))["input_ids"])
    return ids[: _context(model)]


def _context(model: Any) -> int:
    return int(getattr(model.language_model.config, "max_position_embeddings", None) or 2048)


def _padded(rows: Sequence[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Rows -> left-padded ids and mask, [B, T] each."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(r)) + r for r in rows])
    return ids, torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])


def _seeded(seed: int, run: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # a generation config may sample: then both sides draw the same numbers
        return run()


def _tree(module: nn.Module) -> set[str]:
    return {f"{name}: {type(m).__name__}" for name, m in module.named_modules()}


def _differences(found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    return [name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)]


def _several(wrong: Sequence[str], n: int, what: str) -> str:
    if not wrong:
        return ""
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return f"{len(wrong)} of {n} {what}: {', '.join(wrong[:3])}{more}"


def _short(value: Any) -> str:
    return f"{value[:12]}..." if isinstance(value, str) else str(value)


def _zip(a: Sequence[Any], b: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(a, b, strict=True)
