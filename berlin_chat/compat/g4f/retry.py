"""``RetryProvider``: one provider after the other, as g4f had it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from random import sample
from typing import Any

from ...configuration import configured
from ...errors import InvalidRequest
from ...groups.fallback import Fallback
from ...groups.group import checked_providers
from ...provider import Provider
from ...providers import provider_class


class RetryProvider(Fallback):
    """A :class:`~berlin_chat.Fallback` that asks in another order each time.

    Where ``Fallback`` makes an instance of a class, this takes the one that all old calls share, with its login.
    ``close`` closes only what was given as an instance.

    Args:
        providers: instances, classes, or names.
        shuffle: whether each question tries them in an order of its own.
        base_url: the address for those that are given as classes or names; otherwise from the environment.

    Attributes:
        last_provider: the one that was asked last, by any thread; None before.

    >>> from berlin_chat import Berlin, Ylokh
    >>> from berlin_chat.server import LocalServer
    >>> with LocalServer() as server:
    ...     retry = RetryProvider([Ylokh, "acytoo"], shuffle=False, base_url=server.url)
    ...     for piece in retry.create_completion("gpt-3.5-turbo", [{"role": "user", "content": "Hi"}]):
    ...         print(piece, end="")
    This is the echo of berlin_chat's own server: no model is behind it. You said: Hi
    """

    name = "retry"

    def __init__(
        self, providers: Iterable[Provider | type[Provider] | str], shuffle: bool = True, base_url: str | None = None
    ) -> None:
        given = list(checked_providers(providers))
        super().__init__([_shared(one, base_url) for one in given])
        self.shuffle = shuffle
        self.last_provider: Provider | None = None
        self._configuration = {"providers": given, "shuffle": shuffle, "base_url": base_url}

    def without(self, ignored: Iterable[str]) -> RetryProvider:
        """Returns one that lacks the providers of these names, or of classes of these names."""
        if isinstance(ignored, str):
            raise InvalidRequest("ignored is of type str: give a list of names")
        names = {name.lower() for name in ignored}
        both = zip(self._configuration["providers"], self.providers, strict=True)
        left = [given for given, one in both if not names & {one.name, type(one).__name__.lower()}]
        if not left:
            raise InvalidRequest("ignored leaves none of the providers")
        return RetryProvider(**{**self._configuration, "providers": left})

    def full_configuration(self) -> dict[str, Any]:
        return {"providers": self.providers, "shuffle": self.shuffle}  # another process may have another environment

    def close(self) -> None:
        Provider.close(self)
        for one in self._configuration["providers"]:
            if isinstance(one, Provider):
                one.close()

    def _turns(self) -> Iterator[Provider]:
        for provider in sample(self.providers, len(self.providers)) if self.shuffle else self.providers:
            self.last_provider = provider
            yield provider


def _shared(provider: Any, base_url: str | None) -> Any:
    """The instance that old calls on a class share; what is no class is the group's to check."""
    cls = provider_class(provider) if isinstance(provider, str) else provider
    if isinstance(cls, type) and issubclass(cls, Provider):
        return configured(cls, {"base_url": base_url})
    return cls
