"""`tsugiki assets`: models and data from package registries."""

from __future__ import annotations

from typing import Annotated

import typer

from tsugiki.cli._app import app, example, say, show

assets = typer.Typer(no_args_is_help=True, help="Models and data from package registries.")
app.add_typer(assets, name="assets", epilog=example("tsugiki assets list"))

Names = Annotated[list[str], typer.Argument(help="Of `tsugiki assets list`.", show_default=False)]


@assets.command("list", epilog=example("tsugiki assets list"))
def list_assets() -> None:
    """What there is: package, licence, size, and whether it is in the cache."""
    from tsugiki.assets import ASSETS, cache_dir, is_fetched

    width = max(map(len, ASSETS))
    for a in ASSETS.values():
        here = "in the cache" if is_fetched(a.name) else ""
        show(f"{a.name:{width}}  {a.size / 1e6:5.1f} MB  {a.licence:12}  {here}".rstrip())
        show(f"  {a.note}\n  {a.pin}  SHA-256 {a.sha256}")
    show(f"cache: {cache_dir()}")


@assets.command(epilog=example("tsugiki assets fetch smollm2-135m-instruct efficientnet-lite0"))
def fetch(names: Names) -> None:
    """Download assets into the cache (TSUGIKI_CACHE); an LLM is converted to safetensors too."""
    from tsugiki.assets import fetch, get, llm_folder

    for asset in [get(name) for name in names]:
        folder = llm_folder(asset.name, say) if asset.kind == "llm" else fetch(asset.name, say)
        show(f"{asset.name}: {folder}")


@assets.command(epilog=example("tsugiki assets verify fabric"))
def verify(names: Names) -> None:
    """Compare every file of assets in the cache with its published SHA-256."""
    from tsugiki.assets import get, verify

    for asset in [get(name) for name in names]:
        show(f"{asset.name}: {verify(asset.name)} files as published")
