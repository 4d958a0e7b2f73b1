"""An answer of a batch, and how it is written into a line of a file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from requests.structures import CaseInsensitiveDict

from ..errors import ChatError
from ..redaction import is_secret
from ..reply import Reply, ToolCall


class Answer(NamedTuple):
    """What became of one prompt of a batch.

    Attributes:
        index: its place among the prompts, from 0.
        prompt: what was asked.
        reply: the reply, None where there is an error.
        error: why there is no reply, else None.
        seconds: how long it took, without waiting for its turn.
        attempts: how often it was sent, counting retries.
        key: the caller's own name for the prompt, where the prompts came with keys, else None.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    prompt: Any
    reply: Reply | None
    error: ChatError | None
    seconds: float
    attempts: int
    key: Any = None


class Recorded:
    """What a line of a file says.

    Attributes:
        index: the prompt's place in the batch that wrote it.
        key: the prompt's key as JSON has it, None where it had none.
        fingerprint: what the prompt is known by.
        asked: what was asked of whom, see ``description.described``; None where the line does not say.
    """

    def __init__(self, index: int, key: Any, fingerprint: Any, reply: Reply, asked: dict[str, Any] | None) -> None:
        self.index = index
        self.key = key
        self.fingerprint = fingerprint
        self.reply = reply
        self.asked = asked


class Format(Protocol):
    """How an answer is written as one JSON object, and read again.

    Attributes:
        beginning: how each line begins, so that a torn one can be told from somebody else's file.
        identity: matches the beginning of a line, so that a long file is read without parsing it: its groups are the
            index and, where there is one, the key. It does not match a line that says what was asked of whom.
    """

    beginning: bytes
    identity: re.Pattern[bytes]

    def encode(self, answer: Answer, asked: dict[str, Any] | None) -> dict[str, Any]:
        """Returns the object of an answer that has a reply, and says under ``asked`` what was asked of whom."""

    def decode(self, line: dict[str, Any]) -> Recorded:
        """Returns what it says; raises KeyError, TypeError or ValueError for others."""

    def fingerprint(self, prompt: Any) -> Any:
        """Returns what ``decode`` gives for that prompt; raises TypeError or ValueError if JSON cannot hold it."""


def _as_it_is(value: Any) -> Any:
    return value


def _without_secrets(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers without cookies and the like; a number, such as of tokens that are left, is no secret."""
    return {name: value for name, value in headers.items() if value.isdecimal() or not is_secret(name, value)}


class Field(NamedTuple):
    """How something that is known of a reply is made of what JSON gives back, and how it is written."""

    read: Callable[[Any], Any] = _as_it_is
    write: Callable[[Any], Any] = _as_it_is


#: What a line keeps of a reply beside its text. One that a line lacks, which an older version has written, is as in a
#: reply of which it is not known.
REPLY_FIELDS = {
    "provider": Field(),
    "model": Field(),
    "finish_reason": Field(),
    "usage": Field(),
    "seconds": Field(),
    "attempts": Field(),
    "first_piece_seconds": Field(),
    "tool_calls": Field(lambda calls: tuple(ToolCall(*call) for call in calls)),
    "reasoning": Field(),
    "refusal": Field(),
    "logprobs": Field(),
    "citations": Field(),
    "annotations": Field(),
    "id": Field(),
    "extra": Field(),
    "headers": Field(CaseInsensitiveDict, _without_secrets),
}


class PlainFormat:
    """Index, key where there is one, prompt, reply, and what is known about it."""

    beginning = b'{"index": '
    # No string in JSON holds the end of it, for a quote inside of one has a backslash.
    identity = re.compile(rb'\{"index": (\d{1,18}), (?:"key": (.*?), )?"prompt": ')

    def encode(self, answer: Answer, asked: dict[str, Any] | None) -> dict[str, Any]:
        line: dict[str, Any] = {"index": answer.index}
        if asked is not None:
            line["asked"] = asked
        if answer.key is not None:
            line["key"] = answer.key
        line |= {"prompt": answer.prompt, "reply": str(answer.reply)}
        return line | {name: field.write(getattr(answer.reply, name)) for name, field in REPLY_FIELDS.items()}

    def decode(self, line: dict[str, Any]) -> Recorded:
        if type(line["index"]) is not int:
            raise TypeError(line["index"])
        facts = {name: field.read(line[name]) for name, field in REPLY_FIELDS.items() if name in line}
        reply = Reply(line["reply"], **facts)
        return Recorded(line["index"], line.get("key"), line["prompt"], reply, line.get("asked"))

    def fingerprint(self, prompt: Any) -> Any:
        if isinstance(prompt, str):
            return prompt
        return json.loads(json.dumps(prompt, default=_mapping, allow_nan=False))  # as it looks when it comes back


def as_line(written: dict[str, Any]) -> bytes:
    """Returns a line of a file. Half of a surrogate pair, which UTF-8 cannot hold, is escaped as JSON does it."""
    return json.dumps(written, ensure_ascii=False, default=_shown).encode("utf-8", "backslashreplace") + b"\n"


def _mapping(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} is not JSON")


def _shown(value: Any) -> Any:
    """The prompt is known to be JSON; what a provider has noted beside a reply need not be, and must not cost it."""
    return dict(value) if isinstance(value, Mapping) else repr(value)
