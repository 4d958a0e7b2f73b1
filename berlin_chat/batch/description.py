"""What a batch asks of whom, so that its answers are not taken for those of another."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from ..provider import Provider
from ..redaction import is_secret

#: The form of a checkpoint's lines. The first had no description.
FORMAT = 2
#: Options that say how a question travels, and not what it is.
_ON_THE_WAY = ("headers", "retries", "timeout")


@runtime_checkable
class Describes(Protocol):
    """A provider that asks another one in its own way, and says what counts of both."""

    def described(self, model: str | None, options: Mapping[str, Any]) -> dict[str, Any]: ...


def described(provider: Provider, model: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the description of a batch's questions, as JSON gives it back. It holds no secret.

    Args:
        model, options: those of each question.
    """
    if isinstance(provider, Describes):
        return provider.described(model, options)
    asked = {name: value for name, value in options.items() if value is not None and name not in _ON_THE_WAY}
    description = {"format": FORMAT, **_asked(provider, model), "options": _without_secrets(asked)}
    # What is no JSON is refused by the provider, which says so better.
    whole: dict[str, Any] = json.loads(json.dumps(description, default=lambda value: type(value).__name__))
    return whole


def _asked(provider: Provider, model: str | None) -> dict[str, Any]:
    """Who it is, and for a group of providers, who they are."""
    who = {
        "provider": type(provider).__name__,
        "address": getattr(provider, "base_url", None),
        "model": model or getattr(provider, "model", None) or None,
    }
    members = [_asked(member, model) for member in getattr(provider, "providers", ())]
    return {**who, "providers": members} if members else who


def _without_secrets(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            str(name): "***" if isinstance(part, str) and is_secret(str(name), part) else _without_secrets(part)
            for name, part in value.items()
        }
    return [_without_secrets(part) for part in value] if isinstance(value, (list, tuple)) else value


def differences(there: Any, here: Any, name: str = "") -> Iterator[str]:
    """Yields each field in which two descriptions differ, with both values.

    >>> list(differences({"model": "a", "options": {"n": 1}}, {"model": "b", "options": {"n": 1}}))
    ["model: 'a' in the file, 'b' now"]
    """
    if isinstance(there, dict) and isinstance(here, dict):
        for field in [*there, *(field for field in here if field not in there)]:
            if there.get(field) != here.get(field):
                yield from differences(there.get(field), here.get(field), f"{name}.{field}" if name else field)
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        for place, (one, other) in enumerate(zip(there, here, strict=True)):
            if one != other:
                yield from differences(one, other, f"{name}[{place}]")
    elif there != here:
        yield f"{name}: {_short(there)} in the file, {_short(here)} now"


def _short(value: Any) -> str:
    shown = "none" if value is None else repr(value)
    return f"{shown[:100]}…" if len(shown) > 100 else shown
