"""WINGS written out: loops over tokens, learners, heads and keys, in the inputs' precision (float64 in the tests).

The main attention is a plain softmax over a whole matrix, so that the router can read its rows.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from tsugiki.grafts.projector import splice
from tsugiki.types import IMAGE, TEXT, VisualTokens


def forward(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Logits [T, vocabulary] of one row without padding, Llama with the grafts projector and wings."""
    llm, graft = model.language_model, model.grafts[-1]
    kinds = inputs.get("token_kind", torch.full_like(inputs["input_ids"], TEXT))
    h = llm.model.embed_tokens(inputs["input_ids"].clamp(max=271))
    if "pixel_values" in inputs:
        visual = model.frontend(pixel_values=inputs["pixel_values"])
        visual = VisualTokens(visual.tokens.to(h.dtype))
        offset = torch.zeros_like(kinds)
        for image in set(inputs["image_index"].flatten().tolist()) - {-1}:
            where = inputs["image_index"] == image
            offset[where] = torch.arange(int(where.sum()))
        h = splice(h, visual, kinds, inputs["image_index"], offset)
    h, kind = h[0], kinds[0].tolist()
    features, t = h, len(h)
    cos, sin = llm.model.rotary_emb(h[None], torch.arange(t)[None])
    for index, layer in enumerate(llm.model.layers):
        normed = layer.input_layernorm(h)
        out, attention = main_attention(layer.self_attn, normed, cos, sin)
        asked = h + out if graft.config.order == "after_attention" else normed
        h = h + out
        if index in graft.indices:
            h = h + learners(graft, list(graft.indices).index(index), asked, features, kind, attention, cos, sin)
        h = h + layer.mlp(layer.post_attention_layernorm(h))
    return llm.lm_head(llm.model.norm(h))


def main_attention(module: Any, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """x [T, D] -> [T, D] and the attention [H, T, T]."""
    t, width = len(x), module.head_dim
    q, k, v = (p(x).view(1, t, -1, width).transpose(1, 2) for p in (module.q_proj, module.k_proj, module.v_proj))
    q, k = apply_rotary_pos_emb(q, k, cos, sin)
    k, v = (y.repeat_interleave(module.num_key_value_groups, dim=1) for y in (k, v))
    scores = q @ k.transpose(2, 3) / math.sqrt(width)
    scores = scores.masked_fill(~torch.ones(t, t, dtype=torch.bool).tril(), -math.inf)
    attention = scores.softmax(-1)
    return module.o_proj((attention @ v).transpose(1, 2).reshape(t, -1)), attention[0]


def learners(
    graft: Any, place: int, x: Tensor, f: Tensor, kind: list[int], attention: Tensor, cos: Tensor, sin: Tensor
) -> Tensor:
    """What the learners of one layer add: x, f [T, D] -> [T, D]."""
    config, own, t, d = graft.config, graft.layers[place], len(x), x.shape[1]
    heads = own.heads
    width = d // heads
    first = kind.index(IMAGE) if IMAGE in kind else None
    reference = config.compat == "reference"
    added = torch.zeros_like(x)

    def turned(y: Tensor, position: int) -> Tensor:
        y, rotated = y.view(1, heads, 1, width), cos.shape[-1]
        at = slice(position, position + 1)
        first = apply_rotary_pos_emb(y[..., :rotated], y[..., :rotated], cos[:, at], sin[:, at])[0]
        return torch.cat([first, y[..., rotated:]], -1).reshape(d)

    for i in range(t):
        since_image = first is not None and (i >= first or reference)
        weights = router(graft, place, attention[:, i], kind, first) if graft.routers is not None else [0.5, 0.5]
        for learner, weight in zip(("visual", "textual"), weights, strict=True):
            if learner not in graft.active:
                continue
            a = {n: getattr(own, f"{learner}_{n}") for n in (f"{z}_{s}" for z in "qkvo" for s in ("down", "up"))}
            if learner == "visual":
                keys = [j for j in range(t) if kind[j] == IMAGE and (j <= i or reference)]
            else:
                start = 0 if config.llm == "trainable" else first if first is not None else t
                keys = [j for j in range(max(start, config.exclude_prefix), i + 1) if kind[j] == TEXT]
            if not keys:
                continue
            q = turned(x[i] + a["q_up"] @ (a["q_down"] @ x[i]), i)
            out = torch.zeros_like(q)
            for head in range(heads):
                part = slice(head * width, (head + 1) * width)
                scores, values = [], []
                for j in keys:
                    k = turned(f[j] + a["k_up"] @ (a["k_down"] @ f[j]), j)
                    scores.append((q[part] * k[part]).sum() / math.sqrt(width))
                    values.append((f[j] + a["v_up"] @ (a["v_down"] @ f[j]))[part])
                out[part] = (torch.stack(scores).softmax(0)[:, None] * torch.stack(values)).sum(0)
            if len(graft.active) < 2 or not since_image:
                weight = 1.0
            scale = config.scale if config.scale is not None else 2.0 if reference else 1.0
            added[i] = added[i] + scale * weight * (a["o_up"] @ (a["o_down"] @ out))
    return added


def router(graft: Any, place: int, row: Tensor, kind: list[int], first: int | None) -> Tensor:
    """Weights of the two learners for one token, whose attention is `row` [H, T]."""
    own = graft.routers[place]
    total = row.sum(0)
    if graft.config.router == "positions":
        u = torch.zeros(own.weight.shape[1], dtype=row.dtype)
        for j, mass in enumerate(total):
            u[min(j, len(u) - 1)] += mass
    else:
        u = torch.zeros(3, dtype=row.dtype)
        for j, mass in enumerate(total):
            segment = 1 if kind[j] == IMAGE else 0 if first is None or j < first else 2
            u[segment] += mass / row.shape[0]
    return torch.nn.functional.silu(own.weight @ u + own.bias).softmax(0)
