"""The calls of code that was written for g4f or for OpenAI's package, over the providers of this library."""

from .client import Client
from .g4f.completion import ChatCompletion, Completion, get_last_provider
from .g4f.retry import RetryProvider

__all__ = ["ChatCompletion", "Client", "Completion", "RetryProvider", "get_last_provider"]
