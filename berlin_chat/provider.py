"""What every provider does: check what it is given, ask, give an error its context, and clean up."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from functools import wraps
from itertools import chain, islice
from time import monotonic
from types import MethodType
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, Generic, NamedTuple, NoReturn, ParamSpec, TypeVar, cast

from . import validation
from .cancellation import CancelToken, Deadline, Limiter, Limits
from .configuration import Configured, OfOneQuestion, configured
from .errors import Cancelled, ChatError, InvalidRequest, ProtocolError, StreamInterrupted
from .http.transport import Exchange
from .live import LiveReply
from .messages import Messages, as_list
from .reply import Event, Metadata, Reply

if TYPE_CHECKING:
    from typing_extensions import Unpack

P = TypeVar("P", bound="Provider")
S = ParamSpec("S")
T = TypeVar("T")
Pieces = Generator[str, None, Reply]
#: The same, with the events of a question that is live.
Parts = Generator["str | Event", None, Reply]
#: What comes of an answer that is nested so deeply that Python's stack, on which its caller stands, does not hold it.
TOO_DEEP = "the answer cannot be read within Python's recursion limit: it is nested deeply, or its caller is"
log = logging.getLogger("berlin_chat")


class Question(NamedTuple):
    """A question whose arguments were checked, with all that it carries on its way.

    ``settings`` are those of its own: ``timeout``, ``headers`` and ``retries``. A ``live`` one is answered by events
    beside the text.
    """

    messages: list[dict[str, Any]]
    model: str | None
    options: dict[str, Any]
    limits: Limits
    settings: dict[str, Any]
    extra_body: Mapping[str, Any]
    live: bool = False

    def put_to(self, provider: Provider, deadline: Deadline, cancel: CancelToken | None) -> Parts:
        """Asks another provider the same, within what is left of a deadline."""
        left = deadline.left()
        limits = {**self.limits._asdict(), "seconds": None if left is None else max(left, 0.001), "cancel": cancel}
        if self.live:
            return provider._put(self._replace(limits=Limits(**limits)))
        limits["deadline"] = limits.pop("seconds")
        given = {**limits, **self.settings, "extra_body": self.extra_body, **self.options}
        return provider.stream(self.messages, self.model, **given)


def as_whole(stream: Callable[S, Pieces]) -> Callable[S, Reply]:
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


def as_live(stream: Callable[S, Pieces]) -> Callable[S, LiveReply]:
    """Makes ``open`` of ``stream``, too."""

    @wraps(stream)
    def open(*arguments: S.args, **options: S.kwargs) -> LiveReply:
        provider: Any
        provider, *others = arguments
        given = options.get("cancel")
        token = CancelToken(given if isinstance(given, CancelToken) else None)
        cancel = {"cancel": token} if given is None or isinstance(given, CancelToken) else {}  # else it is refused
        start: Callable[..., Any] = stream
        try:
            return LiveReply(start(_Live(provider), *others, **{**options, **cancel}), token)
        except BaseException:
            token.__exit__()
            raise

    open.__doc__ = "Asks, and returns a :class:`LiveReply`, to be read. Arguments and errors are those of ``stream``."
    open.__name__ = "open"
    return cast(Callable[S, LiveReply], open)


class _Live:
    """A provider whose questions are answered by events, too."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    def _put(self, question: Question) -> Parts:
        """Asks the provider."""
        return self._provider._put(question._replace(live=True))


class _OnClassOrInstance(Generic[S, T]):
    """Binds a function to the instance that it is called on, or else to the class."""

    def __init__(self, function: Callable[Concatenate[Any, S], T]) -> None:
        self._function = function
        self.__doc__ = function.__doc__

    def __get__(self, instance: Any, owner: type) -> Callable[S, T]:
        return MethodType(self._function, owner if instance is None else instance)


class Provider(Configured):
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
        verify: False accepts any TLS certificate; a path names the certificates to trust, in a file or a folder.
        cert: the certificate that a server wants to see: the path of a file that has its key, too, or the paths of two,
            as in requests. They are read again for each connection; a key with a passphrase is refused.
        retries: how often a request is tried again before the first piece; 0 for never.
        pool_size: how many connections are kept for the next question. More may be open at the same time.
        max_reply_bytes: how long an answer of the server's may be, decompressed; what has come by then is kept.
        session: your own ``requests.Session``, with its adapters, cookies and headers. You close it.

    Raises:
        InvalidRequest: an argument is wrong.
    """

    supports_stream: ClassVar[bool] = True
    supports_message_history: ClassVar[bool] = False
    supports_gpt_35_turbo: ClassVar[bool] = False
    #: What it needs beside an address, in a few words for people.
    needs: ClassVar[str] = "nothing"
    #: The names of all options that the protocol has; None where servers differ.
    known_options: frozenset[str] | None = None
    #: Options that make the server send the whole reply at once, where the protocol has them.
    unstreamed: ClassVar[dict[str, Any]] = {}

    # What callers use

    def stream(
        self,
        messages: Messages,
        model: str | None = None,
        *,
        deadline: float | None = None,
        cancel: CancelToken | None = None,
        limiter: Limiter | None = None,
        timeout: float | tuple[float | None, float | None] | None = None,
        headers: Mapping[str, str | None] | None = None,
        retries: int | None = None,
        extra_body: Mapping[str, Any] | None = None,
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
            timeout: for this question, as in the constructor; None for the provider's own.
            headers: for this question, beside the provider's; a value of None leaves one out.
            retries: for this question; None for the provider's own.
            extra_body: merged into the JSON that is sent, after all else.
            options: the protocol's own, such as ``temperature``; they replace the defaults of its request. None leaves
                one out.

        Raises:
            InvalidRequest, ProviderNotWorking: at the call.
            ChatError: while reading. Its ``partial`` holds the text received so far.

        >>> from berlin_chat.server import LocalServer
        >>> with LocalServer() as server:
        ...     "".join(server.provider("acytoo").stream("Hi")).endswith("Hi")
        True
        """
        limits = Limits(deadline, cancel, limiter)
        settings = {"timeout": timeout, "headers": headers, "retries": retries}
        return cast(Pieces, self._put(Question(messages, model, options, limits, settings, extra_body)))  # type: ignore[arg-type]

    ask = as_whole(stream)
    open = as_live(stream)

    def models(
        self, *, deadline: float | None = None, cancel: CancelToken | None = None, **settings: Unpack[OfOneQuestion]
    ) -> list[str]:
        """Returns the names of the models that the server has.

        Its arguments are those of ``stream``: ``deadline``, ``cancel``, ``timeout``, ``headers`` and ``retries``.

        Raises:
            InvalidRequest: the protocol has no list of them.
            ChatError: those of ``stream``.
        """
        exchange = None
        try:
            self._check_open()
            limits = _checked(Limits(deadline, cancel))
            with self._transport.exchange(limits, self._transport.settings.changed(**settings)) as exchange:
                exchange.check()
                return self.model_names(exchange)
        except ChatError as error:
            raise self._completed(error, exchange) from error.__cause__
        except RecursionError:
            raise self._completed(ProtocolError(TOO_DEEP), exchange) from None

    @_OnClassOrInstance
    def create_completion(
        target: Any,
        /,
        model: str | None,
        messages: Messages,
        stream: bool = True,
        proxy: str | None = None,
        timeout: float | tuple[float | None, float | None] | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """The call of old g4f code, on the class or on an instance; a generator of ``str``.

        The synchronous twin of ``create_async_generator``. On the class it uses one shared instance a
        configuration, so that the login is shared; arguments of the class's constructor may be given too, and
        ``base_url`` on an instance. ``stream=False`` yields the whole text as one piece. Arguments and errors are
        otherwise those of ``stream``.
        """
        options["proxy"] = proxy
        provider: Provider = configured(target, options)
        if stream:
            return provider.stream(messages, model, timeout=timeout, **options)
        return _whole(provider.stream(messages, model, timeout=timeout, **{**options, **provider.unstreamed}))

    @classmethod
    def create_async(cls, *_: Any, **__: Any) -> NoReturn:
        """Refused, with the name of what old code calls instead of awaiting it."""
        said = "there is no event loop here: create_completion has the same arguments, and is a plain generator"
        raise InvalidRequest(said, provider=cls.name)

    create_async_generator = create_async

    def close(self) -> None:
        """Ends what is under way with ``Cancelled``, and closes the connections (not your own session's)."""
        self._transport.close()

    def __enter__(self: P) -> P:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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

    def pieces(
        self, exchange: Exchange, body: bytes, model: str, metadata: Metadata
    ) -> Generator[str | Event, None, None]:
        """Asks, and yields the text piece by piece; whatever it opened on the server, it ends in its ``finally``.

        It may also yield :class:`Event`, for what is no text. It is called again where a reply was cut off before its
        first piece. It need not do anything about retries, deadlines, cancelling, web pages, or secrets in errors.

        Args:
            exchange: sends requests (``post``), and reads what is answered (``chunks``).
            body: what ``payload`` returned, encoded.
            model: as in ``payload``.
            metadata: where to note what the server says beside the text.

        Raises:
            ChatError: the server refused or failed, or its answer is not what the protocol says.
        """
        raise NotImplementedError

    def checked_payload(self, payload: dict[str, Any]) -> dict[str, Any]:
        """Returns what is sent at last, ``extra_body`` included; for protocols that have something to say to that."""
        return payload

    def model_names(self, exchange: Exchange) -> list[str]:
        """Asks for the names of the models; for protocols that have a list of them."""
        raise InvalidRequest("the protocol has no list of models")

    # How the two meet

    def _put(self, question: Question) -> Parts:
        """Checks a question, and returns what answers it: all of ``stream``, ``ask`` and ``open`` come here."""
        try:
            self._check_open()
            _checked(question.limits)
            if not isinstance(question.extra_body, (Mapping, type(None))):
                raise InvalidRequest(f"extra_body is of type {type(question.extra_body).__name__}, not a mapping")
            self._transport.settings.changed(**question.settings)
            return self._answer(question._replace(messages=as_list(question.messages)))
        except ChatError as error:
            raise self._completed(error) from None

    def _check_open(self) -> None:
        if self.base_url is None:
            self.check_address()
        if self._transport.closed:
            raise Cancelled("the provider was closed: make a new one")

    def _answer(self, question: Question) -> Parts:
        """Answers a question whose arguments were checked. What is overridden by groups of providers."""
        if self.known_options is not None:
            validation.checked_options(question.options, self.known_options)
        model = validation.checked_text(question.model, "model") or self.model
        payload = _without_none(self.payload(question.messages, model, question.options), question.options)
        body = _encoded(self.checked_payload({**payload, **(question.extra_body or {})}))
        return self._reply(question, self._transport.settings.changed(**question.settings), model, body)

    def _reply(self, question: Question, settings: validation.Settings, model: str, body: bytes) -> Parts:
        started = monotonic()
        first: float | None = None
        received: list[str] = []
        keep = received.append
        with self._transport.exchange(question.limits, settings) as exchange:
            try:
                exchange.check()
                begun, parts, metadata = self._begun(exchange, body, model, question.live)
                with closing(parts):
                    if question.live:
                        while begun and isinstance(begun[0], Event):
                            yield begun.pop()
                            begun.extend(islice(parts, 1))
                    first = monotonic() - started if begun else None
                    for part in chain(begun, parts):
                        if part.__class__ is str:
                            keep(part)
                            yield part
                        elif question.live:
                            yield part
            except ChatError as error:
                self._completed(error, exchange, "".join(received))
                raise
            except RecursionError:
                raise self._completed(ProtocolError(TOO_DEEP), exchange, "".join(received)) from None
        facts = {"provider": self.name, "model": model, "headers": exchange.headers, "attempts": exchange.attempts}
        times = {"seconds": monotonic() - started, "first_piece_seconds": first}
        reply = Reply("".join(received), **{**facts, **vars(metadata), **times})
        _report(reply, len(received))
        return reply

    def _begun(
        self, exchange: Exchange, body: bytes, model: str, live: bool
    ) -> tuple[list[str | Event], Generator[str | Event, None, None], Metadata]:
        """Asks, and again where the reply is cut off before its first piece, which is returned with what follows."""

        def begin() -> tuple[list[str | Event], Generator[str | Event, None, None], Metadata]:
            metadata = Metadata()
            parts = self.pieces(exchange, body, model, metadata)
            first = next((part for part in parts if live or part.__class__ is str), None)
            return [] if first is None else [first], parts, metadata

        def fleeting(error: BaseException) -> bool:
            return isinstance(error, StreamInterrupted)

        return exchange.retried(begin, fleeting)

    def _completed(self, error: ChatError, exchange: Exchange | None = None, partial: str = "") -> ChatError:
        """The one door for errors: adds what a part below could not know, and takes out what is secret."""
        error.provider = error.provider or self.name
        error.url = error.url or (exchange and exchange.url) or self.base_url
        if exchange is not None:
            error.partial = partial
            error.attempts = exchange.attempts
            error.request_id = exchange.headers.get("x-request-id")
        self._transport.clean(error, exchange.settings.headers if exchange else {})
        return error


def _whole(pieces: Iterator[str]) -> Iterator[str]:
    if text := "".join(pieces):
        yield text


def _without_none(payload: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """The payload without the keys of options that are None, wherever the protocol has put them."""
    left_out = {name for name, value in options.items() if value is None}
    if not left_out:
        return payload
    inner = {
        key: _without_none(value, options) if isinstance(value, dict) and key not in options else value
        for key, value in payload.items()
    }
    return {key: value for key, value in inner.items() if key not in left_out or value is not None}


def _report(reply: Reply, pieces: int) -> None:
    """One line a reply."""
    first = (
        "no text" if reply.first_piece_seconds is None else f"the first piece after {reply.first_piece_seconds:.2f} s"
    )
    log.info(
        "%s (%s) replied at attempt %d: %s, %d pieces in %.2f s, usage %s, finish reason %s.",
        *(reply.provider, reply.model, reply.attempts, first, pieces, reply.seconds, reply.usage, reply.finish_reason),
    )


def _checked(limits: Limits) -> Limits:
    validation.checked_seconds(limits.seconds, "deadline")
    if limits.cancel is not None and not isinstance(limits.cancel, CancelToken):
        raise InvalidRequest(f"cancel is of type {type(limits.cancel).__name__}, not CancelToken")
    return limits


def _encoded(payload: dict[str, Any]) -> bytes:
    try:
        return json.dumps(payload, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise InvalidRequest("a message holds half of a surrogate pair, which is no text") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"the options or messages are no JSON: {error}") from None
