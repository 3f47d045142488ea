"""`beluga-voice providers`: what is installed, from which distribution, and what does not load and why."""

from __future__ import annotations

import json
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .._registry import KINDS, Plugin, Provider, registry

__all__ = ["providers"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Write JSON, with every provider's options.")
def providers(as_json: bool) -> None:
    """Show which providers are installed, and which plugins are broken and why."""
    found = [(provider, _problem(provider)) for kind in KINDS for provider in registry.providers(kind)]
    broken = [plugin for plugin in registry.plugins() if plugin.error is not None]
    if as_json:
        rows = [_row(provider, why) for provider, why in found] + [_broken_row(plugin) for plugin in broken]
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False, default=str))
    else:
        _show([*found], broken)


def _problem(provider: Provider) -> str:
    """What keeps a provider that loads from being made by its bare name; empty when nothing does."""
    claims = [one for one in registry.providers(provider.kind) if one.name == provider.name]
    if len(claims) == 1:
        return ""
    return f'claimed by {len(claims)} distributions; write "{provider.distribution}:{provider.name}"'


def _row(provider: Provider, why: str) -> dict[str, Any]:
    return {
        "kind": provider.kind,
        "name": provider.name,
        "distribution": provider.distribution,
        "version": provider.version,
        "ok": not why,
        "why": why,
        "summary": provider.summary,
        "options": [
            {"name": one.name, "type": one.type, "default": one.default, "required": one.required, "doc": one.doc}
            for one in provider.options
        ],
    }


def _broken_row(plugin: Plugin) -> dict[str, Any]:
    why = f"{type(plugin.error).__name__}: {plugin.error}"
    told = {"name": plugin.name, "distribution": plugin.distribution, "version": plugin.version}
    return {"kind": None, **told, "ok": False, "why": why, "summary": "", "options": []}


def _show(found: list[tuple[Provider, str]], broken: list[Plugin]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("KIND", "NAME", "DISTRIBUTION", "VERSION", ""):
        table.add_column(title, no_wrap=title != "DISTRIBUTION", overflow="fold")
    kind = ""
    for provider, why in found:
        state = Text("ok", "green") if not why else Text("broken", "red")
        shown_kind, kind = "" if provider.kind == kind else provider.kind, provider.kind
        table.add_row(shown_kind, provider.name, provider.distribution, provider.version, state)
    for plugin in broken:
        table.add_row("?", plugin.name, plugin.distribution, plugin.version, Text("broken", "red"))
    console = Console(highlight=False)
    console.print(table)
    problems = [(f"{provider.kind} {provider.name}", why) for provider, why in found if why]
    problems += [(plugin.distribution, f"{type(plugin.error).__name__}: {plugin.error}") for plugin in broken]
    for who, why in problems:
        console.print()
        console.print(Text.assemble((who, "bold red"), f"  {why}"))
