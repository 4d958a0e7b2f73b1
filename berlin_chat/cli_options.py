"""The options of the command ``berlin-chat``, and the provider that they choose."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .errors import InvalidRequest
from .provider import Provider
from .providers import PROVIDERS, get_provider, provider_class

__all__ = ["NEEDED", "batch_options", "chosen_provider", "click", "given_in", "is_answered_here", "provider_options"]

NEEDED = "the command line needs more packages: pip install 'berlin_chat[cli]'"
try:
    import click
except ImportError:
    raise SystemExit(f"berlin-chat: {NEEDED}") from None


class _ProviderName(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """The name of a provider, also of one that another package adds."""

    name = "provider"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        try:
            provider_class(value)
        except InvalidRequest as error:
            self.fail(str(error), param, ctx)
        return str(value)


PROVIDER_OPTIONS = (
    click.option(
        "-p",
        "--provider",
        type=_ProviderName(),
        default="berlin",
        show_default=True,
        help="The protocol to speak.",
    ),
    click.option("-m", "--model", help="The model to ask; otherwise the protocol's default."),
    click.option(
        "--base-url",
        metavar="URL",
        help="The server's address; otherwise from BERLIN_CHAT_<PROVIDER>_URL or BERLIN_CHAT_URL.",
    ),
    click.option("--proxy", metavar="URL", help="A proxy; otherwise from the environment."),
    click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help="For connecting, and between two reads.",
    ),
)


def _options(context: Any, parameter: Any, given: tuple[str, ...]) -> dict[str, Any]:
    """The options of ``--option NAME=VALUE``: a value is JSON, or else text."""
    from .batch.requests import checked_options

    options: dict[str, Any] = {}
    for option in given:
        name, sign, value = option.partition("=")
        if not sign or not name:
            raise click.BadParameter(f"{option!r} is not NAME=VALUE, as in temperature=0.2")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    try:
        return checked_options(options)
    except InvalidRequest as error:
        raise click.BadParameter(str(error)) from None


def _checked_encoding(context: Any, parameter: Any, name: str | None) -> str | None:
    try:
        b"any".decode(name or "utf-8", "replace")
    except LookupError:
        raise click.BadParameter(f"there is no encoding of text {name!r}") from None
    return name


BATCH_OPTIONS = (
    click.option(
        "-o",
        "--output",
        required=True,
        metavar="FILE",
        help="Where the answers go: a file of JSON lines, a new .csv file, or - for standard output.",
    ),
    click.option(
        "-w",
        "--workers",
        type=lambda text: text if text == "auto" else click.IntRange(1)(text),
        metavar="N",
        default=8,
        show_default=True,
        help='Questions at once; "auto" for as many as make it faster.',
    ),
    click.option("--rate", metavar="RATE", help='At most so many questions: "20/s", "60/min", "1000/hour".'),
    click.option("--column", metavar="NAME", help='The column of a CSV file; otherwise "prompt", or the first.'),
    click.option(
        "--encoding",
        callback=_checked_encoding,
        metavar="NAME",
        help="How PROMPTS is encoded, such as cp1252; otherwise UTF-8, or UTF-16 if its first bytes say so.",
    ),
    click.option("--system", metavar="TEXT", help="The system message of prompts that have none."),
    click.option(
        "--option",
        "options",
        multiple=True,
        callback=_options,
        metavar="NAME=VALUE",
        help="An option of each question, such as temperature=0.2: JSON, or else text. A line's own come first.",
    ),
    click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N prompts of the file."),
    click.option(
        "--ordered",
        is_flag=True,
        help="Write the answers in the order of the prompts. If the command is killed, those that wait for their turn"
        " are lost, up to four a worker.",
    ),
    click.option(
        "--errors",
        metavar="FILE",
        help="Where what has failed is kept, as in OpenAI's errors file. The next run does not ask it again.",
    ),
    click.option("--retry-errors", is_flag=True, help="Ask again what --errors has kept."),
    click.option(
        "--ask-anew",
        is_flag=True,
        help="Ask anew where the output has answers to other questions, of another model for instance, instead of"
        " refusing it.",
    ),
    click.option("--dry-run", is_flag=True, help="Only say what would be asked."),
)


def provider_options(command: Any) -> Any:
    """Adds the options that say which provider is asked."""
    return _with(PROVIDER_OPTIONS, command)


def batch_options(command: Any) -> Any:
    """Adds the options that say how a batch is asked, and where its answers go."""
    return _with(BATCH_OPTIONS, command)


def _with(options: tuple[Any, ...], command: Any) -> Any:
    for option in reversed(options):
        command = option(command)
    return command


@contextmanager
def chosen_provider(name: str, **configuration: Any) -> Iterator[Provider]:
    """The provider that the options ask for; without any address, one of a server inside this process."""
    given = given_in(configuration)
    provider = get_provider(name, **given)
    if not is_answered_here(provider):
        with provider:
            yield provider
        return
    from .server import LocalServer

    click.echo(
        "berlin-chat: no address is configured, so this process answers itself: an echo, no model. See --base-url.",
        err=True,
    )
    with LocalServer() as server, server.provider(name, **given) as provider:
        yield provider


def given_in(configuration: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in configuration.items() if value is not None}


def is_answered_here(provider: Provider) -> bool:
    return provider.base_url is None and provider.name in PROVIDERS  # the server speaks those only
