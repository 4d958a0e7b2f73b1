"""Lines of JSON that say how they are to be asked: with a model and options of their own, and OpenAI's requests."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from threading import Lock
from typing import Any

from ..errors import InvalidRequest
from ..messages import Messages, as_list
from ..provider import Provider
from ..reply import Reply
from .description import described
from .keys import key_bytes, number_of, written
from .places import Places

ENDPOINT = "/v1/chat/completions"
#: Arguments of ours that are no part of any protocol.
_OURS = frozenset(Provider.stream.__kwdefaults__ or ())
#: What a request says of its transport, which is ours to choose: a reply is always streamed, and kept whole.
_STREAMING = ("stream", "stream_options")
_ROLES_OF_SYSTEM = ("system", "developer")


def checked_options(options: Any) -> dict[str, Any]:
    """Returns the options of a question, in which there is none of our own settings; raises InvalidRequest."""
    if not isinstance(options, Mapping):
        raise InvalidRequest(f"the options are of type {type(options).__name__}, not an object")
    for name in options:
        if name in _OURS:
            raise InvalidRequest(
                f"{name!r} is a setting of this program, and no option of a question: leave it out; see --help"
                " for what can be set"
            )
        if name in ("messages", "model", "prompt", *_STREAMING):
            raise InvalidRequest(f"{name!r} is no option of a question: it has a place of its own, or is set here")
    if options.get("n") not in (None, 1):
        raise InvalidRequest(f"'n' is {options['n']!r}, but one reply is kept for each line")
    return dict(options)


def _checked_model(model: Any) -> str | None:
    if not isinstance(model, (str, type(None))):
        raise InvalidRequest(f"'model' is of type {type(model).__name__}, not a string")
    return model


# Lines with a prompt


def prompt_in(value: Any) -> Messages:
    """The prompt in one JSON value, with a model and options where it has its own; raises InvalidRequest."""
    own = {}
    if isinstance(value, dict) and "content" not in value:
        own = {name: value[name] for name in ("model", "options") if value.get(name) is not None}
        value = value.get("messages", value.get("prompt"))
    as_list(value)
    _checked_model(own.get("model"))
    checked_options(own.get("options", {}))
    return {"messages": value, **own} if own else value


# OpenAI's requests


class Refused(dict[str, Any]):
    """A line that is not asked, with its ``custom_id`` as far as it has one, and why."""


def is_request(value: Any) -> bool:
    """Whether it is one of the requests of a batch file."""
    return isinstance(value, dict) and "custom_id" in value and "body" in value


def requests_in(text: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Yields the request in each line, or a :class:`Refused`."""
    known = Places()
    for number, line in enumerate(text, 1):
        if not line.strip():
            continue
        name = None
        try:
            value = json.loads(line)
            name = _custom_id(value)
            if known.mark(number_of(0, key_bytes(name))):
                raise InvalidRequest(f"the custom_id {name!r} came before")
            _check_request(value)
        except (ValueError, RecursionError) as error:  # InvalidRequest is a ValueError, too
            yield Refused(custom_id=name, line=number, error=f"line {number}: {error}")
        else:
            yield value


def _custom_id(value: Any) -> str:
    if not isinstance(value, dict) or not isinstance(value.get("custom_id"), str):
        raise InvalidRequest('a request must have a "custom_id", which is a string')
    name = value["custom_id"]
    try:
        return str(written(name))
    except InvalidRequest:
        raise InvalidRequest(f"the custom_id {name!r:.100} is no text that a file can hold") from None


def _check_request(value: dict[str, Any]) -> None:
    url, body = value.get("url", ENDPOINT), value.get("body")
    if url != ENDPOINT:
        raise InvalidRequest(f"only {ENDPOINT} is spoken here, not {url!r}")
    if not isinstance(body, dict):
        raise InvalidRequest('a request must have a "body", which is an object')
    as_list(body.get("messages", []))
    _checked_model(body.get("model"))
    checked_options(_options_of(body))


def _options_of(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in ("messages", "model", *_STREAMING)}


class ByCustomId:
    """Requests with their keys, for ``keyed``: each is known by its ``custom_id``."""

    def __init__(self, requests: Any) -> None:
        self._requests = requests

    def __length_hint__(self) -> int:
        return self._requests.__length_hint__()  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[tuple[Any, Messages]]:
        # The key of a line that is refused is none that another can have.
        for place, request in enumerate(self._requests):
            yield ("refused", place) if isinstance(request, Refused) else request["custom_id"], request


class Asker(Provider):
    """Asks each line of a file through another provider, with what the line and the command say.

    Args:
        provider: whom to ask.
        system: the system message of prompts that have none.
        options: of each question; a line's own model and options come before these.
        address: what a checkpoint knows the provider's by, where it is not its own.

    Attributes:
        asked: how many questions were sent off.
        tokens: how many the replies have cost, as far as the server counts them.
    """

    name = "asker"

    def __init__(
        self, provider: Provider, system: str | None, options: Mapping[str, Any], address: str | None = None
    ) -> None:
        self._provider = provider
        self._system = system
        self._options = options
        self._address = address
        self._lock = Lock()
        self.asked, self.tokens = 0, 0

    def check_address(self) -> None:
        """As the provider's."""
        self._provider.check_address()

    def described(self, model: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what is asked of whom, as far as it is the same for all lines."""
        description = described(self._provider, model, {**options, **self._options})
        own = {"address": self._address, "system": self._system}
        return {**description, **{name: value for name, value in own.items() if value is not None}}

    def ask(self, messages: Messages, model: str | None = None, **limits: Any) -> Reply:
        """Asks one line."""
        messages, own_model, options = parts_of(messages)
        with self._lock:
            self.asked += 1
        given = {**limits, **self._options, **options}
        reply = self._provider.ask(self._with_system(messages), own_model or model, **given)
        with self._lock:
            self.tokens += _tokens(reply.usage or {})
        return reply

    def _with_system(self, messages: Messages) -> Messages:
        if self._system is None:
            return messages
        whole = as_list(messages)
        if any(message["role"] in _ROLES_OF_SYSTEM for message in whole):
            return whole
        return [{"role": "system", "content": self._system}, *whole]


def _tokens(usage: Mapping[str, Any]) -> int:
    total, *parts = [usage.get(f"{kind}_tokens") for kind in ("total", "prompt", "completion")]
    return sum(number for number in ([total] if total else parts) if isinstance(number, int))


def parts_of(prompt: Any) -> tuple[Messages, str | None, dict[str, Any]]:
    """Returns the messages, the model and the options of a line. Raises InvalidRequest for one that is refused."""
    if isinstance(prompt, Refused):
        raise InvalidRequest(prompt["error"])
    if is_request(prompt):
        body = prompt["body"]
        return body["messages"], body.get("model"), _options_of(body)
    if isinstance(prompt, dict) and "messages" in prompt:
        return prompt["messages"], prompt.get("model"), prompt.get("options", {})
    return prompt, None, {}
