"""H2o: the conversation protocol of chat-ui in 2023. ``PROTOCOLS.md``, section "H2o"."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus
from uuid import uuid4

from ..decoding import events, parse
from ..errors import ChatError, ProtocolError, StreamInterrupted
from ..http.cleanup import RemoteResource, RemoteResources
from ..http.failures import event_error, said_error, settings_advice
from ..http.login import Login
from ..http.responses import peeked
from ..http.transport import Exchange
from ..messages import flatten
from ..provider import Provider
from ..reply import Metadata, Text

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..configuration import Configuration

_ACCEPTED = "ethicsModalAccepted=true&shareConversationsWithModelAuthors=true&ethicsModalAcceptedAt="
_DEFAULTS = {"temperature": 0.4, "truncate": 2048, "max_new_tokens": 1024, "do_sample": True}
_DEFAULTS |= {"repetition_penalty": 1.2, "return_full_text": False}
#: What else text-generation-inference takes: chat-ui hands all of it on.
_FURTHER = """adapter_id best_of decoder_input_details details frequency_penalty grammar seed stop
    top_k top_n_tokens top_p typical_p watermark"""
_OPTIONS = {"is_retry": False, "use_cache": False, "web_search_id": ""}


class H2o(Provider):
    """A self-hosted chat-ui. Each question has a conversation of its own, which is deleted whatever happens.

    A reply that is not read to its end is stopped on the server, too: the model would go on otherwise. A session's
    cookie that is ``Secure`` is sent back over plain http to this very machine, but to no other; see ``PROTOCOLS.md``,
    section "H2o".

    Args:
        base_url: the server's address; its other arguments are those of :class:`Provider`.

    >>> H2o(base_url="http://127.0.0.1:3000", model="my-model")
    H2o(base_url='http://127.0.0.1:3000', model='my-model')
    """

    name = "h2o"
    url = "https://gpt-gm.h2o.ai"
    default_model = "h2oai/h2ogpt-gm-oasst1-en-2048-falcon-40b-v1"
    known_options = frozenset({*_DEFAULTS, *_FURTHER.split()})

    def __init__(self, base_url: str | None = None, **configuration: Unpack[Configuration]) -> None:
        super().__init__(base_url, **configuration)
        self._settings: Login[object] = Login()
        self._conversations = RemoteResources[str](self._transport, self._delete, self._stop)

    def payload(self, messages: list[dict[str, Any]], model: str, options: dict[str, Any]) -> dict[str, Any]:
        return {
            "inputs": flatten(messages),
            "parameters": {**_DEFAULTS, **options},
            "stream": True,
            "options": {"id": str(uuid4()), "response_id": str(uuid4()), **_OPTIONS},
        }

    def pieces(self, exchange: Exchange, body: bytes, model: str, metadata: Metadata) -> Generator[str, None, None]:
        accepted = self._accept_settings(exchange, model)
        conversation = RemoteResource(self._conversations, exchange, lambda own: self._create(own, model))
        try:
            try:
                path = conversation.create()
            except ChatError as error:
                if error.status != 405:
                    raise
                # The server knows our session no more: it was restarted, or the cookie has expired.
                self._accept_settings(exchange, model, stale=accepted)
                path = conversation.create()
            conversation.at_work = True
            response = exchange.post(path, body, headers=self._headers())
            start, chunks = peeked(exchange.chunks(response))
            if start.startswith(b"{"):  # no event begins like that
                raise said_error(exchange.said(response, chunks))
            told = Text()
            for data in events(chunks):
                text, ended = _token(data)
                text = told.feed(text)
                if ended:
                    break
                if text:
                    yield text
            else:
                raise StreamInterrupted("the stream ended without generated_text")
            conversation.at_work = False
            if text := text + ("\ufffd" if told.held else ""):
                yield text
            exchange.drain(response)
        except ChatError as error:
            conversation.at_work &= error.status in (None, 200)  # else the server has refused the question
            raise
        finally:
            conversation.delete()

    def close(self) -> None:
        super().close()
        self._conversations.close()

    def _accept_settings(self, exchange: Exchange, model: str, stale: object | None = None) -> object:
        """Posts the settings form, which sets the session's cookie; once for all threads."""

        def post() -> object:
            form = f"{_ACCEPTED}&activeModel={quote_plus(model)}&searchEnabled=true".encode()
            headers = {**self._headers(), "Content-Type": "application/x-www-form-urlencoded"}
            try:
                exchange.drain(exchange.post("/settings", form, headers=headers, accept=(200, 303)))
            except ChatError as error:
                error.advice = settings_advice(error, model, str(self.base_url)) or error.advice
                raise
            return object()

        return self._settings.get(exchange, post, stale)

    def _create(self, exchange: Exchange, model: str) -> str:
        """Makes a conversation, and returns its path."""
        answer = exchange.json(exchange.post("/conversation", {"model": model}, headers=self._headers()))
        conversation = answer.get("conversationId")
        if not isinstance(conversation, str) or not conversation:
            raise ProtocolError("an answer without conversationId", detail=str(answer), status=200)
        return f"/conversation/{quote(conversation, safe='', errors='surrogatepass')}"

    def _stop(self, exchange: Exchange, path: str) -> None:
        exchange.drain(exchange.post(f"{path}/stop-generating", b"", headers=self._headers()))

    def _delete(self, exchange: Exchange, path: str) -> None:
        exchange.drain(exchange.request("DELETE", path, headers=self._headers()))

    def _headers(self) -> dict[str, str | None]:
        return {"Referer": f"{self.base_url}/"}


def _token(data: bytes) -> tuple[str, bool]:
    """The text of one event, and whether it is the last."""
    try:
        event = parse(data)
        token = event["token"]
        text = "" if token["special"] else token["text"]
        if text.__class__ is str:
            return text, event["generated_text"] is not None
    except (ValueError, KeyError, TypeError):
        pass
    raise event_error(data, "a token")
