"""What old code calls ``auth`` or ``api_key``, as the argument that a provider has for it."""

from __future__ import annotations

from ..configuration import arguments_of
from ..errors import InvalidRequest
from ..provider import Provider

#: What a provider may call it, in the order in which its arguments are looked through.
_NAMES = ("api_key", "token", "key")


def credential(cls: type[Provider], value: str | None, source: str) -> dict[str, str]:
    """Returns the argument of a provider's constructor that a credential is given as; none for None.

    Args:
        source: what the caller's code calls it.

    Raises:
        InvalidRequest: the provider has no such argument.

    >>> from berlin_chat import Berlin
    >>> credential(Berlin, "eyJhbGciOi", "auth")
    {'token': 'eyJhbGciOi'}
    """
    if value is None:
        return {}
    known = arguments_of(cls)
    if "providers" in known:
        raise InvalidRequest(f"{source} is a setting of each provider of a {cls.__name__}: give it to them")
    name = next((name for name in _NAMES if name in known), None)
    if name is None:
        raise InvalidRequest(f"{source} is of no use to {cls.__name__}, which takes neither a token nor a key")
    return {name: value}
