"""Keeping passwords, keys, tokens and cookies out of errors and of what led to them."""

from __future__ import annotations

import encodings.utf_16_be  # noqa: F401 - now, for a codec is imported where it is first used, which no fork waits for
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies

from .errors import BODY_KEPT, SHOWN, ChatError, InvalidRequest, start

#: What a header is called whose value is a secret.
_SECRET_HEADER = re.compile("auth|cookie|key|password|secret|session|signature|token", re.IGNORECASE)
#: A text may break off inside a secret: from so many characters on, its beginning is one too.
_TELLING = 4
#: A secret of so many characters is no word that anybody would write for another reason.
_LONG = 16
_HIDDEN = "***"
#: For how many secrets it is remembered how to find them.
_KEPT = 100
_ENTITIES = {'"': "quot", "&": "amp", "'": "apos", "<": "lt", ">": "gt"}


def is_secret(name: str, value: str) -> bool:
    """Whether a header's or a field's value is a secret, by its name."""
    return bool(value and _SECRET_HEADER.search(name))


def secrets_in_headers(headers: Mapping[str, str | None]) -> Iterator[str]:
    """Yields the values of headers such as ``Authorization`` and ``X-Api-Key``, with and without ``Bearer``."""
    for name, value in headers.items():
        if value and is_secret(name, value):
            yield value
            yield value.rpartition(" ")[2]
            if name.lower() == "cookie":
                yield from secrets_in_cookies([value])


def secrets_in_cookies(headers: Iterable[str]) -> Iterator[str]:
    """Yields the values in ``Cookie`` headers."""
    for pair in "; ".join(headers).split("; "):
        yield pair.partition("=")[2]


def secrets_in_address(address: str | None) -> Iterator[str]:
    """Yields what tells the password in a proxy's address: itself, and what is sent of it."""
    try:
        parts = urlsplit(address or "")
    except ValueError:
        return
    if parts.password:
        password = unquote(parts.password)
        yield from (parts.password, password, *_basic(unquote(parts.username or ""), password))


def secrets_in_session(session: Any) -> Iterator[str]:
    """Yields those that a session of ``requests`` has of its own: in its headers, its proxies, its ``auth``."""
    yield from secrets_in_headers(session.headers)
    yield from chain.from_iterable(map(secrets_in_address, session.proxies.values()))
    given = session.auth if isinstance(session.auth, tuple) else [getattr(session.auth, "password", None)]
    if given and isinstance(given[-1], str):
        yield from (given[-1], *_basic(getattr(session.auth, "username", given[0]), given[-1]))


def _basic(user: Any, password: str) -> Iterator[str]:
    """What is sent of a name and a password: requests writes Latin-1, others UTF-8."""
    for encoding in ("latin-1", "utf-8"):
        yield b64encode(f"{user}:{password}".encode(encoding, "replace")).decode()


def secrets_in_fields(value: Any) -> Iterator[str]:
    """Yields the texts in what JSON can hold; not the shortest, which any error may show."""
    if isinstance(value, str) and len(value) >= _TELLING:
        yield value
    elif isinstance(value, (dict, list)):
        yield from chain.from_iterable(map(secrets_in_fields, value.values() if isinstance(value, dict) else value))


class Redactor:
    """Takes secrets out of texts. Shared by all threads: its set only grows, by one call of ``set.update`` at a time.

    >>> redactor = Redactor()
    >>> redactor.add("sesame", "sesame-2")
    >>> redactor.redact("sesame-2 and sesame")
    '*** and ***'
    """

    def __init__(self) -> None:
        self._secrets: set[str] = set()
        self._patterns: dict[str, _Secret] = {}  # made at the first error, for they take their time

    def add(self, *secrets: str | None) -> None:
        """Makes them known, from then on."""
        self._secrets.update(filter(None, secrets))

    def unmistakable(self) -> tuple[str, ...]:
        """Returns the secrets that no text holds by chance: those that are long, with a digit, and so are no word."""
        return tuple(
            secret for secret in self._secrets.copy() if len(secret) >= _LONG and any(map(str.isdigit, secret))
        )

    def redact(self, text: str, more: Iterable[str] = (), torn: bool = False) -> str:
        """Returns the text without anything that is secret, in whatever way it is written.

        Args:
            more: secrets of this moment, such as cookies.
            torn: the text may break off inside a secret, whose beginning is taken out too.
        """
        # The longest first: one may begin like another.
        for secret in sorted({*self._secrets, *filter(None, more)}, key=len, reverse=True):
            pattern = self._patterns.get(secret) or self._patterns.setdefault(secret, _Secret(secret))
            text = pattern.whole.sub(_HIDDEN, text)
            if torn and (beginning := pattern.torn_at(text)) is not None:
                text = text[:beginning] + _HIDDEN
        for old in list(self._patterns)[:-_KEPT]:  # cookies come and go
            self._patterns.pop(old, None)
        return text

    def clean(self, error: ChatError, more: Iterable[str] = ()) -> None:
        """Takes all secrets out of an error and of its causes, and then cuts what it keeps of the server's words."""
        if isinstance(error, InvalidRequest):  # what cannot be sent may be a secret, and be written in any way
            error.__cause__ = error.__context__ = None
        self._clean(error, {*more, *chain.from_iterable(map(secrets_in_address, getproxies().values()))}, {id(error)})

    def _clean(self, error: BaseException, more: Iterable[str], seen: set[int]) -> None:
        """Does so with the exceptions that a traceback shows above the error's own, too."""
        for link in ("__cause__", "__context__"):
            cause = getattr(error, link)
            if cause is not None and id(cause) not in seen:
                seen.add(id(cause))
                self._clean(cause, more, seen)
            if cause is not None and self._tells(cause, more):  # it keeps its text to itself
                setattr(error, link, None)
        for name in {"request", "response", "pool", "conn"} & vars(error).keys():
            setattr(error, name, None)  # where requests keeps all headers, and urllib3 a proxy's password
        if any(hasattr(arg, "proxy") for arg in error.args):  # a connection of urllib3's
            error.args = tuple(str(arg) if hasattr(arg, "proxy") else arg for arg in error.args)
        if self._tells(error, more):
            error.args = tuple(self.redact(str(arg), more) for arg in error.args)
        if isinstance(error, ChatError):
            error.advice, error.url = self.redact(error.advice, more), error.url and self.redact(error.url, more)
            error.request_id = error.request_id and self.redact(error.request_id, more)
            error.detail = start(self.redact(error.detail, more, torn=True), SHOWN)
            if error.body is not None:
                error.body = start(self.redact(error.body, more, torn=True), BODY_KEPT)

    def _tells(self, error: BaseException, more: Iterable[str]) -> bool:
        shown = f"{error} {error!r} {getattr(error, 'object', '')}"  # what a UnicodeError is about
        return self.redact(shown, more) != shown


def _written(character: str) -> str:
    """A pattern for a character as it is, and as JSON, ``repr``, addresses and HTML write it, also one in the other."""
    code, utf8, utf16 = ord(character), character.encode("utf-8", "replace"), character.encode("utf-16-be", "replace")
    units = [utf16[place : place + 2].hex() for place in range(0, len(utf16), 2)]
    # Each escape may itself be escaped, but only so often: a server must not make this search for hours.
    ways = [
        r"\\{1,8}".join(f"u{unit}" for unit in units),
        rf"U{code:08x}|x{code:02x}",
        r"\\{1,8}".join(f"x{byte:02x}" for byte in utf8),
        "".join(f"%(?:25){{0,4}}{byte:02x}" for byte in utf8),
        rf"&(?:amp;){{0,4}}(?:#0{{0,4}}{code}|#x0{{0,4}}{code:x}|{_ENTITIES.get(character, '#')});",
        *([r"\+"] if character == " " else []),
    ]
    plain = re.escape(character) if character != "\\" else r"\\"
    return rf"\\{{0,8}}(?:{plain}|(?i:{'|'.join(ways)}))"


class _Secret:
    """Finds a secret in a text."""

    def __init__(self, secret: str) -> None:
        self._characters = [re.compile(_written(character)) for character in secret]
        whole = "".join(character.pattern for character in self._characters)
        # What ``re.compile`` makes stays in its cache, and the secret with it, when the provider is gone.
        self.whole: re.Pattern[str] = re.Scanner([(whole, None)], re.UNICODE).scanner  # type: ignore[attr-defined]

    def torn_at(self, text: str) -> int | None:
        """Where the beginning of the secret stands at the end of a text, None where it does not."""
        for beginning in range(max(len(text) - 12 * len(self._characters), 0), len(text)):
            place, count = beginning, 0
            for count, character in enumerate(self._characters[:-1], 1):
                match = character.match(text, place)
                if match is None:
                    count -= 1
                    break
                place = match.end()
            # What is left may be half of an escape.
            if count >= _TELLING and re.fullmatch(r"(?:[\\%&][^\s\\%&]{0,9}|\ufffd)?", text[place:]):
                return beginning
        return None
