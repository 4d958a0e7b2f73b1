"""Synchronous chat: blocking providers of four protocols, plain generators, a ``for`` loop.

>>> from berlin_chat.server import LocalServer
>>> with LocalServer() as server:
...     for piece in server.provider("berlin").stream("Why is the sky blue?"):
...         print(piece, end="", flush=True)
This is the echo of berlin_chat's own server: no model is behind it. You said: Why is the sky blue?
"""

from .cancelling import CancelToken
from .checkpoint import Answer
from .errors import (
    AllProvidersFailed,
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    Cancelled,
    ChatError,
    InvalidRequest,
    ProtocolError,
    ProviderNotWorking,
    RateLimitError,
    StreamInterrupted,
)
from .fallback import Fallback, Race, race
from .messages import Message, Messages
from .pool import ask_many, stream_many
from .provider import Provider
from .providers import get_provider, provider_names
from .providers.acytoo import Acytoo
from .providers.berlin import Berlin
from .providers.h2o import H2o
from .providers.ylokh import Ylokh
from .reply import Reply
from .version import __version__

__all__ = [
    "APIConnectionError",
    "APIStatusError",
    "APITimeoutError",
    "Acytoo",
    "AllProvidersFailed",
    "Answer",
    "AuthenticationError",
    "Berlin",
    "CancelToken",
    "Cancelled",
    "ChatError",
    "Fallback",
    "H2o",
    "InvalidRequest",
    "Message",
    "Messages",
    "ProtocolError",
    "Provider",
    "ProviderNotWorking",
    "Race",
    "RateLimitError",
    "Reply",
    "StreamInterrupted",
    "Ylokh",
    "__version__",
    "ask_many",
    "get_provider",
    "provider_names",
    "race",
    "stream_many",
]
