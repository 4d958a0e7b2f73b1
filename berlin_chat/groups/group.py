"""What groups of providers share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from ..cancellation import Deadline
from ..errors import AllProvidersFailed, APITimeoutError, Cancelled, ChatError, InvalidRequest
from ..provider import Provider
from ..providers import get_provider


class Group(Provider):
    """Several providers that look like one: a question is answered by one of them.

    It has no connections of its own. Its ``base_url`` is None, and its ``model`` is ``""``: each provider asks its own,
    unless a question names one.

    Args:
        providers: instances, classes, or names, as in ``get_provider``.
        settings: the other arguments of the group's constructor.

    Raises:
        InvalidRequest: there are none, or one of them is none.
    """

    supports_message_history: ClassVar[bool] = True

    def __init__(self, providers: Iterable[Provider | type[Provider] | str], **settings: Any) -> None:
        super().__init__()
        self.providers = tuple(_made(provider, type(self).__name__) for provider in checked_providers(providers))
        if not self.providers:
            raise InvalidRequest(f"{type(self).__name__} needs at least one provider")
        # For a gateway, which cannot know who will answer.
        known = [one.known_options for one in self.providers if one.known_options is not None]
        self.known_options = frozenset.intersection(*known) if known else None
        self._configuration = {"providers": self.providers, **settings}

    def close(self) -> None:
        """Closes all of its providers."""
        super().close()
        for provider in self.providers:
            provider.close()

    def models(self, **how: Any) -> list[str]:
        """Returns the names of the models of all its providers, each once."""
        return list(dict.fromkeys(name for provider in self.providers for name in provider.models(**how)))

    def check_address(self) -> None:
        """Raises the first provider's ProviderNotWorking if none of them has an address."""
        errors = []
        for provider in self.providers:
            try:
                return provider.check_address()
            except ChatError as error:
                errors.append(error)
        raise errors[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self.providers)!r})"

    def _url_from_environment(self) -> tuple[str | None, str]:
        return None, ""

    def _failed(self, errors: Iterable[ChatError], deadline: Deadline) -> ChatError:
        """The error of a question that nobody has answered."""
        errors = tuple(errors)
        for error in errors:
            if isinstance(error, Cancelled):
                return error
        reasons = "; ".join(map(str, errors))
        attempts = sum(error.attempts for error in errors)
        if deadline.passed:
            return APITimeoutError(f"no piece within the deadline: {reasons}", provider=self.name, attempts=attempts)
        failed = f"every provider failed: {reasons}"
        return AllProvidersFailed(failed, provider=self.name, attempts=attempts, errors=errors)


def checked_providers(providers: Any) -> Iterable[Any]:
    """Returns what may be the providers of a group. Raises InvalidRequest where it is no list of anything."""
    if isinstance(providers, (str, Provider)) or not isinstance(providers, Iterable):
        raise InvalidRequest(f"providers is of type {type(providers).__name__}: give a list of them")
    return providers


def _made(provider: Any, group: str) -> Provider:
    if isinstance(provider, str):
        return get_provider(provider)
    if isinstance(provider, type) and issubclass(provider, Provider):
        return provider()
    if not isinstance(provider, Provider):
        raise InvalidRequest(f"a provider of a {group} is of type {type(provider).__name__}, not Provider")
    return provider
