"""One question's way over the network: requests, retries, deadlines, cancelling and cleaning up."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from time import monotonic
from types import TracebackType
from typing import Any, Generic, TypeVar, cast

import requests
from requests.adapters import HTTPAdapter
from requests.cookies import RequestsCookieJar
from urllib3.connectionpool import HTTPConnectionPool

from .cancelling import SIGNAL_INTERVAL, CancelToken
from .connections import READ_SIZE, Interruptible, current, make_interruptible, reader
from .decoding import parse, start
from .errors import (
    APIStatusError,
    APITimeoutError,
    Cancelled,
    ChatError,
    ProtocolError,
    StreamInterrupted,
)
from .failures import STATUS_KINDS, Timeout, explanation, reason_in
from .forking import after_fork
from .pace import current_pace
from .retries import retry_after, retry_policy
from .version import __version__

T = TypeVar("T")

#: The user agent of every request, unless the caller gives another.
USER_AGENT = f"berlin-chat/{__version__}"
#: How much of an error's body is read, in bytes, and how much of it an error keeps, in characters.
ERROR_READ, ERROR_KEPT = 64 * 1024, 1000
#: The longest JSON document that is read whole, in bytes.
MAX_DOCUMENT = 64 * 2**20
#: How long, and how much, is read after the end marker so that the connection can be used again.
DRAIN_SECONDS, DRAIN_BYTES = 0.05, 64 * 1024
#: How long cleaning up on the server may take, in seconds.
LAST_TIMEOUT = 5.0
#: How long a caller who was cancelled is kept for the cleaning up, in seconds; it goes on behind them.
LAST_GRACE = 0.1


class _CookieJar(RequestsCookieJar):
    """A cookie jar that threads can share: it is walked through as it was at one moment."""

    def __iter__(self) -> Iterator[Any]:
        with self._cookies_lock:
            return iter(list(super().__iter__()))


def _no_netrc(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """An ``auth`` that adds nothing, lest requests replace our Authorization by one from ~/.netrc."""
    return request


class _Adapter(HTTPAdapter):
    """Notes the pools that it makes: requests only forgets them at its end, so their owner closes them."""

    def __init__(self, pool_size: int, pools: set[HTTPConnectionPool]) -> None:
        super().__init__(pool_connections=4, pool_maxsize=pool_size)
        self._pools = pools

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> HTTPConnectionPool:
        pool = super().get_connection_with_tls_context(*args, **kwargs)
        make_interruptible(pool)
        self._pools.add(pool)
        return pool


def _new_session(pool_size: int, pools: set[HTTPConnectionPool]) -> requests.Session:
    session = requests.Session()
    session.headers["User-Agent"] = USER_AGENT
    # Encodings whose decoders give each flushed piece at once.
    session.headers["Accept-Encoding"] = "gzip, deflate"
    session.auth = _no_netrc
    session.cookies = _CookieJar()
    adapter = _Adapter(pool_size, pools)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


class Transport:
    """The connections of one provider, shared by all threads that use it.

    One lock guards the session and the set of exchanges under way. The session is made at the first request,
    and made anew in a child process after ``fork``. It is closed by ``close()``, unless it is the caller's own.

    Args:
        name: the provider's name, for errors.
        session, proxy, timeout, verify, retries, pool_size: as in ``Provider``.
    """

    def __init__(
        self,
        *,
        name: str,
        session: requests.Session | None,
        proxy: str | None,
        timeout: Timeout,
        verify: bool | str,
        retries: int,
        pool_size: int,
    ) -> None:
        self.name = name
        self.timeout = timeout
        self.retries = retries
        self.closed = False
        self.secrets: set[str] = set()  # what must never be seen in an error
        self._own_session = session
        self._proxies = {} if proxy is None else {"http": proxy, "https": proxy}
        # requests' own default is left to the session, which may be the caller's.
        self._verify = None if verify is True else verify
        self._pool_size = pool_size
        self.forget()
        after_fork(self)

    def forget(self) -> None:
        """Starts afresh: in a new object, and in a child process, where the connections are the parent's."""
        self._lock = threading.Lock()
        self._live: set[Exchange] = set()
        self._pools: set[HTTPConnectionPool] = set()
        self._session = self._own_session

    @property
    def session(self) -> requests.Session:
        """The session of requests; made at the first use."""
        with self._lock:
            if self._session is None:
                self._session = _new_session(self._pool_size, self._pools)
            return self._session

    def exchange(self, deadline: float | None = None, cancel: CancelToken | None = None) -> Exchange:
        """Returns the context in which one question is asked; ``close()`` interrupts it."""
        exchange = Exchange(self, deadline, cancel)
        with self._lock:
            self._live.add(exchange)
            closed = self.closed
        if closed:
            exchange.interrupt(Cancelled)
        return exchange

    def ended(self, exchange: Exchange) -> None:
        """Takes an exchange that was closed from the set of those under way."""
        with self._lock:
            self._live.discard(exchange)
        if self.closed:
            self.close()  # again, for what was opened behind its back

    def close(self) -> None:
        """Interrupts what is under way, and closes the connections. A second call does nothing."""
        with self._lock:
            self.closed = True
            live = list(self._live)
            pools = list(self._pools)
            self._pools.clear()
        for exchange in live:
            exchange.interrupt(Cancelled)
        if self._own_session is None and self._session is not None:
            self._session.close()
            for pool in pools:  # otherwise they close when nothing refers to them, such as a traceback
                pool.close()

    def send(
        self, method: str, url: str, headers: Mapping[str, str | None], body: bytes | None, timeout: Timeout
    ) -> requests.Response:
        """Sends one request over an interruptible connection; raises whatever requests raises."""
        session = self.session
        # A header of None takes away the session's, as in requests.
        request = session.prepare_request(
            requests.Request(method, url, headers=headers, data=body)  # type: ignore[arg-type]
        )
        settings = session.merge_environment_settings(url, dict(self._proxies), True, self._verify, None)
        adapter = session.get_adapter(url)
        if isinstance(adapter, HTTPAdapter) and not isinstance(adapter, _Adapter):  # it is the caller's
            pool = adapter.get_connection_with_tls_context(
                request, settings["verify"], proxies=settings["proxies"], cert=settings["cert"]
            )
            make_interruptible(pool)
        # Redirects are not followed: nothing is sent to an address that the caller did not choose.
        return session.send(request, timeout=timeout, allow_redirects=False, **settings)

    def clean_up(self, take_away: Callable[[Exchange], object]) -> None:
        """Sends a last request, which ``close()`` does not interrupt, within ``LAST_TIMEOUT``; never fails."""
        with contextlib.suppress(ChatError), Exchange(self, retries=0, timeout=LAST_TIMEOUT) as last:
            take_away(last)

    def redact(self, text: str) -> str:
        """Returns the text without anything that is secret."""
        cookies = self._session.cookies if self._session is not None else ()
        for secret in (*self.secrets, *(cookie.value for cookie in cookies)):
            if secret:
                text = text.replace(secret, "***")
        return text


class Exchange:
    """One question's use of the network, from its first request to the last byte of its reply.

    A context manager that belongs to the thread that reads the reply; only ``interrupt`` may be called from
    others, and ``_lock`` guards what the two share. Whatever was opened in it is closed at its end.

    Args:
        transport: whose connections are used.
        deadline: seconds from now in which everything must be done; None for no limit.
        cancel: interrupts it.
        retries: how often a request is tried again; None for as often as the provider says.
        timeout: seconds for connecting, and between two reads; None for those of the provider.
    """

    def __init__(
        self,
        transport: Transport,
        deadline: float | None = None,
        cancel: CancelToken | None = None,
        retries: int | None = None,
        timeout: float | None = None,
    ) -> None:
        self.transport = transport
        self.attempts = 1
        self.url: str | None = None
        self._deadline = deadline
        self._due = monotonic() + deadline if deadline is not None else None
        self._cancel = cancel
        self._alarm: threading.Timer | None = None
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._ended = False
        self._reason: type[ChatError] | None = None
        self._connection: Interruptible | None = None
        self._response: requests.Response | None = None
        self._refusal: ChatError | None = None  # why there is a next attempt
        self._pace = current_pace()
        self._retries = transport.retries if retries is None else retries
        self._timeout: Timeout = transport.timeout if timeout is None else (timeout, timeout)
        self._process = os.getpid()

    def __enter__(self) -> Exchange:
        if self._deadline is not None:
            self.limit(self._deadline)
        if self._cancel is not None:
            self._cancel.watch(self, lambda: self.interrupt(Cancelled))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave()
        if self._cancel is not None:
            self._cancel.unwatch(self)
        with self._lock:
            self._ended = True
        if self._alarm is not None:
            self._alarm.cancel()
            if self._alarm is not threading.current_thread():
                self._alarm.join()
        self._refusal = None
        self.transport.ended(self)

    # Interrupting, and being interrupted

    @property
    def interrupted(self) -> bool:
        """Whether it was cancelled, or its deadline has passed."""
        return self._reason is not None

    def interrupt(self, reason: type[ChatError]) -> None:
        """Ends a blocked read or wait, from any thread; the exchange then raises ``reason``."""
        with self._lock:
            if self._reason is not None:
                return
            self._reason = reason
            connection = self._connection
        if connection is not None:
            connection.interrupt(self)
        self._wake.set()

    def check(self) -> None:
        """Raises Cancelled or APITimeoutError if the exchange was interrupted."""
        if self._reason is Cancelled:
            raise self.error(Cancelled, "the question was cancelled")
        if self._reason is not None or (self._due is not None and monotonic() >= self._due):
            raise self.error(APITimeoutError, f"no whole reply within the deadline of {self._deadline} s")

    def attach(self, connection: Interruptible) -> None:
        """Is told by a connection that it awaits an answer for this exchange."""
        with self._lock:
            before, self._connection = self._connection, connection
            interrupted = self._reason is not None
        if before is not None and before is not connection:
            before.release(self)
        if interrupted:
            raise ConnectionAbortedError("interrupted")

    def _leave(self) -> None:
        """Closes the response at hand, and lets go of its connection."""
        if self._response is not None:
            self._response.close()
            self._response = None
        self._let_go()

    def _let_go(self) -> None:
        """Gives up the connection, which somebody else may use from now on."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.release(self)

    def sleep(self, seconds: float) -> None:
        """Waits before the next attempt; the deadline and a cancel cut it short."""
        self.attempts += 1
        self._pause(seconds)
        if self._pace is not None:
            self._pace.wait(self._pause)

    def _pause(self, seconds: float) -> None:
        self._wake.wait(seconds)
        try:
            self.check()
        except ChatError as interrupted:
            raise interrupted from self._refusal

    def wait_until(self, happened: Callable[[], bool]) -> None:
        """Waits for what another thread does, which then calls ``wake``; a cancel and the deadline end it."""
        while not happened():
            self._wake.wait(SIGNAL_INTERVAL)
            self._wake.clear()
            self.check()

    def wake(self) -> None:
        """Makes ``wait_until`` look again; for any thread."""
        self._wake.set()

    # Requests

    def open(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str | None],
        body: bytes | None = None,
        accept: tuple[int, ...] = (),
    ) -> requests.Response:
        """Returns the answer to a request, its body still unread, after as many retries as are allowed.

        Args:
            accept: statuses beside 2xx that are no error.

        Raises:
            ChatError: of the class that ``design.md`` has for it.
        """
        attempt = retry_policy(self._retries, self.sleep)
        try:
            return attempt(self._open_once, method, url, headers, body, accept)
        finally:
            self._refusal = None

    def lease(self, get: Callable[[Exchange], T], give_back: Callable[[Exchange, T], None]) -> Lease[T]:
        """Returns a handle for what ``get`` makes on the server and ``give_back`` must take away again.

        Args:
            get: makes it, by an exchange of its own.
            give_back: takes it away, likewise.
        """
        return Lease(self, get, give_back)

    def give_back(self, take_away: Callable[[Exchange], object]) -> None:
        """Cleans up on the server: without retries, and without an error however it ends.

        It is done also when the exchange was interrupted. Then its caller, who was promised an end at once,
        waits ``LAST_GRACE`` for it, and it goes on in a thread of its own, for ``LAST_TIMEOUT`` at the most.

        Args:
            take_away: sends the request, by an exchange of its own.
        """
        if os.getpid() != self._process:
            return  # a copy that a fork made: what there is on the server belongs to the parent process
        if sys.is_finalizing():
            return  # a generator that nobody ended in time: no thread starts any more, no module can be imported
        self._leave()
        if not self.interrupted:
            self.transport.clean_up(take_away)
            return
        thread = threading.Thread(target=self.transport.clean_up, args=(take_away,), name="cleaning up")
        try:
            thread.start()
        except RuntimeError:  # the interpreter is shutting down and starts no more threads
            self.transport.clean_up(take_away)
        else:
            thread.join(LAST_GRACE)

    def limit(self, seconds: float) -> None:
        """Gives the exchange so many seconds from now; for any thread, once."""
        alarm = threading.Timer(seconds, self.interrupt, [APITimeoutError])
        alarm.daemon = True
        with self._lock:
            if not self._ended:
                alarm.start()
                self._alarm = alarm

    def _open_once(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str | None],
        body: bytes | None,
        accept: tuple[int, ...],
    ) -> requests.Response:
        self._leave()
        self.check()
        self.url = url
        current.owner = self
        try:
            response = self.transport.send(method, url, headers, body, self._time_left())
        except Exception as error:
            self._refusal = self._failure(error)
            if self._refusal is None:
                raise
            raise self._refusal from error
        finally:
            current.owner = None
        self._response = response
        if 200 <= response.status_code < 300 or response.status_code in accept:
            return response
        self._refusal = self._status_error(response)
        raise self._refusal

    def _time_left(self) -> Timeout:
        """The timeouts of the next request; the alarm ends reads at the deadline, but not connecting."""
        connect, read = self._timeout
        if self._due is not None:
            left = max(self._due - monotonic(), 0.001)
            connect = left if connect is None else min(connect, left)
        return connect, read

    # Bodies

    def chunks(self, response: requests.Response) -> Iterator[bytes]:
        """Yields the body's bytes as they arrive, whatever the framing and the content encoding.

        This is what ``iter_content`` is for, done with ``read1``: ``iter_content(n)`` waits for n bytes of a
        body without chunked encoding, and ``iter_content(None)`` for its end.

        Raises:
            StreamInterrupted: the body ended before its end.
            APITimeoutError, Cancelled, ProtocolError: as their names say.
        """
        read = reader(response.raw)
        while True:
            try:
                data = read(READ_SIZE)
            except Exception as error:
                if mapped := self._failure(error):
                    raise mapped from error
                raise
            if not data:
                break
            yield data
        self.check()  # an interrupted connection looks like the end of a body
        self._let_go()
        response.raw.release_conn()  # as urllib3 does, but for reads that went past it

    def read(self, response: requests.Response, limit: int = MAX_DOCUMENT) -> bytes:
        """Returns the whole body; raises ProtocolError where it is longer than ``limit`` bytes."""
        parts, size = [], 0
        for data in self.chunks(response):
            parts.append(data)
            size += len(data)
            if size > limit:
                raise self.error(ProtocolError, f"a body of more than {limit} bytes")
        return b"".join(parts)

    def json(self, response: requests.Response) -> dict[str, Any]:
        """Returns the body's JSON object; raises ProtocolError where it holds none."""
        body = self.read(response)
        try:
            value = parse(body)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise self.error(
                ProtocolError, "a JSON object was expected", status=response.status_code, body=body
            )
        return value

    def drain(self, response: requests.Response) -> None:
        """Reads what nobody wants, such as what follows the end marker, so that the connection is used again.

        A server that has more to say, or keeps the body open, does not keep the caller waiting: then the
        connection is closed instead.
        """
        wire = getattr(self._connection, "sock", None)
        if wire is None:
            return  # it closes anyway, or there is none
        until, size = monotonic() + DRAIN_SECONDS, 0
        with contextlib.suppress(Exception):  # the reply is complete, whatever happens here
            while size < DRAIN_BYTES and (left := until - monotonic()) > 0:
                wire.settimeout(left)
                data = response.raw.read1(READ_SIZE, decode_content=True)
                if not data:
                    return
                size += len(data)

    # Errors

    def error(
        self,
        kind: type[ChatError],
        message: str,
        *,
        status: int | None = None,
        body: bytes | None = None,
        **context: Any,
    ) -> ChatError:
        """Returns an error that knows where it happened, and holds no secret."""
        redact = self.transport.redact
        return kind(
            redact(message),
            provider=self.transport.name,
            url=self.url,
            status=status,
            body=None if body is None else redact(start(body, ERROR_KEPT)),
            attempts=self.attempts,
            **context,
        )

    def refuse_page(self, response: requests.Response) -> None:
        """Raises ProtocolError where a web page came back instead of a reply."""
        if "text/html" in response.headers.get("Content-Type", "").lower():
            raise self.error(
                ProtocolError,
                "a web page came back, not a reply. Check base_url",
                status=response.status_code,
                body=self.read(response),
            )

    def event_error(self, data: bytes, expected: str) -> ChatError:
        """Returns the error for an event without what was expected: the server's own, where it holds one."""
        try:
            event = parse(data)
        except ValueError:
            return self.error(ProtocolError, "an event that is broken JSON", status=200, body=data)
        if isinstance(event, dict) and event.get("error"):
            return self.error(APIStatusError, f"the server says: {reason_in(data)}", status=200, body=data)
        return self.error(ProtocolError, f"an event without {expected}", status=200, body=data)

    def _failure(self, error: Exception) -> ChatError | None:
        """The error to raise for one of requests, urllib3 or the socket; None for a fault of ours."""
        try:
            self.check()  # an interrupted read fails in many ways
        except ChatError as interrupted:
            return interrupted
        found = explanation(error, self._timeout)
        return self.error(*found) if found else None

    def _status_error(self, response: requests.Response) -> ChatError:
        status = response.status_code
        body = b""
        with contextlib.suppress(StreamInterrupted, ProtocolError):
            for data in self.chunks(response):
                body += data
                if len(body) >= ERROR_READ:
                    break
        message = f"the server answered {status} {response.reason or ''}".rstrip()
        if said := reason_in(body):
            message += f": {said}"
        if 300 <= status < 400:
            target = response.headers.get("Location", "elsewhere")
            message += f". It redirects to {target}, which is not followed: give the right base_url"
            return self.error(ProtocolError, message, status=status, body=body)
        kind, advice = STATUS_KINDS.get(status, (APIStatusError, ""))
        seconds = retry_after(response.headers)
        if status == 429 and self._pace is not None:
            self._pace.refused(seconds)
        return self.error(kind, message + advice, status=status, body=body, retry_after=seconds)


class Lease(Generic[T]):
    """Something on the server that must be given back, however soon the caller leaves. Made by ``Exchange.lease``.

    A request that is cut off leaves something behind that nobody knows of. So ``obtain`` sends it from a thread of
    its own, which no interrupt ends. A caller who leaves before it is answered waits for ``LAST_GRACE`` at the most,
    and the thread takes away what comes, within ``LAST_TIMEOUT``. Call ``give_back`` in a ``finally`` whose ``try``
    begins before ``obtain``: then Ctrl-C finds no gap. ``_lock`` guards who of the two takes it away.
    """

    def __init__(
        self, exchange: Exchange, get: Callable[[Exchange], T], give_back: Callable[[Exchange, T], None]
    ) -> None:
        self._exchange = exchange
        self._get = get
        self._give_back = give_back
        self._lock = threading.Lock()
        self._own: Exchange | None = None
        self._thread: threading.Thread | None = None
        self._ended = False
        self._abandoned = False
        self._value: T | None = None
        self._error: BaseException | None = None

    def obtain(self) -> T:
        """Returns what was made. May be called again after an error."""
        self._ended, self._error = False, None
        self._own = own = Exchange(self._exchange.transport)
        self._thread = threading.Thread(target=self._run, args=(own,), name="obtaining")
        self._thread.start()
        self._exchange.wait_until(lambda: self._ended)
        self._exchange.url = own.url
        self._exchange.attempts = max(self._exchange.attempts, own.attempts)
        if self._error is not None:
            raise self._error
        return cast(T, self._value)

    def _run(self, own: Exchange) -> None:
        value: T | None = None
        try:
            with own:
                value = self._get(own)
        except BaseException as error:
            self._error = error
        with self._lock:
            self._value = value
            self._ended = True
            abandoned = self._abandoned
        if abandoned and value is not None:
            self._exchange.transport.clean_up(lambda last: self._give_back(last, value))
        self._exchange.wake()

    def give_back(self) -> None:
        """Takes away what was made, or leaves that to the thread which is still making it. Never fails."""
        with self._lock:
            self._abandoned = True
            value, ended = self._value, self._ended
        if value is not None:
            self._exchange.give_back(lambda last: self._give_back(last, value))
        elif not ended and self._thread is not None and self._own is not None and self._thread.is_alive():
            self._own.limit(LAST_TIMEOUT)
            self._thread.join(LAST_GRACE)
