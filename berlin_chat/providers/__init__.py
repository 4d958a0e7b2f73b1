"""The providers by name. A new protocol is one file beside this one, and one line in ``PROVIDERS``."""

from __future__ import annotations

import os
from typing import Any

from ..configuration import address_variable
from ..errors import InvalidRequest
from ..process import importing
from ..provider import Provider
from .acytoo import Acytoo
from .berlin import Berlin
from .h2o import H2o
from .openai import OpenAICompatible
from .ylokh import Ylokh

PROVIDERS: dict[str, type[Provider]] = {cls.name: cls for cls in (Berlin, Ylokh, H2o, Acytoo, OpenAICompatible)}
#: The group of entry points by which other packages add providers.
ENTRY_POINTS = "berlin_chat.providers"


def provider_names() -> list[str]:
    """Returns the names that ``get_provider`` knows: the five, then those that other packages add.

    >>> provider_names()[:5]
    ['berlin', 'ylokh', 'h2o', 'acytoo', 'openai']
    """
    return [*PROVIDERS, *sorted(name for name in _entry_points() if name not in PROVIDERS)]


def provider_class(name: str) -> type[Provider]:
    """Returns the class of that name. Raises InvalidRequest where there is none.

    >>> provider_class("h2o").__name__
    'H2o'
    """
    if not isinstance(name, str):
        raise InvalidRequest(f"the provider's name is of type {type(name).__name__}, not str")
    if cls := PROVIDERS.get(name.lower()):
        return cls
    if entry := _entry_points().get(name):
        found = entry.load()
        if not (isinstance(found, type) and issubclass(found, Provider)):
            raise InvalidRequest(f"the entry point {name!r} of {ENTRY_POINTS} is no Provider class")
        return found
    raise InvalidRequest(f"there is no provider {name!r}: choose from {', '.join(provider_names())}")


def get_provider(name: str, **config: Any) -> Provider:
    """Returns a new provider by name, made with the arguments of its class.

    Raises:
        InvalidRequest: there is no provider of that name, or an argument is wrong.

    >>> get_provider("berlin", base_url="http://127.0.0.1:8080")
    Berlin(base_url='http://127.0.0.1:8080', model='gpt-3.5-turbo')
    """
    cls = provider_class(name)
    try:
        return cls(**config)
    except TypeError as error:
        raise InvalidRequest(f"{cls.__name__} cannot be made from these arguments: {error}") from None


def configured_names() -> list[str]:
    """Returns the names of those that have an address of their own in the environment."""
    return [name for name in provider_names() if os.environ.get(address_variable(name))]


def guessed() -> str:
    """Returns the name of the one that the environment configures, ``"openai"`` where it configures none.

    Raises:
        InvalidRequest: it has the addresses of several.
    """
    found = configured_names()
    if len(found) > 1:
        raise InvalidRequest(f"{', '.join(map(address_variable, found))} are set: say which provider is meant")
    logs_in = os.environ.get("BERLIN_CHAT_TOKEN") or os.environ.get("BERLIN_CHAT_ACCOUNT")
    if not found and logs_in and os.environ.get("BERLIN_CHAT_URL"):
        return "berlin"  # the only one that has an account
    return found[0] if found else "openai"  # pragma: no mutate - there is one at the most


def _entry_points() -> dict[str, Any]:
    with importing:
        from importlib.metadata import entry_points  # here, for it costs as much as the rest of the package

    return {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
