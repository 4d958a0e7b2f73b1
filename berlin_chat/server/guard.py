"""Who may talk to the server at all, by the head alone: no web page that happens to know its port.

A browser sends requests to this machine for any page that asks it to. Three things tell such a page from a client. It
is shown under another name, which a name server made to mean this machine (DNS rebinding): then ``Host`` has that name.
It is another site: then ``Origin`` or ``Sec-Fetch-Site`` says so. Where an old browser says neither, it may send
without asking only what a form can send, which is never JSON: ``Request.json`` looks at that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from ..errors import InvalidRequest
from ..validation import is_loopback
from .faults import Refused

_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::([0-9]{0,5}))?")
_PORTS = {"http": "80", "https": "443"}
#: Whom a browser asks for: this very site, or nobody but its user, who typed the address.
_OWN_SITE = ("", "same-origin", "none")


class Guard:
    """Knows the names of a server. Threads share it; nothing in it changes.

    Args:
        host: what the server listens on. Its own name is one of the server's; where it is no loopback address, clients
            may use every address, for a page is never shown under one that somebody else can make mean this machine.
        names: further names that clients may use.

    Raises:
        InvalidRequest: a name that is none.
    """

    def __init__(self, host: str, names: Iterable[str] = ()) -> None:
        if isinstance(names, (str, bytes)):
            raise InvalidRequest("allowed_hosts must be a list of names")
        self._given = frozenset(map(_checked_name, names))
        self._names = self._given | {_plain(host)}
        self._any_address = not is_loopback(_plain(host))

    def check(self, request: Any) -> None:
        """Raises Refused for a request that was meant for another server, or that another site's page makes."""
        authority = request.header("Host")
        name, _ = _parts(authority) or ("", "")
        if authority and not name:
            raise Refused(400, "the header Host holds no name")
        if authority and not self._is_ours(name):  # HTTP/1.0 has none, and no browser speaks that
            name = name[:200]
            advice = f"if it should be, start it with --allowed-host {name}, or LocalServer(allowed_hosts=[{name!r}])"
            raise Refused(421, f"{name!r} is not this server: {advice}")
        site = request.header("Sec-Fetch-Site").lower()
        follows_a_link = request.method == "GET" and request.header("Sec-Fetch-Mode") == "navigate"
        if (site not in _OWN_SITE and not follows_a_link) or not self._is_own(request.header("Origin"), authority):
            advice = "a proxy in front has to be given by --allowed-host, or LocalServer(allowed_hosts=[…])"
            raise Refused(403, f"a page of another site must not use this server; {advice}")

    def _is_ours(self, name: str) -> bool:
        if name in self._names or is_loopback(name):
            return True
        try:
            ip_address(name)
        except ValueError:
            return False
        return self._any_address

    def _is_own(self, origin: str, authority: str) -> bool:
        """Whether a page, if it is one, came from this server: by the name that it was asked by, or one that was given.

        A proxy in front may ask by another name than the browser.
        """
        if not origin:
            return True
        try:
            parts = urlsplit(origin)  # Berlin's clients send their whole base_url
        except ValueError:
            return False
        found = _parts(parts.netloc)
        if parts.scheme not in _PORTS or not found:
            return False
        default = _PORTS[parts.scheme]
        asked, port = _parts(authority) or ("", "")
        return found[0] in self._given or (found[0], found[1] or default) == (asked, port or default)


def _parts(authority: str) -> tuple[str, str] | None:
    """The name and the port, None where it is none."""
    match = _AUTHORITY.fullmatch(authority)
    return (_plain(match[1] or match[2]), (match[3] or "").lstrip("0")) if match else None


def _plain(name: str) -> str:
    """A name as it is compared: the dot at its end says only that it is a whole one."""
    name = name.lower().strip("[]")
    return name[:-1] if name.endswith(".") else name


def _checked_name(name: Any) -> str:
    if not isinstance(name, str) or not (match := _AUTHORITY.fullmatch(f"[{name}]" if name.count(":") > 1 else name)):
        raise InvalidRequest(f"allowed_hosts: {name!r} is no name of a host: give it alone, such as chat.example.org")
    if match[3] is not None:
        raise InvalidRequest(f"allowed_hosts: {name!r} has a port: give the name alone, which stands for all ports")
    return _plain(name)
