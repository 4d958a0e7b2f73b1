"""What may be given as the prompts of a batch, with keys and without."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Set
from datetime import date
from hashlib import blake2b
from math import isfinite
from operator import length_hint
from typing import Any, NamedTuple

from ..errors import InvalidRequest
from ..messages import Messages


class Asked(NamedTuple):
    """A prompt that was taken, with its place among the prompts, and its key where they have keys."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    prompt: Messages
    key: Any = None


class Keyed:
    """Prompts with keys, from ``keyed``."""

    def __init__(self, pairs: Iterable[tuple[Any, Messages]]) -> None:
        self._pairs = pairs

    def items(self) -> Iterable[tuple[Any, Messages]]:
        """Returns the pairs."""
        return self._pairs

    def __length_hint__(self) -> int:
        return length_hint(self._pairs)


def keyed(pairs: Iterable[tuple[Any, Messages]]) -> Keyed:
    """Gives prompts names of their own for ``ask_many``: they come back as ``Answer.key``, and a batch resumes by them.

    A mapping of keys to prompts, a pandas ``Series`` and anything else with ``items()`` needs no ``keyed``.

    Args:
        pairs: ``(key, prompt)``, from any iterable, such as ``zip(ids, prompts)``. It is read as the batch goes on.
            For a checkpoint, a key is a str, a number or a date, or a tuple of such, and none comes twice.

    Raises:
        InvalidRequest: that is no iterable of pairs. A pair that is none is found when its turn comes.

    >>> from berlin_chat import ask_many
    >>> from berlin_chat.server import LocalServer
    >>> with LocalServer() as server:
    ...     for answer in ask_many(server.provider("ylokh"), keyed([("a", "one"), ("b", "two")])):
    ...         print(answer.key, answer.reply[-3:])
    a one
    b two
    """
    if isinstance(pairs, (str, bytes, Mapping)) or not isinstance(pairs, Iterable):
        raise InvalidRequest(
            f"keyed takes (key, prompt) pairs, not a {type(pairs).__name__}: write keyed(zip(keys, prompts));"
            " a mapping needs no keyed"
        )
    return Keyed(pairs)


def checked_prompts(prompts: Any, caller: str) -> bool:
    """Looks whether they can be the prompts of ``caller``; returns whether they have keys.

    Raises:
        InvalidRequest: one prompt instead of several, a table instead of a column, or nothing that can be iterated.
    """
    if isinstance(prompts, (str, bytes)):
        raise InvalidRequest(
            f"prompts is one {type(prompts).__name__}, whose letters would each be asked: write {caller}(provider,"
            " [prompt], …), or provider.ask(prompt) for one question"
        )
    if isinstance(prompts, Mapping) and {"role", "content"} <= prompts.keys():
        raise InvalidRequest(f"prompts is one message, not a list of prompts: write {caller}(provider, [message], …)")
    if any(cls.__name__ == "DataFrame" for cls in type(prompts).__mro__):
        raise InvalidRequest(
            f"prompts is a DataFrame: name the column with the prompts, as in {caller}(provider, frame['question'], …)"
        )
    has_keys = callable(getattr(prompts, "items", None))
    if not has_keys and not isinstance(prompts, Iterable) and not hasattr(prompts, "__getitem__"):
        raise InvalidRequest(
            f"prompts is of type {type(prompts).__name__}: give a list of prompts, a mapping of keys to prompts, or"
            " anything else that can be iterated"
        )
    return has_keys


def checked_labels(prompts: Any) -> None:
    """Looks whether the labels of a pandas ``Series`` can be keys. Raises InvalidRequest if one comes twice."""
    if getattr(getattr(prompts, "index", None), "is_unique", True) is False:
        raise InvalidRequest(
            "a label of the Series comes twice, so that its answers could not be told apart: give it an index of its"
            " own, as in series.reset_index(drop=True)"
        )


def taken(prompts: Any, has_keys: bool) -> Iterator[Asked]:
    """Returns what reads the prompts one by one. A prompt that can be read only once is read here."""
    return _with_keys(iter(prompts.items())) if has_keys else _numbered(iter(prompts))


def _numbered(prompts: Iterator[Messages]) -> Iterator[Asked]:
    for index, prompt in enumerate(prompts):
        yield Asked(index, _kept(prompt))


def _with_keys(pairs: Iterator[Any]) -> Iterator[Asked]:
    for index, pair in enumerate(pairs):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise InvalidRequest(f"prompt {index} is of type {type(pair).__name__}, not a (key, prompt) pair")
        key, prompt = pair
        if key is None:
            raise InvalidRequest(f"prompt {index} has the key None: give each a key of its own")
        yield Asked(index, _kept(prompt), key)


def _kept(prompt: Messages) -> Messages:
    """The prompt; of messages that stand in order in anything but a list, such as a deque or a generator, a list."""
    if isinstance(prompt, (str, bytes, bytearray, list, tuple, Mapping, Set)) or not isinstance(prompt, Iterable):
        return prompt
    return list(prompt)


def written(key: Any) -> Any:
    """Returns a key as JSON has it.

    Raises:
        InvalidRequest: no file can hold it.

    >>> written(("row", 7)), written(date(2024, 2, 29))
    (['row', 7], '2024-02-29')
    """
    if hasattr(key, "item") and not isinstance(key, (str, int, float)):
        key = key.item()  # a number of NumPy's
    if isinstance(key, tuple):
        return [written(part) for part in key]
    if isinstance(key, date):
        return key.isoformat()
    try:
        if isinstance(key, str) and key.encode() is not None:
            return str(key)
        if isinstance(key, (int, float)) and isfinite(key):
            return key
    except ValueError:  # half of a surrogate pair, or too large a number
        pass
    raise InvalidRequest(
        f"the key {key!r:.100} cannot be kept in a file: let it be a str, a finite number or a date, or a tuple of such"
    )


def number_of(index: int, key: bytes | None = None) -> int:
    """Returns a number of 64 bits, never 0, by which a prompt is known: its index, or a digest of its key's JSON."""
    if key is None:
        return index + 1
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "big") | 1 << 63


def key_bytes(key: Any) -> bytes:
    """Returns the JSON of a key that was ``written``, as it stands in a file."""
    return json.dumps(key, ensure_ascii=False).encode()
