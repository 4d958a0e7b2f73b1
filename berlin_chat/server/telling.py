"""What clients are told of an upstream's error: what happened, but not where the upstream lives, and never its key."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Collection, Iterator
from urllib.parse import urlsplit

from ..errors import AllProvidersFailed, APIStatusError, AuthenticationError, ChatError, InvalidRequest, RateLimitError
from .faults import Refused
from .web import Stream

#: The longest time that a client is sent away for, in seconds: a day.
MAX_RETRY_AFTER = 86_400
#: Errors whose ``detail`` is what the upstream says to whoever asks it; that of the others tells of the way to it.
_IN_ITS_WORDS = (APIStatusError, AuthenticationError, RateLimitError)
_UPSTREAM = "the upstream"
_ADDRESS = re.compile(r"https?://[^\s'\"<>()]+", re.IGNORECASE)

log = logging.getLogger("berlin_chat.server")


def told(error: ChatError) -> str:
    """Returns the words for the client; the log has all of it."""
    if isinstance(error, InvalidRequest) and error.provider is None:  # the messages were looked at here
        return str(error)
    log.warning("the upstream failed: %s", " ".join(str(error).split()))
    return f"upstream: {_words(error)}"


def _words(error: ChatError) -> str:
    if isinstance(error, AllProvidersFailed) and error.errors:
        return "every provider failed: " + "; ".join(dict.fromkeys(map(_words, error.errors)))
    said = [_ADDRESS.sub(_UPSTREAM, str(error.args[0])) if error.args else ""]
    if isinstance(error, _IN_ITS_WORDS):
        said.append(error.detail)
    text = ": ".join(filter(None, said)) or type(error).__name__
    for place in sorted(set(_places(error.url or "")), key=len, reverse=True):
        text = re.sub(rf"(?<![\w.-]){re.escape(place)}(?![\w-])", _UPSTREAM, text, flags=re.IGNORECASE)
    return text


def _places(url: str) -> Iterator[str]:
    """The ways in which a text may name where a server is."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return
    if host:
        yield from (url, f"{parts.scheme}://{parts.netloc}{parts.path}", f"{parts.scheme}://{parts.netloc}")
        yield from (parts.netloc, host)


def refusal(error: ChatError) -> Refused:
    """Returns an error of the upstream, as a gateway answers it."""
    refused = error.errors if isinstance(error, AllProvidersFailed) else (error,)
    if refused and all(isinstance(one, InvalidRequest) for one in refused):
        status = 400
    elif isinstance(error, RateLimitError):
        status = 429
    elif isinstance(error, TimeoutError):
        status = 504
    else:  # 407 is between us and our proxy
        status = error.status if error.status and 400 <= error.status < 600 and error.status != 407 else 502
    return Refused(status, told(error), _retry_after(error))


class Silenced:
    """A body that is sent piece by piece, without the upstream's secrets."""

    def __init__(self, body: Stream, secrets: Collection[bytes]) -> None:
        self._body = body
        self._secrets = secrets

    def __iter__(self) -> Iterator[bytes]:
        for data in self._body:
            yield _silenced(data, self._secrets)

    def close(self) -> None:
        self._body.close()


def without_secrets(body: bytes | Stream, secrets: Collection[bytes]) -> bytes | Stream | Silenced:
    """Returns what is sent, without these words: an upstream may repeat what it was sent, in its answers too.

    One that tears a secret apart and sends it in two pieces means it, and could as well send it backwards.
    """
    if not secrets:
        return body
    return _silenced(body, secrets) if isinstance(body, bytes) else Silenced(body, secrets)


def _silenced(data: bytes, secrets: Collection[bytes]) -> bytes:
    for secret in secrets:
        data = data.replace(secret, b"***")
    return data


def _retry_after(error: ChatError) -> dict[str, str]:
    """Whole seconds, as far as what the upstream says can be waited for."""
    seconds = error.retry_after if isinstance(error, RateLimitError) else None
    if seconds is None or math.isnan(seconds) or seconds < 0:
        return {}
    return {"Retry-After": str(math.ceil(min(seconds, MAX_RETRY_AFTER)))}
