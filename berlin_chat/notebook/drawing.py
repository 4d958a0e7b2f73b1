"""Where a notebook shows what grows: one output, drawn anew, not too often."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any
from uuid import uuid4

#: The shortest time between two redraws, in seconds.
INTERVAL = 1 / 20
#: How many characters a second are sent to the page: a long text is sent less often, for it is sent whole.
RATE = 200_000
#: What part of the time may be spent with drawing.
SHARE = 0.2


def notebook() -> Any:
    """Returns the shell of the notebook that this runs in, None where there is no notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell if getattr(shell, "kernel", None) is not None else None


class Page:
    """What stands for a canvas outside of notebooks: standard output.

    Args:
        news: returns what is to be printed when something has changed.
        rest: returns what is to be printed at the end.
    """

    def __init__(self, news: Callable[[], str], rest: Callable[[], str]) -> None:
        self._news = news
        self._rest = rest

    def __enter__(self) -> Page:
        return self

    def changed(self) -> None:
        """Prints what is new."""
        print(self._news(), end="", flush=True)

    def __exit__(self, *_: object) -> None:
        print(self._rest(), end="", flush=True)


class Canvas:
    """One output of a notebook's cell. While it is entered, a thread of its own draws it when it has changed.

    So what has come is shown also while nothing more comes. ``changed`` may be called from any thread; the first and
    the last time it is drawn by the one that enters and leaves.

    Args:
        content: returns all that is to be shown now, by MIME types; called in either thread.
    """

    def __init__(self, content: Callable[[], dict[str, str]]) -> None:
        self._content = content
        self._identity = uuid4().hex
        self._changed = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._draw_changes, name="berlin_chat-canvas", daemon=True)

    def __enter__(self) -> Canvas:
        self._draw(update=False)
        self._thread.start()
        return self

    def changed(self) -> None:
        """Has it drawn, soon."""
        self._changed.set()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._changed.set()
        try:
            self._thread.join()
        finally:  # also where the stop button is pressed again
            self._draw()

    def _draw_changes(self) -> None:
        pause = 0.0
        while not self._ended.wait(pause):
            self._changed.wait()
            self._changed.clear()
            started = monotonic()
            length = 0 if self._ended.is_set() else self._draw()
            pause = max(INTERVAL, length / RATE, (monotonic() - started) / SHARE)

    def _draw(self, update: bool = True) -> int:
        from IPython.display import publish_display_data

        data = self._content()
        publish_display_data(data, transient={"display_id": self._identity}, update=update)  # type: ignore[no-untyped-call]
        return sum(map(len, data.values()))
