"""``Fallback``: one provider after the other."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import closing

from ..cancellation import Deadline
from ..errors import Cancelled, ChatError
from ..provider import Parts, Provider, Question
from .group import Group

log = logging.getLogger("berlin_chat")


class Fallback(Group):
    """Asks its providers in turn, until a first piece has arrived; never another one after it.

    Itself a provider, as safe to share between threads as its providers are.

    Args:
        providers: in the order in which they are tried: instances, classes, or names.

    Raises:
        AllProvidersFailed: while reading: none of them delivered a piece; its ``errors`` say why.
        APITimeoutError: while reading: none of them did so before the deadline.

    >>> from berlin_chat import Ylokh
    >>> from berlin_chat.server import LocalServer
    >>> with LocalServer() as server:
    ...     reply = Fallback([Ylokh("http://127.0.0.1:9", retries=0), server.provider("berlin")]).ask("Hi")
    >>> reply.provider
    'berlin'
    """

    name = "fallback"

    def __init__(self, providers: Iterable[Provider | type[Provider] | str]) -> None:
        super().__init__(providers)

    def _turns(self) -> Iterable[Provider]:
        """The providers in the order in which a question tries them."""
        return self.providers

    def _answer(self, question: Question) -> Parts:
        deadline = Deadline(question.limits.seconds)
        errors: list[ChatError] = []
        for provider in self._turns():
            try:
                pieces = question.put_to(provider, deadline, question.limits.cancel)
                first = next(pieces)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            except Cancelled:
                raise
            except ChatError as error:
                errors.append(error)
                if deadline.passed:
                    break
                if len(errors) < len(self.providers):
                    log.warning("%s. The next provider is asked.", error)
            else:
                with closing(pieces):
                    yield first
                    return (yield from pieces)
        raise self._failed(errors, deadline)
