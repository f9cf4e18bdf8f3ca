"""Describe any Hugging Face causal LM without forking it: where its parts are, and in which order a block runs them.

Everything is found by structure: what a block's children are, and what flows between them in a forward of two tokens.
No family is named here. Shapes: B batch, T positions, D width of the LLM.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tsugiki.errors import UnsupportedError

BlockKind = Literal["pre-norm", "post-norm", "sandwich", "parallel"]


@dataclass(frozen=True)
class Block:
    """One decoder layer. `ffn` is None where the layer holds the FFN's matrices itself (OPT)."""

    index: int
    layer: nn.Module
    attention: nn.Module
    ffn: nn.Module | None
    after: int | None = None
    """Index of the LLM's layer that it follows, where a graft has inserted it."""

    def child(self, name: str) -> nn.Module:
        """A direct child of the layer."""
        return dict(self.layer.named_children())[name]


class DecoderSpec:
    """Where a causal LM keeps its embeddings, layers, attention, FFN, final norm and head.

    Args:
        llm: a causal LM of transformers (anything with `config`, `get_input_embeddings`, `get_output_embeddings`).

    Raises:
        UnsupportedError: no list of decoder layers, or no attention in a layer, can be told apart.
    """

    def __init__(self, llm: nn.Module) -> None:
        self.llm = llm
        self.name = type(llm).__name__
        config: Any = llm.config
        self.config = config.get_text_config(decoder=True)
        self.embed: Any = llm.get_input_embeddings()  # type: ignore[operator]
        self.head: Any = llm.get_output_embeddings()  # type: ignore[operator]
        self.layers = self._find_layers()
        self.blocks = tuple(self.block(i, layer) for i, layer in enumerate(self.layers))
        self.inserted: tuple[Block, ...] = ()
        """Layers that grafts have added; the LLM does not know of them."""
        self.hidden_size = int(self.config.hidden_size)
        self.vocabulary, self.embedding_size = (int(n) for n in self.embed.weight.shape)

    def _find_layers(self) -> nn.ModuleList:
        depth = self.config.num_hidden_layers
        found = [m for m in self.llm.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
        # Lists inside a layer (experts, say) may be as long as the LLM is deep: the outermost one comes first.
        inner = {id(m) for f in found for layer in f for m in layer.modules()}
        outer = [f for f in found if id(f) not in inner]
        if len(outer) != 1:
            raise UnsupportedError(
                f"{self.name} has {len(outer)} lists of {depth} modules",
                expected="exactly one, the decoder layers",
                fix="Use a decoder-only causal LM of transformers.",
            )
        return outer[0]

    def block(self, index: int, layer: nn.Module, after: int | None = None) -> Block:
        """A layer of this LLM's class, and its parts.

        Raises:
            UnsupportedError: its attention can't be told apart.
        """
        attention = [m for m in layer.children() if hasattr(m, "layer_idx") and _matrices(m) >= 2]
        if len(attention) != 1:
            raise UnsupportedError(
                f"layer {index} of {self.name} has {len(attention)} attention modules",
                expected="exactly one child with a layer_idx",
                fix="Use a decoder-only causal LM of transformers.",
            )
        ffn = [m for m in layer.children() if m is not attention[0] and _matrices(m) >= 2]
        return Block(index, layer, attention[0], ffn[0] if len(ffn) == 1 else None, after)

    @property
    def inserted_places(self) -> list[tuple[int, int]]:
        """(index, index of the LLM's layer that it follows) of each inserted layer, in order of the first."""
        return sorted({(b.index, b.after) for b in self.inserted if b.after is not None})

    @property
    def body(self) -> nn.Module:
        """The LLM without its head."""
        return self.llm.base_model  # type: ignore[return-value]

    @cached_property
    def norm(self) -> nn.Module:
        """The final norm: the last module with weights but no matrix that runs after the last layer.

        Raises:
            UnsupportedError: nothing normalises after the last layer.
        """
        inside = {id(m) for m in self.layers.modules()}
        after: list[nn.Module] = []
        done = False

        def note_layer(*_: Any) -> None:
            nonlocal done
            done = True

        def note(module: nn.Module, *_: Any) -> None:
            if done:
                after.append(module)

        candidates = [
            m
            for m in self.body.modules()
            if id(m) not in inside and _is_leaf(m) and not _matrices(m) and m is not self.embed and m is not self.head
        ]
        handles = [self.layers[-1].register_forward_hook(note_layer)]
        handles += [m.register_forward_hook(note) for m in candidates if next(m.parameters(), None) is not None]
        try:
            self.probe()
        finally:
            for handle in handles:
                handle.remove()
        if not after:
            raise UnsupportedError(
                f"{self.name} has no norm after its last layer", fix="Use a graft that does not hook the final norm."
            )
        return after[-1]

    @cached_property
    def block_kind(self) -> BlockKind:
        """Order of norms and residuals in the first layer, read from what flows in a forward of two tokens."""
        flow = self._record_block()
        block, x = self.blocks[0], flow.layer_input
        attention_in = flow.inputs[id(block.attention)]
        attention_out = flow.outputs[id(block.attention)]
        if block.ffn is not None:
            ffn_in = flow.inputs[id(block.ffn)]
            sources = [flow.inputs[id(m)] for m in flow.norms if torch.equal(flow.outputs[id(m)], ffn_in)]
            if torch.equal(ffn_in, x) or any(torch.equal(s, x) for s in sources):
                return "parallel"
        normed_before = not torch.equal(attention_in, x)
        normed_after = any(torch.equal(flow.inputs[id(m)], attention_out) for m in flow.norms)
        if normed_after:
            return "sandwich" if normed_before else "post-norm"
        return "pre-norm" if normed_before else "post-norm"

    @cached_property
    def attention_ends(self) -> tuple[str, str]:
        """Names of the children of a layer between which its attention branch lies.

        The first one's input is the residual stream before attention; the last one's output is what is added to it.
        """
        flow, block = self._record_block(), self.blocks[0]
        names = {id(m): name for name, m in block.layer.named_children()}
        attention = id(block.attention)
        norms = [id(m) for m in flow.norms]
        before = [
            m
            for m in norms
            if _same(flow.inputs[m], flow.layer_input) and _same(flow.outputs[m], flow.inputs[attention])
        ]
        after = [m for m in norms if _same(flow.inputs[m], flow.outputs[attention])]
        return names[before[0] if before else attention], names[after[0] if after else attention]

    def _record_block(self) -> _Flow:
        block = self.blocks[0]
        flow = _Flow()

        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            x = args[0] if args else kwargs["hidden_states"]
            if module is block.layer:
                flow.layer_input = x
            else:
                flow.inputs[id(module)] = x
                flow.outputs[id(module)] = output[0] if isinstance(output, tuple) else output
                if not _matrices(module):
                    flow.norms.append(module)

        children = [m for m in block.layer.children() if next(m.parameters(), None) is not None]
        handles = [m.register_forward_hook(record, with_kwargs=True) for m in (*children, block.layer)]
        try:
            self.probe()
        finally:
            for handle in handles:
                handle.remove()
        return flow

    @torch.no_grad()
    def probe(self) -> None:
        """A forward of two tokens, for those who watch."""
        device = self.embed.weight.device
        ids = torch.arange(2, device=device)[None]  # [1, 2]
        with _evaluating(self.llm):
            self.body(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)

    @torch.no_grad()
    def embedding_rms(self) -> float:
        """Root mean square of the word embeddings as the first layer's input sees them (scaled embeddings included)."""
        device = self.embed.weight.device
        ids = torch.linspace(0, self.vocabulary - 1, min(self.vocabulary, 4096), device=device).long()
        return float(self.embed(ids).float().pow(2).mean().sqrt())


class _Flow:
    """Inputs and outputs of the children of one layer in one forward."""

    def __init__(self) -> None:
        self.layer_input = torch.empty(0)
        self.inputs: dict[int, Tensor] = {}
        self.outputs: dict[int, Tensor] = {}
        self.norms: list[nn.Module] = []


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None


def _matrices(module: nn.Module) -> int:
    return sum(p.dim() >= 2 for p in module.parameters())


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode for every submodule inside, each one's own mode after."""
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for m, mode in modes.items():
            m.training = mode
