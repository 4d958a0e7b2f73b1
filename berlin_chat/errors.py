"""Everything that can go wrong, as exceptions.

All of them derive from :class:`ChatError`, so one ``except ChatError`` is enough; the classes
below it say which kind of failure it was. None of them ever holds a password, key, token or cookie.
"""

from __future__ import annotations

from functools import partial
from typing import Any

#: How much of what a server said is shown in an error's text, and kept as its ``body``, in characters.
SHOWN, BODY_KEPT = 200, 1000


class ChatError(RuntimeError):
    """The base of all errors of this library.

    Attributes:
        provider: the provider's name, such as ``"berlin"``; None where no provider was asked.
        url: the address that was asked, without credentials.
        status: the HTTP status of the answer, None where there was no answer.
        body: the start of the answer's body, None where there was none.
        detail: the server's own words, or the bytes that were wrong, ``""`` where there are none. The error's text
            shows their start.
        advice: what to do about it, ``""`` where nothing is known to help.
        partial: all text that had been received before the error, ``""`` where there was none.
        attempts: how often the question was sent, counting retries.
        retry_after: the seconds that the server asked to wait (``Retry-After``), None where it did not say.
        request_id: the server's name for the request (``X-Request-Id``), None where it did not say.

    The exception that led to it, where there was one, is its ``__cause__``. It can be pickled.
    """

    def __init__(
        self,
        message: str,
        *,
        provider: str | None = None,
        url: str | None = None,
        status: int | None = None,
        body: str | bytes | None = None,
        detail: str | bytes = "",
        advice: str = "",
        partial: str = "",
        attempts: int = 0,
        retry_after: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.provider = provider
        self.url = url
        self.status = status
        self.body = body.decode("utf-8", "replace") if isinstance(body, bytes) else body
        self.detail = detail.decode("utf-8", "replace") if isinstance(detail, bytes) else detail
        self.advice = advice
        self.partial = partial
        self.attempts = attempts
        self.retry_after = retry_after
        self.request_id = request_id

    @property
    def message(self) -> str:
        """The text of the error, by the name that OpenAI's package has for it."""
        return str(self)

    @property
    def status_code(self) -> int | None:
        """The same as ``status``, by the name that OpenAI's package has for it."""
        return self.status

    def __str__(self) -> str:
        place = " at ".join(part for part in (self.provider, self.url) if part)
        message = str(self.args[0]) if self.args else ""
        said = ": ".join(part for part in (place, message, start(self.detail)) if part)
        return f"{said}. {self.advice}" if self.advice else said


class InvalidRequest(ChatError, ValueError):
    """Messages, options or the configuration are wrong. Nothing was sent."""


class ProviderNotWorking(ChatError):
    """There is no base URL, and the hosted service is gone. Nothing was sent."""


class AuthenticationError(ChatError):
    """The login was refused, or the server answered 401 or 403."""


class RateLimitError(ChatError):
    """The server answered 429, also after the retries. See ``retry_after``."""


class APIStatusError(ChatError):
    """The server says that it failed: another 4xx or 5xx, or an error reported inside a 200."""


class APIConnectionError(ChatError):
    """No connection: DNS, refused, TLS or proxy."""


class APITimeoutError(ChatError, TimeoutError):
    """Connecting or reading took longer than ``timeout``, or the whole reply than ``deadline``."""

    # OSError, above TimeoutError, has a constructor of its own, which must make the instance.
    def __new__(cls, message: str = "", **context: Any) -> APITimeoutError:
        return TimeoutError.__new__(cls, message)


class ProtocolError(ChatError):
    """The server does not speak the protocol: an error page, broken JSON, a missing field."""


class StreamInterrupted(ChatError):
    """The reply was cut off. ``partial`` holds what came before."""


class Cancelled(ChatError):
    """The question was cancelled, by a :class:`~berlin_chat.CancelToken` or by ``close()``."""


class TooManySteps(ChatError):
    """The model still called tools when a turn of a ``Conversation`` had run as many rounds of calls as it may."""


class HistoryError(ChatError):
    """A ``History`` could not be read or written: the disk is full, another program has locked the file …

    Where a reply was under way, ``partial`` is what had come of it.
    """


class AllProvidersFailed(ChatError):
    """Every provider of a ``Fallback`` or a ``race`` failed.

    Attributes:
        errors: the error of each provider, in the order of the providers.
    """

    def __init__(self, message: str, *, errors: tuple[ChatError, ...] = (), **context: Any) -> None:
        super().__init__(message, **context)
        self.errors = errors


def tell_in_one_line(error: BaseException, line: str) -> None:
    """Lets a notebook show this line, where it would show all that was under way: one that stops it knows where."""
    vars(error)["_render_traceback_"] = partial(list, [line])  # what IPython calls; it can be pickled


def start(text: str | bytes, length: int = SHOWN) -> str:
    """Returns the start of a body or line, to be shown in an error.

    >>> start(b"a long line", 6)
    'a long\u2026'
    """
    shown = text[:length]
    shown = shown.decode("utf-8", "replace") if isinstance(shown, bytes) else shown
    return shown + "…" if len(text) > length else shown
