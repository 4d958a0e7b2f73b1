"""The providers, by the names that they had in g4f."""

from __future__ import annotations

from typing import Any

from ...provider import Provider
from ...providers import PROVIDERS
from ...providers.acytoo import Acytoo
from ...providers.berlin import Berlin
from ...providers.h2o import H2o
from ...providers.openai import OpenAICompatible
from ...providers.ylokh import Ylokh
from .retry import RetryProvider

__all__ = ["Acytoo", "BaseProvider", "Berlin", "H2o", "OpenAICompatible", "RetryProvider", "Ylokh"]

BaseProvider = Provider
__providers__ = list(PROVIDERS.values())


def __getattr__(name: str) -> Any:
    there = ", ".join(__all__)
    raise AttributeError(f"there is no {name} here, but {there}: OpenAICompatible asks any server of OpenAI's protocol")
