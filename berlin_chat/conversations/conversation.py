"""``Conversation``: several turns with one provider, which remembers what was said."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from copy import deepcopy
from typing import Any, cast

from ..cancellation import CancelToken, Deadline, Limits
from ..errors import ChatError, HistoryError, InvalidRequest
from ..messages import Message, Messages, as_list
from ..process import after_fork
from ..provider import Parts, Pieces, Provider, Question, as_live, as_whole
from ..validation import checked_count, checked_seconds
from .floor import Floor, Hold
from .steps import Steps
from .tools import Tools
from .trimming import Trim, turns_of
from .turns import Recorder, Turn

#: What belongs to a provider or to one question, and is no option of the server's.
_NO_OPTIONS = ("deadline", "cancel", "limiter", "timeout", "headers", "retries", "extra_body")


class Conversation:
    """Several turns: each question is asked with all that was said before.

    It belongs to one thread at a time: a question is refused while a turn is under way, in whatever thread. It can be
    pickled if its tools can; the copy goes on in the same record.

    A turn that was cut off, by an error, a cancel or by leaving the loop, stays with the part of the reply that had
    come, and is marked by ``Turn.cut``. If nothing had come, the question is taken back: ask it again, or another one.

    Args:
        provider: who is asked.
        system: the system message, which stands before all turns.
        history: a :class:`History` that keeps each turn, as it happens.
        tools: Python functions that the model may call. They run in the thread that reads the reply, and what they
            return or raise is sent to the model as text, until it answers without calling any.
        messages: earlier messages to go on from.
        model: another model than the provider's.
        max_steps: how often in a turn the model's calls are run, before ``TooManySteps``.
        trim: what takes all messages and returns those to be sent, such as ``last_turns(10)`` or ``fits(20_000)``;
            ``messages`` keeps all of them. None sends all.
        options: those of the server for every question, such as ``temperature``.

    Attributes:
        id: its number in the history, None before its first question or without one.
        provider, model, max_steps, trim, options: as given; they may be set to something else between two turns.

    Raises:
        InvalidRequest: an argument is wrong, or the provider's protocol knows no tools.

    >>> from berlin_chat.server import LocalServer
    >>> with LocalServer() as server:
    ...     conversation = Conversation(server.provider("openai"), system="Be brief.")
    ...     first, second = conversation.ask("Hi"), conversation.ask("And you?")
    >>> [message["role"] for message in conversation.messages]
    ['system', 'user', 'assistant', 'user', 'assistant']
    """

    def __init__(
        self,
        provider: Provider,
        system: str | None = None,
        history: Recorder | None = None,
        tools: Iterable[Callable[..., Any]] = (),
        *,
        messages: Iterable[Message] = (),
        model: str | None = None,
        max_steps: int = 8,
        trim: Trim | None = None,
        **options: Any,
    ) -> None:
        self.provider = _checked_provider(provider)
        self.history = _checked_history(history)
        self.tools = _checked_tools(tools, provider)
        self.system, self._turns = _taken(system, messages)
        self.model = model
        self.max_steps = checked_count(max_steps, "max_steps", 1)
        self.trim = _checked_trim(trim)
        self.options = _checked_options(options)
        self.id: int | None = None
        self._undone: list[Turn] = []  # what the history does not know yet
        self._begin_life()

    def _begin_life(self) -> None:
        self.reset()
        after_fork(self)

    def reset(self) -> None:
        """Leaves a turn that is under way to the parent, in a child of a fork."""
        self._floor = Floor()

    def __repr__(self) -> str:
        return f"Conversation({self.provider!r}, {len(self._turns)} turns)"

    def __getstate__(self) -> dict[str, Any]:
        return {**{name: value for name, value in vars(self).items() if name != "_floor"}, "_turns": [*self._turns]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin_life()

    @classmethod
    def resumed(cls, turns: Iterable[Turn], id: int, provider: Provider, **settings: Any) -> Conversation:
        """Returns one that goes on with turns which its history has; for ``History.conversation``."""
        made = cls(provider, **settings)
        made.id = id
        made._turns.extend(turns)
        return made

    # What was said

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The turns so far; one that is under way is not among them."""
        return tuple(self._turns)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """All messages of the turns so far, ready to be sent: a new list of new dicts."""
        system = [{"role": "system", "content": self.system}] if self.system is not None else []
        return [*system, *(message for turn in self._turns for message in turn.messages)]

    def undo(self) -> Turn:
        """Takes the last turn back, and returns it. A history marks it as undone.

        Raises:
            InvalidRequest: there is no turn, or one is under way.
            HistoryError: the history could not be written; the turn is taken back all the same.
        """
        self._floor.check()
        if not self._turns:
            raise InvalidRequest("there is no turn to take back")
        turn = self._turns.pop()
        turn.undo()
        if self.id is not None:
            self._undone.append(turn)
            self._write()
        return turn

    def fork(self) -> Conversation:
        """Returns another conversation that goes on from here by itself; a history keeps it as one of its own."""
        made = Conversation.__new__(type(self))
        own = {"_turns": [turn.copy() for turn in self._turns], "_undone": [], "options": {**self.options}, "id": None}
        made.__setstate__({**self.__getstate__(), **own})
        return made

    # The next turn

    def stream(
        self,
        message: Messages,
        model: str | None = None,
        *,
        deadline: float | None = None,
        cancel: CancelToken | None = None,
        timeout: float | tuple[float | None, float | None] | None = None,
        headers: Mapping[str, str | None] | None = None,
        retries: int | None = None,
        extra_body: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Pieces:
        """Asks the next question, and yields the reply's text piece by piece; its return value is the ``Reply``.

        Arguments and errors are those of ``Provider.stream``. Where tools are called, the text of all the model's
        messages is yielded, an empty line between two, and the ``Reply`` is the last of them.

        Args:
            message: a text, a message, or several, such as the answers of tools that you ran yourself.
            deadline: seconds for the whole turn.

        Raises:
            InvalidRequest: at the call; also where a turn is under way.
            TooManySteps: while reading: the model still calls tools after ``max_steps``.
            HistoryError: while reading: the history could not be written. Before anything is sent, where the question
                could not; else at the end, when the reply stands in ``turns``.
        """
        settings = {"timeout": timeout, "headers": headers, "retries": retries}
        limits = Limits(deadline, cancel)
        return cast(Pieces, self._put(Question(message, model, options, limits, settings, extra_body)))  # type: ignore[arg-type]

    ask = as_whole(stream)
    open = as_live(stream)

    def _put(self, question: Question) -> Parts:
        """Checks a question, and returns what answers it: all of ``stream``, ``ask`` and ``open`` come here."""
        self._floor.check()
        checked_seconds(question.limits.seconds, "deadline")
        asked = as_list(question.messages)
        if any(message["role"] == "assistant" for message in asked):
            raise InvalidRequest("a question holds an assistant's message: give earlier messages as messages=")
        options = {**self.options, **question.options}
        if self.tools and options.get("tools") is not None:
            raise InvalidRequest("the conversation has tools of its own: tools=None leaves them out of a question")
        if self.tools:
            options = {"tools": self.tools.definitions, **options}
        question = question._replace(model=question.model or self.model, options=options)
        turn = Turn(deepcopy(asked))
        return self._turn(turn, question, self._asked(turn, question), self._turns[-1:])

    def _asked(self, turn: Turn, question: Question, deadline: Deadline | None = None) -> Parts:
        """Asks the provider, with all that was said before and in this turn."""
        messages = [*self.messages, *turn.messages]
        if self.trim is not None:
            messages = self.trim(messages)
        asked = question._replace(messages=messages)
        return asked.put_to(self.provider, deadline or Deadline(question.limits.seconds), question.limits.cancel)

    def _turn(self, turn: Turn, question: Question, parts: Parts, last: list[Turn]) -> Parts:
        floor = self._floor
        try:
            hold: Hold | None = floor.take()
            if last != self._turns[-1:]:  # another turn has come between the call and the first piece
                parts = self._asked(turn, question)
            self._write(turn)
            try:
                steps = Steps(turn, self.tools, self.max_steps, self._asked, self._write_at_once)
                reply = yield from steps.run(question, parts)
                self._end(turn, floor)
                return reply
            except BaseException as error:  # which may be Ctrl-C in the middle of that end
                self._end(turn, floor, error)
                raise
        finally:
            hold = None  # noqa: F841 - a traceback may keep this frame alive, and the floor must be free

    # The end of a turn, and its record

    def _end(self, turn: Turn, floor: Floor, error: BaseException | None = None) -> None:
        """Keeps a turn that has ended; where nothing came of it, only the history does."""
        if floor is not self._floor:
            return  # this is the child of a fork, and the turn is the parent's
        if isinstance(error, ChatError) and turn.answered:
            error.partial = turn.text
        turn.end()
        if turn.answered and turn not in self._turns[-1:]:
            self._turns.append(turn)
        if error is None:
            self._write(turn)
        elif not isinstance(error, HistoryError):
            self._write_if_possible(turn)

    def _write(self, *growing: Turn, wait: bool = True) -> None:
        """Has the history write what is new, and what it could not write before."""
        if self.history is None:
            return
        for turn in growing:
            turn.settle()
        model = self.model or self.provider.model or None
        about = {"system": self.system, "provider": self.provider.name, "model": model}
        try:
            self.id = self.history.write(self.id, about, [*self._undone, *self._turns, *growing], wait)
        except HistoryError as error:
            error.partial = "".join(turn.text for turn in growing)
            raise
        self._undone.clear()

    def _write_if_possible(self, turn: Turn, wait: bool = True) -> None:
        """The same for what is written once more in any case."""
        with suppress(HistoryError):
            self._write(turn, wait=wait)

    def _write_at_once(self, turn: Turn) -> None:
        """The same while the turn goes on, which nobody else's lock may keep waiting."""
        self._write_if_possible(turn, wait=False)


def _checked_provider(provider: Any) -> Provider:
    if not isinstance(provider, Provider):
        given = provider.__name__ if isinstance(provider, type) else type(provider).__name__
        raise InvalidRequest(f"the provider of a conversation is {given}: give an instance of a Provider")
    return provider


def _checked_tools(functions: Any, provider: Provider) -> Tools:
    tools = Tools(functions)
    if tools and provider.known_options is not None and "tools" not in provider.known_options:
        raise InvalidRequest(f"the protocol of {provider.name} knows no tools: ask an OpenAICompatible")
    return tools


def _checked_trim(trim: Any) -> Trim | None:
    if trim is not None and not callable(trim):
        raise InvalidRequest(f"trim is of type {type(trim).__name__}: give last_turns(10), fits(20_000) or a function")
    return cast("Trim | None", trim)


def _checked_options(options: dict[str, Any]) -> dict[str, Any]:
    if wrong := sorted(set(options).intersection(_NO_OPTIONS)):
        raise InvalidRequest(f"{wrong[0]} is no option of a conversation: give it to the provider, or to a question")
    return options


def _checked_history(history: Any) -> Recorder | None:
    if history is not None and not callable(getattr(history, "write", None)):
        raise InvalidRequest(
            f"history is of type {type(history).__name__}, not History: give earlier messages as messages="
        )
    return cast("Recorder | None", history)


def _taken(system: Any, messages: Any) -> tuple[str | None, list[Turn]]:
    """The system message, and the turns that earlier messages make."""
    if not isinstance(system, (str, type(None))):
        raise InvalidRequest(f"system is of type {type(system).__name__}, not str")
    given = as_list(messages) if not isinstance(messages, (list, tuple)) or messages else []
    if system is None and given and given[0]["role"] == "system" and isinstance(given[0]["content"], str):
        system = given.pop(0)["content"]
    if given and given[-1]["role"] in ("user", "tool"):
        raise InvalidRequest("the last of the messages waits for a reply: ask it")
    return system, [Turn(turn) for turn in turns_of(given)]
