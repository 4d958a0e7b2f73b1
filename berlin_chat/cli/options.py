"""Options that several commands have, and the provider that they choose."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..configuration import address_variable
from ..errors import InvalidRequest
from ..provider import Provider
from ..providers import PROVIDERS, get_provider, guessed, provider_class, provider_names

__all__ = [
    "NEEDED",
    "ProviderName",
    "chosen_provider",
    "chosen_settings",
    "click",
    "is_answered_here",
    "options",
    "provider_options",
    "question_options",
]

NEEDED = "the command line needs more packages: pip install 'berlin_chat[cli]'"
try:
    import click
except ImportError:
    raise SystemExit(f"berlin-chat: {NEEDED}") from None


class ProviderName(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """The name of a provider, also of one that another package adds."""

    name = "provider"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        try:
            return provider_class(value).name or str(value)
        except InvalidRequest as error:
            self.fail(str(error), param, ctx)

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(name) for name in provider_names() if name.startswith(incomplete)]


PROVIDER_OPTIONS = (
    click.option(
        "-p",
        "--provider",
        type=ProviderName(),
        envvar="BERLIN_CHAT_PROVIDER",
        metavar="NAME",
        help="The protocol to speak: openai, ylokh, berlin, h2o or acytoo. Otherwise from BERLIN_CHAT_PROVIDER or"
        " set-default; otherwise whichever is configured, and openai with --base-url.",
    ),
    click.option(
        "-m",
        "--model",
        envvar="BERLIN_CHAT_MODEL",
        metavar="NAME",
        help="The model to ask; otherwise from BERLIN_CHAT_MODEL or set-default, or the protocol's default.",
    ),
    click.option(
        "--base-url",
        metavar="URL",
        help="The server's address; otherwise from BERLIN_CHAT_<PROVIDER>_URL, BERLIN_CHAT_URL or set-default.",
    ),
    click.option("--proxy", metavar="URL", help="A proxy; otherwise from the environment."),
    click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help="For connecting, and between two reads.",
    ),
)


def provider_options(command: Any) -> Any:
    """Adds the options that say which provider is asked."""
    return options(*PROVIDER_OPTIONS)(command)


def options(*wanted: Any) -> Callable[[Any], Any]:
    """Returns what adds these options to a command, in this order."""

    def add(command: Any) -> Any:
        for option in reversed(wanted):
            command = option(command)
        return command

    return add


def question_options(context: Any, parameter: Any, given: tuple[str, ...]) -> dict[str, Any]:
    """The options of each question, from ``NAME=VALUE``: a value is JSON, or else text."""
    found: dict[str, Any] = {}
    for option in given:
        name, sign, value = option.partition("=")
        if not sign or not name:
            raise click.BadParameter(f"{option!r} is not NAME=VALUE, as in temperature=0.2")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    if found:
        from ..batch.requests import checked_options

        try:
            checked_options(found)
        except InvalidRequest as error:
            raise click.BadParameter(str(error)) from None
    return found


# The provider


def chosen_settings(
    provider: str | None, model: str | None, base_url: str | None, **others: Any
) -> tuple[str, dict[str, Any]]:
    """The name of the provider that the options, the environment and the defaults ask for, and its arguments.

    The defaults' model and address are those of the defaults' provider, and of no other.
    """
    from .settings import defaults

    kept = defaults()
    name = provider or kept.get("provider") or ("openai" if base_url or kept.get("base_url") else _guessed())
    if kept.get("provider", name) != name:
        kept = {}
    if not base_url and not any(os.environ.get(variable) for variable in (address_variable(name), "BERLIN_CHAT_URL")):
        base_url = kept.get("base_url")
    given = {"model": model or kept.get("model"), "base_url": base_url, **others}
    return name, {key: value for key, value in given.items() if value is not None}


def _guessed() -> str:
    try:
        return guessed()
    except InvalidRequest as error:
        raise click.UsageError(f"{error}, with -p, BERLIN_CHAT_PROVIDER or berlin-chat set-default") from None


@contextmanager
def chosen_provider(**given: Any) -> Iterator[Provider]:
    """The provider that the options ask for; without any address, one of a server inside this process.

    Args:
        given: the values of ``provider_options``.
    """
    name, configuration = chosen_settings(**given)
    provider = get_provider(name, **configuration)
    if not is_answered_here(provider):
        with provider:
            yield provider
        return
    from ..server import LocalServer

    click.echo(
        "berlin-chat: no address is configured, so this process answers itself: an echo, no model. See --base-url.",
        err=True,
    )
    with LocalServer() as server, server.provider(name, **configuration) as provider:
        yield provider


def is_answered_here(provider: Provider) -> bool:
    """Whether it has no address, and speaks what the server in this process speaks."""
    return provider.base_url is None and provider.name in PROVIDERS
