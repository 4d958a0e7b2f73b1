"""g4f as it was in 2023, over the providers of this library: ``import berlin_chat.compat.g4f as g4f``."""

from . import Provider, debug, models
from .completion import ChatCompletion, Completion, get_last_provider
from .models import Model, ModelUtils
from .retry import RetryProvider

__all__ = [
    "ChatCompletion",
    "Completion",
    "Model",
    "ModelUtils",
    "Provider",
    "RetryProvider",
    "debug",
    "get_last_provider",
    "models",
]
