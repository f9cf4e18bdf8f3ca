"""The generated README.md of a saved graft: what it is, what it promises, whose parts it holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tsugiki.grafts._base import claims

if TYPE_CHECKING:
    from tsugiki.model import TsugikiForConditionalGeneration

_PROMISES = {
    "exact": (
        "A request without an image gets the base LLM's own answer: the LLM's weights were not changed, and nothing of"
        " the graft runs. Check it with `tsugiki verify`."
    ),
    "bounded": (
        "The LLM's weights were changed. Its loss of text quality has to be measured: `tsugiki eval --tasks retention`."
    ),
}


def card(model: TsugikiForConditionalGeneration, settings: Mapping[str, Any], size: int) -> str:
    """Markdown text; `size` is that of the weights' file in bytes."""
    base, facts = settings["base_identity"], settings["tsugiki"]
    rows = [("base LLM", base.get("name", "?"), _licence(base))]
    rows += [("vision tower", tower.name, tower.licence) for tower in model.frontend.towers]
    for graft in model.grafts:
        said = claims(graft)  # type: ignore[arg-type]
        rows.append((f"graft `{graft.name}`", said["paper"] or "", "this file's own licence"))
    table = "\n".join(f"| {a} | {b} | {c} |" for a, b, c in rows)
    codec, places = model.frontend.config.codec(), ""
    if count := model.frontend.config.places:
        places = f"; those that a linear reader finds, {count} a picture, stand in the prompt as text"
    seen = "once a picture has entered a conversation, text answers are measured, not proven"
    return f"""---
library_name: tsugiki
pipeline_tag: image-text-to-text
tags: [tsugiki, {", ".join(str(g.name) for g in model.grafts)}]
---

# {base.get("name", "LLM")} with eyes

{_PROMISES[model.guarantee]} And: {seen}.

| part | what | licence |
|---|---|---|
{table}

* Guarantee: **{model.guarantee}** ({model.how}); tokens before the first image have the base's logits: {
        "yes" if model.prefix_exact else "no"
    }.
* Weights in this folder: {size / 1e6:.1f} MB; {
        "the LLM's are included" if settings.get("llm_trained") else "the LLM's are not"
    }.
* {_seen(model)} (no centre crop);
  {model.tokens_per_image} tokens an image{"" if model.frontend.views.count == 1 else " without padding"}.
* Boxes are written in parts of that square, {codec.write((0, 0, 0, 0))} to {codec.write((codec.steps,) * 4)}{places}.{
        _hub(model)
    }
* Base: SHA-256 over its tensors `{base.get("tensors_sha256", "?")}`{_gguf(base)}.
* Graft: SHA-256 `{facts["graft_sha256"]}`.

```python
import tsugiki

model = tsugiki.load("this/folder")
print(model.chat("What is in the picture?", images=["photo.jpg"]))
```
"""


def _hub(model: TsugikiForConditionalGeneration) -> str:
    hub, config, mix = model.frontend.hub, model.frontend.config, model.frontend.mix
    if mix is not None and mix.branch is not None:
        count = sum(p.numel() for p in mix.branch.parameters())
        return (
            f"\n* Before the cells of a view stand {mix.branch.tokens} queries of a hub of {count / 1e6:.1f} M weights."
        )
    if hub is None:
        return ""
    count = sum(p.numel() for p in hub.parameters())
    settings = config.hub_settings()
    words = f"the words of {settings.words}" if settings.published else "the LLM's words"
    return (
        f"\n* A hub of {count / 1e6:.1f} M weights reads pictures and {words} together (arXiv:2312.06363);\n"
        f"  demonstrations reach the LLM as {settings.demos}."
    )


def _seen(model: TsugikiForConditionalGeneration) -> str:
    sizes = [str(tower.input_size) for tower in model.frontend.towers]
    who = "The tower sees" if len(sizes) == 1 else "The towers see"
    n = model.frontend.views.side
    crops = "" if n == 1 else f", and {n} x {n} crops of that square at the same size"
    return f"{who} the whole picture in a padded square of {', '.join(sizes)} px{crops}"


def _licence(base: Mapping[str, Any]) -> str:
    return str(base.get("licence") or "see its own card")


def _gguf(base: Mapping[str, Any]) -> str:
    return f", made from the GGUF with SHA-256 `{base['gguf_sha256']}`" if base.get("gguf_sha256") else ""
