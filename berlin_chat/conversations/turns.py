"""A turn of a conversation: what was asked, what came back, and whether that is all."""

from __future__ import annotations

from collections.abc import Iterable
from time import time
from typing import Any, Protocol

from ..reply import Reply

#: What stands for the answer of a tool that was not called any more, and for a reply of which nothing came.
NOT_CALLED = "The tool was not called: the turn was interrupted."
INTERRUPTED = "(The turn was interrupted here.)"


class Entry:
    """A message of a turn, with what is known of it.

    Attributes:
        message: as it is sent.
        reply: the whole :class:`Reply` that it came with; None for all but the model's messages.
        cut: whether more of it, or the answers to its calls, should have followed.
        at: when it was made, in seconds since 1970.
        row: its number in a record, None where it is in none.
        written: whether the record has it as it is now.
    """

    def __init__(self, message: dict[str, Any], reply: Reply | None = None, cut: bool = False, at: float = 0.0) -> None:
        self.message = message
        self.reply = reply
        self.cut = cut
        self.at = at or time()
        self.row: int | None = None
        self.written = False

    def changed(self, **attributes: Any) -> None:
        """Sets attributes, of which a record does not know yet."""
        for name, value in attributes.items():
            setattr(self, name, value)
        self.written = False


class Turn:
    """A question and all that came of it. It grows in one thread, and is never changed once it has ended.

    Attributes:
        entries: its messages one by one, with what is known of each.
        undone: whether it was taken back.
        number: its number in a record, None where it is in none.
    """

    def __init__(self, messages: Iterable[dict[str, Any]], entries: Iterable[Entry] = ()) -> None:
        self.entries = [*map(Entry, messages), *entries]
        self.undone = False
        self.number: int | None = None
        self._growing: Entry | None = None
        self._parts: list[str] = []

    def __repr__(self) -> str:
        return f"<Turn of {len(self.entries)} messages{', cut off' if self.cut else ''}>"

    @property
    def messages(self) -> list[dict[str, Any]]:
        """Its messages, as they are sent: a new list of new dicts."""
        return [dict(entry.message) for entry in self.entries]

    @property
    def question(self) -> list[dict[str, Any]]:
        """The messages that were asked, such as to ask them again."""
        roles = [entry.message["role"] for entry in self.entries]
        return self.messages[: roles.index("assistant") if "assistant" in roles else None]

    @property
    def cut(self) -> bool:
        """Whether it ended before its end: its last message is then the part of the reply that had come."""
        return any(entry.cut for entry in self.entries)

    @property
    def reply(self) -> Reply | None:
        """The last whole reply in it; None where there is none, or where the turn was read from a history."""
        return next((entry.reply for entry in reversed(self.entries) if entry.reply is not None), None)

    @property
    def answered(self) -> bool:
        """Whether anything came."""
        return any(entry.message["role"] == "assistant" for entry in self.entries)

    def undo(self) -> None:
        """Marks it as taken back."""
        self.undone = True
        for entry in self.entries:
            entry.changed()

    def copy(self) -> Turn:
        """Returns one that no record knows of."""
        return Turn((), [Entry(dict(entry.message), entry.reply, entry.cut, entry.at) for entry in self.entries])

    # While it grows

    @property
    def text(self) -> str:
        """All text of the model's so far, with an empty line between two messages."""
        self.settle()
        texts = [entry.message.get("content") for entry in self.entries if entry.message["role"] == "assistant"]
        return "\n\n".join(text for text in texts if isinstance(text, str) and text)

    def add(self, piece: str) -> bool:
        """Adds a piece of text; returns whether it is a message's first."""
        self._parts.append(piece)
        if self._growing is not None:
            return False
        self._growing = Entry({"role": "assistant", "content": piece}, cut=True)
        self.entries.append(self._growing)
        return True

    def settle(self) -> None:
        """Puts what was added into the message that grows."""
        if self._growing is not None and len(self._parts) > 1:
            self._parts[:] = ["".join(self._parts)]
            self._growing.changed(message={"role": "assistant", "content": self._parts[0]})

    def replied(self, reply: Reply, goes_on: bool) -> None:
        """Makes the model's message whole; ``goes_on`` says that its calls will be answered."""
        if self._growing is None:
            self._growing = Entry({})
            self.entries.append(self._growing)
        self._growing.changed(message=reply.message, reply=reply, cut=goes_on)
        self._growing = None
        self._parts.clear()

    def tool_answered(self, message: dict[str, Any], last: bool) -> None:
        """Adds the answer of a tool, ``last`` if no other call waits for one."""
        if last:
            called = next(entry for entry in reversed(self.entries) if entry.message["role"] == "assistant")
            called.changed(cut=False)
        self.entries.append(Entry(message))

    def end(self) -> None:
        """Puts an interrupted turn into a form that servers accept: each call has an answer, the model the last word.

        Where nothing came of a question, nothing is changed.
        """
        self.settle()
        self._growing = None
        if not self.answered or (not self.cut and self.entries[-1].message["role"] == "assistant"):
            return
        calls = {}
        for entry in self.entries:
            for call in entry.message.get("tool_calls") or ():
                calls[call.get("id")] = call
            calls.pop(entry.message.get("tool_call_id"), None)
        for identity in calls:
            named = {"tool_call_id": identity} if identity else {}
            self.entries.append(Entry({"role": "tool", **named, "content": NOT_CALLED}))
        if self.entries[-1].message["role"] != "assistant":
            for entry in self.entries:
                if entry.cut:
                    entry.changed(cut=False)
            self.entries.append(Entry({"role": "assistant", "content": INTERRUPTED}, cut=True))


class Recorder(Protocol):
    """Keeps conversations, as they happen."""

    def write(
        self, conversation: int | None, about: dict[str, str | None], turns: Iterable[Turn], wait: bool = True
    ) -> int:
        """Writes what has changed in the turns of a conversation; returns its number, which is made if it is None.

        It waits for others who write, unless it is told not to.

        Raises:
            HistoryError: it cannot be written. What could not is written with the next that can.
        """
