"""Acytoo: one POST, and plain text back. ``PROTOCOLS.md``, section "Acytoo"."""

from __future__ import annotations

from collections.abc import Generator
from email.message import Message
from typing import TYPE_CHECKING, Any

from ..decoding import text
from ..http.failures import said_error
from ..http.transport import Exchange
from ..messages import as_text
from ..provider import Provider
from ..reply import Metadata

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..configuration import Configuration


class Acytoo(Provider):
    """A server of the Acytoo family: plain text in whatever pieces the network makes of it.

    Args:
        base_url: the server's address; its other arguments are those of :class:`Provider`.
        key: the server's ``key``, where it wants one.
        password: the server's access password, where it wants one; otherwise from ``BERLIN_CHAT_PASSWORD``.

    The protocol fixes the model: one that is asked for is not sent. Its only option is ``temperature``. It has no word
    for a model server behind it that dies: the reply falls silent, and only ``timeout`` (or a deadline) ends it.

    >>> Acytoo(base_url="http://127.0.0.1:8080")
    Acytoo(base_url='http://127.0.0.1:8080', model='gpt-3.5-turbo')
    """

    name = "acytoo"
    url = "https://chat.acytoo.com"
    default_model = "gpt-3.5-turbo"
    supports_message_history = True
    supports_gpt_35_turbo = True
    needs = "nothing; key and password where the server wants them"
    known_options = frozenset({"temperature"})

    def __init__(
        self, base_url: str | None = None, *, key: str = "", password: str = "", **configuration: Unpack[Configuration]
    ) -> None:
        super().__init__(base_url, **configuration)
        self._key = self.credential("key", key) or ""
        self._password = self.credential("password", password or None) or ""

    def payload(self, messages: list[dict[str, Any]], model: str, options: dict[str, Any]) -> dict[str, Any]:
        return {
            "key": self._key,
            "model": self.default_model,
            "messages": [{**message, "content": as_text(message)} for message in messages],
            "temperature": options.get("temperature", 0.5),
            "password": self._password,
        }

    def pieces(self, exchange: Exchange, body: bytes, model: str, metadata: Metadata) -> Generator[str, None, None]:
        metadata.model = self.default_model
        response = exchange.post("/api/completions", body, headers={"Accept": "*/*"})
        kind, charset = _content_type(response.headers.get("Content-Type") or "text/plain")
        if kind == "application/json" or kind.endswith("+json"):  # a 200 that is no reply
            raise said_error(exchange.said(response))
        yield from text(exchange.chunks(response), charset)


def _content_type(value: str) -> tuple[str, str]:
    header = Message()
    header["Content-Type"] = value
    return header.get_content_type(), header.get_content_charset("utf-8")
