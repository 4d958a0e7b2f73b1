"""A progress bar of tqdm: in a notebook one of the notebook's."""

from __future__ import annotations

from collections.abc import Callable
from operator import length_hint
from typing import Any

from ..process import importing
from .answers import Answer


class Progress:
    """Counts answers and errors, on a terminal or in a notebook.

    Args:
        workers: says how many questions are asked at once, where that changes.

    Raises:
        ImportError: tqdm is not installed.
    """

    def __init__(self, prompts: Any, workers: Callable[[], int] | None = None) -> None:
        try:
            with importing:
                from tqdm.auto import tqdm
        except ImportError as error:
            raise ImportError("a progress bar needs tqdm: pip install 'berlin_chat[cli]'") from error
        self._make = tqdm
        self._total = length_hint(prompts) or None
        self._workers = workers
        self._shown: dict[str, int] = {}

    def __enter__(self) -> Progress:
        self._bar = self._make(total=self._total, unit=" answers", dynamic_ncols=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, answer: Answer) -> None:
        """Counts an answer."""
        if answer.error is not None:
            self._shown["errors"] = self._shown.get("errors", 0) + 1
        if self._workers is not None:
            self._shown["workers"] = self._workers()
        if self._shown:
            self._bar.set_postfix(self._shown, refresh=False)
        self._bar.update()
