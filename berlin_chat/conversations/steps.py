"""How a turn goes on: a reply is read, the calls in it are run, their results are sent, and so on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from time import monotonic
from typing import cast

from ..cancellation import Deadline
from ..errors import APITimeoutError, Cancelled, TooManySteps
from ..provider import Parts, Question
from ..reply import Event, Reply
from .tools import Tools
from .turns import Turn

#: How often a growing reply is written to the record, in seconds: what a killed process can cost.
WRITE_INTERVAL = 0.5


class Steps:
    """The steps of one turn, all of them in the thread that reads it.

    Args:
        turn: what grows.
        tools: what the model may call.
        most: how often its calls are run.
        ask: asks the provider, with all that has been said so far.
        keep: has the turn written as it is now.
    """

    def __init__(
        self,
        turn: Turn,
        tools: Tools,
        most: int,
        ask: Callable[[Turn, Question, Deadline], Parts],
        keep: Callable[[Turn], None],
    ) -> None:
        self._turn = turn
        self._tools = tools
        self._most = most
        self._ask = ask
        self._keep = keep

    def run(self, question: Question, parts: Parts) -> Parts:
        """Reads the first reply from its ``parts``, and goes on until there is one without calls.

        Raises:
            TooManySteps: there are calls in the one after the last step.
        """
        deadline = Deadline(question.limits.seconds)
        offered = bool(self._tools) and question.options.get("tools") is not None
        steps = 0
        while True:
            reply = yield from self._read(parts)
            self._turn.replied(reply, goes_on=offered and bool(reply.tool_calls))
            self._keep(self._turn)
            if not (offered and reply.tool_calls):
                return reply
            if steps == self._most:
                raise TooManySteps(
                    f"the model still calls tools after {steps} steps, now {reply.tool_calls[0].name!r}",
                    provider=reply.provider,
                    advice="Ask it to go on, or allow more with max_steps",
                )
            steps += 1
            yield from self._run_calls(reply, question, deadline)
            # A choice that forces a call would force one for ever.
            options = {name: value for name, value in question.options.items() if name != "tool_choice"}
            parts = self._ask(self._turn, question._replace(options=options), deadline)

    def _read(self, parts: Parts) -> Parts:
        """Hands a reply on, and keeps it as it grows."""
        begun, kept = bool(self._turn.text), 0.0
        with closing(parts):
            while True:
                try:
                    part = next(parts)
                except StopIteration as end:
                    return cast(Reply, end.value)
                if isinstance(part, str):
                    first = self._turn.add(part)
                    if monotonic() - kept >= WRITE_INTERVAL:
                        self._keep(self._turn)
                        kept = monotonic()
                    if first and begun:
                        yield "\n\n"
                yield part

    def _run_calls(self, reply: Reply, question: Question, deadline: Deadline) -> Parts:
        cancel = question.limits.cancel
        for place, call in enumerate(reply.tool_calls):
            answer = self._tools.answer(call)
            self._turn.tool_answered(answer, last=place == len(reply.tool_calls) - 1)
            self._keep(self._turn)
            if question.live:
                yield Event("tool_result", answer["content"], call, place)
            if cancel is not None and cancel.cancelled:
                raise Cancelled("the question was cancelled", provider=reply.provider)
            if deadline.passed:
                said = f"no whole reply within the deadline of {deadline.seconds} s"
                raise APITimeoutError(said, provider=reply.provider)
        return reply
