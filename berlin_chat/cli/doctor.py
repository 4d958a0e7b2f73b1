"""``berlin-chat doctor``."""

from __future__ import annotations

from time import monotonic
from typing import Any

from click.core import ParameterSource

from ..errors import (
    APIConnectionError,
    APITimeoutError,
    AuthenticationError,
    ChatError,
    InvalidRequest,
    ProtocolError,
    ProviderNotWorking,
    StreamInterrupted,
)
from ..providers import configured_names, get_provider
from .look import show_table
from .options import chosen_settings, click, provider_options
from .words import FAILED, complain, in_the_commands_words

_QUESTION = "Say OK."
_HEADINGS = ("provider", "address", "reachable", "protocol", "login", "first piece")
_YES, _NO, _UNKNOWN = "yes", "NO", "?"


@click.command()
@provider_options
@click.option(
    "--deadline",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="For each provider.",
)
def doctor(deadline: float, provider: str | None, **given: Any) -> int:
    """Ask each configured provider, and say what is wrong.

    Each gets a short question: is it reachable, does it speak the protocol, does the login work, how long does the
    first piece take?

    Without -p, these are the default and all that have an address of their own in the environment, such as
    BERLIN_CHAT_OPENAI_URL. The exit code is 1 unless all are well.

    \b
    Examples:
      berlin-chat doctor
      berlin-chat doctor -p openai --base-url http://127.0.0.1:11434 --deadline 10
    """
    source = click.get_current_context().get_parameter_source("provider")
    named = (provider and source is ParameterSource.COMMANDLINE) or given["base_url"]
    others = [] if named else configured_names()
    names = list(dict.fromkeys([*_default(provider, given), *others])) if others else []
    names = names or [chosen_settings(provider, **given)[0]]
    rows, complaints = [], []
    for name in names:
        row, error = _examined(name, given, deadline)
        rows.append(row)
        if error is not None:
            complaints.append(in_the_commands_words(error))
    show_table(_HEADINGS, rows)
    for complaint in complaints:
        complain(complaint)
    return FAILED if complaints else 0


def _default(provider: str | None, given: dict[str, Any]) -> list[str]:
    """The provider that ``ask`` would ask, if that is clear and it has an address."""
    try:
        name, configuration = chosen_settings(provider, **given)
    except click.UsageError:  # there are several, and no default
        return []
    return [name] if get_provider(name, **configuration).base_url else []


def _examined(name: str, given: dict[str, Any], deadline: float) -> tuple[tuple[str, ...], ChatError | None]:
    """A row of the table, and what went wrong."""
    address, first = "none", ""
    try:
        configuration = chosen_settings(name, **given)[1]
        with get_provider(name, retries=0, **configuration) as provider:
            address = provider.base_url or address
            begun = monotonic()
            with provider.open(_QUESTION, deadline=deadline) as live:
                for _ in live.events():
                    first = first or f"{monotonic() - begun:.2f} s"
    except ChatError as error:
        if not (first and isinstance(error, APITimeoutError)):  # it is well, but has more to say than there is time for
            return (name, address, *_diagnosis(error), first), error
    return (name, address, _YES, _YES, _YES, first), None


def _diagnosis(error: ChatError) -> tuple[str, str, str]:
    """Whether the server was reached, speaks the protocol, and lets us in, as far as an error tells."""
    if isinstance(error, (APIConnectionError, ProviderNotWorking)) or "connection within" in str(error.args[0]):
        return _NO, _UNKNOWN, _UNKNOWN
    if isinstance(error, InvalidRequest):  # nothing was sent: there is no account
        return _UNKNOWN, _UNKNOWN, _NO
    if isinstance(error, AuthenticationError):
        return _YES, _YES, _NO
    if isinstance(error, (ProtocolError, StreamInterrupted)) or error.status in (404, 405):
        return _YES, _NO, _UNKNOWN
    return _YES, _UNKNOWN, _UNKNOWN
