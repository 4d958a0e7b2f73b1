"""A conversation as a text to be read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any


def rendered(facts: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> str:
    """Returns a conversation in Markdown, from its row and the rows of its messages."""
    about = " · ".join(str(facts[name]) for name in ("started", "provider", "model") if facts[name])
    blocks = [f"# {facts['title'] or 'Conversation'}", f"*{about}*"]
    if facts["system"] is not None:
        blocks += ["## System", facts["system"]]
    for row in rows:
        blocks.append(f"## {row['role'].capitalize()}")
        if row["content"]:
            blocks.append(_fenced(row["content"]) if row["role"] == "tool" else row["content"])
        for part in json.loads(row["parts"] or "[]"):
            if part["type"] != "text":
                blocks.append(f"*({part['type']})*")
        if refusal := json.loads(row["extra"] or "{}").get("refusal"):
            blocks.append(refusal)
        for call in json.loads(row["tool_calls"] or "[]"):
            called = call.get("function") or call.get("custom") or {}
            blocks.append(_fenced(f"{called.get('name')}({called.get('arguments') or called.get('input') or ''})"))
        if row["cut"]:
            blocks.append("*(The reply was cut off here.)*")
    return "\n\n".join(blocks) + "\n"


def _fenced(text: str) -> str:
    """A text that is no Markdown."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"
