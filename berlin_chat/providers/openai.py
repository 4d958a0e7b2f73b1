"""OpenAICompatible: OpenAI's chat completions, as model servers speak them. ``PROTOCOLS.md``, "OpenAICompatible"."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlencode, urlsplit

import requests

from ..completions import ENDS, Completion
from ..configuration import Configuration
from ..errors import APIStatusError, APITimeoutError, InvalidRequest, ProtocolError, StreamInterrupted
from ..http.transport import Exchange
from ..provider import Provider
from ..reply import Event, Metadata
from ..validation import checked_count, checked_header, checked_params

if TYPE_CHECKING:
    from typing_extensions import Unpack

#: What no error needs to hide of what stands behind the ``?``.
_NO_SECRET = ("api-version", "api_version", "version")
#: The longest event that is read unless the caller says otherwise, in bytes: an image is one.
MAX_EVENT = 16 * 2**20


class OpenAIConfiguration(Configuration, total=False):
    """What :class:`Ylokh` passes on."""

    api_key: str | None
    params: Mapping[str, str] | None
    max_event_bytes: int


class OpenAICompatible(Provider):
    """A server of OpenAI's chat completions: Ollama, llama.cpp, vLLM, LM Studio, LiteLLM, Azure and many more.

    Args:
        base_url: the server's address as its documentation gives it, with or without ``/v1``; its other arguments are
            those of :class:`Provider`.
        api_key: sent as a bearer token; otherwise from ``BERLIN_CHAT_API_KEY``. None for servers without keys.
        params: stand behind the ``?`` of each address, such as Azure's ``{"api-version": "2024-10-21"}``. A key is
            better given in ``headers``: addresses are told by urllib3's own log, and by servers' logs.
        end: what proves that a streamed reply is whole: ``"finish_reason"``; ``"done"``, for servers whose ``[DONE]``
            must be enough; ``"close"``, for those that send neither.
        max_event_bytes: the longest event of a stream that is read.

    >>> OpenAICompatible(base_url="http://127.0.0.1:11434/v1", model="llama3")
    OpenAICompatible(base_url='http://127.0.0.1:11434', model='llama3')
    """

    name = "openai"
    default_model = "gpt-3.5-turbo"
    supports_message_history = True
    supports_gpt_35_turbo = True
    needs = "nothing; an API key where the server wants one"
    unstreamed: ClassVar[dict[str, Any]] = {"stream": False}

    #: What is sent beside messages and model unless the question says otherwise.
    defaults: ClassVar[dict[str, Any]] = {"stream": True, "stream_options": {"include_usage": True}}

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        params: Mapping[str, str] | None = None,
        end: str = "finish_reason",
        max_event_bytes: int = MAX_EVENT,
        **configuration: Unpack[Configuration],
    ) -> None:
        super().__init__(base_url, **configuration)
        if self.base_url is not None and urlsplit(self.base_url).path in ("/v1", "/v1/chat/completions"):
            self.base_url = self.base_url.removesuffix("/chat/completions").removesuffix("/v1")
        self._api_key = self.credential("api_key", api_key)
        checked_header(self._api_key, "api_key")
        if not isinstance(end, str) or end not in ENDS:
            raise InvalidRequest(f"end must be one of {', '.join(map(repr, ENDS))}")
        self._end = end
        self._max_event = checked_count(max_event_bytes, "max_event_bytes", 1)
        #: Where its endpoints are: below ``/v1`` unless the address has a path. And the headers that it is sent.
        self._api = f"{self.base_url}{'' if urlsplit(self.base_url).path else '/v1'}".removesuffix("/chat/completions")
        self._headers = {"Authorization": f"Bearer {self._api_key}"} if self._api_key else {}
        params = checked_params(params)
        self._query = f"?{urlencode(params)}" if params else ""
        self._secrets.add(*(value for name, value in params.items() if name not in _NO_SECRET))
        self._configuration.update(params=params, end=end, max_event_bytes=max_event_bytes)
        # Whether the server takes stream_options; None until it has answered. Set by whoever learns it first.
        self._counts: bool | None = None

    def payload(self, messages: list[dict[str, Any]], model: str, options: dict[str, Any]) -> dict[str, Any]:
        return {"messages": messages, "model": model, **self.defaults, **options}

    def checked_payload(self, payload: dict[str, Any]) -> dict[str, Any]:
        if payload.get("n") not in (None, 1):
            raise InvalidRequest("n asks for several replies in one: ask several times, by ask_many([prompt] * n)")
        ours = payload.get("stream_options") is self.defaults.get("stream_options")
        if ours and (self._counts is False or not payload.get("stream")):
            payload = {name: value for name, value in payload.items() if name != "stream_options"}
        return payload

    def pieces(
        self, exchange: Exchange, body: bytes, model: str, metadata: Metadata
    ) -> Generator[str | Event, None, None]:
        response = self._ask(exchange, body)
        completion, chunks = Completion(metadata, self._max_event), exchange.chunks(response)
        try:
            yield from completion.read(chunks)
            if completion.done:
                completion.after(exchange.drain(response, chunks))
        except (StreamInterrupted, APITimeoutError):
            if not completion.finished or exchange.interrupted:
                raise
        yield from completion.finish(self._end)

    def model_names(self, exchange: Exchange) -> list[str]:
        answer = exchange.json(exchange.request("GET", f"{self._api}/models{self._query}", headers=self._headers))
        names: list[Any] = []
        if isinstance(found := answer.get("data"), list):
            names = [isinstance(model, dict) and model.get("id") for model in found]
        if not isinstance(found, list) or not all(isinstance(name, str) and name for name in names):
            raise ProtocolError("a list of models without data[].id", detail=str(answer), status=200)
        return names

    def _ask(self, exchange: Exchange, body: bytes) -> requests.Response:
        address, how = f"{self._api}/chat/completions{self._query}", {"headers": self._headers, "any_label": True}
        try:
            response = exchange.post(address, body, **how)
            if self._counts is None and b'"stream_options"' in body:
                self._counts = True
            return response
        except APIStatusError as error:
            question, ours = json.loads(body), self.defaults.get("stream_options")
            refused = error.status in (400, 422) and ours and question.pop("stream_options", None) == ours
            # Servers have many words for a field that they do not know. Once one has taken it, it is something else.
            if not refused or self._counts:
                raise
            exchange.attempts += 1
            response = exchange.post(address, question, **how)
            self._counts = False
            return response
