"""What every provider does: check what it is given, ask, give an error its context, and clean up."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from functools import wraps
from time import monotonic
from types import MethodType
from typing import Any, ClassVar, NamedTuple, ParamSpec, TypeVar, cast

import requests

from . import validation
from .cancellation import CancelToken, Deadline, Limiter, Limits
from .errors import Cancelled, ChatError, InvalidRequest, ProviderNotWorking
from .http.transport import Exchange, Settings, Transport
from .messages import Messages, as_list
from .redaction import Redactor, secrets_in_address, secrets_in_cookies, secrets_in_headers
from .reply import Metadata, Reply

P = TypeVar("P", bound="Provider")
S = ParamSpec("S")
Pieces = Generator[str, None, Reply]

#: Seconds for a connection, and between two reads.
DEFAULT_TIMEOUT = (10.0, 120.0)

_NO_ADDRESS = (
    "no base URL, and the hosted service is gone. Give base_url=…, or set BERLIN_CHAT_URL or BERLIN_CHAT_{name}_URL, or"
    " start a berlin_chat.server.LocalServer; or name the hosted address on purpose: {cls}(base_url={cls}.url)"
)


class Question(NamedTuple):
    """A question whose arguments were checked, with all that it carries on its way."""

    messages: list[dict[str, Any]]
    model: str | None
    options: dict[str, Any]
    limits: Limits

    def put_to(self, provider: Provider, deadline: Deadline, cancel: CancelToken | None) -> Pieces:
        """Asks another provider the same, within what is left of a deadline."""
        left = deadline.left()
        seconds = None if left is None else max(left, 0.001)
        limits = {"deadline": seconds, "cancel": cancel, "limiter": self.limits.limiter}
        return provider.stream(self.messages, self.model, **limits, **self.options)  # type: ignore[arg-type]


def _as_whole(stream: Callable[S, Pieces]) -> Callable[S, Reply]:
    """Makes ``ask`` of ``stream``: the same arguments, spelled once."""

    @wraps(stream)
    def ask(*arguments: S.args, **options: S.kwargs) -> Reply:
        provider: Any
        provider, *others = arguments
        pieces = provider.stream(*others, **options)
        while True:
            try:
                next(pieces)
            except StopIteration as end:
                return cast(Reply, end.value)

    ask.__doc__ = "Asks, and returns the whole :class:`Reply`. Arguments and errors are those of ``stream``."
    ask.__name__ = "ask"
    return cast(Callable[S, Reply], ask)


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
    login, none of which needs a lock: see ``Transport`` and ``Login``. It can be pickled, and used in a child
    process after ``fork``: a copy has the configuration, and connects and logs in by itself. The copy's password or key
    is in the pickle only if it was given as an argument; one from the environment is read there again.

    Another protocol is a subclass with a ``name``, a ``default_model``, ``payload`` and ``pieces``.

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
    #: The names of all options that the protocol has; None where servers differ.
    known_options: frozenset[str] | None = None
    #: Options that make the server send the whole reply at once, where the protocol has them.
    unstreamed: ClassVar[dict[str, Any]] = {}

    #: One instance a configuration, for ``create_completion`` on the class, whose callers have nowhere to keep one;
    #: ``dict.setdefault``, which is atomic, gives the same to all threads.
    _shared: ClassVar[dict[Any, Provider]] = {}

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
        given = {**locals(), "headers": dict(headers) if headers else None}
        self._configuration: dict[str, Any] = {name: given[name] for name in given if name not in ("self", "__class__")}
        found, source = (base_url, "base_url") if base_url else self._url_from_environment()
        self.base_url: str | None = validation.checked_url(found, source) if found else None
        self.model = model or self.default_model
        self._secrets = Redactor()
        checked = Settings(
            self.base_url,
            validation.checked_headers(headers),
            session,
            validation.checked_proxy(proxy),
            validation.checked_timeout(timeout),
            validation.checked_verify(verify),
            validation.checked_count(retries, "retries", 0),
            validation.checked_count(pool_size, "pool_size", 1),
        )
        self._secrets.add(*secrets_in_headers(checked.headers), *secrets_in_address(checked.proxy))
        self._transport = Transport(checked)

    # What callers use

    def stream(
        self,
        messages: Messages,
        model: str | None = None,
        *,
        deadline: float | None = None,
        cancel: CancelToken | None = None,
        limiter: Limiter | None = None,
        **options: Any,
    ) -> Pieces:
        """Asks, and yields the reply's text piece by piece, each as soon as it has arrived.

        A plain generator of non-empty ``str``. Its return value (``StopIteration.value``) is the whole
        :class:`Reply`. The arguments are checked at the call; the network is first used at the first ``next``.
        Leaving the loop early closes the connection.

        Args:
            messages: a prompt, one ``{"role", "content"}`` mapping, or a list of them. Never modified.
            model: another model than the provider's.
            deadline: seconds for the whole reply, counted from the first ``next``.
            cancel: ends it from another thread.
            limiter: what ``ask_many`` slows a whole batch by: it is asked before each retry, and told of each 429.
            options: the protocol's own, such as ``temperature``; they replace the defaults of its request.

        Raises:
            InvalidRequest, ProviderNotWorking: at the call.
            ChatError: while reading. Its ``partial`` holds the text received so far.

        >>> from berlin_chat.server import LocalServer
        >>> with LocalServer() as server:
        ...     "".join(server.provider("acytoo").stream("Hi")).endswith("Hi")
        True
        """
        try:
            self.check_address()
            validation.checked_seconds(deadline, "deadline")
            if cancel is not None and not isinstance(cancel, CancelToken):
                raise InvalidRequest(f"cancel is of type {type(cancel).__name__}, not CancelToken")
            if self._transport.closed:
                raise Cancelled("the provider was closed: make a new one")
            return self._answer(Question(as_list(messages), model, options, Limits(deadline, cancel, limiter)))
        except ChatError as error:
            raise self._completed(error) from None

    ask = _as_whole(stream)

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
        return _whole(provider.stream(messages, model, **{**options, **provider.unstreamed}))

    def check_address(self) -> None:
        """Raises ProviderNotWorking, with the ways out, if it is not known whom to ask."""
        if self.base_url is None:
            ways_out = _NO_ADDRESS.format(cls=type(self).__name__, name=self.name.upper())
            raise ProviderNotWorking(ways_out, provider=self.name)

    def close(self) -> None:
        """Ends what is under way with ``Cancelled``, and closes the connections (not your own session's)."""
        self._transport.close()

    def __enter__(self: P) -> P:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(base_url={self.base_url!r}, model={self.model!r})"

    def __reduce__(self) -> Any:
        if self._configuration.get("session") is not None:
            raise TypeError("a provider with a session of the caller's cannot be pickled")
        return _restored, (type(self), self._full_configuration())

    def _full_configuration(self) -> dict[str, Any]:
        """The arguments that make another one like it, here or in another process."""
        return {name: self.base_url if name == "base_url" else value for name, value in self._configuration.items()}

    # What a protocol provides

    def payload(self, messages: list[dict[str, Any]], model: str, options: dict[str, Any]) -> dict[str, Any]:
        """Returns the JSON that asks the question; called at ``stream``, before anything is sent.

        Args:
            messages: dicts with ``role`` and ``content``, at least one. These may be kept and changed, but a list
                inside of one is still the caller's.
            model: the question's, or else the provider's.
            options: the question's, which replace the defaults of the protocol.

        Raises:
            InvalidRequest: the protocol cannot say it.
        """
        raise NotImplementedError

    def pieces(self, exchange: Exchange, body: bytes, model: str, metadata: Metadata) -> Generator[str, None, None]:
        """Asks, and yields the text piece by piece; whatever it opened on the server, it ends in its ``finally``.

        It need not do anything about retries, deadlines, cancelling, web pages, or secrets in errors.

        Args:
            exchange: sends requests (``post``), and reads what is answered (``chunks``).
            body: what ``payload`` returned, encoded.
            model: as in ``payload``.
            metadata: where to note what the server says beside the text.

        Raises:
            ChatError: the server refused or failed, or its answer is not what the protocol says.
        """
        raise NotImplementedError

    def credential(self, name: str, given: str | None) -> str | None:
        """Returns an argument, or else the environment's ``BERLIN_CHAT_<NAME>``; from then on no error shows it.

        Raises:
            InvalidRequest: it is no ``str``.
        """
        self._configuration[name] = given
        value = given if given is not None else os.environ.get(f"BERLIN_CHAT_{name.upper()}")
        if value is not None and not isinstance(value, str):
            raise InvalidRequest(f"{name} is of type {type(value).__name__}, not str")
        if name != "account":
            self._secrets.add(value)
        return value or None

    # How the two meet

    def _answer(self, question: Question) -> Pieces:
        """Answers a question whose arguments were checked. What is overridden by groups of providers."""
        model = question.model or self.model
        return self._reply(question, model, _encoded(self.payload(question.messages, model, question.options)))

    def _reply(self, question: Question, model: str, body: bytes) -> Pieces:
        started = monotonic()
        received: list[str] = []
        keep = received.append
        metadata = Metadata()
        with self._transport.exchange(question.limits) as exchange:
            try:
                exchange.check()
                with closing(self.pieces(exchange, body, model, metadata)) as pieces:
                    for piece in pieces:
                        keep(piece)
                        yield piece
            except ChatError as error:
                self._completed(error, exchange, "".join(received))
                raise
        return Reply(
            "".join(received),
            provider=self.name,
            model=metadata.model or model,
            finish_reason=metadata.finish_reason,
            usage=metadata.usage,
            seconds=monotonic() - started,
            attempts=exchange.attempts,
        )

    def _completed(self, error: ChatError, exchange: Exchange | None = None, partial: str = "") -> ChatError:
        """The one door for errors: adds what a part below could not know, and takes out what is secret."""
        error.provider = error.provider or self.name
        error.url = error.url or (exchange and exchange.url) or self.base_url
        if exchange is not None:
            error.partial = partial
            error.attempts = exchange.attempts
        kept = [cookie.value or "" for cookie in self._transport.session.cookies]
        self._secrets.clean(error, [*kept, *secrets_in_cookies(self._transport.cookies)])
        return error

    def _url_from_environment(self) -> tuple[str | None, str]:
        for variable in (f"BERLIN_CHAT_{self.name.upper()}_URL", "BERLIN_CHAT_URL"):
            if value := os.environ.get(variable):
                return value, variable
        return (self.url, "url") if self.working else (None, "")


def _restored(cls: type[Provider], configuration: dict[str, Any]) -> Provider:
    return cls(**configuration)


def _configured(target: Any, proxy: str | None, timeout: float | None, options: dict[str, Any]) -> Provider:
    """The provider for a call of ``create_completion``; takes the constructor's arguments out of ``options``."""
    given = {name: value for name, value in (("proxy", proxy), ("timeout", timeout)) if value is not None}
    if not given and isinstance(target, Provider):
        return target
    from inspect import signature  # here, for it costs as much as the rest of the package

    cls: type[Provider] = target if isinstance(target, type) else type(target)
    known: set[str] = set()
    for base in cls.__mro__:  # up to the first constructor that passes nothing on
        parameters = signature(vars(base)["__init__"]).parameters if "__init__" in vars(base) else {}
        known.update(parameters)
        if parameters and not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
            break
    if not given.keys() <= known:
        raise InvalidRequest(f"proxy and timeout are settings of each provider of a {cls.__name__}")
    if cls is not target:
        provider = cls(**{**target._configuration, **given})
    elif "base_url" in known:
        provider = cls(**given, **{name: options.pop(name) for name in list(options) if name in known})
    else:
        raise InvalidRequest(f"make a {cls.__name__} first: on the class, create_completion is for single providers")
    # What stands for the same: the environment's part of the configuration included.
    environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith("BERLIN_CHAT_")))
    identity = (cls, repr(sorted(provider._full_configuration().items())), environment)
    return Provider._shared.setdefault(identity, provider)


def _whole(pieces: Iterator[str]) -> Iterator[str]:
    if text := "".join(pieces):
        yield text


def _encoded(payload: dict[str, Any]) -> bytes:
    try:
        return json.dumps(payload, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise InvalidRequest("a message holds half of a surrogate pair, which is no text") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"the options or messages are no JSON: {error}") from None
