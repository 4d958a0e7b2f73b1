"""The client of OpenAI's package, over any provider of this library."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from typing import Any, Literal, overload

from ..errors import InvalidRequest
from ..messages import Messages
from ..provider import Provider
from ..providers import provider_class
from ..providers.openai import OpenAICompatible
from ..validation import checked_headers
from .chunk import Stream
from .completion import ChatCompletion, completion
from .credentials import credential
from .shapes import Shape, plain

#: Stands for an argument that was not given, where None means something.
NOT_GIVEN: Any = object()
#: Seconds to connect, and between two reads: a completion that comes in one piece is silent until it is whole.
DEFAULT_TIMEOUT = (10.0, 600.0)
#: What ``create`` does not take, and what to do instead.
_REFUSED = {
    "function_call": "give tool_choice=",
    "functions": "give tools=, which came after it",
    "extra_query": "give default_query= to the client",
    "headers": "give extra_headers=",
    "limiter": "ask_many limits the rate of a batch",
    "retries": "use with_options(max_retries=…)",
}


class Client:
    """What ``openai.OpenAI`` is, as far as chat completions go.

    Any number of threads may share it. It is a context manager, and ``close`` closes the provider if the client made
    it.

    Args:
        base_url: the server's address; otherwise from ``BERLIN_CHAT_OPENAI_URL`` or ``BERLIN_CHAT_URL``.
        api_key: otherwise from ``BERLIN_CHAT_API_KEY``, and never from ``OPENAI_API_KEY``: a key belongs to the server
            that it was made for, and this client asks any.
        provider: another provider than :class:`~berlin_chat.OpenAICompatible`: an instance, a class or a name.
        timeout: seconds, ``(connect, read)``, or an ``httpx.Timeout``; None for no limit. By default 10 s to connect
            and 600 s between two reads, or what the provider has that you gave.
        max_retries: how often a request is tried again before the first piece; 2, or the provider's own.
        default_headers: headers to add, or to replace; a value of None leaves one out.
        default_query: stands behind the ``?`` of each address.

    Raises:
        InvalidRequest: an argument is wrong.

    >>> from berlin_chat.server import LocalServer
    >>> with LocalServer() as server, Client(base_url=f"{server.url}/v1", api_key="none") as client:
    ...     done = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hi"}])
    >>> done.choices[0].message.content[-2:]
    'Hi'
    """

    def __init__(
        self,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        provider: Provider | type[Provider] | str | None = None,
        timeout: Any = NOT_GIVEN,
        max_retries: int | None = None,
        default_headers: Mapping[str, str | None] | None = None,
        default_query: Mapping[str, str] | None = None,
    ) -> None:
        settings = _settings(timeout, max_retries, default_headers)
        self._owned = not isinstance(provider, Provider)
        if isinstance(provider, Provider):
            for name, value in (("base_url", base_url), ("api_key", api_key), ("default_query", default_query)):
                if value is not None:
                    raise InvalidRequest(f"{name} is a setting of the provider that you gave: make it with that")
            self.provider, self._settings = provider, settings
            return
        cls = provider_class(provider) if isinstance(provider, str) else provider or OpenAICompatible
        if not (isinstance(cls, type) and issubclass(cls, Provider)):
            raise InvalidRequest(f"provider is of type {type(cls).__name__}: give an instance, a class or a name")
        given = {"base_url": base_url, "params": default_query}
        given = {name: value for name, value in given.items() if value is not None}
        given |= credential(cls, api_key, "api_key")
        try:
            self.provider, self._settings = cls(**{"timeout": DEFAULT_TIMEOUT, **settings, **given}), {}
        except TypeError as error:
            raise InvalidRequest(f"{cls.__name__} cannot be made from these arguments: {error}") from None

    @property
    def base_url(self) -> str | None:
        """The server's address, without ``/v1``."""
        return self.provider.base_url

    @property
    def chat(self) -> Chat:
        """What ``client.chat.completions`` is reached by."""
        return Chat(self)

    @property
    def models(self) -> Models:
        """What lists the models."""
        return Models(self)

    def with_options(
        self,
        *,
        timeout: Any = NOT_GIVEN,
        max_retries: int | None = None,
        default_headers: Mapping[str, str | None] | None = None,
    ) -> Client:
        """Returns a client with other settings, and the same connections, which this one closes."""
        other = copy(self)
        other._owned = False
        other._settings = _joined(self._settings, _settings(timeout, max_retries, default_headers))
        return other

    def close(self) -> None:
        """Closes the provider, unless it was given."""
        if self._owned:
            self.provider.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(provider={self.provider!r})"


class Chat:
    """``client.chat``."""

    def __init__(self, client: Client) -> None:
        self.completions = Completions(client)


class Completions:
    """``client.chat.completions``."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @overload
    def create(
        self, *, messages: Messages, model: str | None = None, stream: Literal[False] | None = None, **options: Any
    ) -> ChatCompletion: ...
    @overload
    def create(
        self, *, messages: Messages, model: str | None = None, stream: Literal[True], **options: Any
    ) -> Stream: ...
    @overload
    def create(
        self, *, messages: Messages, model: str | None = None, stream: bool, **options: Any
    ) -> ChatCompletion | Stream: ...
    def create(
        self,
        *,
        messages: Messages,
        model: str | None = None,
        stream: bool | None = None,
        n: int | None = None,
        stream_options: Mapping[str, Any] | None = None,
        timeout: Any = NOT_GIVEN,
        extra_headers: Mapping[str, str | None] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> ChatCompletion | Stream:
        """Asks, and returns a completion, or with ``stream=True`` its chunks.

        Args:
            messages: as in ``Provider.stream``; messages of earlier completions among them.
            model: otherwise the provider's.
            n: 1, for a completion has one choice here.
            stream_options: ``{"include_usage": True}`` tells the usage at the end of a stream.
            timeout: for this question, as in the constructor.
            extra_headers: for this question, beside the client's.
            extra_body: merged into the JSON that is sent, after all else.
            options: the protocol's own, such as ``tools``; also ``deadline`` and ``cancel``, as in ``Provider.stream``.

        Raises:
            InvalidRequest: before anything is sent: an option does not exist, or not here.
            ChatError: those of ``Provider.stream``; while the chunks are read, too.
        """
        for name in _REFUSED.keys() & options.keys():
            raise InvalidRequest(f"{name} is not taken here: {_REFUSED[name]}")
        if n not in (None, 1):
            raise InvalidRequest("n asks for several choices, of which one would be kept: ask several times")
        if not isinstance(stream, (bool, type(None))):
            raise InvalidRequest(f"stream is of type {type(stream).__name__}, not bool")
        provider, counted = self._client.provider, False
        if stream_options is not None:
            if not isinstance(stream_options, Mapping):
                raise InvalidRequest(f"stream_options is of type {type(stream_options).__name__}, not a mapping")
            counted = bool(stream_options.get("include_usage"))
            if provider.known_options is None:  # the other protocols count nothing
                options["stream_options"] = dict(stream_options)
        settings = _joined(self._client._settings, _settings(timeout, None, extra_headers))
        asked = {**plain(options), **settings, "extra_body": extra_body}
        if stream:
            return Stream(provider.open(plain(messages), model, **asked), model or provider.model, counted)
        return completion(provider.ask(plain(messages), model, **{**asked, **provider.unstreamed}))


class Model(Shape):
    """A model. The protocols tell its name only."""

    id: str
    created: int
    object: str
    owned_by: str


class SyncPage(Shape, data=Model.of):
    """The models of a server: ``data``, or a ``for`` loop."""

    data: list[Model]
    object: str

    def __iter__(self) -> Iterator[Model]:
        return iter(self.data)


class Models:
    """``client.models``."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self) -> SyncPage:
        """Asks for the models that the server has.

        Raises:
            InvalidRequest: the protocol has no list of them.
            ChatError: those of ``Provider.models``.
        """
        names: Iterable[str] = self._client.provider.models(**self._client._settings)
        data = [{"id": name, "created": 0, "object": "model", "owned_by": ""} for name in names]
        return SyncPage.of({"data": data, "object": "list"})


def _settings(timeout: Any, retries: int | None, headers: Mapping[str, str | None] | None) -> dict[str, Any]:
    """The settings that were given, by the names that a question has for them."""
    settings: dict[str, Any] = {}
    if timeout is None:
        settings["timeout"] = (None, None)
    elif timeout is not NOT_GIVEN:
        parts = hasattr(timeout, "connect") and hasattr(timeout, "read")  # an httpx.Timeout
        settings["timeout"] = (timeout.connect, timeout.read) if parts else timeout
    if retries is not None:
        settings["retries"] = retries
    if headers is not None:
        settings["headers"] = checked_headers(headers)
    return settings


def _joined(settings: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Those for one question: headers are added, all else is replaced."""
    both = {**settings, **more}
    if "headers" in settings and "headers" in more:
        both["headers"] = {**settings["headers"], **more["headers"]}
    return both
