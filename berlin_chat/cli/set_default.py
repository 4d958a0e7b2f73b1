"""``berlin-chat set-default``."""

from __future__ import annotations

from ..errors import InvalidRequest
from ..validation import checked_url
from .options import ProviderName, click
from .settings import KEYS, config_file, defaults, keep_defaults
from .words import in_the_commands_words, say


@click.command()
@click.option("-p", "--provider", type=ProviderName(), metavar="NAME", help="Whom to ask without -p.")
@click.option("-m", "--model", metavar="NAME", help="The model to ask without -m.")
@click.option("--base-url", metavar="URL", help="The server's address without --base-url.")
@click.option("--show", is_flag=True, help="Print the defaults, and change nothing unless told to.")
@click.option("--clear", is_flag=True, help="Forget all of them first.")
def set_default(provider: str | None, model: str | None, base_url: str | None, show: bool, clear: bool) -> None:
    """Keep a provider, model and address for later commands.

    They are used where neither an option nor the environment says otherwise. The file that keeps them holds no
    secret: passwords and keys come from the environment.

    \b
    Examples:
      berlin-chat set-default -p openai --base-url http://127.0.0.1:11434
      berlin-chat set-default -m llama3
      berlin-chat set-default --show
      berlin-chat set-default --clear
    """
    given = {"provider": provider, "model": model, "base_url": base_url}
    changed = {name: value for name, value in given.items() if value is not None}
    if not (changed or show or clear):
        raise click.UsageError("there is nothing to set: give -p, -m or --base-url, or --show")
    if base_url is not None:
        try:
            changed["base_url"] = checked_url(base_url, "--base-url")
        except InvalidRequest as error:
            raise click.UsageError(in_the_commands_words(error)) from None
    kept = {} if clear else defaults()
    if provider is not None and kept.get("provider", provider) != provider:
        kept = {}  # a model and an address belong to their provider
    if changed or clear:
        path = keep_defaults({**kept, **changed})
        say(f"kept in {path}")
    if show:
        found = defaults()
        for key in KEYS:
            if key in found:
                click.echo(f"{key.replace('_', '-')}: {found[key]}")
        if not found:
            say(f"there are no defaults in {config_file()}")
