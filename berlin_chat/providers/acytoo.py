"""Acytoo: one POST, and plain text back. ``protocols.md``, section "Acytoo"."""

from __future__ import annotations

from collections.abc import Generator
from email.message import Message
from typing import Any

import requests

from ..decoding import text
from ..errors import APIStatusError, InvalidRequest, ProtocolError
from ..failures import reason_in
from ..provider import Provider
from ..reply import Details
from ..transport import Exchange


class Acytoo(Provider):
    """A server of the Acytoo family: plain text in whatever pieces the network makes of it.

    Args:
        base_url: the server's address; its other arguments are those of :class:`Provider`.
        key: the server's ``key``, where it wants one.
        password: the server's access password, where it wants one; otherwise from ``BERLIN_CHAT_PASSWORD``.

    The protocol fixes the model: one that is asked for is not sent. Its only option is ``temperature``.

    >>> Acytoo(base_url="http://127.0.0.1:8080")
    Acytoo(base_url='http://127.0.0.1:8080', model='gpt-3.5-turbo')
    """

    name = "acytoo"
    url = "https://chat.acytoo.com"
    default_model = "gpt-3.5-turbo"
    supports_message_history = True
    supports_gpt_35_turbo = True
    needs = "nothing; key and password where the server wants them"

    def __init__(
        self, base_url: str | None = None, *, key: str = "", password: str = "", **configuration: Any
    ) -> None:
        super().__init__(base_url, **configuration)
        self._key = self._setting("key", key) or ""
        self._password = self._setting("password", password or None) or ""

    def _payload(self, messages: list[dict[str, Any]], model: str, options: dict[str, Any]) -> dict[str, Any]:
        if unknown := sorted(set(options) - {"temperature"}):
            raise InvalidRequest(f"the protocol has no option {unknown[0]!r}: it has 'temperature' only")
        return {
            "key": self._key,
            "model": self.default_model,
            "messages": messages,
            "temperature": options.get("temperature", 0.5),
            "password": self._password,
        }

    def _pieces(
        self, exchange: Exchange, body: bytes, model: str, details: Details
    ) -> Generator[str, None, None]:
        details.model = self.default_model
        headers = {"Accept": "*/*", "Content-Type": "application/json", **self._headers}
        response = exchange.open("POST", f"{self.base_url}/api/completions", headers=headers, body=body)
        kind, charset = _content_type(response)
        exchange.refuse_page(response)
        if kind == "application/json":  # a 200 that is no reply
            found = exchange.read(response)
            raise exchange.error(
                APIStatusError, f"the server says: {reason_in(found)}", status=200, body=found
            )
        try:
            yield from text(exchange.chunks(response), charset)
        except LookupError:
            raise exchange.error(ProtocolError, f"the text is in an unknown charset: {charset}") from None


def _content_type(response: requests.Response) -> tuple[str, str]:
    header = Message()
    header["Content-Type"] = response.headers.get("Content-Type") or "text/plain"
    return header.get_content_type(), header.get_content_charset("utf-8")
