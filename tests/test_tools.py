"""Python functions as tools: what a model is told of them, and what its calls do."""

from __future__ import annotations

import functools
import json
import logging
import pickle
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any, Literal, Optional, TypedDict

import pytest

from berlin_chat import (
    Cancelled,
    CancelToken,
    Conversation,
    InvalidRequest,
    OpenAICompatible,
    Provider,
    Reply,
    ToolCall,
    TooManySteps,
)
from berlin_chat.conversations.tools import Tools
from scripted import call, chunk, end, questions, replies, text, two_calls
from wire import Wire


class Unit(Enum):
    CELSIUS = "c"
    KELVIN = "k"


@dataclass
class Place:
    city: str
    street: str = ""
    tags: list[str] = field(default_factory=list)


class Range(TypedDict, total=False):
    low: int
    high: int


def everything(
    text: str,
    number: int,
    part: float,
    flag: bool,
    names: list[str],
    pairs: dict[str, int],
    choice: Literal["a", "b"],
    unit: Unit,
    place: Place,
    span: Range,
    either: int | str,
    noted: Annotated[str, "what it is called"],
    untyped,  # type: ignore[no-untyped-def]
    old: Optional[str] = None,  # noqa: UP045 - people write it
    *,
    several: Sequence[Place] = (),
    mapped: Mapping[str, Any] | None = None,
    unique: set[int] = frozenset(),  # type: ignore[assignment]
) -> str:
    """Does everything
    at once.

    And says more, which the model is not told.

    Args:
        text: what it
            says.
        number (int): how many: a few.

    Returns:
        What was given.
    """
    return repr(
        (text, number, part, flag, names, pairs, choice, unit, place, span, either, noted, untyped, old, unique)
    )


GIVEN: dict[str, Any] = {
    "text": "t",
    "number": 3,
    "part": 2,
    "flag": True,
    "names": ["x"],
    "pairs": {"y": 1},
    "choice": "b",
    "unit": "k",
    "place": {"city": "Rome"},
    "span": {"low": 1},
    "either": "5",
    "noted": "n",
    "untyped": [None],
}


def told(function: Callable[..., Any]) -> dict[str, Any]:
    return Tools([function]).definitions[0]["function"]  # type: ignore[no-any-return]


def result(function: Callable[..., Any], arguments: Any) -> str:
    arguments = arguments if isinstance(arguments, str) else json.dumps(arguments)
    message = Tools([function]).answer(ToolCall("c", function.__name__, arguments))
    assert message.keys() == {"role", "tool_call_id", "content"}
    return str(message["content"])


def test_name_types_and_docstring_become_the_schema() -> None:
    definition = told(everything)
    assert (definition["name"], definition["description"]) == ("everything", "Does everything at once.")
    schema = definition["parameters"]
    assert schema["type"] == "object"
    assert schema["required"] == list(GIVEN)
    place = {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "street": {"type": "string"},
            "tags": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["city"],
    }
    assert schema["properties"] == {
        "text": {"description": "what it says.", "type": "string"},
        "number": {"description": "how many: a few.", "type": "integer"},
        "part": {"type": "number"},
        "flag": {"type": "boolean"},
        "names": {"type": "array", "items": {"type": "string"}},
        "pairs": {"type": "object", "additionalProperties": {"type": "integer"}},
        "choice": {"type": "string", "enum": ["a", "b"]},
        "unit": {"type": "string", "enum": ["c", "k"]},
        "place": place,
        "span": {
            "type": "object",
            "properties": {"low": {"type": "integer"}, "high": {"type": "integer"}},
            "required": [],
        },
        "either": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
        "noted": {"type": "string", "description": "what it is called"},
        "untyped": {},
        "old": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "several": {"type": "array", "items": place},
        "mapped": {"anyOf": [{"type": "object", "additionalProperties": {}}, {"type": "null"}]},
        "unique": {"type": "array", "items": {"type": "integer"}},
    }


def test_the_arguments_arrive_as_their_types_say() -> None:
    expected = "('t', 3, 2.0, True, ['x'], {'y': 1}, 'b', <Unit.KELVIN: 'k'>, "
    expected += "Place(city='Rome', street='', tags=[]), {'low': 1}, '5', 'n', [None], None, frozenset())"
    assert result(everything, GIVEN) == expected
    assert "{1, 2}" in result(everything, {**GIVEN, "unique": [1, 2, 1]})
    assert "'t', 3, 2.5" in result(everything, {**GIVEN, "number": 3.0, "part": 2.5})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"text": 5}, "text must be text"),
        ({"text": None}, "text must be text"),
        ({"number": "3"}, "number must be a whole number"),
        ({"number": 3.5}, "number must be a whole number"),
        ({"number": True}, "number must be a whole number"),
        ({"number": float("inf")}, "number must be a whole number"),
        ({"part": "2"}, "part must be a number"),
        ({"flag": 1}, "flag must be true or false"),
        ({"names": "x"}, "names must be a list"),
        ({"names": ["x", 5]}, r"names\[1\] must be text"),
        ({"pairs": {"y": "z"}}, r"pairs\['y'\] must be a whole number"),
        ({"pairs": []}, "pairs must be an object"),
        ({"choice": "c"}, "choice must be one of 'a', 'b'"),
        ({"choice": []}, "choice must be one of"),
        ({"unit": "KELVIN"}, "unit must be one of 'c', 'k'"),
        ({"place": {}}, "place lacks 'city'"),
        ({"place": "Rome"}, "place must be an object"),
        ({"place": {"city": "Rome", "zip": 1}}, "place has no 'zip'"),
        ({"either": 1.5}, "either must be a whole number, or either must be text"),
        ({"more": 1}, "everything has no 'more'"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_told_to_the_model(wrong: dict[str, Any], said: str) -> None:
    answer = result(everything, {**GIVEN, **wrong})
    assert answer.startswith("Error: ")
    assert re.search(said, answer)


def lookup(key: str) -> Any:
    if key == "missing":
        raise KeyError(key)
    return {"text": "plain", "none": None, "data": {"Ä": [1, None]}, "odd": {1}}[key]


@pytest.mark.parametrize(
    ("key", "answer"),
    [
        ("text", "plain"),
        ("none", "null"),
        ("data", '{"Ä": [1, null]}'),
        ("odd", '"{1}"'),
        ("missing", "Error: KeyError: 'missing'"),
    ],
)
def test_what_a_function_returns_or_raises_is_text_for_the_model(key: str, answer: str) -> None:
    assert result(lookup, {"key": key}) == answer


@pytest.mark.parametrize("broken", ["{", "[]", '"x"', "null", '{"key": "text"'])
def test_broken_arguments_are_told_to_the_model(broken: str) -> None:
    assert result(lookup, broken) == "Error: the arguments are no JSON object."


def test_an_unknown_tool_is_told_to_the_model() -> None:
    message = Tools([lookup, everything]).answer(ToolCall("", "find", "{}"))
    said = "Error: there is no tool 'find'. There are: lookup, everything."
    assert message == {"role": "tool", "content": said}


def test_no_arguments_at_all_are_an_empty_object() -> None:
    def now() -> str:
        return "noon"

    assert result(now, "") == "noon"


def test_methods_and_wrapped_functions_are_tools() -> None:
    class Counter:
        def __init__(self) -> None:
            self.count = 0

        def add(self, by: int = 1) -> int:
            """Counts."""
            self.count += by
            return self.count

    @functools.wraps(lookup)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        return lookup(*arguments, **named)

    counter = Counter()
    assert told(counter.add)["parameters"] == {
        "type": "object",
        "properties": {"by": {"type": "integer"}},
        "required": [],
    }
    assert (result(counter.add, {"by": 2}), counter.count) == ("2", 2)
    assert told(wrapped) == told(lookup)


def positional(a: int, /) -> None: ...
def starred(*a: int) -> None: ...
def keywords(**a: int) -> None: ...
def unknown_type(a: object, b: Exception) -> None: ...
def unknown_name(a: NotThere) -> None: ...  # type: ignore[name-defined]  # noqa: F821
def integer_keys(a: dict[int, str]) -> None: ...
async def awaited() -> None: ...


def generated() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        (["lookup"], "type str"),
        ("lookup", "give a list"),
        (lookup, "give a list"),
        ([{"type": "function"}], "type dict"),
        ([Place], "type type"),
        ([functools.partial(lookup, "x")], "type partial"),
        ([lambda: 1], "name of ASCII letters"),
        ([lookup, lookup], "two tools"),
        ([positional], "'a', which cannot be given by name"),
        ([starred], r"'a', which cannot be given by name"),
        ([keywords], r"'a', which cannot be given by name"),
        ([unknown_type], "parameter 'b' of the tool 'unknown_type'.*Exception.*dataclass"),
        ([unknown_name], "NotThere"),
        ([integer_keys], "keys"),
        ([awaited], "neither async"),
        ([generated], "nor a generator"),
    ],
)
def test_what_can_be_no_tool_is_refused_with_the_reason(tools: Any, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        Conversation(OpenAICompatible("http://127.0.0.1:9"), tools=tools)


def test_the_log_says_that_a_tool_failed_and_only_at_debug_why(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "berlin_chat"):
        result(lookup, {"key": "missing"})
    warning, debug = caplog.records
    assert warning.getMessage() == "The tool lookup raised KeyError, which the model is told."
    assert debug.exc_info is not None


def test_a_pickle_makes_the_same_tools() -> None:
    tools = Tools([lookup, everything])
    assert pickle.loads(pickle.dumps(tools)).definitions == tools.definitions


# In a conversation


@pytest.fixture
def provider(wire: Wire) -> Iterator[Provider]:
    with OpenAICompatible(base_url=wire.url, retries=0) as made:
        yield made


def weather(city: str) -> str:
    """Tells the weather."""
    return f"rain in {city}"


def test_calls_are_run_and_their_results_sent_until_there_are_none(provider: Provider, wire: Wire) -> None:
    replies(wire, [chunk({"content": "I look."}), *two_calls()], text("Rain ", "everywhere."))
    conversation = Conversation(provider, tools=[weather])
    pieces = conversation.stream("How is the weather?")
    found = []
    reply = None
    while reply is None:
        try:
            found.append(next(pieces))
        except StopIteration as stop:
            reply = stop.value
    assert found == ["I look.", "\n\n", "Rain ", "everywhere."]
    assert isinstance(reply, Reply)
    assert reply == "Rain everywhere."
    first, second = questions(wire)
    assert first["tools"] == second["tools"] == Tools([weather]).definitions
    asked, called, *results = second["messages"]
    assert (asked["role"], called["content"], len(called["tool_calls"])) == ("user", "I look.", 2)
    assert [(one["tool_call_id"], one["content"]) for one in results] == [
        ("call_a", "rain in Berlin"),
        ("call_b", "rain in Osló 🙂"),
    ]
    assert conversation.messages == [*second["messages"], {"role": "assistant", "content": "Rain everywhere."}]


def test_events_tell_what_was_called_and_what_it_gave(provider: Provider, wire: Wire) -> None:
    replies(wire, two_calls(), text("Rain."))
    with Conversation(provider, tools=[weather]).open("How is the weather?") as live:
        events = list(live.events())
    results = [(event.place, event.text, event.call) for event in events if event.kind == "tool_result"]
    assert results == [
        (0, "rain in Berlin", ToolCall("call_a", "weather", '{"city": "Berlin"}')),
        (1, "rain in Osló 🙂", ToolCall("call_b", "weather", '{"city": "Osló 🙂"}')),
    ]
    assert [event.kind for event in events][-3:] == ["tool_result", "tool_result", "text"]
    assert live.text == live.reply == "Rain."


def one_call(arguments: str = "{}", name: str = "weather") -> list[bytes]:
    return [call(0, "call_1", name), call(0, arguments=arguments), end("tool_calls")]


def test_a_model_can_mend_what_it_did_wrong(provider: Provider, wire: Wire) -> None:
    calls = [one_call(name="wether"), one_call("{"), one_call('{"town": "Rome"}'), one_call('{"city": "Rome"}')]
    replies(wire, *calls, text("Rain."))
    assert Conversation(provider, tools=[weather]).ask("How is the weather?") == "Rain."
    results = [question["messages"][-1]["content"] for question in questions(wire)[1:]]
    assert [result.partition(" ")[0] for result in results] == ["Error:", "Error:", "Error:", "rain"]


def test_after_so_many_steps_there_is_an_error_and_all_is_kept(provider: Provider, wire: Wire) -> None:
    again = [chunk({"content": "Once more."}), *one_call('{"city": "Rome"}')]
    replies(wire, again, again, again, text("Enough."))
    conversation = Conversation(provider, tools=[weather], max_steps=2)
    with pytest.raises(TooManySteps, match="after 2 steps, now 'weather'") as caught:
        conversation.ask("How is the weather?")
    assert caught.value.partial == "\n\n".join(["Once more."] * 3)
    assert len(questions(wire)) == 3
    assert [turn.cut for turn in conversation.turns] == [True]
    answers = [message["content"] for message in conversation.messages if message["role"] == "tool"]
    assert answers[:2] == ["rain in Rome", "rain in Rome"]
    assert answers[2].startswith("The tool was not called")
    assert conversation.ask("Go on.") == "Enough."


def test_a_forced_choice_is_for_the_first_step_only(provider: Provider, wire: Wire) -> None:
    replies(wire, one_call('{"city": "Rome"}'), text("Rain."), one_call('{"city": "Rome"}'), text("Rain."))
    conversation = Conversation(provider, tools=[weather], tool_choice="required")
    conversation.ask("How is the weather?")
    conversation.ask("And now?")
    assert [question.get("tool_choice") for question in questions(wire)] == ["required", None] * 2


def test_one_question_can_do_without_the_tools(provider: Provider, wire: Wire) -> None:
    replies(wire, text("Hello"))
    Conversation(provider, tools=[weather]).ask("Hi", tools=None)
    assert "tools" not in questions(wire)[0]


def test_tools_that_the_caller_runs_are_left_to_the_caller(provider: Provider, wire: Wire) -> None:
    replies(wire, two_calls(), text("Rain."))
    conversation = Conversation(provider)
    reply = conversation.ask("How is the weather?", tools=Tools([weather]).definitions)
    results = [{"role": "tool", "tool_call_id": call.id, "content": "rain"} for call in reply.tool_calls]
    assert conversation.ask(results) == "Rain."
    assert [message["role"] for message in conversation.messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert not any(turn.cut for turn in conversation.turns)


def test_a_cancel_in_a_tool_ends_the_turn_before_the_next_call(provider: Provider, wire: Wire) -> None:
    token, called = CancelToken(), []

    def stop(city: str) -> str:
        called.append(city)
        token.cancel()
        return "done"

    replies(wire, two_calls("stop"))
    conversation = Conversation(provider, tools=[stop])
    with pytest.raises(Cancelled):
        conversation.ask("Hi", cancel=token)
    assert called == ["Berlin"]
    assert conversation.turns[0].cut


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), Cancelled("enough")], ids=repr)
def test_what_ends_the_program_goes_through_a_tool(error: BaseException, provider: Provider, wire: Wire) -> None:
    def fail(city: str) -> str:
        raise error

    replies(wire, two_calls("fail"))
    with pytest.raises(type(error)) as caught:
        Conversation(provider, tools=[fail]).ask("Hi")
    assert caught.value is error


def test_a_tool_may_ask_in_a_fork_but_not_in_the_turn_itself(provider: Provider, wire: Wire) -> None:
    replies(wire, two_calls("think"), text("Deep."), text("Whole."))
    conversation: Conversation

    def think(city: str) -> str:
        return str((conversation if city == "Berlin" else conversation.fork()).ask("Think."))

    conversation = Conversation(provider, tools=[think])
    assert conversation.ask("Hi") == "Whole."
    first, second = (message["content"] for message in conversation.messages if message["role"] == "tool")
    assert "in the middle of a turn" in first
    assert second == "Deep."


@dataclass
class Positive:
    a: int

    def __post_init__(self) -> None:
        assert self.a > 0, "it must be positive"


@pytest.mark.parametrize(
    ("hint", "argument"), [("float", "1" + "0" * 400), ("Positive", '{"a": -1}'), ("float", '"\\ud800"')]
)
def test_whatever_an_argument_makes_of_itself_is_told_to_the_model(hint: str, argument: str) -> None:
    def function(x: Any) -> str:
        return "never"

    function.__annotations__["x"] = {"float": float, "Positive": Positive}[hint]
    answer = Tools([function]).answer(ToolCall("1", "function", f'{{"x": {argument}}}'))
    assert answer["content"].startswith("Error: ")
    assert answer["content"].encode()


def test_names_that_are_no_text_inside_of_what_a_tool_returns_break_no_turn(provider: Provider, wire: Wire) -> None:
    def names() -> list[str]:
        return ["caf\udce9.txt"]  # as os.listdir() gives it

    replies(wire, one_call(name="names"), text("ok"), text("again"))
    conversation = Conversation(provider, tools=[names])
    assert conversation.ask("Which files?") == "ok"
    assert conversation.ask("Again?") == "again"
