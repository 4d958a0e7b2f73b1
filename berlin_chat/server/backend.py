"""What answers behind the protocols of one server, how fast, and who may ask."""

from __future__ import annotations

import errno
import hmac
import json
import logging
from collections.abc import Iterator, Mapping
from functools import partial
from hashlib import sha256
from inspect import signature
from typing import Any

from ..cancellation import CancelToken, Deadline
from ..errors import ChatError, InvalidRequest, ProtocolError
from ..groups.group import Group
from ..live import LiveReply
from ..messages import as_list, as_text
from ..provider import Provider
from ..reply import Event, Reply
from .faults import Broken
from .replies import Replies

#: What is an argument of a provider's ``stream``, and no option of a protocol: a client must not set it.
OURS = set(signature(Provider.stream).parameters) - {"options"}
#: Options that ask for more than one text, each with the value by which it does not.
BEYOND_TEXT: dict[str, Any] = {"tools": [], "functions": [], "n": 1, "logprobs": False, "modalities": ["text"]}
#: Options without which the text would be another thing than was asked for, likewise.
FORMS: dict[str, Any] = {
    "response_format": {"type": "text"},
    "web_search_options": None,
    **dict.fromkeys(("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")),
    **dict.fromkeys(("grammar", "json_schema", "format")),
}
#: How long the upstream may take to list its models, in seconds.
LIST_PATIENCE = 3.0

log = logging.getLogger("berlin_chat.server")


class Backend:
    """Shared by all replies of a server, each in its own thread: nothing in it changes but by ``close``.

    Args:
        upstream: what answers: a provider, or any object with a provider's ``stream``, which answers in text.
        delay: seconds before each piece.
        password: who does not know it is not authorized; None authorizes everybody.
        replies: what is said instead of asking the upstream; None for nothing.
    """

    def __init__(self, *, upstream: Any, delay: float, password: str | None, replies: Replies | None = None) -> None:
        self.password = password
        self._replies = replies
        self._upstream = upstream
        self._delay = delay
        self._cancel = CancelToken()

    def close(self) -> None:
        """Ends all replies: their waits, and what they ask upstream."""
        self._cancel.cancel()

    def is_authorized(self, password: Any) -> bool:
        """Whether the password is right, where one is needed."""
        if self.password is None:
            return True
        if not isinstance(password, str):
            return False
        # Of digests, for compare_digest tells by its time whether the lengths are the same. What JSON brings may hold
        # half of a surrogate pair.
        given, right = (sha256(word.encode("utf-8", "surrogatepass")).digest() for word in (password, self.password))
        return hmac.compare_digest(given, right)

    def log_in(self) -> None:
        """Is told of each login; raises Refused where it is to fail."""
        if self._replies is not None:
            self._replies.log_in()

    @property
    def model(self) -> str:
        """The model that the upstream answers with unless another is asked for, ``""`` where a group has several."""
        return str(getattr(self._upstream, "model", None) or getattr(self._upstream, "default_model", "default"))

    def secrets(self) -> list[bytes]:
        """Returns the upstream's keys and tokens that must not be in an answer, the longest first.

        A short one stays: many servers are given "none" or their own name for a key, and a reply may hold that.
        """
        found = {secret for provider in _providers(self._upstream) for secret in provider._secrets.unmistakable()}
        found |= {json.dumps(secret)[1:-1] for secret in found}  # as it stands in an answer
        return [secret.encode("utf-8", "replace") for secret in sorted(found, key=len, reverse=True)]

    def models(self) -> list[str]:
        """Returns the names of the upstream's models: its own first, then its list, where it gives one in time."""
        names = [self.model] if self.model else []
        deadline = Deadline(LIST_PATIENCE)
        for provider in _providers(self._upstream):
            if provider.base_url is None:
                continue
            try:
                names += provider.models(deadline=max(deadline.left() or 0, 0.001), cancel=self._cancel, retries=0)
            except ChatError as error:
                log.debug("no list of models: %s", type(error).__name__)
        return names

    def answer(
        self,
        messages: Any,
        model: str | None,
        options: dict[str, Any],
        stop: CancelToken | None = None,
        *,
        text_only: bool = True,
    ) -> Answer:
        """Asks the upstream, and waits for the first that comes, so that an error can still be a status.

        Options that the upstream's protocol does not have are left out, unless the answer would be less than what was
        asked for.

        Args:
            model: None for the upstream's own.
            stop: ends this answer alone when it is cancelled.
            text_only: whether the client's protocol has no word for anything but text.

        Raises:
            InvalidRequest: it is asked for more than the client's protocol or the upstream can say.
            ChatError: the upstream's.
            Refused: a reply that was written down says so.
        """
        if clash := OURS & options.keys():
            raise InvalidRequest(f"there is no option {clash.pop()!r}")
        stop = stop or CancelToken()
        ask = partial(self._ask, messages, model, options, stop, text_only)
        if self._replies is None or (reply := self._replies.take()) is None:
            live = ask()
        else:
            live = LiveReply(self._replies.parts(reply, ask, stop.wait), CancelToken())
        return Answer(live, self._delay, stop, self._cancel)

    def _ask(
        self, messages: Any, model: str | None, options: dict[str, Any], stop: CancelToken, text_only: bool
    ) -> LiveReply:
        upstream = self._upstream
        if text_only or not isinstance(upstream, Provider):
            if wished := wish(options, BEYOND_TEXT):
                who = "this protocol" if text_only else "the upstream"
                raise InvalidRequest(f"{wished!r} asks for more than one text, and {who} has no word for more")
            if not isinstance(messages, str):
                messages = [{**message, "content": as_text(message)} for message in as_list(messages)]
        if isinstance(upstream, Provider):
            return upstream.open(messages, model, cancel=stop, **_fitting(options, upstream))
        pieces = iter(upstream.stream(messages, model, **options))
        parts: Any = pieces if hasattr(pieces, "close") else (piece for piece in pieces)
        return LiveReply(parts, CancelToken())


def _providers(upstream: Any) -> Iterator[Provider]:
    """An upstream, or those in a group; none where it is something else that answers."""
    if isinstance(upstream, Group):
        for provider in upstream.providers:
            yield from _providers(provider)
    elif isinstance(upstream, Provider):
        yield upstream


def wish(options: Mapping[str, Any], wishes: Mapping[str, Any]) -> str | None:
    """Returns the first of these options that asks for something."""
    return next((name for name, nothing in wishes.items() if options.get(name) not in (None, nothing)), None)


def _fitting(options: dict[str, Any], upstream: Provider) -> dict[str, Any]:
    """The options that a provider has; raises InvalidRequest where one of the others cannot be left out."""
    known = upstream.known_options
    strange = sorted(options.keys() - known) if known is not None else []
    if not strange:
        return options
    if wished := wish({name: options[name] for name in strange}, {**BEYOND_TEXT, **FORMS}):
        if isinstance(upstream, Group):  # it asks those that have the option
            return options
        raise InvalidRequest(f"the upstream has no option {wished!r}, and cannot answer what was asked without it")
    log.info("left out what %r does not have: %s", upstream, ", ".join(map(repr, strange)))
    return {name: value for name, value in options.items() if name not in strange}


class Answer:
    """One answer of the upstream, read once: as its ``events``, or by a loop over its text.

    Args:
        stop: ends it.
        closing: cancels ``stop``.

    Attributes:
        reply: at the end: the upstream's, or else one of its text.
    """

    def __init__(self, live: LiveReply, delay: float, stop: CancelToken, closing: CancelToken) -> None:
        self._live = live
        self._delay = delay
        self._stop = stop
        self._closing = closing
        closing.watch(self, stop.cancel)
        self._parts = live.events()
        self._broken: Broken | None = None
        self._first: Event | None = None
        try:
            self._first = self._next()
        except Broken as broken:  # no status: it is on the wire that it goes wrong
            self._broken = broken
        except BaseException:
            self.close()
            raise

    @property
    def reply(self) -> Reply:
        return self._live.reply if isinstance(self._live.reply, Reply) else Reply(self._live.text)

    def begin(self) -> None:
        """Raises Broken where it went wrong before anything was said."""
        if self._broken is not None:
            raise self._broken

    def events(self) -> Iterator[Event]:
        """Yields all that the upstream says."""
        self.begin()
        event = self._first
        while event is not None:
            yield event
            event = self._next()

    def __iter__(self) -> Iterator[str]:
        """The text, for protocols that have no word for anything else. A refusal is said in text, too."""
        for event in self.events():
            if event.kind == "tool_call":
                raise ProtocolError("the upstream calls a tool, for which the client's protocol has no word")
            if event.kind != "reasoning":
                yield event.text

    def _next(self) -> Event | None:
        if self._delay:
            self._stop.wait(self._delay)
        if self._stop.cancelled:
            raise ConnectionAbortedError(errno.ECONNABORTED, "the answer was stopped")
        event = next(self._parts, None)
        if event is None:
            self._closing.unwatch(self)
        return event

    def close(self) -> None:
        """Ends the upstream's answer, however much of it was read."""
        self._closing.unwatch(self)
        self._live.close()
