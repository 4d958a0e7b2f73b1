"""What callers configure, checked.

Each check raises InvalidRequest, which names what is wrong, and never shows a secret.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Collection, Mapping
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn
from urllib.parse import unquote, urlsplit

from .errors import InvalidRequest

if TYPE_CHECKING:
    import requests

#: Seconds for connecting, and between two reads; None for no limit.
Timeout = tuple["float | None", "float | None"]
#: A value of None takes a header away.
Headers = Mapping[str, "str | None"]

#: The file of a client's certificate, and that of its key, which may be the same.
Cert = tuple[str, str]

_PROXY_SCHEMES = ("http", "https", "socks4", "socks4a", "socks5", "socks5h")
_HOST = re.compile(r"(?=.{1,254}$)(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?")
#: RFC 9110, section 5.6.2.
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def checked_url(url: Any, source: str) -> str:
    """Returns a server's address in ASCII, as it is sent, without a slash at its end."""
    parts = _checked_address(url, source, ("http", "https"))
    if parts.query or parts.fragment:
        raise InvalidRequest(f"{source} must end with its path: without ? and #")
    if "@" in parts.netloc:
        raise InvalidRequest(f"{source} holds a user name or password: give headers={{'Authorization': …}} instead")
    address = str(parts.geturl())
    if not address.isascii():
        from requests import PreparedRequest, RequestException  # which know how names and paths are written

        prepared = PreparedRequest()
        try:
            prepared.prepare_url(address, None)
        except RequestException:
            raise InvalidRequest(f"{source} is no address: its host is no name") from None
        address = str(prepared.url)
    return address.rstrip("/")


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its very name: RFC 6761, section 6.3."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def checked_proxy(proxy: Any, source: str = "proxy") -> str | None:
    """Returns a proxy's address, which may hold a user name and password; ``""`` stands for no proxy at all."""
    if not proxy:
        return None if proxy is None else ""
    parts = _checked_address(proxy, source, _PROXY_SCHEMES)
    if parts.scheme.startswith("socks") and not _is_installed("socks"):
        raise InvalidRequest(f"{source} is one for SOCKS, which needs PySocks: pip install 'berlin_chat[socks]'")
    try:
        unquote(f"{parts.username}{parts.password}").encode("latin-1")
    except UnicodeEncodeError:
        raise InvalidRequest(
            f"{source} has a user name or password beyond Latin-1, which proxies do not know"
        ) from None
    return str(parts.geturl().rstrip("/"))


def _is_installed(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


def _checked_address(url: Any, source: str, schemes: tuple[str, ...]) -> Any:
    """Its parts. No error shows any of them, for a password may stand at the wrong place."""
    if not isinstance(url, str):
        raise InvalidRequest(f"{source} is of type {type(url).__name__}, not str")
    url = url.strip(" ")
    if not url.isprintable() or " " in url or "\\" in url:
        raise InvalidRequest(f"{source} is no address: it holds a space, a line break, a backslash or the like")
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        raise InvalidRequest(f"{source} is no address: its host cannot be read") from None
    if parts.scheme not in schemes or not host:
        raise InvalidRequest(f"{source} must look like http://127.0.0.1:8080, with its scheme and host")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise InvalidRequest(f"{source} is no address: its port is no number from 1 to 65535")
    if host.isascii() and not (_HOST.fullmatch(host) or _is_ipv6(host)):
        raise InvalidRequest(f"{source} is no address: its host is no name")
    return parts


def _is_ipv6(host: str) -> bool:
    try:
        return ip_address(host).version == 6
    except ValueError:
        return False


def checked_headers(headers: Mapping[str, str | None] | None) -> dict[str, str | None]:
    """Returns a copy of the headers."""
    if not isinstance(headers, (Mapping, type(None))):
        raise InvalidRequest(f"headers is of type {type(headers).__name__}, not a mapping")
    for name, value in (headers or {}).items():
        if not isinstance(name, str):
            raise InvalidRequest(f"headers has a name of type {type(name).__name__}, not str")
        if not _HEADER_NAME.fullmatch(name):
            raise InvalidRequest("headers has a name that is empty, or holds a space, a colon, a line break …")
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


def checked_text(value: Any, source: str) -> str | None:
    """Returns what is sent as JSON, or None."""
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"{source} is of type {type(value).__name__}, not str")
    if value is not None and _CONTROL.search(value):
        raise InvalidRequest(f"{source} holds a line break or another control character")
    return value


def checked_verify(verify: Any) -> bool | str:
    """Returns how certificates are checked."""
    if isinstance(verify, bool):
        return verify
    if not isinstance(verify, (str, os.PathLike)):
        raise InvalidRequest(f"verify is of type {type(verify).__name__}, not bool or a path")
    path = os.fspath(verify)
    if not os.path.exists(path):
        raise InvalidRequest(f"verify names certificates that do not exist: {path}")
    if not os.path.isdir(path):
        import ssl

        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
        except OSError as error:
            raise InvalidRequest(f"verify names no certificates: {path}: {error}") from None
    return path


def checked_cert(cert: Any) -> Cert | None:
    """Returns the files of a client's certificate and key, which were read once, so that nobody is asked later."""
    if cert is None:
        return None
    names = cert if isinstance(cert, (tuple, list)) else (cert, cert)
    if len(names) != 2 or not all(isinstance(name, (str, os.PathLike)) and name for name in names):
        raise InvalidRequest("cert must be a path, or a pair of paths: the certificate's and the key's")
    import ssl

    certificate, key = (os.fspath(name) for name in names)
    try:
        for path in {certificate: 0, key: 0}:
            with open(path, "rb"):
                pass
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, _no_passphrase)
    except InvalidRequest:
        raise
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"cert must name a certificate and its key, both as PEM: {error}") from None
    return certificate, key


def _no_passphrase() -> NoReturn:
    """What OpenSSL calls instead of asking at the terminal."""
    raise InvalidRequest("cert has a key with a passphrase, which nobody can be asked for: give a key without")


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
    cert: Cert | None
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
