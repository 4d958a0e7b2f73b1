"""Keeping passwords, keys, tokens and cookies out of errors and of what led to them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote, quote_plus, unquote, urlsplit
from urllib.request import getproxies

from .errors import BODY_KEPT, SHOWN, ChatError, start

#: What a header is called whose value is a secret.
_SECRET_HEADER = re.compile("auth|cookie|key|password|secret|session|signature|token", re.IGNORECASE)
#: A text may break off inside a secret: from so many characters on, its beginning is one too.
_TELLING = 4
_HIDDEN = "***"


def secrets_in_headers(headers: Mapping[str, str | None]) -> Iterator[str]:
    """Yields the values of headers such as ``Authorization`` and ``X-Api-Key``, with and without ``Bearer``."""
    for name, value in headers.items():
        if value and _SECRET_HEADER.search(name):
            yield value
            yield value.rpartition(" ")[2]


def secret_in_address(address: str | None) -> str:
    """Returns the password in a proxy's address, ``""`` where there is none."""
    try:
        return urlsplit(address or "").password or ""
    except ValueError:
        return ""


class Redactor:
    """Takes secrets out of texts. Shared by all threads: its set only grows, by one call of ``set.update`` at a time.

    >>> redactor = Redactor()
    >>> redactor.add("sesame", "sesame-2")
    >>> redactor.redact("sesame-2 and sesame")
    '*** and ***'
    """

    def __init__(self) -> None:
        self._secrets: set[str] = set()

    def add(self, *secrets: str | None) -> None:
        """Makes them known, from then on."""
        self._secrets.update(filter(None, secrets))

    def redact(self, text: str, more: Iterable[str] = (), torn: bool = False) -> str:
        """Returns the text without anything that is secret, in whatever way it is written.

        Args:
            more: secrets of this moment, such as cookies.
            torn: the text may break off inside a secret, whose beginning is taken out too.
        """
        forms = {form for secret in (*self._secrets, *filter(None, more)) for form in _forms(secret)}
        # The longest first: one may begin like another.
        for form in sorted(forms, key=len, reverse=True):
            text = text.replace(form, _HIDDEN)
            for length in range(min(len(form) - 1, len(text)), _TELLING - 1, -1):
                if torn and text.endswith(form[:length]):
                    text = text[:-length] + _HIDDEN
                    break
        return text

    def clean(self, error: ChatError, more: Iterable[str] = ()) -> None:
        """Takes all secrets out of an error and of its causes, and then cuts what it keeps of the server's words."""
        more = {*more, *_passwords(getproxies().values())}
        error.args = tuple(self.redact(arg, more) if isinstance(arg, str) else arg for arg in error.args)
        error.advice = self.redact(error.advice, more)
        error.detail = start(self.redact(error.detail, more, torn=True), SHOWN)
        if error.body is not None:
            error.body = start(self.redact(error.body, more, torn=True), BODY_KEPT)
        if error.url is not None:
            error.url = self.redact(error.url, more)
        self._clean_causes(error, more, {id(error)})

    def _clean_causes(self, error: BaseException, more: Iterable[str], seen: set[int]) -> None:
        """Does so with the exceptions that a traceback shows above the error's own."""
        for link in ("__cause__", "__context__"):
            cause = getattr(error, link)
            if cause is not None and id(cause) not in seen:
                seen.add(id(cause))
                self._clean_causes(cause, more, seen)
                if self._tells(cause, more):
                    cause.args = tuple(self.redact(str(arg), more) for arg in cause.args)
            if cause is not None and self._tells(cause, more):  # it keeps its text elsewhere
                setattr(error, link, None)

    def _tells(self, error: BaseException, more: Iterable[str]) -> bool:
        shown = f"{error} {error!r}"
        return self.redact(shown, more) != shown


def _passwords(addresses: Iterable[str]) -> Iterator[str]:
    for secret in map(secret_in_address, addresses):
        yield secret
        yield unquote(secret)


def _forms(secret: str) -> Iterator[str]:
    """A secret as it is, and as JSON, ``repr`` and addresses write it."""
    yield secret
    yield json.dumps(secret)[1:-1]
    yield json.dumps(secret, ensure_ascii=False)[1:-1]
    yield repr(secret)[1:-1]
    yield quote(secret)
    yield quote(secret, safe="")
    yield quote_plus(secret)
