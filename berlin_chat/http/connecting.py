"""Getting a connection: TCP, a proxy's tunnel, TLS. Another thread can interrupt each, and each keeps a deadline.

Whom a connection is for is told of its socket before it connects, for that alone may take as long as its timeout. What
cannot be interrupted is the look-up of a name, which the operating system does in one call.
"""

from __future__ import annotations

import socket
import sys
from typing import Any, Protocol

from requests.utils import select_proxy
from urllib3.connection import HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError, ProxyError
from urllib3.util import connection as urllib3_sockets

from ..cancellation import Deadline
from ..validation import checked_proxy

#: Whose ways to connect are done here; anybody else's, such as one to a Unix socket, is left as it is.
_KNOWN = ("urllib3.connection", "urllib3.contrib.socks", "urllib3.util.connection")


class SocketOwner(Protocol):
    """Who is told of sockets: ``connections.Owner``, whose words these are."""

    deadline: Deadline | None

    def attach(self, sock: Any) -> None:
        """Is told which socket is used from now on; raises OSError where it was stopped already."""

    def take_socket(self) -> Any:
        """Returns the socket to the first who asks."""


class Connecting:
    """Mixed into urllib3's connection classes: how they connect.

    A connection belongs to one thread at a time, from the pool's ``get`` to its ``put``.
    """

    sock: Any
    timeout: float | None
    _handshake: Any = None

    @property  # pragma: no mutate - each class that is made of this one has its own
    def owner(self) -> SocketOwner | None:
        """Whom this thread works for."""
        raise NotImplementedError

    def connect(self) -> None:
        """Connects; a copy of the socket can be shut down during the TLS handshake, which takes the socket itself."""
        try:
            super().connect()  # type: ignore[misc]
        finally:
            if self._handshake is not None:
                self._handshake.close()
                self._handshake = None

    def _new_conn(self) -> Any:
        way: Any = super()._new_conn  # type: ignore[misc]
        owner = self.owner
        if owner is None:
            return way()
        known = way.__module__ in _KNOWN and urllib3_sockets.create_connection.__module__ in _KNOWN
        sock = _connected(self, owner) if known else way()
        try:
            if isinstance(self, HTTPSConnection):
                self._handshake = sock.dup()
            self._goes_on(owner, sock)
        except BaseException:
            sock.close()
            raise
        return sock

    def _tunnel(self) -> None:
        super()._tunnel()  # type: ignore[misc]
        if (owner := self.owner) is not None:
            self._goes_on(owner, self.sock)  # to a stopped one: the end of the answer was none

    def _goes_on(self, owner: SocketOwner, sock: Any) -> None:
        """What comes next is interrupted by way of the same connection, and has what is left of the deadline."""
        owner.attach(self._handshake or sock)
        if owner.deadline is not None:
            owner.deadline.limit(sock, self.timeout)


def _connected(connection: Any, owner: SocketOwner) -> Any:
    """Returns a socket that is connected, be it through a SOCKS proxy; fails in the words of urllib3."""
    socks = getattr(connection, "_socks_options", None)
    host, port = (socks["proxy_host"], socks["proxy_port"]) if socks else (connection._dns_host, connection.port)
    try:
        sock = _first(host.strip("[]"), port, connection, owner)
    except OSError as error:
        if isinstance(getattr(error, "socket_err", error), TimeoutError):
            said = f"Connection to {connection.host} timed out. (connect timeout={connection.timeout})"
            raise ConnectTimeoutError(connection, said) from error
        if socks:
            raise ProxyError("Unable to connect to proxy", error) from error
        if isinstance(error, socket.gaierror):
            raise NameResolutionError(host, connection, error) from error
        raise NewConnectionError(connection, f"Failed to establish a new connection: {error}") from error
    sys.audit("http.client.connect", connection, connection.host, connection.port)
    return sock


def _first(host: str, port: int | None, connection: Any, owner: SocketOwner) -> Any:
    """The first address of a host that can be connected to; each has the timeout, and all together the deadline."""
    _check_labels(host)
    failure = OSError("there is no address")
    for place in socket.getaddrinfo(host, port, urllib3_sockets.allowed_gai_family(), socket.SOCK_STREAM):
        try:
            return _one(place, connection, owner)
        except OSError as error:
            failure = error  # to one that was interrupted the next address is none either
    try:
        raise failure
    finally:
        del failure  # whose traceback refers to this very frame


def _check_labels(host: str) -> None:
    try:
        host.encode("idna")
    except UnicodeError:
        raise socket.gaierror(f"'{host}', label empty or too long") from None


def _one(place: Any, connection: Any, owner: SocketOwner) -> Any:
    """A socket that is connected to one address."""
    family, kind, protocol, _, address = place
    socks = getattr(connection, "_socks_options", None)
    sock = _socks_socket(socks, family, kind, protocol, address) if socks else socket.socket(family, kind, protocol)
    try:
        for option in connection.socket_options or ():
            sock.setsockopt(*option)
        sock.settimeout(connection.timeout)
        if connection.source_address:
            sock.bind(connection.source_address)
        # One that is shut down before it connects does not wait: Linux says at once that it can be used.
        owner.attach(sock)
        if owner.deadline is not None:
            owner.deadline.limit(sock, connection.timeout)
        if socks:
            _ask_proxy(sock, (connection.host.strip("[]"), connection.port), owner.deadline, connection.timeout)
        else:
            sock.connect(address)
        return sock
    except BaseException:
        owner.take_socket()
        sock.close()
        raise


def _socks_socket(options: Any, family: int, kind: int, protocol: int, address: Any) -> Any:
    """A socket that asks the SOCKS proxy at an address to connect it."""
    import socks  # PySocks, of the extra: whoever has such a connection has it

    sock = socks.socksocket(family, kind, protocol)
    sock.set_proxy(options["socks_version"], *address[:2], options["rdns"], options["username"], options["password"])
    return sock


def _ask_proxy(sock: Any, address: tuple[str, int], deadline: Deadline | None, timeout: float | None) -> None:
    """Connects, and reads what the proxy answers, however slowly it comes, no longer than until the deadline."""
    plain = sock.recv_into

    def receive(*into: Any) -> Any:
        deadline.limit(sock, timeout)  # type: ignore[union-attr]
        return plain(*into)

    if deadline is not None:
        sock.recv_into = receive
    try:
        sock.connect(address)
    finally:
        vars(sock).pop("recv_into", None)


def check_proxy(url: str, proxies: Any) -> None:
    """Raises InvalidRequest where the proxy for an address is none, which the environment or a session may name."""
    if proxy := select_proxy(url, proxies):
        checked_proxy(proxy if "://" in proxy else f"http://{proxy}", "the proxy of the environment")
