"""What every provider does: check what it is given, ask, name what went wrong, and clean up."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from time import monotonic
from types import MethodType, TracebackType
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit

import requests

from .cancelling import CancelToken
from .errors import Cancelled, ChatError, InvalidRequest, ProviderNotWorking
from .failures import Timeout
from .messages import Messages, as_list
from .reply import Details, Reply
from .transport import Exchange, Transport

P = TypeVar("P", bound="Provider")

#: Seconds for a connection, and between two reads.
DEFAULT_TIMEOUT = (10.0, 120.0)
_SECRET_HEADERS = frozenset(
    {"authorization", "proxy-authorization", "cookie", "token", "api-key", "x-api-key"}
)


class _OnClassOrInstance:
    """Binds a function to the instance that it is called on, or else to the class."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.__doc__ = function.__doc__

    def __get__(self, instance: Any, owner: type) -> Any:
        return MethodType(self._function, owner if instance is None else instance)


class Provider:
    """A chat service, or rather a server of your own that speaks its protocol.

    One instance may be used by any number of threads at once: they share its connections, cookies and
    login, each behind a lock of its own. It can be pickled, and used in a child process after ``fork``: a copy
    has the configuration, and connects and logs in by itself. The copy's password or key is in the pickle only if
    it was given as an argument; one from the environment is read there again.

    Args:
        base_url: the server's address, such as ``"http://127.0.0.1:8080"``. Otherwise from
            ``BERLIN_CHAT_<NAME>_URL`` or ``BERLIN_CHAT_URL``.
        model: the model that is asked unless a question names another; otherwise ``default_model``.
        proxy: the address of a proxy; otherwise from the usual environment variables. ``""`` for none at all.
        timeout: seconds, or ``(connect, read)``, as in requests; 10 s to connect and 120 s between two reads.
            None, for either, waits without end.
        headers: replace the headers of this library, or add to them; a value of None leaves one out.
        verify: False accepts any TLS certificate; a path names the certificates to trust.
        retries: how often a request is tried again before the first piece; 0 for never.
        pool_size: how many connections are kept for the next question. More may be open at the same time.
        session: your own ``requests.Session``, with its adapters, cookies and headers. You close it.

    Raises:
        InvalidRequest: an argument is wrong.
    """

    name: ClassVar[str] = ""
    url: ClassVar[str] = ""
    working: ClassVar[bool] = False
    default_model: ClassVar[str] = ""
    supports_stream: ClassVar[bool] = True
    supports_message_history: ClassVar[bool] = False
    supports_gpt_35_turbo: ClassVar[bool] = False
    #: What it needs beside an address, in a few words for people.
    needs: ClassVar[str] = "nothing"

    def __init__(
        self,
        base_url: str | None = None,
        *,
        model: str | None = None,
        proxy: str | None = None,
        timeout: float | tuple[float | None, float | None] | None = DEFAULT_TIMEOUT,
        headers: Mapping[str, str | None] | None = None,
        verify: bool | str = True,
        retries: int = 2,
        pool_size: int = 1000,
        session: requests.Session | None = None,
    ) -> None:
        self._configuration: dict[str, Any] = {
            "base_url": base_url,
            "model": model,
            "proxy": proxy,
            "timeout": timeout,
            "headers": dict(headers) if headers else None,
            "verify": verify,
            "retries": retries,
            "pool_size": pool_size,
            "session": session,
        }
        found, source = (base_url, "base_url") if base_url else self._url_from_environment()
        self.base_url: str | None = _checked_url(found, source) if found else None
        self.model = model or self.default_model
        self._headers = _checked_headers(self._configuration["headers"] or {})
        self._transport = Transport(
            name=self.name,
            session=session,
            proxy=proxy and _checked_url(proxy, "proxy", proxy=True),
            timeout=_checked_timeout(timeout),
            verify=_checked_verify(verify),
            retries=checked_count(retries, "retries", 0),
            pool_size=checked_count(pool_size, "pool_size", 1),
        )
        self._transport.secrets.update(_secrets_in(self._headers, proxy))

    # What callers use

    def stream(
        self,
        messages: Messages,
        model: str | None = None,
        *,
        deadline: float | None = None,
        cancel: CancelToken | None = None,
        **options: Any,
    ) -> Generator[str, None, Reply]:
        """Asks, and yields the reply's text piece by piece, each as soon as it has arrived.

        A plain generator of non-empty ``str``. Its return value (``StopIteration.value``) is the whole
        :class:`Reply`. The arguments are checked at the call; the network is first used at the first ``next``.
        Leaving the loop early closes the connection.

        Args:
            messages: a prompt, one ``{"role", "content"}`` mapping, or a list of them. Never modified.
            model: another model than the provider's.
            deadline: seconds for the whole reply, counted from the first ``next``.
            cancel: ends it from another thread.
            options: the protocol's own, such as ``temperature``; they replace the defaults of its request.

        Raises:
            InvalidRequest, ProviderNotWorking: at the call.
            ChatError: while reading. Its ``partial`` holds the text received so far.

        >>> from berlin_chat.server import LocalServer
        >>> with LocalServer() as server:
        ...     "".join(server.provider("acytoo").stream("Hi")).endswith("Hi")
        True
        """
        self.check_address()
        checked_deadline(deadline)
        if cancel is not None and not isinstance(cancel, CancelToken):
            raise self._invalid(f"cancel is of type {type(cancel).__name__}, not CancelToken")
        if self._transport.closed:
            raise self._located(Cancelled("the provider was closed: make a new one"))
        try:
            checked = as_list(messages)
            model = model or self.model
            body = self._encoded(self._payload(checked, model, options))
        except ChatError as error:
            raise self._located(error) from None
        return self._reply(body, model, deadline, cancel)

    def ask(
        self,
        messages: Messages,
        model: str | None = None,
        *,
        deadline: float | None = None,
        cancel: CancelToken | None = None,
        **options: Any,
    ) -> Reply:
        """Asks, and returns the whole :class:`Reply`. Arguments and errors are those of ``stream``."""
        pieces = self.stream(messages, model, deadline=deadline, cancel=cancel, **options)
        while True:
            try:
                next(pieces)
            except StopIteration as end:
                reply: Reply = end.value
                return reply

    @_OnClassOrInstance
    def create_completion(
        target: Any,
        model: str | None,
        messages: Messages,
        stream: bool = True,
        proxy: str | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """The call of old g4f code, on the class or on an instance; a generator of ``str``.

        The synchronous twin of ``create_async_generator``. On the class it uses one shared instance a
        configuration, so that the login is shared; arguments of the class's constructor may be given too.
        ``stream=False`` yields the whole text as one piece. Arguments and errors are otherwise those of ``stream``.
        """
        provider = _configured(target, proxy, timeout, options)
        if stream:
            return provider.stream(messages, model, **options)
        return _whole(provider.stream(messages, model, **{**options, **provider._unstreamed}))

    def check_address(self) -> None:
        """Raises ProviderNotWorking, with the ways out, if it is not known whom to ask."""
        if self.base_url is None:
            raise self._located(
                ProviderNotWorking(
                    f"no base URL, and the hosted service is gone. Give base_url=…, or set BERLIN_CHAT_URL or"
                    f" BERLIN_CHAT_{self.name.upper()}_URL, or start a berlin_chat.server.LocalServer; or name the"
                    f" hosted address on purpose: {type(self).__name__}(base_url={type(self).__name__}.url)"
                )
            )

    def close(self) -> None:
        """Ends what is under way with ``Cancelled``, and closes the connections (not your own session's)."""
        self._transport.close()

    def __enter__(self: P) -> P:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(base_url={self.base_url!r}, model={self.model!r})"

    def __reduce__(self) -> Any:
        configuration = {**self._configuration, "base_url": self.base_url}
        if configuration["session"] is not None:
            raise TypeError("a provider with a session of the caller's cannot be pickled")
        return _restored, (type(self), configuration)

    # What a protocol provides

    #: Options that make the server send the whole reply at once, where the protocol has them.
    _unstreamed: ClassVar[dict[str, Any]] = {}

    def _payload(self, messages: list[dict[str, Any]], model: str, options: dict[str, Any]) -> dict[str, Any]:
        """Returns the JSON that asks the question. Raises InvalidRequest."""
        raise NotImplementedError

    def _pieces(
        self, exchange: Exchange, body: bytes, model: str, details: Details
    ) -> Generator[str, None, None]:
        """Asks and yields the pieces; whatever it opened on the server, it ends in its ``finally``."""
        raise NotImplementedError

    def _setting(self, name: str, given: str | None) -> str | None:
        """A credential: the argument, or else the environment's ``BERLIN_CHAT_<NAME>``."""
        self._configuration[name] = given
        value = given if given is not None else os.environ.get(f"BERLIN_CHAT_{name.upper()}")
        if value is not None and not isinstance(value, str):
            raise InvalidRequest(f"{name} is of type {type(value).__name__}, not str")
        if value and name != "account":
            self._transport.secrets.add(value)
        return value or None

    # How the two meet

    def _reply(
        self, body: bytes, model: str, deadline: float | None, cancel: CancelToken | None
    ) -> Generator[str, None, Reply]:
        started = monotonic()
        received: list[str] = []
        keep = received.append
        details = Details()
        with self._transport.exchange(deadline, cancel) as exchange:
            try:
                exchange.check()
                with closing(self._pieces(exchange, body, model, details)) as pieces:
                    for piece in pieces:
                        keep(piece)
                        yield piece
            except ChatError as error:
                error.partial = "".join(received)
                error.attempts = exchange.attempts
                self._located(error, exchange.url)
                raise
            attempts = exchange.attempts
        return Reply(
            "".join(received),
            provider=self.name,
            model=details.model or model,
            finish_reason=details.finish_reason,
            usage=details.usage,
            seconds=monotonic() - started,
            attempts=attempts,
        )

    def _encoded(self, payload: dict[str, Any]) -> bytes:
        try:
            return json.dumps(payload, ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError:
            raise InvalidRequest("a message holds half of a surrogate pair, which is no text") from None
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRequest(f"the options or messages are no JSON: {error}") from None

    def _invalid(self, message: str) -> ChatError:
        return self._located(InvalidRequest(message))

    def _located(self, error: ChatError, url: str | None = None) -> ChatError:
        """Adds what a part below this one could not know: which provider, and where."""
        error.provider = error.provider or self.name
        error.url = error.url or url or self.base_url
        return error

    def _url_from_environment(self) -> tuple[str | None, str]:
        for variable in (f"BERLIN_CHAT_{self.name.upper()}_URL", "BERLIN_CHAT_URL"):
            if value := os.environ.get(variable):
                return value, variable
        return (self.url, "url") if self.working else (None, "")


def _restored(cls: type[Provider], configuration: dict[str, Any]) -> Provider:
    return cls(**configuration)


# One instance a configuration, for create_completion on the class; the lock guards the dict.
_shared: dict[Any, Provider] = {}
_shared_lock = threading.Lock()


def _configured(target: Any, proxy: str | None, timeout: float | None, options: dict[str, Any]) -> Provider:
    """The provider for a call of ``create_completion``; takes the constructor's arguments out of ``options``."""
    on_class = isinstance(target, type)
    cls: type[Provider] = target if on_class else type(target)
    given: dict[str, Any] = {"proxy": proxy, "timeout": timeout}
    given = {name: value for name, value in given.items() if value is not None}
    if on_class:
        from inspect import signature  # here, for it costs as much as the rest of the package

        known = signature(cls).parameters
        given.update({name: options.pop(name) for name in list(options) if name in known})
    elif not given:
        return target  # type: ignore[no-any-return]
    provider = cls(**given) if on_class else cls(**{**target._configuration, **given})
    with _shared_lock:
        return _shared.setdefault(_identity(provider), provider)


def _identity(provider: Provider) -> Any:
    """What two providers have in common that can stand for each other, the environment's part included."""
    configuration = {**provider._configuration, "base_url": provider.base_url}
    environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith("BERLIN_CHAT_")))
    return type(provider), repr(sorted(configuration.items())), environment


def _whole(pieces: Iterator[str]) -> Iterator[str]:
    if text := "".join(pieces):
        yield text


def _checked_url(url: Any, source: str, proxy: bool = False) -> str:
    """Returns an address without a slash at its end; raises InvalidRequest where it is none."""
    if not isinstance(url, str):
        raise InvalidRequest(f"{source} is of type {type(url).__name__}, not str")
    try:
        parts = urlsplit(url.strip())
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidRequest(f"{source} is no address: {error}") from None
    schemes = ("http", "https", "socks4", "socks4a", "socks5", "socks5h") if proxy else ("http", "https")
    if parts.scheme not in schemes or not host:
        raise InvalidRequest(f"{source} must look like http://127.0.0.1:8080, with its scheme and host")
    if not proxy and (parts.query or parts.fragment):
        raise InvalidRequest(f"{source} must end with its path: without ? and #")
    if not proxy and "@" in parts.netloc:
        raise InvalidRequest(
            f"{source} holds a user name or password: give headers={{'Authorization': …}} instead"
        )
    return url.strip().rstrip("/")


def _checked_headers(headers: Mapping[str, str | None]) -> dict[str, str | None]:
    for name, value in headers.items():
        checked_header(value, f"headers[{name!r}]")
    return dict(headers)


def _secrets_in(headers: Mapping[str, str | None], proxy: str | None) -> Iterator[str]:
    for name, value in headers.items():
        if value and name.lower() in _SECRET_HEADERS:
            yield value
            yield value.rpartition(" ")[2]  # "Bearer …"
    if proxy and (password := urlsplit(proxy).password):
        yield password


def checked_header(value: Any, source: str) -> None:
    """Raises InvalidRequest, without the value, where it cannot be the value of a header."""
    if value is None:
        return
    if not isinstance(value, str):
        raise InvalidRequest(f"{source} is of type {type(value).__name__}, not str")
    if not value.isascii() or not value.isprintable() or value != value.strip():
        raise InvalidRequest(f"{source} holds a line break, a space at its end, or a character beyond ASCII")


def _checked_timeout(timeout: Any) -> Timeout:
    connect, read = timeout if isinstance(timeout, tuple) and len(timeout) == 2 else (timeout, timeout)
    for seconds in (connect, read):
        if seconds is not None and not _is_positive(seconds):
            raise InvalidRequest("timeout must be positive seconds, (connect, read), or None")
    return connect, read


def _checked_verify(verify: Any) -> bool | str:
    if isinstance(verify, str) and not os.path.exists(verify):
        raise InvalidRequest(f"verify names certificates that do not exist: {verify}")
    if not isinstance(verify, (bool, str)):
        raise InvalidRequest(f"verify is of type {type(verify).__name__}, not bool or a path")
    return verify


def checked_count(count: Any, source: str, least: int) -> int:
    """Returns the number; raises InvalidRequest unless it is whole and at least ``least``."""
    if not isinstance(count, int) or isinstance(count, bool) or count < least:
        raise InvalidRequest(f"{source} must be a whole number of at least {least}")
    return count


def checked_deadline(deadline: Any) -> None:
    """Raises InvalidRequest unless it is seconds or None."""
    if deadline is not None and not _is_positive(deadline):
        raise InvalidRequest("deadline must be positive seconds, or None")


def _is_positive(number: Any) -> bool:
    return (
        isinstance(number, (int, float))
        and not isinstance(number, bool)
        and 0 < number < threading.TIMEOUT_MAX
    )
