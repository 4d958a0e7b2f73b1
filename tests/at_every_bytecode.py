"""A program of its own: does something between any two bytecodes of a question, and asks again.

    python at_every_bytecode.py ACTION PROTOCOL COUNT

What the garbage collector, a signal handler or Ctrl-C do at one of many thousand moments, a trace function does here at
the chosen one. The program prints "done"; if a lock is taken twice, or stays held, it stands still.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from berlin_chat import Cancelled, CancelToken, Provider
from berlin_chat.server import LocalServer


def act_at(moment: int, action: Callable[[], object], work: Callable[[], object]) -> int:
    """Does the work, and the action before its so-many-th bytecode; returns how many bytecodes there were."""
    seen = 0

    def trace(frame: Any, event: str, arg: Any) -> Any:
        nonlocal seen
        frame.f_trace_opcodes = True
        if event == "opcode":
            seen += 1
            if seen == moment:
                sys.settrace(None)
                action()
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(None)
    if seen < moment:  # the work was shorter this time
        action()
    return seen


def interrupt() -> None:
    raise KeyboardInterrupt


class Scene:
    """A provider with a question under way, at each moment anew."""

    def __init__(self, server: LocalServer, protocol: str) -> None:
        self.server = server
        self.protocol = protocol
        self.provider: Provider = server.provider(protocol)
        self.token = CancelToken()

    def ask(self) -> None:
        try:
            reply = self.provider.ask("Hi there", cancel=self.token)
            assert reply.endswith("You said: Hi there"), reply
        except Cancelled:
            pass

    def abandon(self, moment: int) -> int:
        """A generator that was left in a cycle is ended by the garbage collector."""
        stream = self.provider.stream("Hi there")
        next(stream)
        return act_at(moment, stream.close, self.ask)

    def cancel(self, moment: int) -> int:
        """A signal handler cancels the question."""
        self.token = CancelToken()
        found = act_at(moment, self.token.cancel, self.ask)
        self.token = CancelToken()
        return found

    def close(self, moment: int) -> int:
        """A signal handler closes the provider."""
        found = act_at(moment, self.provider.close, self.ask)
        self.provider = self.server.provider(self.protocol)
        return found

    def interrupt(self, moment: int) -> int:
        """Ctrl-C."""
        try:
            return act_at(moment, interrupt, self.ask)
        except KeyboardInterrupt:
            return moment


def main() -> None:
    action, protocol, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with LocalServer() as server:
        scene = Scene(server, protocol)
        scene.ask()
        total = act_at(0, interrupt, scene.ask)
        for number in range(count):
            moment = 1 + number * total // count
            getattr(scene, action)(moment)
            scene.ask()  # what comes next is as if nothing had been
        scene.provider.close()  # which makes good what Ctrl-C has torn off
        until = time.monotonic() + 2  # what a finalizer began goes on in another thread
        while server.conversations and time.monotonic() < until:
            time.sleep(0.01)
        print("done", total, "bytecodes,", len(server.conversations), "conversations left")


if __name__ == "__main__":
    main()
