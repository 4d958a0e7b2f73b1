"""H2o's endpoints, chat-ui's conversations. ``PROTOCOLS.md``, section "H2o"."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator
from typing import Any

from ..cancellation import CancelToken
from ..errors import ChatError
from ..providers.h2o import H2o
from .backend import Answer, Backend
from .faults import Refused
from .web import Endpoints, Handler, Request, Response, Stream, checked, is_uuid, json_response, numbers

_COOKIE = "hf-chat"
_UNKNOWN = "there is no such conversation"
#: The parameters that have another name upstream, and those that only this protocol has.
_RENAMED = {"max_new_tokens": "max_tokens"}
_OWN = ("truncate", "do_sample", "repetition_penalty", "return_full_text")


class _Conversation:
    def __init__(self, model: str) -> None:
        self.model = model
        self.stop = CancelToken()  # of its last answer


class H2oEndpoints(Endpoints):
    """One lock guards the sessions and their conversations."""

    name = H2o.name

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self._lock = threading.Lock()
        self._sessions: dict[str, dict[str, _Conversation]] = {}  # by session, and by its id

    def routes(self) -> list[tuple[str, str, Handler]]:
        return [
            ("POST", "/settings", self.settings),
            ("POST", "/conversation", self.create),
            ("POST", "/conversation/([^/]+)", self.complete),
            ("POST", "/conversation/([^/]+)/stop-generating", self.stop),
            ("DELETE", "/conversation/([^/]+)", self.delete),
        ]

    def refusal(self, refused: Refused) -> Response:
        kind = "validation" if refused.status < 500 else "generation"
        kind = "overloaded" if refused.status in (429, 503) else kind
        return json_response({"error": refused.message, "error_type": kind}, refused.status, refused.headers)

    def configuration(self) -> dict[str, Any]:
        return {"headers": {"Authorization": f"Bearer {self.backend.password}"}} if self.backend.password else {}

    def conversations(self) -> list[str]:
        with self._lock:
            return [name for session in self._sessions.values() for name in session]

    def expire(self) -> None:
        with self._lock:
            self._sessions.clear()

    def settings(self, request: Request) -> Response:
        self.backend.log_in()
        self._authorize(request)
        form = request.form()
        checked(form.get("ethicsModalAccepted") == "true", "ethicsModalAccepted must be true")
        for field in ("shareConversationsWithModelAuthors", "searchEnabled"):
            checked(form.get(field) in ("true", "false"), f"{field} must be true or false")
        checked("ethicsModalAcceptedAt" in form, "ethicsModalAcceptedAt is missing")
        checked(form.get("activeModel"), "activeModel is missing")
        session = request.cookie(_COOKIE) or ""
        with self._lock:
            if session not in self._sessions:  # only names that were given here
                session = secrets.token_urlsafe(24)
                self._sessions[session] = {}
        cookie = f"{_COOKIE}={session}; Path=/; HttpOnly; SameSite=Lax"
        headers = {"Location": request.header("Referer") or "/", "Set-Cookie": cookie}
        return Response(303, "text/plain", b"", headers)

    def create(self, request: Request) -> Response:
        session = self._session(request)
        model = request.json().get("model")
        checked(isinstance(model, str) and model, "model must be a string")
        conversation = secrets.token_hex(12)
        with self._lock:
            session[conversation] = _Conversation(str(model))
        return json_response({"conversationId": conversation})

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
        session = self._session(request)
        with self._lock:
            conversation = session.pop(name, None)
        checked(conversation is not None, _UNKNOWN, 404)
        return json_response({})

    def _authorize(self, request: Request) -> None:
        authorized = self.backend.is_authorized(request.bearer_token())
        checked(authorized, "log in first: Authorization: Bearer <the server's password>", 401)

    def _session(self, request: Request) -> dict[str, _Conversation]:
        self._authorize(request)
        with self._lock:
            session = self._sessions.get(request.cookie(_COOKIE) or "")
        if session is None:
            raise Refused(405, "accept the settings first")
        return session

    def _conversation(self, request: Request, name: str) -> _Conversation:
        session = self._session(request)
        with self._lock:
            conversation = session.get(name)
        if conversation is None:
            raise Refused(404, _UNKNOWN)
        return conversation


def _events(answer: Answer) -> Iterator[str]:
    text = []
    try:
        for piece in answer:
            text.append(piece)
            yield _event(len(text), piece)
    except ChatError as error:
        yield f"data: {json.dumps({'error': str(error), 'error_type': 'generation'})}\n\n"
        return
    yield _event(0, "</s>", special=True, generated_text="".join(text))


def _event(number: int, text: str, special: bool = False, generated_text: str | None = None) -> str:
    token = {"id": number, "text": text, "logprob": 0.0, "special": special}
    event = {"token": token, "generated_text": generated_text, "details": None}
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"
