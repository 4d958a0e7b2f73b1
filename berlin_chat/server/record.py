"""The requests that a server of a test has received."""

from __future__ import annotations

import json
from time import time
from typing import Any

from requests.structures import CaseInsensitiveDict


class Recorded:
    """A request as it arrived.

    Attributes:
        method: such as ``"POST"``.
        path: such as ``"/v1/chat/completions"``, without the query.
        query: what stood behind the ``?``, ``""`` for nothing.
        headers: by name, whose case does not matter; credentials are among them, but never in the ``repr``.
        body: the bytes.
        time: when the whole of it was there, as ``time.time()`` counts.

    >>> Recorded("POST", "/api/login", "", {"Content-Type": "application/json"}, b'{"account": "me"}')
    <Recorded POST /api/login>
    """

    def __init__(self, method: str, path: str, query: str, headers: dict[str, str], body: bytes) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers: CaseInsensitiveDict[str] = CaseInsensitiveDict(headers)
        self.body = body
        self.time = time()

    @property
    def json(self) -> Any:
        """What the body says as JSON, None where it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def __repr__(self) -> str:
        return f"<Recorded {self.method} {self.path}>"
