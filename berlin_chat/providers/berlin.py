"""Berlin: a login for a token, then JSON objects, one a line. ``PROTOCOLS.md``, section "Berlin"."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from ..decoding import objects
from ..errors import APIStatusError, AuthenticationError, ChatError, InvalidRequest, ProtocolError
from ..http.failures import reason_in
from ..http.login import Login
from ..http.transport import Exchange
from ..messages import flatten
from ..provider import Provider
from ..reply import Metadata
from ..validation import checked_header

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..configuration import Configuration

#: A login that is answered by one of these was not refused: it may succeed later.
_NOT_NOW = (408, 425, 429)
_DEFAULTS = {"temperature": 0, "presence_penalty": 0, "frequency_penalty": 0, "max_tokens": 1888}


class Berlin(Provider):
    """A server of the Berlin family: it logs in once, for all threads, and anew when the token has expired.

    Args:
        base_url: the server's address; its other arguments are those of :class:`Provider`.
        account, password: for the login; otherwise from ``BERLIN_CHAT_ACCOUNT`` and ``BERLIN_CHAT_PASSWORD``.
        token: from an earlier login, used until it expires; otherwise from ``BERLIN_CHAT_TOKEN``.

    >>> Berlin(base_url="http://127.0.0.1:8080", account="me", password="secret")
    Berlin(base_url='http://127.0.0.1:8080', model='gpt-3.5-turbo')
    """

    name = "berlin"
    url = "https://ai.berlin4h.top"
    default_model = "gpt-3.5-turbo"
    supports_gpt_35_turbo = True
    needs = "account and password, or a token"

    def __init__(
        self,
        base_url: str | None = None,
        *,
        account: str | None = None,
        password: str | None = None,
        token: str | None = None,
        **configuration: Unpack[Configuration],
    ) -> None:
        super().__init__(base_url, **configuration)
        self._account = self.credential("account", account)
        self._password = self.credential("password", password)
        token = self.credential("token", token)
        checked_header(token, "token")
        self._login: Login[str] = Login(token)

    def payload(self, messages: list[dict[str, Any]], model: str, options: dict[str, Any]) -> dict[str, Any]:
        if self._login.value is None and not self._can_log_in():
            raise InvalidRequest(
                "no account: give account= and password=, or token=,"
                " or set BERLIN_CHAT_ACCOUNT and BERLIN_CHAT_PASSWORD"
            )
        return {
            "prompt": flatten(messages),
            "parentMessageId": str(uuid4()),
            "options": {"model": model, **_DEFAULTS, **options},
        }

    def pieces(self, exchange: Exchange, body: bytes, model: str, metadata: Metadata) -> Generator[str, None, None]:
        token = self._token(exchange)
        try:
            first, rest = self._ask(exchange, body, token)
        except AuthenticationError:
            if not self._can_log_in():
                raise
            token = self._token(exchange, stale=token)
            first, rest = self._ask(exchange, body, token)
        if first:
            yield first
        yield from rest

    def _ask(self, exchange: Exchange, body: bytes, token: str) -> tuple[str, Iterator[str]]:
        """Sends the question; returns the first piece and the rest, for a refused token may come as a first object."""
        response = exchange.post("/api/chat/completions", body, headers={**self._headers(), "token": token})
        pieces = _contents(objects(exchange.chunks(response)))
        return next(pieces, ""), pieces

    def _token(self, exchange: Exchange, stale: str | None = None) -> str:
        return self._login.get(exchange, lambda: self._log_in(exchange), stale)

    def _log_in(self, exchange: Exchange) -> str:
        login = {"account": self._account, "password": self._password}
        try:
            answer = exchange.json(exchange.post("/api/login", login, headers=self._headers()))
        except ChatError as error:
            if 400 <= (error.status or 0) < 500 and error.status not in _NOT_NOW:
                raise _refused_login(error.detail or str(error.args[0]), error.status) from error
            if isinstance(error, ProtocolError):
                error.detail, error.body = "", None  # there may be a token in it
            raise
        data = answer.get("data")
        token = data.get("token") if isinstance(data, dict) else None
        if not isinstance(token, str) or not token:
            raise _refused_login(str(answer.get("msg") or ""), 200)
        self._secrets.add(token)
        try:
            checked_header(token, "the token")
        except InvalidRequest as error:
            raise ProtocolError(str(error)) from None
        return token

    def _can_log_in(self) -> bool:
        return self._account is not None and self._password is not None

    def _headers(self) -> dict[str, str | None]:
        return {
            "Accept": "*/*",
            "Accept-Language": "en-US,en;q=0.9",
            "Origin": self.base_url,
            "Referer": f"{self.base_url}/",
        }


def _contents(found: Iterator[dict[str, Any] | str]) -> Iterator[str]:
    for number, value in enumerate(found):
        piece = None if isinstance(value, str) else value.get("content")
        if piece.__class__ is not str:
            raise _refusal(value, first=not number)
        if piece:
            yield piece


def _refused_login(said: str, status: int | None) -> ChatError:
    return AuthenticationError("the login was refused", detail=said, advice="Check account and password", status=status)


def _refusal(value: dict[str, Any] | str, first: bool) -> ChatError:
    """The error for an object without a text, or for a line that is no object: the server's error message."""
    line = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if first and isinstance(value, dict) and value.get("code") in (401, 403):
        said = reason_in(line.encode("utf-8", "replace"))
        return AuthenticationError("the token was refused", detail=said, status=200, body=line)
    return APIStatusError("the server says", detail=line, status=200, body=line)
