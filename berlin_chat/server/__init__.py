"""A server of all four protocols, for a fresh machine, a test, or in front of a model server (extra ``[server]``).

>>> with LocalServer() as server:
...     reply = server.provider("h2o").ask("hi")
>>> reply.endswith("hi")
True
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Protocol

from ..errors import InvalidRequest
from ..provider import Provider
from ..providers import get_provider
from ..validation import checked_header, is_loopback
from .app import App
from .backend import Backend
from .echo import Echo
from .guard import Guard
from .record import Recorded
from .replies import Replies
from .serving import Serving


class Upstream(Protocol):
    """What answers: a provider, or any object with a provider's ``stream``, which answers in text only."""

    def stream(self, messages: Any, model: str | None = None, **options: Any) -> Any: ...


class LocalServer:
    """The four protocols on one port, each as strict as the servers that it stands for.

    A context manager; without ``with``, ``start()`` and ``close()``. Every reply has a thread of its own, which
    ends with it; ``close()`` ends the replies under way, and returns when their threads have ended.

    Args:
        host: the address to listen on. Any but a loopback address needs a ``password``.
        port: the port, 0 for a free one.
        upstream: what answers: a provider, or any object with a provider's ``stream``, which answers in text. None for
            an echo. Options that a provider's protocol does not have are left out, with a line in the log; what it
            has no word for, such as tools and images, is refused.
        delay: seconds before each piece.
        password: what each protocol then demands in its own place: Berlin as the account's password, OpenAI's as the
            bearer key, Acytoo as the field ``password``, H2o as ``Authorization: Bearer …``.
        allowed_hosts: further names, without a port, by which clients may ask: that of the machine, of a container, or
            of a proxy in front. They always may by ``host``, ``localhost`` and loopback addresses, and by any address
            if ``host`` is no loopback one. Another name is refused with 421: a web page may have made it mean this
            machine.
        replies: for tests: what to say to the questions, one each, in their order; see ``berlin_chat.testing``. An
            empty list, to which nothing is added, leaves it at what answers otherwise. With replies, even an empty
            list, the server keeps all ``requests``.

    Raises:
        InvalidRequest: another address than loopback, and no password; a password that no header can hold; an allowed
            host that is no name; a reply that is none; an upstream as well as replies.
        OSError: the port is in use.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        upstream: Upstream | None = None,
        delay: float = 0.0,
        password: str | None = None,
        allowed_hosts: Iterable[str] = (),
        replies: Iterable[Any] | None = None,
    ) -> None:
        if upstream is not None and replies is not None:
            raise InvalidRequest("either the upstream answers, or the replies do: give one of them")
        if not password and not is_loopback(host):
            raise InvalidRequest(f"{host} can be reached from other machines: give a password")
        checked_header(password, "password")
        if not 0 <= delay < threading.TIMEOUT_MAX:
            raise InvalidRequest("delay must be seconds, and not negative")
        upstream = Echo() if upstream is None else upstream
        self._replies = None if replies is None else Replies(replies)
        self._requests: list[Recorded] | None = None if replies is None else []
        self._backend = Backend(upstream=upstream, delay=delay, password=password or None, replies=self._replies)
        self._app = App(self._backend, Guard(host, allowed_hosts), self._requests)
        self._serving = Serving(self._app, host, port, only_loopback=not password)

    @property
    def url(self) -> str:
        """The address to give as ``base_url``. Raises RuntimeError before the start."""
        return self._serving.url

    @property
    def conversations(self) -> list[str]:
        """The ids of H2o's conversations that exist at the moment."""
        return self._app.conversations()

    @property
    def connections(self) -> int:
        """How many connections clients hold at the moment, idle ones too."""
        return self._serving.connections

    @property
    def replies(self) -> Replies:
        """The replies that are left, a list that may be changed. Raises InvalidRequest without ``replies=``."""
        if self._replies is None:
            raise InvalidRequest("the server has no replies: make it with replies=[]")
        return self._replies

    @property
    def requests(self) -> list[Recorded]:
        """All requests so far, in the order in which they arrived. Raises InvalidRequest without ``replies=``."""
        if self._requests is None:
            raise InvalidRequest("the server keeps no requests: make it with replies=[]")
        return self._requests

    def expire_tokens(self) -> None:
        """Forgets who has logged in: Berlin's tokens, and H2o's sessions with their conversations."""
        self._app.expire()

    def provider(self, name: str, **config: Any) -> Provider:
        """Returns a new provider, set up for this server: address, credentials, and no proxy in between.

        Args:
            name: as in ``get_provider``.
            config: more arguments for it, which come before those that the server knows.
        """
        known = {"base_url": self.url, "proxy": "", **self._app.configuration(name)}
        if "headers" in known:
            config["headers"] = {**known["headers"], **(config.get("headers") or {})}
        return get_provider(name, **{**known, **config})

    def start(self) -> LocalServer:
        """Starts to listen, in the background; returns itself."""
        self._serving.start()
        return self

    def close(self) -> None:
        """Ends the replies under way and stops listening. A second call does nothing."""
        self._backend.close()
        self._serving.close()

    def wait(self) -> None:
        """Waits until the server is closed, or for Ctrl-C."""
        self._serving.wait()

    def __enter__(self) -> LocalServer:
        return self if self._serving.started else self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<LocalServer {self._serving}>"
