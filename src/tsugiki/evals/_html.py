"""A page without files beside it: elements that escape their text, and the style sheet."""

from __future__ import annotations

from html import escape

PLAIN_FONTS = "system-ui, 'Segoe UI', 'Hiragino Sans', 'Yu Gothic', 'Noto Sans CJK JP', 'Noto Sans', sans-serif"


class Html(str):
    """Text that is HTML already; every other string is escaped."""

    __slots__ = ()


def h(name: str, *children: str, **attributes: object) -> Html:
    """An element. `class_` and `for_` lose their underscore, other underscores become hyphens; None is left out."""
    given = {k.rstrip("_").replace("_", "-"): v for k, v in attributes.items() if v is not None}
    head = "".join(f' {k}="{escape(str(v))}"' for k, v in given.items())
    return Html(f"<{name}{head}>{join(*children)}</{name}>")


def join(*children: str) -> Html:
    """Children one after the other."""
    return Html("".join(c if isinstance(c, Html) else escape(c) for c in children))


def page(title: str, body: Html, *, language: str = "en") -> str:
    """A whole document. It may load nothing, so it opens the same with and without a network."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"{h('title', title)}<style>{CSS}</style>"
    )
    return (
        f'<!doctype html>\n<html lang="{escape(language)}"><head>{head}</head><body>{h("main", body)}</body></html>\n'
    )


LIGHT = {
    "ground": "#ffffff",
    "panel": "#f5f6f4",
    "ink": "#1d2421",
    "soft": "#5a6661",
    "line": "#d5dad6",
    "own": "#0a6b52",
    "base": "#8a5a00",
    "gold": "#1456b8",
    "bad": "#b3261e",
    "other": "#7a3f9d",
}
"""Colours by name, where the reader's screen is not set to dark."""

CSS = f"""
:root {{
  color-scheme: light dark;
  {" ".join(f"--{name}: {colour};" for name, colour in LIGHT.items())}
}}
@media (prefers-color-scheme: dark) {{
  :root {{
    --ground: #151a18; --panel: #1f2623; --ink: #e6ebe8; --soft: #a3afa9; --line: #39433e;
    --own: #55c9a6; --base: #e0ac52; --gold: #7fb0ff; --bad: #ff8a80; --other: #cf9bea;
  }}
}}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.5 {PLAIN_FONTS}; }}
main {{ max-width: 1180px; margin: 0 auto; padding: 24px 20px 64px; }}
h1 {{ font-size: 1.9rem; line-height: 1.2; margin: 8px 0 12px; }}
h2 {{ font-size: 1.3rem; margin: 40px 0 8px; padding-top: 12px; border-top: 2px solid var(--ink); }}
h3 {{ font-size: 1.02rem; margin: 24px 0 6px; }}
p {{ margin: 6px 0 12px; max-width: 46em; }}
h1, h2, h3, p, li, dd, summary, figcaption, code, td.name {{ overflow-wrap: anywhere; }}
.soft, figcaption {{ color: var(--soft); }}
.lead li {{ margin: 4px 0; }}
.lead {{ padding-left: 1.2em; max-width: 46em; }}
table {{ border-collapse: collapse; width: 100%; font-size: 0.93rem; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; padding: 6px 14px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }}
th {{ color: var(--soft); font-weight: 600; }}
td.name {{ width: 15em; }}
tr.group th {{ color: var(--ink); padding-top: 20px; font-size: 1.02rem; border-bottom: 1px solid var(--ink); }}
.whole {{ white-space: nowrap; margin-right: 0.6em; display: inline-block; }}
details {{ margin: 14px 0; }} summary {{ cursor: pointer; padding: 6px 0; }}
tr.quiet td {{ color: var(--soft); }}
.scale {{ width: 150px; height: 22px; display: block; }}
.wide {{ overflow-x: auto; }} .wide td.name {{ min-width: 9em; overflow-wrap: normal; }}
.gallery {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 16px; }}
figure {{ margin: 0; background: var(--panel); border: 1px solid var(--line); border-radius: 6px; padding: 10px; }}
figure svg {{ display: block; width: 100%; height: auto; max-height: 300px; }}
figcaption {{ font-size: 0.9rem; }}
figcaption p {{ margin: 6px 0 0; }}
figcaption .said {{ color: var(--ink); font-weight: 600; }}
figcaption ol {{ margin: 4px 0 0; padding-left: 1.6em; }}
.yes {{ color: var(--own); }} .no {{ color: var(--bad); }}
.base {{ color: var(--base); }} .gold {{ color: var(--gold); }}
.bar {{ display: grid; grid-template-columns: 1fr 4em; gap: 2px 8px; font-size: 0.84rem; margin-top: 4px; }}
.bar span:nth-child(even) {{ text-align: right; font-variant-numeric: tabular-nums; }}
.curve {{ width: 100%; height: auto; max-width: 580px; }}
.checks {{ list-style: none; padding: 0; }}
.checks li {{ padding: 6px 0 6px 1.8em; border-bottom: 1px solid var(--line); position: relative; }}
.checks li > b:first-child {{ position: absolute; left: 0; }}
dl {{ display: grid; grid-template-columns: minmax(9em, max-content) 1fr; gap: 4px 20px; font-size: 0.93rem; }}
dt {{ color: var(--soft); }} dd {{ margin: 0; }}
code {{ font-size: 0.88em; }}
@media (max-width: 720px) {{
  main {{ padding: 16px 14px 48px; }}
  h1 {{ font-size: 1.5rem; }}
  table, tbody, tr {{ display: block; width: 100%; }}
  thead {{ display: none; }}
  tr {{ border-bottom: 1px solid var(--line); padding: 6px 0; }}
  td {{ display: inline-block; border: 0; padding: 0 14px 0 0; }}
  tr.group th {{ display: block; border: 0; padding: 12px 0 0; }}
  td.name, .wide td.name {{ width: auto; min-width: 50%; font-weight: 600; }} td.name .soft {{ font-weight: 400; }}
  td[data-label]::before {{ content: attr(data-label) " "; color: var(--soft); }}
  td:empty {{ display: none; }}
  .gallery {{ grid-template-columns: 1fr; }}
  dl {{ grid-template-columns: 1fr; gap: 0; }} dd {{ margin-bottom: 8px; }}
}}
@media print {{ figure {{ break-inside: avoid; }} }}
"""
