"""What answers behind the protocols of one server, how fast, and who may ask."""

from __future__ import annotations

import errno
import hmac
import logging
from collections.abc import Iterator, Mapping
from inspect import signature
from typing import Any

from ..cancellation import CancelToken, Limits
from ..errors import ChatError, InvalidRequest, ProtocolError
from ..groups.group import Group
from ..live import LiveReply
from ..messages import as_list, as_text
from ..provider import Provider
from ..reply import Event, Reply

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
    """

    def __init__(self, *, upstream: Any, delay: float, password: str | None) -> None:
        self.password = password
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
        # What JSON brings may hold half of a surrogate pair.
        return hmac.compare_digest(password.encode("utf-8", "surrogatepass"), self.password.encode())

    @property
    def model(self) -> str:
        """The model that the upstream answers with unless another is asked for."""
        return str(getattr(self._upstream, "model", None) or getattr(self._upstream, "default_model", "default"))

    def models(self) -> list[str]:
        """Returns the names of the upstream's models: its own first, then its list, where it gives one in time."""
        names = [self.model]
        if isinstance(self._upstream, Provider) and self._upstream.base_url is not None:
            transport = self._upstream._transport  # Provider.models has neither deadline nor token
            try:
                with transport.exchange(Limits(LIST_PATIENCE, self._cancel), transport.settings) as exchange:
                    names += self._upstream.model_names(exchange)
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

        Options that the upstream's protocol does not have are left out.

        Args:
            model: None for the upstream's own.
            stop: ends this answer alone when it is cancelled.
            text_only: whether the client's protocol has no word for anything but text.

        Raises:
            InvalidRequest: it is asked for more than the client's protocol or the upstream can say.
            ChatError: the upstream's.
        """
        if clash := OURS & options.keys():
            raise InvalidRequest(f"there is no option {clash.pop()!r}")
        upstream, stop = self._upstream, stop or CancelToken()
        if text_only or not isinstance(upstream, Provider):
            if wished := wish(options, BEYOND_TEXT):
                who = "this protocol" if text_only else "what answers here"
                raise InvalidRequest(f"{wished!r} asks for more than one text, which is all that {who} has")
            if not isinstance(messages, str):
                messages = [{**message, "content": as_text(message)} for message in as_list(messages)]
        if isinstance(upstream, Provider):
            live = upstream.open(messages, model, cancel=stop, **_fitting(options, upstream))
        else:
            pieces = iter(upstream.stream(messages, model, **options))
            parts: Any = pieces if hasattr(pieces, "close") else (piece for piece in pieces)
            live = LiveReply(parts, CancelToken())
        return Answer(live, self._delay, stop, self._cancel)


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
        raise InvalidRequest(f"what answers here has no option {wished!r}, without which it would answer less")
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
        try:
            self._first = self._next()
        except BaseException:
            self.close()
            raise

    @property
    def reply(self) -> Reply:
        return self._live.reply if isinstance(self._live.reply, Reply) else Reply(self._live.text)

    def events(self) -> Iterator[Event]:
        """Yields all that the upstream says."""
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
