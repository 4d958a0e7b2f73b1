"""What answers where there is no upstream."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ..errors import InvalidRequest
from ..messages import Messages, as_list, flatten
from .backend import FORMS, wish

PREFACE = "This is the echo of berlin_chat's own server: no model is behind it. You said: "
_WORDS = re.compile(r"\s*\S+|\s+\Z")


class Echo:
    """Says plainly that no model is behind it, and repeats the last message word by word.

    All of them would make each turn of a conversation twice as long as the one before.
    """

    default_model = "echo"

    def stream(self, messages: Messages, model: str | None = None, **options: Any) -> Iterator[str]:
        """Yields the words of the answer."""
        if wished := wish(options, FORMS):
            raise InvalidRequest(f"the echo has no model that could answer by {wished!r}")
        yield from _WORDS.findall(PREFACE + flatten(as_list(messages)[-1:]))
