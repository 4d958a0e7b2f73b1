"""What answers where there is no upstream."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ..messages import Messages, as_list, flatten

PREFACE = "This is the echo of berlin_chat's own server: no model is behind it. You said: "
_WORDS = re.compile(r"\s*\S+|\s+\Z")


class Echo:
    """Says plainly that no model is behind it, and repeats the prompt word by word."""

    default_model = "echo"

    def stream(self, messages: Messages, model: str | None = None, **options: Any) -> Iterator[str]:
        """Yields the words of the answer."""
        yield from _WORDS.findall(PREFACE + flatten(as_list(messages)))
