"""Where ``berlin-chat batch`` puts its answers and errors, and in what form."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import sys
from contextlib import ExitStack
from pathlib import Path
from time import time
from typing import IO, Any, Protocol

from ..errors import ChatError, InvalidRequest
from ..reply import Reply, ToolCall
from .answers import Answer, Format, PlainFormat, Recorded, as_line
from .checkpoint import Checkpoint
from .journal import Journal
from .keys import Asked
from .places import Places
from .requests import Refused, parts_of


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


class BatchFormat:
    """OpenAI's batch output. Its ``id`` holds the index and a digest of the request, by which it is known again."""

    beginning = b'{"id": "batch_req_'
    identity = re.compile(rb'\{"id": "batch_req_(\d{1,18})_[0-9a-f]{16}", "custom_id": (.*?), "response": ')
    _ID = re.compile(r"batch_req_(\d+)_([0-9a-f]{16})")

    def encode(self, answer: Answer, asked: dict[str, Any] | None) -> dict[str, Any]:
        """Returns one line of a batch's output."""
        reply = answer.reply if answer.reply is not None else Reply()
        name = f"{answer.index}_{self.fingerprint(answer.prompt)}"
        response: dict[str, Any] = {
            "status_code": 200,
            "request_id": f"req_{name}",
            "body": _completion(reply, f"chatcmpl-{name}"),
        }
        whose = {"custom_id": answer.prompt["custom_id"]}
        if asked is not None:
            return {"id": f"batch_req_{name}", "response": {**response, "asked": asked}, **whose, "error": None}
        return {"id": f"batch_req_{name}", **whose, "response": response, "error": None}

    def decode(self, line: dict[str, Any]) -> Recorded:
        """Reads one line of a batch's output that was written here."""
        match = self._ID.fullmatch(line["id"])
        if match is None:
            raise ValueError(line["id"])
        reply = _reply_in(line["response"]["body"])
        return Recorded(int(match[1]), line["custom_id"], match[2], reply, line["response"].get("asked"))

    def fingerprint(self, prompt: Any) -> Any:
        """Returns a digest of a request line."""
        return _digest(prompt)


def _completion(reply: Reply, name: str) -> dict[str, Any]:
    """A reply as OpenAI's ``chat.completion``."""
    message = reply.message
    for call in message.get("tool_calls", ()):
        call.setdefault("id", "")
    beside = {"reasoning_content": reply.reasoning, "annotations": reply.annotations}
    message |= {field: value for field, value in beside.items() if value is not None}
    finish_reason = reply.finish_reason or ("tool_calls" if reply.tool_calls else "stop")
    choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": finish_reason}
    if reply.logprobs is not None:
        choice["logprobs"] = reply.logprobs
    completion = {
        "id": reply.id or name,
        "object": "chat.completion",
        "created": int(time()),
        "model": reply.model or "",
        "choices": [choice],
        "usage": reply.usage,
    }
    return completion if reply.citations is None else {**completion, "citations": reply.citations}


def _reply_in(body: dict[str, Any]) -> Reply:
    choice = body["choices"][0]
    message = choice["message"]
    return Reply(
        message["content"] or "",
        model=body["model"],
        finish_reason=choice["finish_reason"],
        usage=body["usage"],
        tool_calls=tuple(map(_tool_call, message.get("tool_calls", ()))),
        reasoning=message.get("reasoning_content"),
        refusal=message.get("refusal"),
        annotations=message.get("annotations"),
        logprobs=choice.get("logprobs"),
        citations=body.get("citations"),
        id=body["id"],
    )


def _tool_call(call: dict[str, Any]) -> ToolCall:
    extra = {name: value for name, value in call.items() if name not in ("id", "type", "function")}
    return ToolCall(call["id"], call["function"]["name"], call["function"]["arguments"], extra)


# Errors


class Errors:
    """The questions that have failed, in the form of OpenAI's errors file. What it holds is not asked again.

    A line's ``id`` holds two digests: of what is asked of whom, and of the prompt. A file of other questions is begun
    anew.

    Args:
        path: the file, which is locked until ``close``.
        description: what is asked of whom.
        anew: whether all that it holds is asked again.

    Raises:
        InvalidRequest: it cannot be opened, or is no file of errors.
    """

    _beginning = b'{"id": "batch_err_'
    _ID = re.compile(rb'\{"id": "batch_err_([0-9a-f]{16})_([0-9a-f]{16})", "custom_id": .*\}\n', re.DOTALL)

    def __init__(self, path: str, description: dict[str, Any], anew: bool) -> None:
        self._path = path
        self._asked = _digest(description)
        self._journal = Journal(path)
        try:
            self._read(anew)
        except BaseException:
            self._journal.close()
            raise

    def _read(self, anew: bool) -> None:
        self._places = Places()
        for number, place, line in self._journal.lines(self._beginning):
            match = self._ID.fullmatch(line)
            if match is None:
                if line.endswith(b"\n") or not (line.startswith(self._beginning) or self._beginning.startswith(line)):
                    raise InvalidRequest(f"{self._path}, line {number}, is no error of a batch: name another file")
                self._journal.cut(place)  # its writer was killed in the middle of it
                break
            anew = anew or match[1].decode() != self._asked
            self._places[self._number(match[2].decode())] = place
        if anew:
            self._journal.cut(0)
            self._places = Places()

    @staticmethod
    def _number(digest: str) -> int:
        return int(digest, 16) or 1

    def known(self, prompt: Any) -> ChatError | None:
        """Returns the error that a prompt has had before."""
        place = self._places.get(self._number(_digest(prompt)))
        if place is None:
            return None
        said = json.loads(self._journal.line_at(place))["error"]["message"]
        return ChatError(f"failed before, and is asked again with --retry-errors: {said}")

    def write(self, answer: Answer) -> None:
        """Appends the error of an answer."""
        digest, error = _digest(answer.prompt), answer.error
        if error is None or self._places.get(self._number(digest)) is not None:
            return
        response = None if error.status is None else {"status_code": error.status, "request_id": "", "body": None}
        line = {
            "id": f"batch_err_{self._asked}_{digest}",
            "custom_id": answer.prompt["custom_id"] if answer.key is not None else str(answer.index),
            "response": response,
            "error": {"code": code_of(error), "message": str(error)},
        }
        self._places[self._number(digest)] = self._journal.append(as_line(line))

    def close(self) -> None:
        """Forces everything to the disk, and closes the file."""
        self._journal.close()


def code_of(error: ChatError) -> str:
    """Returns the name of an error in the way of OpenAI's codes.

    >>> from berlin_chat import APIStatusError
    >>> code_of(APIStatusError("no"))
    'api_status_error'
    """
    return re.sub(r"(?<!^)(?=[A-Z][a-z])", "_", type(error).__name__).lower()


# Answers


class Output(Protocol):
    """Where answers go.

    Attributes:
        checkpoint: from which the next run goes on, None where it cannot.
        where: in words.
    """

    checkpoint: Checkpoint | None
    where: str

    def write(self, answer: Answer) -> None:
        """Is given each answer, in the order of the loop."""


class Kept(Checkpoint):
    """A file of JSON lines, with which the next run goes on.

    Args:
        ordered: whether answers stand in the order of the prompts; then one that is early waits for its turn.
        limit: how many prompts there are at the most.

    Attributes:
        errors: what has failed before.
    """

    how_to_ask_anew = "let those that differ be asked anew: --ask-anew"

    def __init__(self, path: str, format: Format, ordered: bool, limit: int | None) -> None:
        super().__init__(path, format)
        self._limit = limit
        self.where = f"are in {path}"
        self.checkpoint: Checkpoint | None = self
        self.errors: Errors | None = None
        self._waiting: set[int] | None = set() if ordered else None

    def open(self) -> None:
        super().open()
        if self._limit is not None and self.first is not None and self.first >= self._limit:
            self.first = None  # no prompt of this run has an answer there

    def find(self, asked: Asked) -> Answer | None:
        found = super().find(asked)
        if found is None and self.errors is not None and (error := self.errors.known(asked.prompt)) is not None:
            return Answer(asked.index, asked.prompt, None, error, 0.0, 0, asked.key)
        return found

    def record(self, answer: Answer) -> None:
        if self._waiting is None:
            super().record(answer)
        else:
            self._waiting.add(answer.index)

    def write(self, answer: Answer) -> None:
        """Records the answer whose turn it is."""
        if self._waiting is not None and answer.index in self._waiting:
            self._waiting.remove(answer.index)
            super().record(answer)


class JsonLines:
    """Standard output."""

    checkpoint: Checkpoint | None = None
    where = "were written"

    def __init__(self, file: IO[bytes], format: Format) -> None:
        self._file = file
        self._format = format

    def write(self, answer: Answer) -> None:
        if answer.reply is not None:
            self._file.write(as_line(self._format.encode(answer, None)))
            self._file.flush()


class CsvFile:
    """A new CSV file with a row for each question, also for those that have failed."""

    checkpoint: Checkpoint | None = None
    _COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")

    def __init__(self, path: str, key: str, stack: ExitStack) -> None:
        if os.path.exists(path):
            raise InvalidRequest(
                f"{path} is there already, and a run cannot go on with a CSV file, which does not know what was asked"
                " of whom: name another file, or one of JSON lines (.jsonl), which knows"
            )
        self.where = f"are in {path}"
        self._path, self._key, self._stack = path, key, stack
        self._text: IO[str] | None = None

    def write(self, answer: Answer) -> None:
        key = answer.index if answer.key is None else answer.prompt["custom_id"]
        reply = Reply() if answer.reply is None else answer.reply
        usage = reply.usage or {}
        calls = json.dumps(reply.message["tool_calls"], ensure_ascii=False) if reply.tool_calls else ""
        counts = [usage.get(name) for name in self._COUNTS]
        row = (key, _shown(answer.prompt), str(reply), answer.error or "", reply.finish_reason, calls, *counts)
        if self._text is None:  # here, so that a run that asks nothing leaves no file behind
            text = open(self._path, "x", encoding="utf-8", errors="backslashreplace", newline="", opener=_private)  # noqa: SIM115
            self._text = self._stack.enter_context(text)
            self._rows = csv.writer(text)
            self._rows.writerow((self._key, "prompt", "reply", "error", "finish_reason", "tool_calls", *self._COUNTS))
        self._rows.writerow(row)
        self._text.flush()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _shown(prompt: Any) -> str:
    """A prompt in a cell: its text where it is nothing but that."""
    if isinstance(prompt, Refused):
        return ""
    messages: Any = parts_of(prompt)[0]
    if isinstance(messages, list) and len(messages) == 1:
        messages = messages[0].get("content")
    return messages if isinstance(messages, str) else json.dumps(messages, ensure_ascii=False)


def output_named(path: str, are_requests: bool, ordered: bool, limit: int | None, stack: ExitStack) -> Output:
    """Returns the output that a name stands for: ``-``, a CSV file, or one of JSON lines.

    Args:
        stack: closes it.
    """
    form: Format = BatchFormat() if are_requests else PlainFormat()
    if path == "-":
        return JsonLines(sys.stdout.buffer if sys.stdout else stack.enter_context(open(os.devnull, "wb")), form)
    if Path(path).suffix.lower() == ".csv":
        return CsvFile(path, "key" if are_requests else "index", stack)
    return Kept(path, form, ordered, limit)
