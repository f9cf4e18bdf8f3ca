"""Every kind of site against the decoder's loop written out, in float64, on every family."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tsugiki.decoder import DecoderSpec
from tsugiki.errors import UnsupportedError
from tsugiki.grafts import _context
from tsugiki.grafts._base import Graft
from tsugiki.grafts._context import KEYWORD, Context
from tsugiki.grafts._sites import Site
from tsugiki.testing import FAMILIES, tiny_llm
from tsugiki.types import VisualTokens

IDS = torch.arange(3, 19).reshape(2, 8)
HERE = Context(visual=VisualTokens(torch.zeros(1, 1, 32)))
Edit = Callable[[str, Tensor], Tensor]


class Probe(Graft):
    """A graft of the given sites."""

    def __init__(self, decoder: DecoderSpec, *sites: Site) -> None:
        super().__init__(None, decoder)
        self.places = sites

    def sites(self, decoder: DecoderSpec) -> Iterator[Site]:
        yield from self.places


@pytest.fixture(params=FAMILIES)
def decoder(request: pytest.FixtureRequest) -> DecoderSpec:
    return DecoderSpec(tiny_llm(request.param, dtype=torch.float64))


@torch.no_grad()
def run(decoder: DecoderSpec, context: Context | None) -> Tensor:
    keywords = {} if context is None else {KEYWORD: context}
    with _context.running(context):
        return decoder.llm(input_ids=IDS, use_cache=False, **keywords).logits


@torch.no_grad()
def written_out(decoder: DecoderSpec, edit: Edit) -> Tensor:
    """The decoder as a loop over its own modules; `edit(place, x)` changes what passes each place.

    Arguments that an attention needs beside the hidden states (rotary tables, masks) are noted in a plain run.
    """
    noted: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    first: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        noted[id(module)] = (args[1:], {k: v for k, v in kwargs.items() if k != "hidden_states"})

    def note_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first.append(args[0] if args else kwargs["hidden_states"])

    handles = [b.attention.register_forward_pre_hook(note, with_kwargs=True) for b in decoder.blocks]
    handles.append(decoder.layers[0].register_forward_pre_hook(note_input, with_kwargs=True))
    embedded: list[Tensor] = []
    handles.append(decoder.embed.register_forward_hook(lambda m, a, o: embedded.append(o)))
    decoder.llm(input_ids=IDS, use_cache=False)
    for handle in handles:
        handle.remove()

    x = first[0] + edit("embed", embedded[0]) - embedded[0]  # learned positions are added after the embedding
    for block in decoder.blocks:
        norms = [
            m for m in block.layer.children() if not any(p.dim() > 1 for p in m.parameters()) and list(m.parameters())
        ]
        i = block.index

        def attend(h: Tensor, block: Any = block, i: int = i) -> Tensor:
            args, kwargs = noted[id(block.attention)]
            return edit(f"attention {i}", block.attention(h, *args, **kwargs)[0])

        def feed(h: Tensor, block: Any = block, i: int = i) -> Tensor:
            if block.ffn is None:
                return block.layer.fc2(block.layer.activation_fn(block.layer.fc1(h)))
            return edit(f"ffn {i}", block.ffn(h))

        x = edit(f"before {i}", x)
        if decoder.block_kind == "parallel":
            x = x + attend(norms[0](x)) + feed(norms[1](x))
        elif decoder.block_kind == "post-norm":
            x = x + norms[0](attend(x))
            x = x + norms[1](feed(x))
        elif decoder.block_kind == "sandwich":
            x = x + norms[1](attend(norms[0](x)))
            x = x + norms[3](feed(norms[2](x)))
        else:
            x = x + attend(norms[0](x))
            x = x + feed(norms[1](x))
        x = edit(f"after {i}", x)
    out = edit("head", decoder.head(edit("norm", decoder.norm(x))))
    cap = getattr(decoder.config, "final_logit_softcapping", None)
    return torch.tanh(out / cap) * cap if cap else out


def check(decoder: DecoderSpec, sites: list[Site], edit: Edit) -> None:
    base = run(decoder, None)
    graft = Probe(decoder, *sites)
    graft.attach(decoder)
    assert torch.equal(run(decoder, None), base), "a site ran without an image"
    torch.testing.assert_close(run(decoder, HERE), written_out_plain(graft, decoder, edit), rtol=1e-9, atol=1e-9)
    graft.detach()
    assert torch.equal(run(decoder, HERE), base)


def written_out_plain(graft: Graft, decoder: DecoderSpec, edit: Edit) -> Tensor:
    graft.detach()
    out = written_out(decoder, edit)
    graft.attach(decoder)
    return out


def test_the_loop_is_the_decoder(decoder: DecoderSpec) -> None:
    torch.testing.assert_close(written_out(decoder, lambda _, x: x), run(decoder, None), rtol=1e-9, atol=1e-9)


def test_before(decoder: DecoderSpec) -> None:
    site = Site("before", decoder.layers[2], lambda x, c: 2 * x + 1)
    check(decoder, [site], lambda place, x: 2 * x + 1 if place == "before 2" else x)


def test_after(decoder: DecoderSpec) -> None:
    sites = [
        Site("after", decoder.layers[1], lambda y, x, c: y - 3 * x),
        Site("after", decoder.blocks[2].attention, lambda y, x, c: y.flip(-1)),
    ]
    entering: dict[str, Tensor] = {}

    def edit(place: str, x: Tensor) -> Tensor:
        if place == "before 1":
            entering["x"] = x
        if place == "after 1":
            return x - 3 * entering["x"]
        return x.flip(-1) if place == "attention 2" else x

    check(decoder, sites, edit)


def test_around_ffn(decoder: DecoderSpec) -> None:
    ffn = decoder.blocks[3].ffn
    if ffn is None:
        pytest.skip(f"{decoder.name} holds the FFN's matrices in the layer itself: there is no module to go around")
    site = Site("around", ffn, lambda call, x, c: call(x) + 0.5 * call(x).roll(1, -1))
    check(decoder, [site], lambda place, y: y + 0.5 * y.roll(1, -1) if place == "ffn 3" else y)


def test_around_may_leave_the_original_out(decoder: DecoderSpec) -> None:
    ffn = decoder.blocks[0].ffn
    if ffn is None:
        pytest.skip("no FFN module")
    site = Site("around", ffn, lambda call, x, c: torch.ones_like(x))
    check(decoder, [site], lambda place, y: torch.ones_like(y) if place == "ffn 0" else y)


def test_around_attention_and_layer(decoder: DecoderSpec) -> None:
    sites = [
        Site("around", decoder.blocks[1].attention, lambda call, x, c: 3 * call(x)),
        Site("around", decoder.layers[2], lambda call, x, c: call(x + 1) + 1),
    ]

    def edit(place: str, x: Tensor) -> Tensor:
        return {"attention 1": 3 * x, "before 2": x + 1, "after 2": x + 1}.get(place, x)

    check(decoder, sites, edit)


def test_embed_norm_head(decoder: DecoderSpec) -> None:
    sites = [
        Site("embed", decoder.embed, lambda e, ids, c: e + ids[..., None] / 100),
        Site("norm", decoder.norm, lambda call, x, c: call(x).flip(-1)),
        Site("head", decoder.head, lambda call, x, c: call(x) / 2),
    ]
    edits: dict[str, Callable[[Tensor], Tensor]] = {
        "embed": lambda e: e + IDS[..., None] / 100,
        "norm": lambda y: y.flip(-1),
        "head": lambda y: y / 2,
    }
    check(decoder, sites, lambda place, x: edits[place](x) if place in edits else x)


def test_sites_nest_in_the_order_of_attaching(decoder: DecoderSpec) -> None:
    module = decoder.blocks[1].attention
    one = Probe(decoder, Site("around", module, lambda call, x, c: 2 * call(x)))
    two = Probe(decoder, Site("around", module, lambda call, x, c: call(x) + 1))
    want = written_out(decoder, lambda place, y: 2 * y + 1 if place == "attention 1" else y)
    base = run(decoder, None)
    one.attach(decoder), two.attach(decoder)
    torch.testing.assert_close(run(decoder, HERE), want, rtol=1e-9, atol=1e-9)
    one.detach()  # not in the reverse order
    want = written_out(decoder, lambda place, y: y + 1 if place == "attention 1" else y)
    torch.testing.assert_close(run(decoder, HERE), want, rtol=1e-9, atol=1e-9)
    two.detach()
    assert torch.equal(run(decoder, HERE), base)
    assert "forward" not in module.__dict__


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_attention_function(decoder: DecoderSpec, kernel: str) -> None:
    """softmax(q k' * scale + causal) v as a loop over rows, heads and positions, on what the site is given."""
    if decoder.llm.config._attn_implementation != kernel:
        try:
            decoder.llm.set_attn_implementation(kernel)
        except ValueError as error:  # Gemma 2 caps its scores, which torch's fused kernel can't
            pytest.skip(str(error).split(".")[0])
    base = run(decoder, None)
    block, seen = decoder.blocks[1], {}

    def site(call: Any, q: Tensor, k: Tensor, v: Tensor, context: Context, **keywords: Any) -> Any:
        out, weights = call(q, k, v)
        seen.update(q=q, k=k, v=v, out=out, **keywords)
        return 2 * out, weights

    graft = Probe(decoder, Site("attention", block.attention, site))
    config = block.attention.config
    graft.attach(decoder)
    assert torch.equal(run(decoder, None), base)
    got = run(decoder, HERE)
    graft.detach()
    assert block.attention.config is config
    assert torch.equal(run(decoder, HERE), base) and not torch.allclose(got, base)

    q, k, v, out = (seen[n] for n in ("q", "k", "v", "out"))
    assert seen[KEYWORD] is HERE
    scale = seen.get("scaling")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    cap = getattr(decoder.config, "attn_logit_softcapping", None) if kernel == "eager" else None
    groups = q.shape[1] // k.shape[1]
    want = torch.zeros_like(out)  # [B, T, H, D / H]
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for t in range(q.shape[2]):
                scores = (k[b, h // groups, : t + 1] @ q[b, h, t]) * scale
                if cap:
                    scores = torch.tanh(scores / cap) * cap
                want[b, t, h] = torch.softmax(scores, 0) @ v[b, h // groups, : t + 1]
    tolerance = 1e-9 if kernel == "sdpa" else 1e-6  # transformers' eager form takes its softmax in fp32
    torch.testing.assert_close(out, want, rtol=tolerance, atol=tolerance)


def test_an_attention_site_follows_a_change_of_kernel(decoder: DecoderSpec) -> None:
    calls: list[str] = []

    def site(call: Any, q: Tensor, k: Tensor, v: Tensor, context: Context, **keywords: Any) -> Any:
        calls.append("here")
        return call(q, k, v)

    graft = Probe(decoder, Site("attention", decoder.blocks[0].attention, site))
    graft.attach(decoder)
    with_sdpa = run(decoder, HERE)
    decoder.llm.set_attn_implementation("eager")
    torch.testing.assert_close(run(decoder, HERE), with_sdpa, rtol=1e-6, atol=1e-6)
    assert len(calls) == 2
    graft.detach()


def test_half_attached_is_not_attached() -> None:
    decoder = DecoderSpec(tiny_llm())

    class Refuses(Probe):
        def sites(self, decoder: DecoderSpec) -> Iterator[Site]:
            yield Site("before", decoder.layers[0], lambda x, c: x + 1)
            raise UnsupportedError("no such place")

    base = run(decoder, None)
    with pytest.raises(UnsupportedError):
        Refuses(decoder).attach(decoder)
    assert torch.equal(run(decoder, HERE), base)
