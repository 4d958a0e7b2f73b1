"""What a target is, how an input is cut into chunks, and what is compared."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from random import Random
from typing import Any, NamedTuple

from berlin_chat import ChatError

#: Up to so many bytes an input is also read a byte at a time.
SHORT = 400


class Target(NamedTuple):
    """Something that must hold for any input.

    Attributes:
        check: raises, whatever it is, where it does not hold.
        seeds: inputs to begin with, from real exchanges.
    """

    check: Callable[[bytes], None]
    seeds: list[bytes]


def ways(data: bytes, seed: int) -> Iterator[list[bytes]]:
    """The data in one piece, at first; a byte at a time; and in some others, empty ones among them."""
    yield [data]
    if len(data) <= SHORT:
        yield [data[place : place + 1] for place in range(len(data))]
    chance = Random(seed)
    places = sorted(chance.randrange(len(data) + 1) for _ in range(1 + seed % 5))
    yield [data[begin:end] for begin, end in itertools.pairwise([0, *places, len(data)])]


def outcome(
    items: Iterable[Any], declared: type[Exception] | tuple[type[Exception], ...] = ChatError
) -> tuple[list[Any], str]:
    """What came, and the error that ended it; any but a declared one is a finding."""
    came: list[Any] = []
    try:
        for item in items:
            came.append(item)
    except declared as error:
        return came, f"{type(error).__name__}: {error}"
    return came, ""


def same_however_cut(data: bytes, seed: int, read: Callable[[list[bytes]], Any]) -> Any:
    """What is read of the data, which does not depend on how they were cut."""
    first, *others = ways(data, seed)
    expected = read(first)
    for chunks in others:
        same(read(chunks), expected, f"in {len(chunks)} chunks")
    return expected


def same(found: Any, expected: Any, how: str = "") -> None:
    """Fails where two things differ, and shows them: no pytest does so here."""
    assert found == expected, f"{how} {found!r}, and not {expected!r}"


def headed(data: bytes) -> tuple[int, bytes]:
    """An input's first byte, which says how it is cut, and what is read."""
    return (data[0], data[1:]) if data else (0, b"")


def seeded(*contents: bytes) -> list[bytes]:
    """Contents as inputs, each with another way to be cut."""
    return [bytes([place % 256]) + content for place, content in enumerate(contents)]
