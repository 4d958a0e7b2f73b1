"""What a request gets instead of a reply: an error in its protocol's words, or a fault on the wire."""

from __future__ import annotations

from typing import NamedTuple


class Refused(Exception):
    """A request that gets an error; the protocol puts it into its own words.

    Args:
        status: the HTTP status.
        message: what was wrong.
    """

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers or {}


class Fault(NamedTuple):
    """How an answer goes wrong on the wire, behind what was said so far.

    Attributes:
        data: bytes that are sent as they are.
        end: ``"whole"`` for a proper end of the body; ``"cut"`` for a connection that is closed without one;
            ``"silent"`` for one that stays open, and on which nothing more comes. Where nothing was said before the
            last two, not even the status is.
        content_type: another label of the body, where nothing was said before; None for the protocol's.
    """

    data: bytes = b""
    end: str = "whole"
    content_type: str | None = None


class Broken(Exception):
    """Ends an answer in a fault; the connection's own thread does what the fault says."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.end)
        self.fault = fault

    def begin(self) -> None:
        """Raises it: as an answer, it is at its end before it begins."""
        raise self

    def close(self) -> None:
        """Nothing to do: what was asked has ended."""
