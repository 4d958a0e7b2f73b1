"""What callers configure, checked.

Each check raises InvalidRequest, which names what is wrong, and never shows a secret.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Collection, Mapping
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from .errors import InvalidRequest

if TYPE_CHECKING:
    import requests

#: Seconds for connecting, and between two reads; None for no limit.
Timeout = tuple["float | None", "float | None"]
#: A value of None takes a header away.
Headers = Mapping[str, "str | None"]

_PROXY_SCHEMES = ("http", "https", "socks4", "socks4a", "socks5", "socks5h")


def checked_url(url: Any, source: str) -> str:
    """Returns a server's address without a slash at its end."""
    parts = _checked_address(url, source, ("http", "https"))
    if parts.query or parts.fragment:
        raise InvalidRequest(f"{source} must end with its path: without ? and #")
    if "@" in parts.netloc:
        raise InvalidRequest(f"{source} holds a user name or password: give headers={{'Authorization': …}} instead")
    return str(url).strip().rstrip("/")


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its very name: RFC 6761, section 6.3."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def checked_proxy(proxy: Any) -> str | None:
    """Returns a proxy's address, which may hold a user name and password; ``""`` stands for no proxy at all."""
    if proxy:
        _checked_address(proxy, "proxy", _PROXY_SCHEMES)
        return str(proxy).strip().rstrip("/")
    return None if proxy is None else ""


def _checked_address(url: Any, source: str, schemes: tuple[str, ...]) -> Any:
    if not isinstance(url, str):
        raise InvalidRequest(f"{source} is of type {type(url).__name__}, not str")
    try:
        parts = urlsplit(url.strip())
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidRequest(f"{source} is no address: {error}") from None
    if parts.scheme not in schemes or not host:
        raise InvalidRequest(f"{source} must look like http://127.0.0.1:8080, with its scheme and host")
    return parts


def checked_headers(headers: Mapping[str, str | None] | None) -> dict[str, str | None]:
    """Returns a copy of the headers."""
    if not isinstance(headers, (Mapping, type(None))):
        raise InvalidRequest(f"headers is of type {type(headers).__name__}, not a mapping")
    for name, value in (headers or {}).items():
        if not isinstance(name, str):
            raise InvalidRequest(f"headers has a name of type {type(name).__name__}, not str")
        checked_header(value, f"headers[{name!r}]")
    return dict(headers or {})


def checked_params(params: Any) -> dict[str, str]:
    """Returns a copy of what stands behind the ``?`` of an address; None for nothing."""
    params = {} if params is None else params
    if not isinstance(params, Mapping):
        raise InvalidRequest(f"params is of type {type(params).__name__}, not a mapping")
    for name, value in params.items():
        if not isinstance(name, str) or not isinstance(value, str) or not f"{name}{value}".isprintable():
            raise InvalidRequest(f"params[{name!r}] must be printable text")
    return dict(params)


def checked_header(value: Any, source: str) -> str | None:
    """Returns what can be the value of a header, or None."""
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"{source} is of type {type(value).__name__}, not str")
    if value is not None and not (value.isascii() and value.isprintable() and value == value.strip()):
        raise InvalidRequest(f"{source} holds a line break, a space at its end, or a character beyond ASCII")
    return value


def checked_timeout(timeout: Any) -> Timeout:
    """Returns the seconds for connecting and between two reads."""
    connect, read = timeout if isinstance(timeout, tuple) and len(timeout) == 2 else (timeout, timeout)
    for seconds in (connect, read):
        if seconds is not None and not _is_positive(seconds):
            raise InvalidRequest("timeout must be positive seconds, (connect, read), or None")
    return connect, read


def checked_verify(verify: Any) -> bool | str:
    """Returns how certificates are checked."""
    if isinstance(verify, str) and not os.path.exists(verify):
        raise InvalidRequest(f"verify names certificates that do not exist: {verify}")
    if not isinstance(verify, (bool, str)):
        raise InvalidRequest(f"verify is of type {type(verify).__name__}, not bool or a path")
    return verify


def checked_count(count: Any, source: str, least: int) -> int:
    """Returns the number, which is whole and at least ``least``."""
    if not isinstance(count, int) or isinstance(count, bool) or count < least:
        raise InvalidRequest(f"{source} must be a whole number of at least {least}")
    return count


def checked_seconds(seconds: Any, source: str) -> None:
    """Looks whether it is positive seconds or None."""
    if seconds is not None and not _is_positive(seconds):
        raise InvalidRequest(f"{source} must be positive seconds, or None")


def checked_options(options: Mapping[str, Any], known: Collection[str]) -> None:
    """Looks whether a protocol has all options of a question."""
    if unknown := sorted(set(options).difference(known)):
        raise InvalidRequest(f"the protocol has no option {unknown[0]!r}: it has {', '.join(sorted(known))}")


def checked_fields(fields: Any, source: str, taken: Collection[str]) -> dict[str, Any]:
    """Returns a copy of further fields of a JSON object, which has those that are ``taken`` already; None for none."""
    fields = {} if fields is None else fields
    if not isinstance(fields, Mapping) or not all(isinstance(name, str) for name in fields):
        raise InvalidRequest(f"{source} must be a mapping of str to what JSON can hold")
    if both := sorted(set(fields).intersection(taken)):
        raise InvalidRequest(f"{source} holds {both[0]!r}: give {both[0]}=")
    try:
        return dict(json.loads(json.dumps(dict(fields), allow_nan=False)))
    except (TypeError, ValueError, RecursionError):  # its text may show a value
        raise InvalidRequest(f"{source} holds what JSON cannot") from None


def _is_positive(number: Any) -> bool:
    return isinstance(number, (int, float)) and not isinstance(number, bool) and 0 < number < threading.TIMEOUT_MAX


class Settings(NamedTuple):
    """What a provider's connections were configured with: the arguments of ``Provider``, checked."""

    base_url: str | None
    headers: Headers
    session: requests.Session | None
    proxy: str | None
    timeout: Timeout
    verify: bool | str
    retries: int
    pool_size: int
    max_reply_bytes: int

    def changed(self, timeout: Any = None, headers: Headers | None = None, retries: int | None = None) -> Settings:
        """Returns those of one question, whose own are checked here; None leaves the provider's."""
        if timeout is None and not headers and retries is None:
            return self
        return self._replace(
            timeout=self.timeout if timeout is None else checked_timeout(timeout),
            headers={**self.headers, **checked_headers(headers)} if headers else self.headers,
            retries=self.retries if retries is None else checked_count(retries, "retries", 0),
        )
