"""The files of ``berlin-chat batch``: prompts in text, CSV or JSON lines, and OpenAI's batch format both ways."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from time import time
from typing import Any, cast

from ..errors import InvalidRequest
from ..messages import Messages, as_list
from ..provider import Provider
from ..reply import Reply
from .answers import Answer, Format, PlainFormat, Recorded
from .texts import Text

#: How many characters a cell may have; the csv module's own limit is 131072.
LONGEST_CELL = 2**31 - 1


class Prompts:
    """The prompts of a file, read one by one each time it is iterated; those of standard input, once.

    Args:
        path: the file; ``-`` for standard input.
        column: the column of a CSV file; otherwise ``prompt``, or the first.
        encoding: the file's, see ``Text``.

    Attributes:
        are_requests: whether they are the requests of one of OpenAI's batch files.
        notice: how a CSV file is read, for people; ``""`` for others.

    Raises:
        InvalidRequest: a line is none, with its number. A file is checked when this is made, standard input
            as it is read.
    """

    def __init__(self, path: str, column: str | None = None, encoding: str | None = None) -> None:
        self._text = Text(path, encoding)
        self._name = self._text.name
        self._column = column
        self._count: int | None = None
        self.are_requests = False
        self.notice = ""
        self._read = self._reader(Path(path).suffix.lower())
        if path != "-":
            self._count = sum(1 for _ in self)

    def __length_hint__(self) -> int:
        return NotImplemented if self._count is None else self._count

    def __iter__(self) -> Iterator[Messages]:
        return self._read(iter(self._text))

    def _reader(self, suffix: str) -> Callable[[Iterator[str]], Iterator[Messages]]:
        """How the file is read: by its suffix, or else by what its first line looks like."""
        first_line = self._text.first_line
        if suffix in (".csv", ".tsv"):
            self._delimiter = _delimiter(first_line, suffix)
            return self._cells
        if suffix in (".jsonl", ".ndjson", ".json") or (suffix != ".txt" and first_line.lstrip()[:1] in ("{", "[")):
            self.are_requests = _is_request(_json_or_none(first_line))
            return self._objects
        return self._lines

    def _lines(self, text: Iterator[str]) -> Iterator[Messages]:
        for line in text:
            if line.strip():
                yield line.rstrip("\r\n")

    def _cells(self, text: Iterator[str]) -> Iterator[Messages]:
        csv.field_size_limit(LONGEST_CELL)
        rows = csv.DictReader(text, delimiter=self._delimiter, strict=True)
        try:
            column = self._column_in(list(rows.fieldnames or []))
            for row in rows:
                if not (cell := row[column]) or not cell.strip():
                    raise InvalidRequest(f"{self._name}, line {rows.line_num}: the column {column!r} is empty")
                if any(row.get(None, ())):
                    raise InvalidRequest(
                        f"{self._name}, line {rows.line_num}, has more columns than the first line: put a text that"
                        f" holds {self._delimiter!r} into quotes"
                    )
                yield cell
        except csv.Error as error:
            where = f"{self._name}, the row that begins in line {rows.line_num + 1}"
            raise InvalidRequest(f"{where}: {error}") from None

    def _column_in(self, names: list[str]) -> str:
        column = self._column or ("prompt" if "prompt" in names else next(iter(names), None))
        if column is None or column not in names:
            raise InvalidRequest(f"{self._name} has no column {column!r}: it has {', '.join(map(repr, names))}")
        self.notice = (
            f"{self._name} is read as {self._text.encoding} with {self._delimiter!r} between the columns; the prompts"
            f" are in the column {column!r}"
        )
        return column

    def _objects(self, text: Iterator[str]) -> Iterator[Messages]:
        for number, line in enumerate(text, 1):
            if not line.strip():
                continue
            try:
                yield _prompt_in(json.loads(line), self.are_requests)
            except (ValueError, RecursionError) as error:  # InvalidRequest is a ValueError, too
                raise InvalidRequest(f"{self._name}, line {number}: {error}") from None


def _delimiter(first_line: str, suffix: str) -> str:
    """What separates the columns: their names tell, for the cells are prose, in which commas stand anyway."""
    try:
        return csv.Sniffer().sniff(first_line, ",;\t").delimiter
    except csv.Error:  # there is one column
        return "\t" if suffix == ".tsv" else ","


def _json_or_none(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _is_request(value: Any) -> bool:
    return isinstance(value, dict) and "custom_id" in value and "body" in value


def _prompt_in(value: Any, as_request: bool) -> Messages:
    """The prompt in one JSON value; raises InvalidRequest where there is none."""
    if as_request:
        if not _is_request(value) or not isinstance(value["custom_id"], str) or not isinstance(value["body"], dict):
            raise InvalidRequest('a request must have a "custom_id" and a "body"')
        as_list(value["body"].get("messages", []))
        url = value.get("url", "/v1/chat/completions")
        if url != "/v1/chat/completions":
            raise InvalidRequest(f"only /v1/chat/completions is spoken here, not {url!r}")
        return value  # type: ignore[no-any-return]
    if isinstance(value, dict) and "content" not in value:
        value = value.get("messages", value.get("prompt"))
    as_list(value)
    return value  # type: ignore[no-any-return]


class Requests(Provider):
    """Asks the request lines of an OpenAI batch file through another provider.

    Args:
        provider: whom to ask; a line's own model and options come before its.
    """

    name = "requests"

    def __init__(self, provider: Provider) -> None:
        self.providers = (provider,)
        self._provider = provider

    def check_address(self) -> None:
        """As the provider's."""
        self._provider.check_address()

    def ask(self, messages: Messages, model: str | None = None, **question: Any) -> Reply:
        """Asks one request line."""
        body = dict(cast(Any, messages)["body"])
        for field in ("stream", "stream_options"):
            body.pop(field, None)
        prompt, model = body.pop("messages"), body.pop("model", None) or model
        return self._provider.ask(prompt, model, **{**question, **body})


class BatchFormat:
    """OpenAI's batch output. Its ``id`` holds the index and a digest of the request, by which it is known again."""

    beginning = b'{"id": "batch_req_'
    identity = re.compile(rb'\{"id": "batch_req_(\d{1,18})_[0-9a-f]{16}", "custom_id": ')
    _ID = re.compile(r"batch_req_(\d+)_([0-9a-f]{16})")

    def encode(self, answer: Answer, asked: dict[str, Any] | None) -> dict[str, Any]:
        """Returns one line of a batch's output."""
        reply = answer.reply if answer.reply is not None else Reply()
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": str(reply)},
            "finish_reason": reply.finish_reason or "stop",
        }
        name = f"{answer.index}_{self.fingerprint(answer.prompt)}"
        body = {
            "id": f"chatcmpl-{name}",
            "object": "chat.completion",
            "created": int(time()),
            "model": reply.model,
            "choices": [choice],
            "usage": reply.usage,
        }
        response = {"status_code": 200, "request_id": f"req_{name}", "body": body}
        whose = {"custom_id": answer.prompt["custom_id"]}
        if asked is not None:
            return {"id": f"batch_req_{name}", "response": {**response, "asked": asked}, **whose, "error": None}
        return {"id": f"batch_req_{name}", **whose, "response": response, "error": None}

    def decode(self, line: dict[str, Any]) -> Recorded:
        """Reads one line of a batch's output that was written here."""
        match = self._ID.fullmatch(line["id"])
        if match is None:
            raise ValueError(line["id"])
        body = line["response"]["body"]
        choice = body["choices"][0]
        reply = Reply(
            choice["message"]["content"],
            model=body["model"],
            finish_reason=choice["finish_reason"],
            usage=body["usage"],
        )
        return Recorded(int(match[1]), None, match[2], reply, line["response"].get("asked"))

    def fingerprint(self, prompt: Any) -> Any:
        """Returns a digest of a request line."""
        canonical = json.dumps(prompt, sort_keys=True).encode()
        return hashlib.sha256(canonical).hexdigest()[:16]


def format_of(prompts: Prompts) -> Format:
    """Returns the format of the answers to these prompts."""
    return BatchFormat() if prompts.are_requests else PlainFormat()
