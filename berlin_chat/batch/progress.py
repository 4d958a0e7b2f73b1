"""A progress bar of tqdm: in a notebook one of the notebook's."""

from __future__ import annotations

from operator import length_hint
from typing import Any

from .answers import Answer


class Progress:
    """Counts answers and errors, on a terminal or in a notebook.

    Raises:
        ImportError: tqdm is not installed.
    """

    def __init__(self, prompts: Any) -> None:
        try:
            from tqdm.auto import tqdm
        except ImportError as error:
            raise ImportError("a progress bar needs tqdm: pip install 'berlin_chat[cli]'") from error
        self._make = tqdm
        self._total = length_hint(prompts) or None
        self._errors = 0

    def __enter__(self) -> Progress:
        self._bar = self._make(total=self._total, unit=" answers", dynamic_ncols=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, answer: Answer) -> None:
        """Counts an answer."""
        if answer.error is not None:
            self._errors += 1
            self._bar.set_postfix(errors=self._errors, refresh=False)
        self._bar.update()
