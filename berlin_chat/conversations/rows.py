"""A message as a row of a history, and a row as a message."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from time import gmtime, strftime
from typing import Any

from .turns import Entry, Turn

#: The columns of the table ``messages`` that an entry fills, but for where it stands.
COLUMNS = (
    *("role", "content", "parts", "tool_calls", "tool_call_id", "extra"),
    *("reasoning", "finish_reason", "cut", "provider", "model", "usage", "seconds", "created"),
)
#: The most characters of a title.
_TITLE = 80


def row_of(entry: Entry) -> tuple[Any, ...]:
    """Returns the values of ``COLUMNS``."""
    message = dict(entry.message)
    role, content = message.pop("role"), message.pop("content", None)
    calls, identity = message.pop("tool_calls", None), message.pop("tool_call_id", None)
    parts = content if isinstance(content, list) else None
    reply = entry.reply
    said = (None,) * 3 if reply is None else (reply.provider, reply.model, _json(reply.usage))
    return (
        *(role, text_of(content), _json(parts), _json(calls), identity, _json(message or None)),
        *((reply and (reply.reasoning, reply.finish_reason)) or (None, None)),
        *(int(entry.cut), *said, None if reply is None else reply.seconds, moment(entry.at)),
    )


def entry_of(row: Mapping[str, Any]) -> Entry:
    """Returns the entry that a row of ``messages`` was made of, but for its ``Reply``."""
    content = row["content"] if row["parts"] is None else json.loads(row["parts"])
    message = {"role": row["role"], "content": content}
    if row["tool_calls"] is not None:
        message["tool_calls"] = json.loads(row["tool_calls"])
    if row["tool_call_id"] is not None:
        message["tool_call_id"] = row["tool_call_id"]
    if row["extra"] is not None:
        message.update(json.loads(row["extra"]))
    entry = Entry(message, cut=bool(row["cut"]))
    entry.row, entry.written = row["id"], True
    return entry


def turns_of(rows: Iterable[Mapping[str, Any]]) -> list[Turn]:
    """Returns the turns that rows are made of, in a form that can be sent; but for questions that got no answer."""
    turns: dict[int, Turn] = {}
    for row in rows:
        turn = turns.setdefault(row["turn"], Turn(()))
        turn.number = row["turn"]
        turn.entries.append(entry_of(row))
    for turn in turns.values():
        turn.end()
    return [turn for turn in turns.values() if turn.answered]


def text_of(content: Any) -> str | None:
    """Returns the text of a message's content."""
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if isinstance(part.get("text"), str))
    return None if content is None else str(content)


def title_of(turns: Iterable[Turn]) -> str:
    """Returns the beginning of the first question."""
    questions = (entry.message for turn in turns for entry in turn.entries if entry.message["role"] == "user")
    text = " ".join((text_of(next(questions, {}).get("content")) or "").split())
    return text if len(text) <= _TITLE else text[: _TITLE - 1] + "…"


def moment(seconds: float) -> str:
    """Returns a time in UTC, as ISO 8601 writes it.

    >>> moment(0.25)
    '1970-01-01T00:00:00.250Z'
    """
    return f"{strftime('%Y-%m-%dT%H:%M:%S', gmtime(seconds))}.{int(seconds % 1 * 1000):03}Z"


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False, default=str)
