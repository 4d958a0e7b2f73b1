"""Ylokh: OpenAI's chat completions, as model servers speak them. ``PROTOCOLS.md``, section "Ylokh"."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, ClassVar

from ..decoding import events, parse
from ..errors import APIStatusError, APITimeoutError, ProtocolError, StreamInterrupted
from ..http.failures import event_error
from ..http.transport import Exchange
from ..provider import Provider
from ..reply import Metadata
from ..validation import checked_header


class Ylokh(Provider):
    """A server of OpenAI's chat-completions protocol: Ollama, llama.cpp, vLLM, LiteLLM and many more.

    Args:
        base_url: the server's address, with or without ``/v1`` at its end; its other arguments are those of
            :class:`Provider`.
        api_key: sent as a bearer token; otherwise from ``BERLIN_CHAT_API_KEY``. None for servers without keys.

    >>> Ylokh(base_url="http://127.0.0.1:11434/v1", model="llama3")
    Ylokh(base_url='http://127.0.0.1:11434', model='llama3')
    """

    name = "ylokh"
    url = "https://chat.ylokh.xyz"
    default_model = "gpt-3.5-turbo"
    supports_message_history = True
    supports_gpt_35_turbo = True
    needs = "nothing; an API key where the server wants one"
    unstreamed: ClassVar[dict[str, Any]] = {"stream": False}

    #: The hosted service had its API at another address than its page.
    api_url = "https://chatapi.ylokh.xyz"

    def __init__(self, base_url: str | None = None, *, api_key: str | None = None, **configuration: Any) -> None:
        super().__init__(base_url, **configuration)
        if self.base_url is not None:
            self.base_url = self.base_url.removesuffix("/v1")
        self._api_key = self.credential("api_key", api_key)
        checked_header(self._api_key, "api_key")

    def payload(self, messages: list[dict[str, Any]], model: str, options: dict[str, Any]) -> dict[str, Any]:
        return {
            "messages": messages,
            "model": model,
            "temperature": 1,
            "presence_penalty": 0,
            "top_p": 1,
            "frequency_penalty": 0,
            "allow_fallback": True,
            "stream": True,
            **options,
        }

    def pieces(self, exchange: Exchange, body: bytes, model: str, metadata: Metadata) -> Generator[str, None, None]:
        headers = {"Origin": self.base_url, "Referer": f"{self.base_url}/"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        api = self.api_url if self.base_url == self.url else self.base_url
        response = exchange.post(f"{api}/v1/chat/completions", body, headers=headers)
        if "json" in response.headers.get("Content-Type", ""):  # a plain completion, asked for or not
            yield from _completion(exchange.json(response), metadata)
            return
        try:
            for data in events(exchange.chunks(response)):
                if data == b"[DONE]":
                    exchange.drain(response)
                    return
                if text := _delta(data, metadata):
                    yield text
        except (StreamInterrupted, APITimeoutError):
            if metadata.finish_reason is None or exchange.interrupted:
                raise
        if metadata.finish_reason is None:
            raise StreamInterrupted("the stream ended without [DONE] or a finish_reason")


def _delta(data: bytes, metadata: Metadata) -> str | None:
    """The text of one event; notes in ``metadata`` what else it says."""
    try:
        chunk = parse(data)
        choices = chunk["choices"]
        if choices:
            choice = choices[0]
            text = choice["delta"].get("content")
            if not text or choice.get("finish_reason") is not None:
                metadata.finish_reason = choice.get("finish_reason") or metadata.finish_reason
                metadata.usage = chunk.get("usage") or metadata.usage
            if metadata.model is None:
                metadata.model = chunk.get("model")
            if text.__class__ is str or text is None:
                return text
        elif choices is not None and "error" not in chunk:
            metadata.usage = chunk.get("usage") or metadata.usage
            return None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        pass
    raise event_error(data, "choices[0].delta.content")


def _completion(completion: dict[str, Any], metadata: Metadata) -> Iterator[str]:
    """The text of a completion that came in one piece."""
    body = str(completion)
    if completion.get("error"):
        said = completion["error"]
        said = said.get("message", said) if isinstance(said, dict) else said
        raise APIStatusError("the server says", detail=str(said), status=200, body=body)
    try:
        choice = completion["choices"][0]
        text = choice["message"]["content"]
        if not isinstance(text, (str, type(None))):
            raise TypeError
    except (KeyError, TypeError, IndexError):
        raise ProtocolError(
            "a completion without choices[0].message.content", detail=body, status=200, body=body
        ) from None
    metadata.finish_reason = choice.get("finish_reason")
    metadata.model = completion.get("model")
    metadata.usage = completion.get("usage")
    if text:
        yield text
