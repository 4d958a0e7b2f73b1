"""Berlin: a login for a token, then JSON objects, one a line. ``PROTOCOLS.md``, section "Berlin"."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from ..cancellation import Limits
from ..decoding import objects
from ..errors import AuthenticationError, ChatError, InvalidRequest, ProtocolError, StreamInterrupted
from ..http.failures import object_error
from ..http.login import NO_ACCOUNT, Login, missing_field, refused_login
from ..http.transport import Exchange
from ..messages import flatten
from ..provider import Provider
from ..redaction import secrets_in_fields
from ..reply import Metadata, Text
from ..validation import checked_fields, checked_header

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..configuration import Configuration

#: A login that is answered by one of these was not refused: it may succeed later.
_NOT_NOW = (408, 425, 429)
_HEADERS = {"Accept": "*/*", "Accept-Language": "en-US,en;q=0.9"}
_DEFAULTS = {"temperature": 0, "presence_penalty": 0, "frequency_penalty": 0, "max_tokens": 1888}
#: What else the program hands on to the model server, as far as it changes the text.
_FURTHER = "logit_bias max_completion_tokens reasoning_effort response_format seed stop top_p user"


class Berlin(Provider):
    """A server of the Berlin family: it logs in once, for all threads, and anew when the token has expired.

    Args:
        base_url: the server's address; its other arguments are those of :class:`Provider`.
        account, password: for the login; otherwise from ``BERLIN_CHAT_ACCOUNT`` and ``BERLIN_CHAT_PASSWORD``.
        token: from an earlier login, used until it expires; otherwise from ``BERLIN_CHAT_TOKEN``.
        login_fields: what the login wants beside account and password, such as ``{"invite_code": ""}``.

    >>> Berlin(base_url="http://127.0.0.1:8080", account="me", password="secret")
    Berlin(base_url='http://127.0.0.1:8080', model='gpt-3.5-turbo')
    """

    name = "berlin"
    url = "https://ai.berlin4h.top"
    default_model = "gpt-3.5-turbo"
    supports_gpt_35_turbo = True
    needs = "account and password, or a token"
    known_options = frozenset({*_DEFAULTS, *_FURTHER.split()})

    def __init__(
        self,
        base_url: str | None = None,
        *,
        account: str | None = None,
        password: str | None = None,
        token: str | None = None,
        login_fields: Mapping[str, Any] | None = None,
        **configuration: Unpack[Configuration],
    ) -> None:
        super().__init__(base_url, **configuration)
        self._account = self.credential("account", account)
        self._password = self.credential("password", password)
        token = checked_header(self.credential("token", token), "token")
        self._fields = checked_fields(login_fields, "login_fields", ("account", "password"))
        self._configuration["login_fields"] = self._fields
        self._secrets.add(*secrets_in_fields(self._fields))
        self._headers = {**_HEADERS, "Origin": self.base_url, "Referer": f"{self.base_url}/"}
        self.login: Login[str] = Login(token, alone=True)

    def payload(self, messages: list[dict[str, Any]], model: str, options: dict[str, Any]) -> dict[str, Any]:
        if self.login.value is None and not self._can_log_in():
            raise InvalidRequest(NO_ACCOUNT)
        options = {"model": model, **_DEFAULTS, **options}
        return {"prompt": flatten(messages), "parentMessageId": str(uuid4()), "options": options}

    def pieces(self, exchange: Exchange, body: bytes, model: str, metadata: Metadata) -> Generator[str, None, None]:
        token = self._token(exchange)
        for chances in range(self.login.chances, -1, -1):  # pragma: no mutate - at 0 the error is raised
            try:
                first, rest = self._ask(exchange, body, token)
                break
            except AuthenticationError:
                if not chances or not self._can_log_in():
                    raise
                token = self._token(exchange, stale=token)
        if first:
            yield first
        yield from rest

    def log_in(self, limits: Limits) -> None:
        """Logs in, unless there is a token: what a batch does before it hands the login down to other processes."""
        if self._can_log_in():
            with self._transport.exchange(limits, self._transport.settings) as exchange:
                self._token(exchange)

    def _ask(self, exchange: Exchange, body: bytes, token: str) -> tuple[str, Iterator[str]]:
        """Sends the question; returns the first piece and the rest, for a refused token may come as a first object."""
        self._secrets.add(token)  # it may come from another process
        response = exchange.post("/api/chat/completions", body, headers={**self._headers, "token": token})
        pieces = _contents(objects(exchange.chunks(response)))
        return next(pieces, ""), pieces

    def _token(self, exchange: Exchange, stale: str | None = None) -> str:
        return self.login.get(exchange, lambda: self._log_in(exchange), stale)

    def _log_in(self, exchange: Exchange) -> str:
        login = {**self._fields, "account": self._account, "password": self._password}
        try:
            answer = exchange.json(exchange.post("/api/login", login, headers=self._headers))
        except ChatError as error:
            # pragma: no mutate - no status is none of these, whatever stands for it
            if (error.status or 0) // 100 == 4 and error.status not in _NOT_NOW:
                # pragma: no mutate - there is one argument
                raise refused_login(error.detail or str(error.args[0]), error.status) from error
            if isinstance(error, ProtocolError):
                error.detail, error.body = "", None  # there may be a token in it
            if error.status is not None:  # else the words are not the server's
                error.advice = missing_field(str(error.detail)) or error.advice
            raise
        data = answer.get("data")
        token = data.get("token") if isinstance(data, dict) else None
        if not isinstance(token, str) or not token:
            raise refused_login(str(answer.get("msg") or answer.get("message") or ""), 200)
        try:
            checked_header(token, "the token")
        except InvalidRequest as error:
            raise ProtocolError(str(error)) from None
        return token

    def _can_log_in(self) -> bool:
        return self._account is not None and self._password is not None


def _contents(found: Iterator[dict[str, Any] | str]) -> Iterator[str]:
    value: Any = {}
    text = Text()
    for number, value in enumerate(found):
        piece = None if isinstance(value, str) else value.get("content")
        if piece.__class__ is not str:
            raise object_error(value, first=not number)
        if piece := text.feed(piece):
            yield piece
    if text.held:
        yield "\ufffd"
    if value.get("segment", "end") not in ("stop", "end"):
        raise StreamInterrupted("the stream ended without its last segment")
