"""``berlin-chat providers`` and ``berlin-chat models``: what there is to ask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..providers import PROVIDERS, get_provider, provider_names
from .options import NEEDED, chosen_provider, chosen_settings, click, provider_options
from .words import printable

#: Wide enough for any table that is not shown on a terminal.
_NO_TERMINAL_WIDTH = 1000


@click.command()
def providers() -> None:
    """List the providers: name, address in use, and what they need.

    \b
    Example:
      berlin-chat providers
    """
    headings = ("name", "address in use", "working", "needs")
    show_table(headings, [_row(name) for name in provider_names()])


def _row(name: str) -> tuple[str, ...]:
    provider = get_provider(name, **chosen_settings(name, None, None)[1])
    none = "none: ask answers itself" if name in PROVIDERS else "none"
    return name, provider.base_url or none, "yes" if provider.base_url else "no", provider.needs


@click.command()
@provider_options
def models(**given: Any) -> None:
    """List the names of the models that the server has, one a line.

    \b
    Examples:
      berlin-chat models
      berlin-chat models --base-url http://127.0.0.1:11434
    """
    with chosen_provider(**given) as provider:
        for name in provider.models():
            click.echo(printable(name))


def show_table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Prints a table, as wide as it is where it is not shown on a terminal."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        raise ImportError(NEEDED) from None

    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*map(printable, row))
    console = Console(markup=False, emoji=False)  # which an IPv6 address may look like
    if not console.is_terminal:
        console.width = _NO_TERMINAL_WIDTH
    with console.capture() as shown:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in shown.get().splitlines()))
