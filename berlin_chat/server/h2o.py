"""H2o's endpoints, chat-ui's conversations. ``PROTOCOLS.md``, section "H2o"."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import Any

from ..cancellation import CancelToken
from ..errors import ChatError
from ..providers.h2o import H2o
from .backend import Answer, Backend
from .faults import Refused
from .sessions import Remembered
from .telling import told
from .web import MAX_SMALL, Endpoints, Handler, Request, Response, Stream, checked, is_uuid, json_response, numbers

_SETTINGS = "/settings"

_COOKIE = "hf-chat"
_UNKNOWN = "there is no such conversation"
#: The longest name of a model, in characters.
MAX_NAME = 1000
#: The parameters that have another name upstream, and those that only this protocol has.
_RENAMED = {"max_new_tokens": "max_tokens"}
_OWN = ("truncate", "do_sample", "repetition_penalty", "return_full_text")


class _Conversation:
    def __init__(self, name: str, model: str) -> None:
        self.name = name
        self.model = model
        self.stop = CancelToken()  # of its last answer


class H2oEndpoints(Endpoints):
    name = H2o.name

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self._sessions = Remembered[bool]()
        self._conversations = Remembered[_Conversation]()  # by session and name

    def routes(self) -> list[tuple[str, str, Handler]]:
        return [
            ("POST", _SETTINGS, self.settings),
            ("POST", "/conversation", self.create),
            ("POST", "/conversation/([^/]+)", self.complete),
            ("POST", "/conversation/([^/]+)/stop-generating", self.stop),
            ("DELETE", "/conversation/([^/]+)", self.delete),
        ]

    def admit(self, request: Request) -> int:
        authorized = self.backend.is_authorized(request.bearer_token())
        checked(authorized, "log in first: Authorization: Bearer <the server's password>", 401)
        if request.path == _SETTINGS:
            return MAX_SMALL
        checked(self._sessions.get(request.cookie(_COOKIE) or ""), "accept the settings first", 405)
        return super().admit(request) if request.path.startswith("/conversation/") else MAX_SMALL

    def refusal(self, refused: Refused) -> Response:
        kind = "validation" if refused.status < 500 else "generation"
        kind = "overloaded" if refused.status in (429, 503) else kind
        return json_response({"error": refused.message, "error_type": kind}, refused.status, refused.headers)

    def configuration(self) -> dict[str, Any]:
        return {"headers": {"Authorization": f"Bearer {self.backend.password}"}} if self.backend.password else {}

    def conversations(self) -> list[str]:
        return [conversation.name for conversation in self._conversations.values()]

    def expire(self) -> None:
        self._sessions.clear()
        self._conversations.clear()

    def settings(self, request: Request) -> Response:
        self.backend.log_in()
        form = request.form()
        checked(form.get("ethicsModalAccepted") == "true", "ethicsModalAccepted must be true")
        for field in ("shareConversationsWithModelAuthors", "searchEnabled"):
            checked(form.get(field) in ("true", "false"), f"{field} must be true or false")
        checked("ethicsModalAcceptedAt" in form, "ethicsModalAcceptedAt is missing")
        checked(form.get("activeModel"), "activeModel is missing")
        session = request.cookie(_COOKIE) or ""
        if not self._sessions.get(session):  # only names that were given here
            session = secrets.token_urlsafe(24)
            self._sessions.add(session, True)
        cookie = f"{_COOKIE}={session}; Path=/; HttpOnly; SameSite=Lax"
        headers = {"Location": request.header("Referer") or "/", "Set-Cookie": cookie}
        return Response(303, "text/plain", b"", headers)

    def create(self, request: Request) -> Response:
        model = request.json().get("model")
        checked(isinstance(model, str) and 0 < len(model) <= MAX_NAME, f"model must be a string of up to {MAX_NAME}")
        name = secrets.token_hex(12)
        self._conversations.add(_key(request, name), _Conversation(name, str(model)))
        return json_response({"conversationId": name})

    def complete(self, request: Request, name: str) -> Response:
        conversation = self._conversation(request, name)
        question = request.json()
        prompt: Any = question.get("inputs")
        parameters: Any = question.get("parameters")
        options: Any = question.get("options")
        checked(isinstance(prompt, str) and prompt, "inputs must be a string")
        checked(isinstance(parameters, dict), "parameters must be an object")
        checked(question.get("stream") is True, "stream must be true")
        checked(isinstance(options, dict), "options must be an object")
        for key in ("id", "response_id"):
            checked(is_uuid(options.get(key)), f"options.{key} must be a uuid")
        numbers(parameters, "temperature", "truncate", "max_new_tokens", "repetition_penalty")
        wanted = {_RENAMED.get(key, key): value for key, value in parameters.items() if key not in _OWN}
        model = None if conversation.model == H2o.default_model else conversation.model
        conversation.stop = CancelToken()
        answer = self.backend.answer(prompt, model, wanted, conversation.stop)
        return Response(200, "text/event-stream", Stream(answer, _events(answer)), {"Cache-Control": "no-cache"})

    def stop(self, request: Request, name: str) -> Response:
        self._conversation(request, name).stop.cancel()
        return Response(200, "text/plain", b"")

    def delete(self, request: Request, name: str) -> Response:
        checked(self._conversations.pop(_key(request, name)), _UNKNOWN, 404)
        return json_response({})

    def _conversation(self, request: Request, name: str) -> _Conversation:
        conversation = self._conversations.get(_key(request, name))
        if conversation is None:
            raise Refused(404, _UNKNOWN)
        return conversation


def _key(request: Request, name: str) -> str:
    """A conversation belongs to its session: under another one it is unknown."""
    return f"{request.cookie(_COOKIE)} {name}"


def _events(answer: Answer) -> Iterator[str]:
    text = []
    try:
        for piece in answer:
            text.append(piece)
            yield _event(len(text), piece)
    except ChatError as error:
        yield f"data: {json.dumps({'error': told(error), 'error_type': 'generation'})}\n\n"
        return
    yield _event(0, "</s>", special=True, generated_text="".join(text))


def _event(number: int, text: str, special: bool = False, generated_text: str | None = None) -> str:
    token = {"id": number, "text": text, "logprob": 0.0, "special": special}
    event = {"token": token, "generated_text": generated_text, "details": None}
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"
