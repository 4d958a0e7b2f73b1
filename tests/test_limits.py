"""How much is read, and how long is waited, where no caller says otherwise: to change one is to break a promise."""

from __future__ import annotations

from typing import Any

import pytest

from berlin_chat import decoding
from berlin_chat.http import cleanup, connections, encodings, login, responses, retries, transport
from berlin_chat.providers import berlin, openai


@pytest.mark.parametrize(
    ("room", "name", "value"),
    [
        # bytes, but for the depth of JSON and the number of answers
        (decoding, "MAX_LINE", 1_048_576),
        (decoding, "MAX_DOCUMENT", 67_108_864),
        (decoding, "DEEPEST", 200),
        (openai, "MAX_EVENT", 16_777_216),
        (encodings, "MAX_CONTENT", 65_536),
        (responses, "READ_SIZE", 65_536),
        (responses, "MAX_FRAMING", 4_096),
        (responses, "MAX_INFORMATIONAL", 100),
        (responses, "LABEL_READ", len(b"event:")),
        (connections, "WRITE_SIZE", 16_384),
        (transport, "ERROR_READ", 65_536),
        (transport, "DRAIN_BYTES", 65_536),
        # seconds
        (transport, "ERROR_SECONDS", 1.0),
        (transport, "DRAIN_SECONDS", 0.05),
        (retries, "FIRST_WAIT", 0.25),
        (retries, "LONGEST_WAIT", 8.0),
        (retries, "LONGEST_RETRY_AFTER", 60.0),
        (login, "YOUNG", 60.0),
        (cleanup, "LAST_TIMEOUT", 5.0),
        (cleanup, "LAST_GRACE", 0.1),
        (cleanup, "EXIT_GRACE", 0.7),
        (cleanup, "IDLE", 1.0),
        # times, and statuses
        (login, "AMONG_OTHERS", 4),
        (retries, "TRANSIENT_STATUSES", {408, 425, 429, 500, 502, 503, 504}),
        (berlin, "_NOT_NOW", (408, 425, 429)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_limit_is_what_it_was(room: Any, name: str, value: Any) -> None:
    assert getattr(room, name) == value
