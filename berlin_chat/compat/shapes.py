"""The objects of OpenAI's package: attributes, ``model_dump()``, and nothing behind them.

Their names, their fields and the order of these are those that users see there, also where an object is printed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, TypeVar

S = TypeVar("S", bound="Shape")


class Shape:
    """An object of the package: what was told stands in the instance, what was not is the class's None.

    >>> usage = CompletionUsage.of({"total_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}})
    >>> usage.prompt_tokens_details.cached_tokens
    4
    >>> usage.model_dump(exclude_none=True)
    {'total_tokens': 9, 'prompt_tokens_details': {'cached_tokens': 4}}
    """

    #: What makes the objects in its fields.
    _inner: ClassVar[Mapping[str, Callable[[Mapping[str, Any]], Shape]]] = {}

    def __init_subclass__(cls, **inner: Callable[[Mapping[str, Any]], Shape]) -> None:
        cls._inner = inner

    @classmethod
    def of(cls: type[S], values: Mapping[str, Any]) -> S:
        """Returns an object of what JSON holds, with objects inside."""
        shape, inner = cls(), cls._inner
        shape.__dict__.update(values)
        for name in inner.keys() & values.keys():
            value, make = values[name], inner[name]
            if isinstance(value, Mapping):
                shape.__dict__[name] = make(value)
            elif isinstance(value, (list, tuple)):
                shape.__dict__[name] = [make(one) if isinstance(one, Mapping) else one for one in value]
        return shape

    def model_dump(
        self, *, mode: str = "python", exclude_unset: bool = False, exclude_none: bool = False
    ) -> dict[str, Any]:
        """Returns it as dicts and lists.

        Args:
            mode: ``"python"`` and ``"json"`` are the same here: all of it is JSON.
            exclude_unset: without what was not told.
            exclude_none: without what is None.
        """
        how: dict[str, Any] = {"exclude_unset": exclude_unset, "exclude_none": exclude_none}
        return {
            name: _dumped(value, how)
            for name, value in self._fields()
            if not (exclude_unset and name not in self.__dict__) and not (exclude_none and value is None)
        }

    def model_dump_json(self, *, indent: int | None = None, **how: Any) -> str:
        """Returns it as JSON. The other arguments are those of ``model_dump``."""
        separators = (",", ":") if indent is None else None
        return json.dumps(self.model_dump(**how), indent=indent, separators=separators, ensure_ascii=False)

    def to_dict(self) -> dict[str, Any]:
        """Returns what was told of it, as dicts and lists."""
        return self.model_dump(exclude_unset=True)

    def to_json(self, *, indent: int | None = 2) -> str:
        """Returns the same as JSON."""
        return self.model_dump_json(indent=indent, exclude_unset=True)

    def _fields(self) -> Iterator[tuple[str, Any]]:
        """The fields that all have, and then what else a server says."""
        for name in dict.fromkeys([*type(self).__annotations__, *self.__dict__]):
            if not name.startswith("_") and hasattr(self, name):
                yield name, getattr(self, name)

    def __iter__(self) -> Iterator[Any]:
        """The pairs of which ``dict()`` makes a dict, as of pydantic's objects."""
        return self._fields()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._fields())})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and dict(self._fields()) == dict(other._fields())

    __hash__ = None  # type: ignore[assignment]  # it can be changed


def _dumped(value: Any, how: dict[str, Any]) -> Any:
    if isinstance(value, Shape):
        return value.model_dump(**how)
    return [_dumped(one, how) for one in value] if isinstance(value, list) else value


def plain(value: Any) -> Any:
    """Returns what a caller gave as dicts and lists: messages may hold objects, ours or those of OpenAI's package."""
    if hasattr(value, "model_dump") and not isinstance(value, type):
        return value.model_dump(exclude_unset=True)
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, (list, tuple, Iterator)) else value


# What the parts of a stream and a whole completion have in common


class CompletionTokensDetails(Shape):
    accepted_prediction_tokens: int | None = None
    audio_tokens: int | None = None
    reasoning_tokens: int | None = None
    rejected_prediction_tokens: int | None = None


class PromptTokensDetails(Shape):
    audio_tokens: int | None = None
    cache_write_tokens: int | None = None
    cached_tokens: int | None = None


class CompletionUsage(
    Shape, completion_tokens_details=CompletionTokensDetails.of, prompt_tokens_details=PromptTokensDetails.of
):
    completion_tokens: int
    prompt_tokens: int
    total_tokens: int
    completion_tokens_details: CompletionTokensDetails | None = None
    prompt_tokens_details: PromptTokensDetails | None = None


class TopLogprob(Shape):
    token: str
    bytes: list[int] | None = None
    logprob: float


class ChatCompletionTokenLogprob(Shape, top_logprobs=TopLogprob.of):
    token: str
    bytes: list[int] | None = None
    logprob: float
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(Shape, content=ChatCompletionTokenLogprob.of, refusal=ChatCompletionTokenLogprob.of):
    content: list[ChatCompletionTokenLogprob] | None = None
    refusal: list[ChatCompletionTokenLogprob] | None = None
