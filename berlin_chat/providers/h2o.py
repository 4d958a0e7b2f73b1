"""H2o: the conversation protocol of chat-ui in 2023. ``protocols.md``, section "H2o"."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any
from urllib.parse import quote, urlencode
from uuid import uuid4

from ..decoding import events, parse
from ..errors import ChatError, ProtocolError, StreamInterrupted
from ..login import Login
from ..messages import flatten
from ..provider import Provider
from ..reply import Details
from ..transport import Exchange


class H2o(Provider):
    """A self-hosted chat-ui: settings once a session, a conversation a question, which is deleted whatever happens.

    Args:
        base_url: the server's address; its other arguments are those of :class:`Provider`.

    >>> H2o(base_url="http://127.0.0.1:3000", model="my-model")
    H2o(base_url='http://127.0.0.1:3000', model='my-model')
    """

    name = "h2o"
    url = "https://gpt-gm.h2o.ai"
    default_model = "h2oai/h2ogpt-gm-oasst1-en-2048-falcon-40b-v1"

    def __init__(self, base_url: str | None = None, **configuration: Any) -> None:
        super().__init__(base_url, **configuration)
        self._settings: Login[object] = Login()

    def _payload(self, messages: list[dict[str, Any]], model: str, options: dict[str, Any]) -> dict[str, Any]:
        return {
            "inputs": flatten(messages),
            "parameters": {
                "temperature": 0.4,
                "truncate": 2048,
                "max_new_tokens": 1024,
                "do_sample": True,
                "repetition_penalty": 1.2,
                "return_full_text": False,
                **options,
            },
            "stream": True,
            "options": {
                "id": str(uuid4()),
                "response_id": str(uuid4()),
                "is_retry": False,
                "use_cache": False,
                "web_search_id": "",
            },
        }

    def _pieces(
        self, exchange: Exchange, body: bytes, model: str, details: Details
    ) -> Generator[str, None, None]:
        accepted = self._accept_settings(exchange, model)
        conversation = exchange.lease(lambda own: self._create(own, model), self._delete)
        try:
            try:
                address = conversation.obtain()
            except ChatError as error:
                if error.status != 405:
                    raise
                # The server knows our session no more: it was restarted, or the cookie has expired.
                self._accept_settings(exchange, model, stale=accepted)
                address = conversation.obtain()
            response = exchange.open("POST", address, headers=self._json_headers(), body=body)
            exchange.refuse_page(response)
            for data in events(exchange.chunks(response)):
                text, ended = _token(exchange, data)
                if text:
                    yield text
                if ended:
                    exchange.drain(response)
                    return
            raise exchange.error(StreamInterrupted, "the stream ended without generated_text")
        finally:
            conversation.give_back()

    def _accept_settings(self, exchange: Exchange, model: str, stale: object | None = None) -> object:
        """Posts the settings form, which sets the session's cookie; once for all threads."""

        def post() -> object:
            form = {
                "ethicsModalAccepted": "true",
                "shareConversationsWithModelAuthors": "true",
                "ethicsModalAcceptedAt": "",
                "activeModel": model,
                "searchEnabled": "true",
            }
            headers = {**self._protocol_headers(), "Content-Type": "application/x-www-form-urlencoded"}
            response = exchange.open(
                "POST",
                f"{self.base_url}/settings",
                headers={**headers, **self._headers},
                body=urlencode(form).encode(),
                accept=(303,),
            )
            exchange.drain(response)
            return object()

        return self._settings.get(exchange, post, stale)

    def _delete(self, exchange: Exchange, address: str) -> None:
        exchange.drain(exchange.open("DELETE", address, headers=self._protocol_headers()))

    def _create(self, exchange: Exchange, model: str) -> str:
        """Makes a conversation, and returns its address."""
        response = exchange.open(
            "POST",
            f"{self.base_url}/conversation",
            headers=self._json_headers(),
            body=json.dumps({"model": model}).encode(),
        )
        answer = exchange.json(response)
        conversation = answer.get("conversationId")
        if not isinstance(conversation, str) or not conversation:
            raise exchange.error(ProtocolError, f"an answer without conversationId: {answer}", status=200)
        return f"{self.base_url}/conversation/{quote(conversation, safe='')}"

    def _protocol_headers(self) -> dict[str, str | None]:
        return {"Referer": f"{self.base_url}/", **self._headers}

    def _json_headers(self) -> dict[str, str | None]:
        return {"Referer": f"{self.base_url}/", "Content-Type": "application/json", **self._headers}


def _token(exchange: Exchange, data: bytes) -> tuple[str, bool]:
    """The text of one event, and whether it is the last."""
    try:
        event = parse(data)
        token = event["token"]
        text = "" if token["special"] else token["text"]
        if text.__class__ is str:
            return text, event["generated_text"] is not None
    except (ValueError, KeyError, TypeError):
        pass
    raise exchange.event_error(data, "a token")
