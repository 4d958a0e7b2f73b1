"""A program of its own: Ctrl-C, or a finalizer, comes between any two bytecodes of a turn that a history keeps.

    python history_at_every_bytecode.py ACTION COUNT

It prints "done" if the next turn works each time, and the history has what the conversation has.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from at_every_bytecode import act_at, interrupt
from berlin_chat import Conversation, History, Provider, last_turns
from berlin_chat.server import LocalServer


def ctrl_c(provider: Provider, history: History, moment: int) -> None:
    """It ends a turn, and the next one goes on."""
    conversation = Conversation(provider, history=history, trim=last_turns(1))
    conversation.ask("one")
    try:
        act_at(moment, interrupt, lambda: conversation.ask("two"))
    except KeyboardInterrupt:
        pass
    assert conversation.ask("three").endswith("three")
    roles = [message["role"] for message in conversation.messages]
    assert roles in (["user", "assistant"] * 2, ["user", "assistant"] * 3), roles
    check(history, conversation)


def finalizer(provider: Provider, history: History, moment: int) -> None:
    """One that the garbage collector calls ends the turn of another conversation, which was left."""
    conversation, other = (Conversation(provider, history=history, trim=last_turns(1)) for _ in range(2))
    conversation.ask("one")
    left = other.stream("left")
    next(left)
    act_at(moment, left.close, lambda: conversation.ask("two"))
    assert [turn.cut for turn in other.turns] == [True]
    check(history, conversation)
    check(history, other)


def check(history: History, conversation: Conversation) -> None:
    assert conversation.id is not None
    assert history.messages(conversation.id) == conversation.messages


def main() -> None:
    action, count = {"ctrl_c": ctrl_c, "finalizer": finalizer}[sys.argv[1]], int(sys.argv[2])
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalServer() as server,
        server.provider("openai") as provider,
        History(Path(folder, "chats.db")) as history,
    ):
        conversation = Conversation(provider, history=history, trim=last_turns(1))
        conversation.ask("one")
        total = act_at(sys.maxsize, lambda: None, lambda: conversation.ask("two"))
        for number in range(count):
            action(provider, history, 1 + number * total // count)
    print("done", total, "bytecodes")


if __name__ == "__main__":
    main()
