"""Targets that are broken on purpose: whoever fuzzes them must find each fault, or is blind."""

from __future__ import annotations

from collections.abc import Iterable
from unittest.mock import patch

from berlin_chat import decoding
from fuzzing import decoders
from fuzzing.form import Target, headed


class TornLines(decoding.Lines):
    """Takes a CR and a LF for two line ends where a read has torn them apart."""

    def feed(self, data: bytes) -> Iterable[bytes]:
        found = super().feed(data)
        self._after_cr = False
        return found


def torn(data: bytes) -> None:
    """A wrong result, which depends on how the bytes were cut."""
    with patch.object(decoding, "Lines", TornLines):
        decoders.events(data)


def rude(data: bytes) -> None:
    """An error that nobody has declared, behind a few bytes that must all be right."""
    _, data = headed(data)
    for place, byte in enumerate(b"{}]"):
        if data[place : place + 1] != bytes([byte]):
            return
    raise KeyError("an undeclared error")


def endless(data: bytes) -> None:
    """A decoder that never comes to an end where a chunk has no size."""
    _, data = headed(data)
    while data[:1] == b"\n":
        pass


TARGETS = {
    "planted-torn": Target(torn, [b"\3data: a\n\ndata: b\r\ndata: c\r\n\r\n"]),
    "planted-rude": Target(rude, [b"\0{}"]),
    "planted-endless": Target(endless, [b"\0a"]),
}
