"""Synchronous chat: blocking providers of five protocols, plain generators, a ``for`` loop.

>>> from berlin_chat.server import LocalServer
>>> with LocalServer() as server:
...     for piece in server.provider("openai").stream("Why is the sky blue?"):
...         print(piece, end="", flush=True)
This is the echo of berlin_chat's own server: no model is behind it. You said: Why is the sky blue?
"""

import logging
from typing import TYPE_CHECKING, Any

from .batch.answers import Answer
from .batch.keys import keyed
from .batch.pieces import stream_many
from .batch.pool import ask_many
from .cancellation import CancelToken
from .errors import (
    AllProvidersFailed,
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    Cancelled,
    ChatError,
    HistoryError,
    InvalidRequest,
    ProtocolError,
    ProviderNotWorking,
    RateLimitError,
    StreamInterrupted,
    TooManySteps,
)
from .groups.balance import Balance
from .groups.fallback import Fallback
from .groups.race import Race, race
from .http.transport import Exchange
from .live import LiveReply
from .messages import Message, Messages, image
from .process import importing as _importing
from .provider import Provider
from .providers import get_provider, provider_names
from .providers.acytoo import Acytoo
from .providers.berlin import Berlin
from .providers.h2o import H2o
from .providers.openai import OpenAICompatible
from .providers.ylokh import Ylokh
from .reply import Event, Metadata, Reply, ToolCall
from .version import __version__

if TYPE_CHECKING:
    from .conversations.conversation import Conversation
    from .conversations.history import Found, History, Listed
    from .conversations.trimming import fits, last_turns
    from .conversations.turns import Turn

__all__ = [
    "APIConnectionError",
    "APIStatusError",
    "APITimeoutError",
    "Acytoo",
    "AllProvidersFailed",
    "Answer",
    "AuthenticationError",
    "Balance",
    "Berlin",
    "CancelToken",
    "Cancelled",
    "ChatError",
    "Conversation",
    "Event",
    "Exchange",
    "Fallback",
    "Found",
    "H2o",
    "History",
    "HistoryError",
    "InvalidRequest",
    "Listed",
    "LiveReply",
    "Message",
    "Messages",
    "Metadata",
    "OpenAICompatible",
    "ProtocolError",
    "Provider",
    "ProviderNotWorking",
    "Race",
    "RateLimitError",
    "Reply",
    "StreamInterrupted",
    "TooManySteps",
    "ToolCall",
    "Turn",
    "Ylokh",
    "__version__",
    "ask_many",
    "fits",
    "get_provider",
    "image",
    "keyed",
    "last_turns",
    "provider_names",
    "race",
    "stream_many",
]

# A library is silent unless its user says otherwise.
logging.getLogger(__name__).addHandler(logging.NullHandler())


#: What stands in which module of ``conversations``, and is imported when it is first used.
_LATER = {
    "Conversation": "conversation",
    "Found": "history",
    "History": "history",
    "Listed": "history",
    "Turn": "turns",
    "fits": "trimming",
    "last_turns": "trimming",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    with _importing:
        value = globals()[name] = getattr(import_module(f".conversations.{_LATER[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})


def load_ipython_extension(shell: Any) -> None:
    """What ``%load_ext berlin_chat`` calls: it brings ``%%chat``."""
    from .notebook.magic import load

    load(shell)
