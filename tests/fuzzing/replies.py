"""Targets: what each provider makes of an answer, from the first line of its head to the last byte of its body.

An input is a byte that says how it is cut and which of the question's requests it answers, and then the answer: a
status with its reason, header lines, an empty line, the body; lines end with LF, so that they are easily found. There
is no network: an adapter of the session's plays the answers.
"""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import requests
from requests.structures import CaseInsensitiveDict

from berlin_chat import ChatError, Event, InvalidRequest, Metadata, Provider, get_provider
from berlin_chat.completions import Completion
from berlin_chat.errors import BODY_KEPT, SHOWN
from berlin_chat.http import failures
from berlin_chat.http.retries import retry_after
from berlin_chat.providers.openai import MAX_EVENT
from dialects import DIALECTS
from fuzzing.form import Target, headed, same, same_however_cut, seeded
from wire import SPEECHES, h2o_event

URL = "http://127.0.0.1:9"
#: What a server must never get out of an error again.
SECRET = "sesame42"
#: How long an error's text may be, in characters.
LONGEST = 1200
#: The headers whose values a provider reads.
READ = ("content-type", "retry-after", "location", "x-request-id")


class Body:
    """What a response of requests reads from: chunks, as they arrive."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter([chunk for chunk in chunks if chunk])  # an empty one would be the end

    def read1(self, size: int) -> bytes:
        return next(self._chunks, b"")

    def close(self) -> None:
        self._chunks = iter(())

    release_conn = close


class Player(requests.adapters.BaseAdapter):
    """Answers requests by what stands in ``answers``, by method and path."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[str, Callable[[], tuple[int, str, dict[str, str], Iterable[bytes]]]] = {}
        self.asked: Counter[str] = Counter()

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        name = _name(str(request.method), request.path_url)
        self.asked[name] += 1
        assert self.asked[name] <= 4, f"{name} is asked for ever"
        response = requests.Response()
        response.status_code, response.reason, headers, chunks = self.answers[name]()
        response.headers, response.url = CaseInsensitiveDict(headers), str(request.url)
        response.raw, response.request, response.connection = Body(chunks), request, self  # type: ignore[assignment]
        return response

    def close(self) -> None:
        pass


def _name(method: str, path: str) -> str:
    """What a request is for: conversations have many names."""
    if path.startswith("/conversation/"):
        path = "/conversation/c/stop-generating" if path.endswith("/stop-generating") else "/conversation/c"
    return f"{method} {path}"


def answered(data: bytes) -> tuple[int, str, dict[str, str], bytes]:
    """The status, reason, headers and body of an input."""
    head, _, body = data.partition(b"\n\n")
    status, *lines = head.decode("latin-1").replace("\r", " ").split("\n")
    code, _, reason = status.partition(" ")
    found = (line.partition(":") for line in lines)
    headers = {name: value.strip() for name, _, value in found if name.lower() in READ}
    return int(code) if code.isascii() and code.isdecimal() and 200 <= int(code) < 600 else 200, reason, headers, body


class Question:
    """One provider's question, and the answers to all requests that belong to it.

    Args:
        name: the provider's.
        usual: how its requests are answered, by method and path, where the input does not; the last is the reply's.
        config: of the provider.
    """

    def __init__(self, name: str, usual: dict[str, bytes], **config: Any) -> None:
        self.name, self.config = name, config
        self.usual = usual
        self.stages = [*reversed(usual)]

    def check(self, data: bytes) -> None:
        """However the answer is cut: the same text, events and facts, or the same declared error."""
        seed, content = headed(data)
        stage = self.stages[(seed >> 5) % len(self.stages)]
        status, reason, headers, body = answered(content)

        def read(chunks: list[bytes]) -> Any:
            return self._ask({stage: lambda: (status, reason, headers, chunks)})

        same_however_cut(body, seed & 31, read)

    def _ask(self, fuzzed: dict[str, Any]) -> Any:
        player = Player()
        for name, answer in self.usual.items():
            code, reason, headers, body = answered(answer)
            player.answers[name] = lambda given=(code, reason, headers, [body]): given  # type: ignore[misc]
        player.answers |= fuzzed
        with get_provider(
            self.name, **{"base_url": URL, "retries": 0, "proxy": "", "pool_size": 1, **self.config}
        ) as provider:
            provider._transport.session.mount("http://", player)
            _without_threads(provider)
            return _heard(provider)


def _without_threads(provider: Provider) -> None:
    """H2o makes and deletes conversations in a thread of its own; here that would only take its time."""
    if found := vars(provider).get("_conversations"):
        found.workers.run = lambda work, then=bool: (work(), then())


def _heard(provider: Provider) -> Any:
    """What came of a question, comparable: each kind's text, the facts, the error."""
    told: dict[str, list[str]] = {}
    with provider.open("Hi") as live:
        try:
            for event in live.events():
                assert event.text or event.kind == "tool_call"
                told.setdefault(event.kind, []).append(event.text)
        except ChatError as error:
            failed = error
        else:
            failed = None
            reply = live.reply
    said = _joined(told)
    if failed is not None:
        assert failed.partial == said.get("text", "") == live.text
        return said, checked(failed)
    assert str(reply) == said.get("text", "") == live.text
    assert (reply.reasoning or "") == said.get("reasoning", "")
    assert (reply.refusal or "") == said.get("refusal", "")
    reply.encode()  # no half of a surrogate pair
    facts = {name: value for name, value in vars(reply).items() if name not in ("seconds", "first_piece_seconds")}
    json.dumps(reply.message)
    pickle.dumps(reply)
    return said, repr(facts)


def checked(error: ChatError) -> tuple[str, Any]:
    """An error that can be shown and sent to another process, is short, and tells no secret."""
    assert not isinstance(error, InvalidRequest), "it was sent"
    shown = f"{type(error).__name__}: {error}"
    assert len(shown) <= LONGEST, f"{len(shown)} characters"
    assert len(error.detail) <= SHOWN + 1
    assert len(error.body or "") <= BODY_KEPT + 1
    assert SECRET not in f"{shown} {error!r} {vars(error)}"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    return shown, (
        error.status,
        error.body,
        error.partial,
        error.request_id,
        None if _dated(error) else error.retry_after,
    )


def completion(data: bytes) -> None:
    """OpenAI's reply without the way to it: however cut, the same pieces, events and facts, or the same error."""
    seed, data = headed(data)
    end = ("finish_reason", "done", "close")[seed % 3]

    def read(chunks: list[bytes]) -> Any:
        metadata, body = Metadata(), iter(chunks)
        found = Completion(metadata, MAX_EVENT)
        told: dict[str, list[str]] = {}

        def parts() -> Iterator[str | Event]:
            yield from found.read(body)
            if found.done:
                found.after(b"".join(body))
            yield from found.finish(end)

        try:
            for part in parts():
                kind, text = ("text", part) if isinstance(part, str) else (part.kind, part.text)
                told.setdefault(kind, []).append(text)
        except ChatError as error:
            return _joined(told), f"{type(error).__name__}: {error}"
        said = _joined(told)
        same([metadata.reasoning or "", metadata.refusal or ""], [said.get("reasoning", ""), said.get("refusal", "")])
        return said, repr(vars(metadata))

    same_however_cut(data, seed, read)


def _joined(told: dict[str, list[str]]) -> dict[str, str]:
    return {kind: "".join(texts) for kind, texts in told.items()}


def _dated(error: ChatError) -> bool:
    """Whether the seconds are those until a date, which change from moment to moment."""
    return error.retry_after is not None and error.retry_after % 1 != 0


def errors(data: bytes) -> None:
    """What is made of statuses, headers, events and lines that are errors: always an error that can be shown."""
    seed, data = headed(data)
    status, reason, headers, body = answered(data)
    response = requests.Response()
    response.status_code, response.reason, response.headers = status, reason, CaseInsensitiveDict(headers)
    for error in (
        failures.status_error(response, body),
        failures.page_error(response, body),
        failures.event_error(body, "a token"),
        failures.object_error(body.decode("utf-8", "replace"), bool(seed % 2)),
        *(failures.object_error(value, bool(seed % 2)) for value in _objects(body)),
    ):
        assert isinstance(error, ChatError)
        assert f"{error} {error!r}"
        assert error.status in (status, 200)
    seconds = retry_after(response.headers)
    assert seconds is None or seconds >= 0.0
    assert isinstance(failures.reason_in(body), str)


def _objects(body: bytes) -> list[dict[str, Any]]:
    with suppress(ValueError):
        value = failures.parse(body)
        return [value] if isinstance(value, dict) else []
    return []


# Seeds

PAGE = b"502 Bad Gateway\nContent-Type: text/html\n\n<!DOCTYPE html><title>Bad Gateway</title>"
FAILURES = [
    PAGE,
    b"200 OK\nContent-Type: text/html\n\n<html>Welcome</html>",
    b'200 OK\nContent-Type: text/html\n\ndata: {"choices":[]}\n\n',
    b'401 Unauthorized\nContent-Type: application/json\n\n{"error":{"message":"no key"},"error_type":"auth"}',
    b'429 Too Many Requests\nRetry-After: 7\nX-Request-Id: r-1\n\n{"detail":"slower"}',
    b"503 Unavailable\nRetry-After: Fri, 31 Dec 2100 23:59:59 GMT\n\n",
    b"302 Found\nLocation: http://[::1/\n\n",
    b"200 OK\nContent-Type: application/json\n\n" + b'{"code":401,"msg":"the token has expired","data":null}',
    b"200 OK\nContent-Type: text/event-stream\n\n" + b'data: {"error":"overloaded","error_type":"generation"}\n\n',
    b"200 OK\n\n",
    b"204 No Content\n\n",
]


def _ok(kind: str, body: bytes) -> bytes:
    return b"200 OK\nContent-Type: %b\n\n%b" % (kind.encode(), body)


def _said(name: str) -> list[bytes]:
    """A protocol's replies."""
    (speech,) = (speech for speech in SPEECHES if speech.name == name)
    texts = [["Gr\xfc\xdfe", " \U0001f642", "\n"], ["a"], ["{", '"}']]
    return [_ok(speech.kind, b"".join(speech.parts(pieces))) for pieces in texts]


def _dialects() -> list[bytes]:
    answers = []
    for dialect in DIALECTS:
        answers += [_ok(dialect.kind or "", dialect.body)] if dialect.body else []
        answers += [_ok(dialect.whole_kind or "", dialect.whole)] if dialect.whole else []
    return answers


TOKEN = _ok("application/json", b'{"code":200,"msg":"ok","data":{"token":"%b"}}' % SECRET.encode())
CREATED = _ok("application/json", b'{"conversationId":"c"}')
LOGIN = {"account": "me", "password": SECRET}
#: Each with the answers to all of its requests; the last is the one that the reply comes with.
QUESTIONS = {
    "berlin": Question("berlin", {"POST /api/login": TOKEN, "POST /api/chat/completions": _said("berlin")[0]}, **LOGIN),
    "openai": Question("openai", {"POST /v1/chat/completions": _said("openai")[0]}, api_key=SECRET),
    "ylokh": Question("ylokh", {"POST /v1/chat/completions": _said("ylokh")[0]}, api_key=SECRET),
    "h2o": Question(
        "h2o",
        {
            "POST /settings": b"303 See Other\nLocation: /\n\n",
            "DELETE /conversation/c": _ok("application/json", b"{}"),
            "POST /conversation/c/stop-generating": _ok("text/plain", b""),
            "POST /conversation": CREATED,
            "POST /conversation/c": _said("h2o")[0],
        },
        headers={"Authorization": f"Bearer {SECRET}"},
    ),
    "acytoo": Question("acytoo", {"POST /api/completions": _said("acytoo")[0]}, password=SECRET),
}
OTHERS = {
    "berlin": [
        _ok("text/plain", b'{"content":"a","segment":"start"}\n{"content":"b","segment":"stop"}'),
        _ok("text/plain", b'{"content":"a"}\n{"content":null}'),
        _ok("text/plain", b'{"content":"a"}\nan error'),
        TOKEN,
        _ok("application/json", b'{"code":400,"msg":"WHERE parameter \\"invite_code\\" has invalid value"}'),
    ],
    "openai": _dialects()[::3],  # all of them stand under "completion", where each costs little
    "ylokh": _dialects()[1::6],
    "h2o": [
        _ok("text/event-stream", h2o_event("a") + h2o_event("b", generated="ab")),
        _ok("text/event-stream", h2o_event("a")),
        CREATED,
        _ok("application/json", b'{"conversationId":"\\ud83d/..\\n"}'),
        b'405 Method Not Allowed\n\n{"message":"accept the settings"}',
        b'403 Forbidden\n\n{"message":"Invalid referer"}',
    ],
    "acytoo": [
        _ok("text/plain; charset=shift_jis", "紅".encode("shift_jis")),
        _ok("text/plain; charset=hex", b"ff"),
        _ok("Application/JSON", b'{"error":"no"}'),
    ],
}


def _seeds(name: str) -> list[bytes]:
    contents = [*_said(name), *OTHERS[name], *FAILURES]
    stages = len(QUESTIONS[name].stages)
    return [bytes([place % 32 | (place % stages) << 5]) + content for place, content in enumerate(contents)]


TARGETS = {
    **{name: Target(question.check, _seeds(name)) for name, question in QUESTIONS.items()},
    "completion": Target(
        completion, seeded(*(body for dialect in DIALECTS for body in (dialect.body, dialect.whole) if body))
    ),
    "errors": Target(errors, seeded(*FAILURES, *_said("h2o"), *_said("berlin"))),
}
