"""How each prompt of a batch is asked, here or in another process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from time import monotonic
from typing import Any, Literal

from ..cancellation import CancelToken, Limiter
from ..errors import ChatError, InvalidRequest
from ..messages import Messages
from ..process import importing
from ..provider import Provider
from ..reply import Reply
from ..validation import checked_count, checked_seconds
from .answers import Answer
from .checkpoint import Checkpoint
from .concurrency import Concurrency
from .in_flight import sleeper
from .keys import Asked
from .rate_limit import RateLimiter

Chunk = list[Asked]

#: As ``max_workers``: as many as make the batch faster.
AUTO = "auto"

#: How alike the name of an option and one of our arguments are when it is taken for a misspelling; and options of
#: servers that are as alike, but meant.
NEAR, SENT = 0.7, frozenset(("max_new_tokens", "max_tokens", "min_tokens", "mode", "models"))


class Questions:
    """What all questions of a batch have in common. Pickled, it is configuration.

    Args:
        arguments: those of ``Provider.stream`` beside the messages.
    """

    def __init__(self, provider: Provider, interval: float = 0.0, **arguments: Any) -> None:
        provider.check_address()
        checked_seconds(arguments.get("deadline"), "deadline")
        self.limiter: Limiter = RateLimiter(interval)
        self.provider = provider
        self.arguments = arguments
        self.stop = CancelToken()
        self.checkpoint: Checkpoint | None = None
        self.concurrency: Concurrency | None = None

    def __reduce__(self) -> Any:
        return _restored, (self.provider, self.arguments)

    def workers(self, max_workers: int | Literal["auto"]) -> Callable[[], int]:
        """Returns what says how many questions at once there may be at the moment."""
        if not isinstance(max_workers, str):
            number = max_workers
            return lambda: number
        self.concurrency = concurrency = Concurrency()
        if isinstance(self.limiter, RateLimiter):  # it is, where the batch is
            self.limiter.told = lambda: concurrency.refused(monotonic())
        return lambda: concurrency.limit

    def ask(self, index: int, prompt: Messages, key: Any = None) -> Answer:
        """Returns the answer to one prompt, which is on disk then; an error of the provider's is in it."""
        started = monotonic()
        try:
            self.limiter.wait(sleeper(self.stop))
            started = monotonic()
            reply = self._asked(prompt, started)
        except ChatError as error:
            return Answer(index, prompt, None, error, monotonic() - started, error.attempts, key)
        answer = Answer(index, prompt, reply, None, monotonic() - started, reply.attempts, key)
        # Here, and not where it is yielded: a loop that is slow, or killed, must not lose it.
        if self.checkpoint is not None:
            self.checkpoint.record(answer)
        return answer

    def _asked(self, prompt: Messages, started: float) -> Reply:
        """Returns the reply; what the question has met is told to who finds the best concurrency."""
        if self.concurrency is None:
            return self.provider.ask(prompt, cancel=self.stop, limiter=self.limiter, **self.arguments)
        self.concurrency.began(started)
        met: Reply | ChatError | None = None
        try:
            met = self.provider.ask(prompt, cancel=self.stop, limiter=self.limiter, **self.arguments)
        except ChatError as error:
            met = error
            raise
        finally:
            self.concurrency.ended(started, monotonic(), met)
        return met

    def stream(self, prompt: Messages) -> Iterator[str]:
        """Yields the pieces of the reply to one prompt."""
        self.limiter.wait(sleeper(self.stop))
        return self.provider.stream(prompt, cancel=self.stop, limiter=self.limiter, **self.arguments)

    def ask_chunk(self, chunk: Chunk) -> list[Answer]:
        """Returns the answers to some prompts, asked one after the other."""
        return [self.ask(*asked) for asked in chunk]


def _restored(provider: Provider, arguments: dict[str, Any]) -> Questions:
    return Questions(provider, **arguments)


def checked_arguments(max_workers: Any, chunk_size: int | None, on_error: str) -> None:
    """Looks at the arguments that batches have in common."""
    if isinstance(max_workers, str) and max_workers != AUTO:
        raise InvalidRequest(f'max_workers is {max_workers!r}: give a whole number of at least 1, or "auto"')
    if max_workers != AUTO:
        checked_count(max_workers, "max_workers", 1)
    if chunk_size is not None:
        checked_count(chunk_size, "chunk_size", 1)
    if on_error not in ("return", "raise"):
        raise InvalidRequest(f'on_error must be "return" or "raise", not {on_error!r}')


def checked_options(options: Mapping[str, Any], caller: Callable[..., Any]) -> None:
    """Looks whether options that would be sent are rather arguments of ``caller`` that were misspelled."""
    with importing:
        from difflib import get_close_matches  # here, as it is not needed by those who give no options

    arguments = [name for name in caller.__kwdefaults__ or {} if name not in options]
    for name in options:
        if name not in SENT and (meant := get_close_matches(name, arguments, 1, NEAR)):
            raise InvalidRequest(
                f"{caller.__name__} has no argument {name!r}, and the server would be sent it as an option: write"
                f" {meant[0]}=…"
            )
