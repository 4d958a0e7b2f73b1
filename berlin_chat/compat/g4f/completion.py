"""g4f's calls: ``ChatCompletion.create``, ``Completion.create``, ``get_last_provider``."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any, Literal, NoReturn, overload

from ...configuration import configured
from ...errors import InvalidRequest
from ...messages import Messages
from ...provider import Provider
from ...providers import configured_names, provider_class
from ...providers.openai import OpenAICompatible
from ...reply import Reply
from ..credentials import credential
from . import debug
from .models import Model, ModelUtils
from .retry import RetryProvider


class ChatCompletion:
    """What asks, as in 2023. Any number of threads may call it at once.

    >>> from berlin_chat.server import LocalServer
    >>> with LocalServer() as server:
    ...     ChatCompletion.create("gpt-3.5-turbo", [{"role": "user", "content": "Hi"}], base_url=server.url)[-2:]
    'Hi'
    """

    @overload
    @staticmethod
    def create(
        model: Any,
        messages: Messages,
        provider: Provider | type[Provider] | str | None = None,
        stream: Literal[False] = False,
        **options: Any,
    ) -> Reply: ...
    @overload
    @staticmethod
    def create(
        model: Any,
        messages: Messages,
        provider: Provider | type[Provider] | str | None = None,
        *,
        stream: Literal[True],
        **options: Any,
    ) -> Generator[str, None, Reply]: ...
    @overload
    @staticmethod
    def create(
        model: Any, messages: Messages, provider: Provider | type[Provider] | str | None, stream: bool, **options: Any
    ) -> Reply | Generator[str, None, Reply]: ...
    @staticmethod
    def create(
        model: Any,
        messages: Messages,
        provider: Provider | type[Provider] | str | None = None,
        stream: bool = False,
        ignored: Iterable[str] | None = None,
        ignore_working: bool = False,
        auth: str | None = None,
        **options: Any,
    ) -> Reply | Generator[str, None, Reply]:
        """Asks, and returns the whole text, or with ``stream=True`` a generator of it.

        Args:
            model: a name, or an object with ``name`` and ``best_provider``, such as ``models.gpt_35_turbo``.
            messages: as in ``Provider.stream``.
            provider: a class, an instance, or a name. Otherwise the model's ``best_provider``; or those that have an
                address of their own in the environment, such as ``BERLIN_CHAT_BERLIN_URL``, one after the other; or
                :class:`~berlin_chat.OpenAICompatible`.
            stream: whether the text is wanted piece by piece.
            ignored: names of providers that a ``RetryProvider`` leaves out.
            ignore_working: without effect. ``working`` is about the hosted service, and an address of your own is what
                counts here.
            auth: the provider's ``api_key``, ``token`` or ``key``, whichever it has.
            options: those of ``Provider.stream``, and the arguments of the provider's class, such as ``base_url`` and
                ``proxy``.

        Raises:
            InvalidRequest, ProviderNotWorking: at the call.
            ChatError: those of ``Provider.stream``.
        """
        name, best = _named(model)
        target = provider or best or _configured_one(options)
        target = provider_class(target) if isinstance(target, str) else target
        if ignored and isinstance(target, RetryProvider):
            target = target.without(ignored)
        cls = target if isinstance(target, type) else type(target)
        if not issubclass(cls, Provider):
            raise InvalidRequest(f"provider is of type {cls.__name__}: give a class, an instance or a name")
        asked: Provider = configured(target, options, credential(cls, auth, "auth"))
        debug.last_provider, debug.last_model = asked, name
        if debug.logging:
            print(f"Using {cls.__name__} provider")
        if stream:
            return asked.stream(messages, name, **options)
        return asked.ask(messages, name, **{**options, **asked.unstreamed})

    @staticmethod
    def create_async(*_: Any, **__: Any) -> NoReturn:
        """Refused, with the name of what to call instead of awaiting it."""
        raise InvalidRequest(
            "there is no event loop here: ChatCompletion.create has the same arguments, and returns the text. In a"
            " coroutine: await asyncio.to_thread(ChatCompletion.create, …)"
        )


class Completion:
    """The same for one prompt."""

    @staticmethod
    def create(
        model: Any,
        prompt: str,
        provider: Provider | type[Provider] | str | None = None,
        stream: bool = False,
        **options: Any,
    ) -> Reply | Generator[str, None, Reply]:
        """Asks for the answer to a prompt. All else is as in ``ChatCompletion.create``."""
        return ChatCompletion.create(model, prompt, provider, stream, **options)


def get_last_provider(as_dict: bool = False) -> Any:
    """Returns the class of the provider that was asked last, by any thread, through ``create``; None before.

    Args:
        as_dict: its ``name``, its address as ``url``, and the ``model`` instead.
    """
    last: Any = debug.last_provider
    if isinstance(last, RetryProvider):
        last = last.last_provider or last
    if last is None:
        return None
    url = last.base_url or last.url
    return {"name": type(last).__name__, "url": url, "model": debug.last_model} if as_dict else type(last)


def _named(model: Any) -> tuple[str | None, Any]:
    """A model's name, and its provider."""
    if isinstance(model, str):
        model = ModelUtils.convert.get(model) or Model(model)
    if model is not None and not isinstance(getattr(model, "name", None), str):
        raise InvalidRequest(f"model is of type {type(model).__name__}: give a name, or an object with a name")
    return (model.name, getattr(model, "best_provider", None)) if model is not None else (None, None)


def _configured_one(options: dict[str, Any]) -> Provider | type[Provider]:
    """Whom to ask where nobody was named."""
    if not options.get("base_url"):
        found = [provider_class(name) for name in configured_names()]
        if len(found) > 1:
            return RetryProvider(found, shuffle=False)
        if found:
            return found[0]
    return OpenAICompatible
