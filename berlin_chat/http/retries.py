"""What is tried again, how often, and how long to wait: one tenacity policy, made of small values."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from math import isfinite
from time import time
from typing import TYPE_CHECKING, Any

import requests

from ..errors import APIConnectionError, APITimeoutError, ChatError
from ..process import importing

if TYPE_CHECKING:
    from tenacity import RetryCallState, Retrying

#: Statuses that say "not now", as opposed to "never".
TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
#: The first wait, and the longest wait without a word from the server, in seconds.
FIRST_WAIT, LONGEST_WAIT = 0.25, 8.0
#: The longest ``Retry-After`` that is obeyed, in seconds.
LONGEST_RETRY_AFTER = 60.0
#: What it may be beside a date; the standard has no fractions, but some servers do.
_SECONDS = re.compile(r"[0-9]+(\.[0-9]*)?")


def is_transient(error: BaseException) -> bool:
    """Whether the same request may well succeed a moment later.

    No connection (but for a bad certificate), a connection that was closed before the answer, and the
    statuses 408, 425, 429, 500, 502, 503, 504.
    """
    if isinstance(error, APIConnectionError) and error.status is None:
        return not _chain_has(error, ssl.SSLCertVerificationError)
    if isinstance(error, APITimeoutError):
        return isinstance(error.__cause__, requests.ConnectTimeout)
    return isinstance(error, ChatError) and error.status in TRANSIENT_STATUSES


def _chain_has(error: BaseException | None, kind: type[BaseException]) -> bool:
    while error is not None:
        if isinstance(error, kind):
            return True
        error = error.__cause__ or error.__context__
    return False


def retry_policy(
    retries: int, sleep: Callable[[float], None], fleeting: Callable[[BaseException], bool] = is_transient
) -> Retrying:
    """Returns the policy for a request that nothing has been read of yet.

    Args:
        retries: how often it is tried again; 0 for never.
        sleep: waits so many seconds; an exception that it raises ends the retries.
        fleeting: whether the same may well succeed a moment after that error.
    """
    # Imported at the first request: it takes an event loop's import with it where tornado is installed.
    with importing:
        from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential, wait_random

    backoff = wait_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT) + wait_random(0, FIRST_WAIT)

    def wait(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.retry_after if isinstance(error, ChatError) else None
        # pragma: no mutate - anything will do in the place of 0.0 that is less than the other wait
        return max(backoff(state), min(asked or 0.0, LONGEST_RETRY_AFTER))

    return Retrying(
        retry=retry_if_exception(fleeting),
        stop=stop_after_attempt(retries + 1),
        wait=wait,
        sleep=sleep,
        reraise=True,
    )


def retry_after(headers: Any) -> float | None:
    """Returns the seconds that a ``Retry-After`` header asks for (RFC 9110, section 10.2.3), else None.

    >>> retry_after({"Retry-After": "3"})
    3.0
    """
    value = (headers.get("Retry-After") or "").strip()
    if not value:
        return None
    try:
        seconds = float(value) if _SECONDS.fullmatch(value) else _seconds_until(value)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return seconds if isfinite(seconds) else None


def _seconds_until(date: str) -> float:
    return max(parsedate_to_datetime(date).timestamp() - time(), 0.0)
