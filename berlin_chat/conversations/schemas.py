"""Python's type hints as JSON schemas, and JSON values as what the hints say."""

from __future__ import annotations

import collections.abc
import types
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from ..process import importing

#: The plain types, with the name that JSON schemas have for each.
_PLAIN = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
_LISTS = (list, set, frozenset, collections.abc.Sequence, collections.abc.Iterable)
_DICTS = (dict, collections.abc.Mapping)
#: What people call what JSON holds.
_NAMES = {str: "text", bool: "true or false", int: "a whole number", float: "a number", type(None): "null"}


class Unsuitable(TypeError):
    """A hint that no schema can say."""


def schema_of(hint: Any) -> dict[str, Any]:
    """Returns the schema of what a hint describes.

    Raises:
        Unsuitable: there is none.

    >>> schema_of(list[int | None])
    {'type': 'array', 'items': {'anyOf': [{'type': 'integer'}, {'type': 'null'}]}}
    """
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if origin in (Any, object):
        return {}
    if origin is Annotated:
        described = next((note for note in arguments[1:] if isinstance(note, str)), None)
        return {**schema_of(arguments[0]), **({"description": described} if described else {})}
    if origin in _PLAIN:
        return {"type": _PLAIN[origin]}
    if origin is Literal:
        return _one_of(list(arguments))
    if origin in (Union, types.UnionType):
        return {"anyOf": [schema_of(one) for one in arguments]}
    if origin in _LISTS:
        return {"type": "array", "items": schema_of(arguments[0]) if arguments else {}}
    if origin in _DICTS:
        if arguments and arguments[0] is not str:
            raise Unsuitable(f"the keys of {hint} must be str")
        return {"type": "object", **({"additionalProperties": schema_of(arguments[1])} if arguments else {})}
    if isinstance(origin, type) and issubclass(origin, Enum):
        return _one_of([member.value for member in origin])
    if (fields := _fields(origin)) is not None:
        hints, required = fields
        properties = {name: schema_of(one) for name, one in hints.items()}
        return {"type": "object", "properties": properties, "required": required}
    raise Unsuitable(
        f"{hint!r} has no JSON schema: use str, int, float, bool, list, dict, Literal, an Enum, a dataclass, a"
        " TypedDict, or a union of them"
    )


def value_of(value: Any, hint: Any, where: str) -> Any:
    """Returns a JSON value as what the hint says.

    Raises:
        ValueError: it is something else; its text says what and where.

    >>> value_of([1, 2.0], list[int], "numbers")
    [1, 2]
    """
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if origin in (Any, object):
        return value
    if origin is Annotated:
        return value_of(value, arguments[0], where)
    if origin in _PLAIN:
        return _plain(value, origin, where)
    if origin is Literal:
        return _member(value, {_key(one): one for one in arguments}, where)
    if origin in (Union, types.UnionType):
        return _first(value, arguments, where)
    if origin in _LISTS:
        _check(isinstance(value, list), where, "a list")
        items = [value_of(one, arguments[0] if arguments else Any, f"{where}[{n}]") for n, one in enumerate(value)]
        return origin(items) if origin in (set, frozenset) else items
    _check(not isinstance(origin, type) or issubclass(origin, Enum) or isinstance(value, dict), where, "an object")
    if origin in _DICTS:
        hint = arguments[1] if arguments else Any
        return {key: value_of(one, hint, f"{where}[{key!r}]") for key, one in value.items()}
    if issubclass(origin, Enum):
        return _member(value, {_key(member.value): member for member in origin}, where)
    hints, required = _fields(origin) or ({}, [])
    made: Callable[..., Any] = origin
    return made(**values_of(value, hints, required, where))


def values_of(given: Mapping[str, Any], hints: Mapping[str, Any], required: list[str], where: str) -> dict[str, Any]:
    """Returns the values of an object, or the arguments of a function, as their hints say.

    Raises:
        ValueError: one is missing, unknown, or of another type.
    """
    if missing := [name for name in required if name not in given]:
        raise ValueError(f"{where} lacks {missing[0]!r}")
    if unknown := [name for name in given if name not in hints]:
        raise ValueError(f"{where} has no {unknown[0]!r}: it has {', '.join(hints) or 'nothing'}")
    return {name: value_of(value, hints[name], name) for name, value in given.items()}


def _fields(kind: Any) -> tuple[dict[str, Any], list[str]] | None:
    """The hints of a TypedDict's or a dataclass's fields, and the names of those that are required."""
    if is_typeddict(kind):
        return get_type_hints(kind), sorted(kind.__required_keys__)
    if not hasattr(kind, "__dataclass_fields__"):
        return None
    with importing:
        import dataclasses  # here, for it imports inspect

    hints, fields = get_type_hints(kind, include_extras=True), [one for one in dataclasses.fields(kind) if one.init]
    missing = dataclasses.MISSING
    required = [one.name for one in fields if one.default is missing and one.default_factory is missing]
    return {one.name: hints[one.name] for one in fields}, required


def _one_of(values: list[Any]) -> dict[str, Any]:
    kinds = {type(value) for value in values}
    if not kinds <= set(_PLAIN):
        raise Unsuitable(f"{values[0]!r} is nothing that JSON can hold")
    return {**({"type": _PLAIN[kinds.pop()]} if len(kinds) == 1 else {}), "enum": values}


def _key(value: Any) -> tuple[type, Any]:
    """What tells values apart: True is no 1."""
    return type(value), value


def _plain(value: Any, kind: type, where: str) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is float and number:
        return float(value)
    if kind is int and number and value == value // 1:
        return int(value)
    _check(type(value) is kind, where, _NAMES[kind])
    return value


def _member(value: Any, members: dict[tuple[type, Any], Any], where: str) -> Any:
    known = not isinstance(value, (list, dict)) and _key(value) in members
    _check(known, where, f"one of {', '.join(repr(one) for _, one in members)}")
    return members[_key(value)]


def _first(value: Any, hints: tuple[Any, ...], where: str) -> Any:
    """The value as the first hint that it suits: its own type before another that it could be made into."""
    problems = []
    for hint in sorted(hints, key=lambda one: type(value) is not one):
        try:
            return value_of(value, hint, where)
        except ValueError as error:
            problems.append(str(error))
    raise ValueError(", or ".join(dict.fromkeys(problems)))


def _check(right: bool, where: str, what: str) -> None:
    if not right:
        raise ValueError(f"{where} must be {what}")
