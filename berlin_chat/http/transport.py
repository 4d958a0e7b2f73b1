"""One question's way over the network, and the connections that a provider's questions share."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import requests
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.exceptions import ClosedPoolError

from ..cancellation import Limits
from ..decoding import document
from ..errors import APIConnectionError, ChatError
from ..process import after_fork, at_exit
from ..redaction import Redactor, secrets_in_cookies, secrets_in_headers, secrets_in_session
from ..validation import Headers, Settings, Timeout
from .connections import Owner, Session, StaleConnection, close_pool, working_for
from .encodings import decompressed
from .failures import causes, explanation, page_error, status_error
from .responses import READ_SIZE, limited, peeked, reader, start_of
from .retries import is_transient, retry_policy
from .sessions import as_it_is, make_ready

#: How much of an error's body is read, in bytes, and for how long, in seconds: its status has come already.
ERROR_READ, ERROR_SECONDS = 64 * 1024, 1.0
#: How long, and how much, is read after the end marker so that the connection can be used again.
DRAIN_SECONDS, DRAIN_BYTES = 0.05, 64 * 1024

#: How a body begins that is a reply although it is labelled as a web page.
NO_PAGE = (b"{", b":", b"data:", b"event:", b"id:", b"retry:", b"error:")

T = TypeVar("T")
log = logging.getLogger("berlin_chat")


class Transport:
    """The connections of one provider, shared by all threads that use it.

    There is no lock: the session and the set of its pools are made with the object, and anew in a child process;
    exchanges under way stand in a set, which one call at a time changes. ``close()`` interrupts them and closes the
    connections, but not a session of the caller's. So does the end of the process.

    Args:
        settings: how to connect.
        secrets: knows what must not be told.
    """

    def __init__(self, settings: Settings, secrets: Redactor) -> None:
        self.settings = settings
        self.secrets = secrets
        self.closed = False
        self.reset()
        after_fork(self)
        at_exit(self)

    def reset(self) -> None:
        """Starts afresh: in a new object, and in a child process, where the connections are the parent's."""
        for exchange in getattr(self, "_live", ()):
            exchange.leave_to_parent()
        self._live: set[Exchange] = set()
        self._pools: set[HTTPConnectionPool] = set()
        self.session = self.settings.session or Session(self.settings.pool_size, self._pools)
        # The last that were sent, for they are secrets. pragma: no mutate - any number will do that is large enough
        self.cookies: deque[str] = deque(maxlen=100)

    def exchange(self, limits: Limits, settings: Settings) -> Exchange:
        """Returns the context in which one question is asked; ``close()`` interrupts it."""
        exchange = Exchange(self, limits, settings)
        self._live.add(exchange)
        if self.closed:
            exchange.stop()
        return exchange

    def ended(self, exchange: Exchange) -> None:
        """Takes an exchange that has ended from those under way."""
        self._live.discard(exchange)
        if self.closed:
            self.close()  # again, for what was opened behind its back

    def close(self) -> None:
        """Interrupts what is under way, and closes the connections. A second call does nothing."""
        self.closed = True
        for exchange in self._live.copy():
            exchange.stop()
        if self.settings.session is None:
            for pool in self._pools.copy():  # otherwise they close when nothing refers to them, such as a traceback
                close_pool(pool)
            self.session.close()

    end = close

    def clean(self, error: ChatError, headers: Headers) -> None:
        """Takes all secrets out of an error, those in a question's headers and all cookies included."""
        kept = (cookie.value or "" for cookie in self.session.cookies)
        more = [*kept, *secrets_in_cookies(self.cookies), *secrets_in_headers(headers)]
        self.secrets.clean(error, [*more, *secrets_in_session(self.session)])

    def report(self, exchange: Exchange, refusal: ChatError | None, seconds: float) -> None:
        """Logs that an exchange waits for its next attempt, and why."""
        if refusal is not None:
            self.clean(refusal, exchange.settings.headers)
            url = self.secrets.redact(exchange.url or "")
            log.warning("%s: %s. Attempt %d follows in %.1f s.", url, refusal, exchange.attempts, seconds)

    def send(
        self, exchange: Exchange, method: str, url: str, headers: Headers, body: bytes | None
    ) -> requests.Response:
        """Sends one request over an interruptible connection; raises whatever requests raises."""
        while True:
            try:
                return self._send(exchange, method, url, headers, body)
            except requests.ConnectionError as error:
                if not any(isinstance(cause, (ClosedPoolError, StaleConnection)) for cause in causes(error)):
                    raise
                # Its pool was closed before it was used, or the connection was no longer good, so nothing was sent. An
                # exchange that is not over by that, such as one that deletes, goes on with another.
                exchange.check()

    def _send(
        self, exchange: Exchange, method: str, url: str, headers: Headers, body: bytes | None
    ) -> requests.Response:
        session, proxy, verify = self.session, self.settings.proxy, self.settings.verify
        proxies = {} if proxy is None else {"http": proxy, "https": proxy}
        try:
            with working_for(exchange):
                # A header of None takes away the session's, as in requests.
                how: Any = {"headers": headers, "data": body, "auth": session.auth or as_it_is}
                request = session.prepare_request(requests.Request(method, url, **how))
                if (cookies := str(request.headers.get("Cookie", ""))) and cookies not in self.cookies:
                    self.cookies.append(cookies)
                # requests' own default is left to the session, which may be the caller's.
                settings = session.merge_environment_settings(
                    url, proxies, True, None if verify is True else verify, self.settings.cert
                )
                if session is self.settings.session:
                    make_ready(session, request, settings)
                # Redirects are not followed: nothing is sent to an address that the caller did not choose.
                # pragma: no mutate - neither session would follow one
                answer = session.send(request, timeout=_time_left(exchange), allow_redirects=False, **settings)
                if log.isEnabledFor(logging.DEBUG):
                    log.debug("%s %s: %d", method, self.secrets.redact(url), answer.status_code)
                return answer
        except Exception:
            raise
        except BaseException:  # Ctrl-C, at any bytecode of requests and urllib3
            self._distrust(session)
            raise

    def _distrust(self, session: requests.Session) -> None:
        """Gives the next question fresh connections, and locks that nobody holds."""
        if self.settings.session is None and self.session is session:
            old, self._pools = self._pools, set()
            self.session = Session(self.settings.pool_size, self._pools)
            self.session.cookies.update(session.cookies)
            for pool in old:
                close_pool(pool)

    def release(self, response: requests.Response) -> None:
        """Closes the connection of a reply that was not read to its end. A finalizer may call it at any moment."""
        response.raw.close()
        if self.settings.session is None:
            _release(response)
        else:  # a pool that may have a lock, which this very thread may hold
            with contextlib.suppress(RuntimeError):  # the interpreter is shutting down and starts no more threads
                threading.Thread(target=_release, args=[response], daemon=True).start()


class Exchange(Owner):
    """One question's use of the network, from its first request to the last byte of its reply.

    A context manager that belongs to the thread that reads the reply. Others may call ``stop`` and ``wake``; so may a
    signal handler, and the garbage collector may end it at any bytecode of any thread: it has no lock, and what
    it shares is changed by one atomic call each. Whatever was opened in it is closed at its end.

    A protocol's ``pieces`` uses ``post`` and ``chunks``; ``request``, ``json`` and ``drain`` are for those that need
    more. Errors raised here are completed, and freed of secrets, by the provider.

    Attributes:
        attempts: how often the question was sent, counting retries.
        url: what was asked last.
        headers: of the last answer.
        ended: whether it is over.
    """

    def __init__(self, transport: Transport, limits: Limits, settings: Settings) -> None:
        super().__init__(limits, settings.timeout[1])
        self.transport = transport
        self.settings = settings
        self.attempts = 1
        self.url: str | None = None
        self.headers: Mapping[str, str] = {}
        self.ended = False
        self._response: requests.Response | None = None
        self._ahead: Iterator[bytes] | None = None  # the body of that response, whose start was looked at
        self._refusal: ChatError | None = None  # why there is a next attempt

    def __enter__(self) -> Exchange:
        if self.limits.cancel is not None:
            self.limits.cancel.watch(self, self.stop)
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()
        if self.limits.cancel is not None:
            self.limits.cancel.unwatch(self)
        self.ended = True
        self._refusal = None
        self.transport.ended(self)

    def leave(self) -> None:
        """Closes the response at hand, and lets go of its connection."""
        response, self._response = self._response, None
        if response is not None:
            self.transport.release(response)
        self.take_socket()

    def _read_to_end(self, response: requests.Response) -> None:
        """Gives the connection back, unless somebody is about to shut it down."""
        self.check()  # an interrupted connection looks like the end of a body
        self._response = None
        if self.take_socket() is None and self._stopped:
            self.transport.release(response)
        else:
            _release(response)

    # Requests

    def post(self, path: str, body: bytes | Mapping[str, Any], **how: Any) -> requests.Response:
        """Sends JSON, and returns the answer; its other arguments are those of ``request``."""
        return self.request("POST", path, body, **how)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | Mapping[str, Any] | None = None,
        *,
        headers: Headers | None = None,
        accept: tuple[int, ...] = (),
        any_label: bool = False,
    ) -> requests.Response:
        """Returns the answer to a request, its body still unread, after as many retries as are allowed.

        Args:
            path: below the provider's ``base_url``, such as ``"/api/completions"``; or a whole address.
            body: as it is sent, or a mapping, which is sent as JSON.
            headers: the protocol's; the caller's own come before them. JSON is announced by itself.
            accept: statuses whose answers are taken as they are, beside all others from 200 to 299.
            any_label: takes JSON and events for what they are although they are labelled as a web page.

        Raises:
            ChatError: no connection, a status that is an error, or a web page instead of a reply.
        """
        url = f"{self.settings.base_url}{path}" if path.startswith("/") else path
        headers = {**(headers or {}), **self.settings.headers}
        if body is not None:
            headers = {"Content-Type": "application/json", **headers}
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.retried(lambda: self._send(method, url, headers, body, accept, any_label), is_transient)

    def retried(self, attempt: Callable[[], T], fleeting: Callable[[BaseException], bool]) -> T:
        """Returns what an attempt gives, made again while its error is a fleeting one and retries are left."""
        try:
            return attempt()
        except ChatError as error:
            left = self.settings.retries + 1 - self.attempts
            # pragma: no mutate - only spares the policy, which comes to the same
            if left < 1 or not fleeting(error):
                raise
            first = [error]

        def again() -> T:
            try:
                if first:
                    raise first.pop()  # that attempt has been made
                return attempt()
            except ChatError as error:
                self._refusal = error
                raise

        return retry_policy(left, self._wait_to_retry, fleeting)(again)

    def _wait_to_retry(self, seconds: float) -> None:
        self.attempts += 1
        if self.reused and isinstance(self._refusal, APIConnectionError):
            seconds = 0.0  # a server may close a kept connection just when it is used again, and be well
        self.transport.report(self, self._refusal, seconds)
        self.sleep(seconds, self._refusal)
        if self.limits.limiter is not None:
            self.limits.limiter.wait(lambda seconds: self.sleep(seconds, self._refusal))

    def _send(
        self, method: str, url: str, headers: Headers, body: bytes | None, accept: tuple[int, ...], any_label: bool
    ) -> requests.Response:
        self.leave()
        self.check()
        self.url, self._ahead, self.headers, self.reused = url, None, {}, False
        try:
            response = self._response = self.transport.send(self, method, url, headers, body)
        except Exception as error:
            if failure := self._failure(error):
                raise failure from error
            raise
        status, self.headers = response.status_code, response.headers
        if status in accept:
            return response
        if status // 100 != 2:
            refusal = status_error(response, self.said(response))
            if status == 429 and self.limits.limiter is not None:
                self.limits.limiter.refused(refusal.retry_after)
            raise refusal
        if "text/html" in response.headers.get("Content-Type", "").lower():
            start = b""
            if any_label:
                start, self._ahead = peeked(self.chunks(response))
            if not start.startswith(NO_PAGE):
                raise page_error(response, self.said(response))
        return response

    # Bodies

    def chunks(self, response: requests.Response) -> Iterator[bytes]:
        """Yields the body's bytes as they arrive, whatever the framing and the content encoding.

        This is what ``iter_content`` is for, done with ``read1``: ``iter_content(n)`` waits for n bytes of a
        body without chunked encoding, and ``iter_content(None)`` for its end.

        Raises:
            StreamInterrupted: the body ended before its end.
            APITimeoutError, Cancelled, ProtocolError: as their names say.
        """
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            return ahead
        read, encoding = reader(response)
        received, most = self._received(response, read), self.settings.max_reply_bytes
        if encoding != "identity":  # much may hold nothing
            received = self._decompressed(limited(received, most), encoding, response.headers)
        return limited(received, most)

    def _received(self, response: requests.Response, read: Callable[[int], bytes]) -> Iterator[bytes]:
        while True:
            # pragma: no mutate - only spares a read, which would come to the same
            if self._stopped:
                self.check()
            try:
                data = read(READ_SIZE)
            except Exception as error:
                if failure := self._failure(error):
                    raise failure from error
                raise
            if not data:
                break
            yield data
        self._read_to_end(response)

    def _decompressed(self, received: Iterator[bytes], encoding: str, headers: Mapping[str, str]) -> Iterator[bytes]:
        for data in decompressed(received, encoding, "Content-Length" in headers or "Transfer-Encoding" in headers):
            yield data
            self.check()  # much may come of little

    def json(self, response: requests.Response) -> dict[str, Any]:
        """Returns the body's JSON object; raises ProtocolError where it holds none, or is endless."""
        return document(self.chunks(response))

    def said(self, response: requests.Response, body: Iterator[bytes] | None = None) -> bytes:
        """Returns the start of a body that tells of an error, or what of it comes soon enough.

        Args:
            body: what ``chunks`` gave, where some of it was read.

        Raises:
            Cancelled: in the meantime.
        """
        body = self.chunks(response) if body is None else body
        start = start_of(body, response, self, ERROR_SECONDS, ERROR_READ)
        if self._stopped:
            self.check()
        return start

    def drain(self, response: requests.Response, rest: Iterator[bytes] | None = None) -> bytes:
        """Reads what follows the end of a reply, so that the connection is used again, and returns it.

        A server that has more to say, or keeps the body open, does not keep the caller waiting: then the
        connection is closed instead.

        Args:
            rest: what ``chunks`` gave, where some of the body was read.
        """
        rest = self.chunks(response) if rest is None else rest
        return start_of(rest, response, self, DRAIN_SECONDS, DRAIN_BYTES)

    # Errors

    def _failure(self, error: Exception) -> ChatError | None:
        """The error to raise for one of requests, urllib3 or the socket; None for a fault of ours."""
        try:
            self.check()  # an interrupted read fails in many ways
        except ChatError as interrupted:
            return interrupted
        return explanation(error, self.settings.timeout)


def _release(response: requests.Response) -> None:
    """Gives the connection back. What stands in for an answer, such as vcrpy 8's for Python 3.10, may have none."""
    release = getattr(response.raw, "release_conn", None)
    if release is not None:
        release()


def _time_left(exchange: Exchange) -> Timeout:
    """The timeouts of the next request, within the deadline."""
    connect, read = exchange.settings.timeout
    if exchange.deadline is None:
        return connect, read
    return exchange.deadline.left(connect) or 0.001, exchange.deadline.left(read) or 0.001
