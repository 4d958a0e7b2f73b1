"""``Conversation``: what is said is remembered, what is cut off is kept, and the next turn works."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest

from berlin_chat import (
    APIConnectionError,
    APITimeoutError,
    Berlin,
    Cancelled,
    CancelToken,
    ChatError,
    Conversation,
    Fallback,
    InvalidRequest,
    OpenAICompatible,
    Provider,
    Reply,
    StreamInterrupted,
    fits,
    last_turns,
)
from berlin_chat.conversations.floor import Floor
from berlin_chat.conversations.turns import INTERRUPTED, NOT_CALLED
from scripted import chunk, questions, replies, text, two_calls
from test_cancelling import silent
from wire import OPENAI, PATIENCE, Chunked, Connection, Recorded, Speech, Wire, speak, wait_for

Make = Callable[..., Provider]
Message = dict[str, Any]

#: That there are threads meanwhile is no harm.
_WARNING = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


def forks(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test that forks."""
    return _WARNING(pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")(test))


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


@pytest.fixture
def provider(wire: Wire) -> Iterator[Provider]:
    with OpenAICompatible(base_url=wire.url, model="m", retries=0) as made:
        yield made


HALF = [chunk({"content": "Half a "}), chunk({"content": "reply"})]  # and no end


def weather(city: str) -> str:
    """Tells the weather."""
    return f"rain in {city}"


# What is remembered


def test_each_question_is_sent_with_all_that_was_said_before(provider: Provider, wire: Wire) -> None:
    replies(wire, text("Hello", "!"), text("Fine."))
    conversation = Conversation(provider, "Be brief.")
    assert "".join(conversation.stream("Hi")) == "Hello!"
    reply = conversation.ask("How are you?")
    assert isinstance(reply, Reply)
    assert (reply, reply.finish_reason) == ("Fine.", "stop")
    said = [{"role": "system", "content": "Be brief."}, user("Hi"), assistant("Hello!"), user("How are you?")]
    first, second = questions(wire)
    assert (first["messages"], second["messages"]) == (said[:2], said)
    assert conversation.messages == [*said, assistant("Fine.")]
    assert [turn.reply for turn in conversation.turns] == ["Hello!", "Fine."]
    assert not any(turn.cut for turn in conversation.turns)


def test_stream_is_a_plain_generator_that_returns_the_reply(provider: Provider, wire: Wire) -> None:
    replies(wire, text("Hello", "!"))
    pieces = Conversation(provider).stream("Hi")
    assert [next(pieces), next(pieces)] == ["Hello", "!"]
    with pytest.raises(StopIteration) as end:
        next(pieces)
    assert (end.value.value, end.value.value.model) == ("Hello!", "m-1")


def test_open_gives_a_live_reply_and_the_turn_is_kept(provider: Provider, wire: Wire) -> None:
    replies(wire, [chunk({"reasoning_content": "Hm"}), *text("Hello")])
    conversation = Conversation(provider)
    with conversation.open("Hi") as live:
        assert [(event.kind, event.text) for event in live.events()] == [("reasoning", "Hm"), ("text", "Hello")]
    assert live.reply is not None
    assert (live.reply.reasoning, live.text) == ("Hm", "Hello")
    assert conversation.messages == [user("Hi"), assistant("Hello")]


def test_every_protocol_is_given_what_was_said(speech: Speech, provider_for: Make, wire: Wire) -> None:
    conversation = Conversation(provider_for(speech, speak(speech, ["one"])), "Be brief.")
    for prompt in ("first", "second"):
        assert conversation.ask(prompt).strip() == "one"
    *_, request = wire.asked(*speech.route)
    if conversation.provider.supports_message_history:
        assert request.json["messages"] == conversation.messages[:-1]
    else:
        prompt = request.json.get("prompt", request.json.get("inputs"))
        answered = conversation.turns[0].messages[-1]["content"]
        assert prompt == f"System: Be brief.\nUser: first\nAssistant: {answered}\nUser: second\nAssistant:"


def test_options_of_the_conversation_and_of_a_question_are_sent(provider: Provider, wire: Wire) -> None:
    replies(wire, text("a"), text("b"))
    conversation = Conversation(provider, model="own", temperature=0.2, seed=1)
    conversation.ask("Hi")
    conversation.ask(
        "Hi", "another", temperature=0.9, seed=None, extra_body={"top_k": 2}, headers={"X-Request-Id": "4"}
    )
    first, second = questions(wire)
    assert (first["model"], first["temperature"], first["seed"]) == ("own", 0.2, 1)
    assert (second["model"], second["temperature"], second["top_k"], "seed" in second) == ("another", 0.9, 2, False)
    assert wire.asked(*OPENAI.route)[1].header("X-Request-Id") == "4"


def test_a_message_of_parts_and_earlier_messages_are_sent_as_they_are(provider: Provider, wire: Wire) -> None:
    replies(wire, text("b"))
    parts = {"role": "user", "content": [{"type": "text", "text": "What?"}], "name": "me"}
    earlier = [{"role": "system", "content": "Be brief."}, user("Hi"), assistant("Hello")]
    conversation = Conversation(provider, messages=earlier)
    assert (conversation.system, len(conversation.turns)) == ("Be brief.", 1)
    conversation.ask(parts)
    assert questions(wire)[0]["messages"] == [*earlier, parts]


def test_what_it_shows_of_its_messages_can_be_changed_without_harm(provider: Provider, wire: Wire) -> None:
    replies(wire, text("a"))
    conversation = Conversation(provider)
    conversation.ask("Hi")
    conversation.messages[0]["content"] = "other"
    conversation.messages.clear()
    assert conversation.messages == [user("Hi"), assistant("a")]


# What is cut off


def strict(wire: Wire, *scripts: list[bytes]) -> None:
    """Gives the replies, but refuses unknown keys, and roles that do not take turns."""
    replies(wire, *scripts)
    *_, answer = wire.routes[0]

    def script(request: Recorded, connection: Connection) -> None:
        messages = request.json["messages"]
        keys = {key for message in messages for key in message}
        roles = [message["role"] for message in messages if message["role"] != "system"]
        follows = {"user": ("assistant",), "assistant": ("user", "tool"), "tool": ("tool", "assistant")}
        calls = [call["id"] for message in messages for call in message.get("tool_calls", ())]
        results = [message["tool_call_id"] for message in messages if message["role"] == "tool"]
        right = all(after in follows[before] for before, after in pairwise(roles))
        if not right or calls != results or keys - {"role", "content", "tool_calls", "tool_call_id"}:
            connection.respond(400, {"error": {"message": f"{roles} {keys} {calls} {results}"}})
        else:
            answer(request, connection)

    wire.on(*OPENAI.route, script)


def leave(conversation: Conversation, how: str) -> None:
    """Reads two pieces, and ends the turn."""
    if how == "cut off":
        with pytest.raises(StreamInterrupted) as caught:
            conversation.ask("Hi")
        assert caught.value.partial == "Half a reply"
        return
    token = CancelToken()
    pieces = conversation.stream("Hi", cancel=token)
    assert [next(pieces), next(pieces)] == ["Half a ", "reply"]
    if how == "cancel":
        token.cancel()
        with pytest.raises(Cancelled):
            next(pieces)
    elif how == "interrupt":
        with pytest.raises(KeyboardInterrupt):
            pieces.throw(KeyboardInterrupt())
    elif how == "close":
        pieces.close()
    else:
        del pieces
        gc.collect()


@pytest.mark.parametrize("how", ["cut off", "cancel", "interrupt", "close", "forget"])
def test_a_turn_that_is_cut_off_keeps_its_text_and_the_next_one_works(how: str, provider: Provider, wire: Wire) -> None:
    if how == "cut off":
        strict(wire, HALF, text("Whole."))
    else:
        strict(wire, text("Whole."))
        wire.on(*OPENAI.route, half_and_silence(wire))
    conversation = Conversation(provider, "Be brief.")
    leave(conversation, how)
    assert [turn.cut for turn in conversation.turns] == [True]
    assert conversation.turns[0].reply is None
    assert conversation.ask("Go on.") == "Whole."
    said = [user("Hi"), assistant("Half a reply"), user("Go on."), assistant("Whole.")]
    assert conversation.messages[1:] == said
    assert [turn.cut for turn in conversation.turns] == [True, False]


def half_and_silence(wire: Wire) -> Callable[[Recorded, Connection], None]:
    """The first reply stops in its middle; for all others, see the route below."""
    (*_, others), once = wire.routes[0], [True]

    def script(request: Recorded, connection: Connection) -> None:
        if not once:
            return others(request, connection)
        once.clear()
        body = Chunked(connection, "text/event-stream", b"")
        for part in HALF:
            body.part(part)
        return connection.wait_until_client_closes()

    return script


def test_leaving_a_live_reply_keeps_what_had_come(provider: Provider, wire: Wire) -> None:
    replies(wire, text("Whole."))
    wire.on(*OPENAI.route, half_and_silence(wire))
    conversation = Conversation(provider)
    with conversation.open("Hi") as live:
        next(live)
    assert conversation.messages == [user("Hi"), assistant("Half a ")]
    assert conversation.turns[0].cut
    assert conversation.ask("Go on.") == "Whole."


def test_a_question_of_which_nothing_came_is_taken_back(provider: Provider, wire: Wire) -> None:
    wire.on(*OPENAI.route, lambda request, connection: connection.respond(400, {"error": {"message": "no"}}))
    conversation = Conversation(provider)
    with pytest.raises(ChatError):
        conversation.ask("Hi")
    assert (conversation.messages, conversation.turns) == ([], ())
    strict(wire, text("Hello"))
    assert conversation.ask("Hi") == "Hello"
    assert conversation.messages == [user("Hi"), assistant("Hello")]


def test_a_turn_that_is_cut_off_among_its_tools_can_be_followed(provider: Provider, wire: Wire) -> None:
    def interrupted(city: str) -> str:
        if city != "Berlin":
            raise KeyboardInterrupt
        return "rain"

    strict(wire, two_calls("interrupted"), text("Whole."))
    conversation = Conversation(provider, tools=[interrupted])
    with pytest.raises(KeyboardInterrupt):
        conversation.ask("How is the weather?")
    (turn,) = conversation.turns
    assert turn.cut
    assert [message["content"] for message in turn.messages[2:]] == ["rain", NOT_CALLED, INTERRUPTED]
    assert conversation.ask("Go on.") == "Whole."


def test_a_turn_whose_second_reply_is_cut_off_keeps_its_tools(provider: Provider, wire: Wire) -> None:
    strict(wire, two_calls(), HALF, text("Whole."))
    conversation = Conversation(provider, tools=[weather])
    with pytest.raises(StreamInterrupted) as caught:
        conversation.ask("How is the weather?")
    assert caught.value.partial == "Half a reply"
    assert [message["role"] for message in conversation.messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert conversation.turns[0].cut
    assert conversation.ask("Go on.") == "Whole."


def test_an_error_has_all_text_of_the_turn(provider: Provider, wire: Wire) -> None:
    replies(wire, [chunk({"content": "I look."}), *two_calls()], HALF)
    conversation = Conversation(provider, tools=[weather])
    pieces = []
    with pytest.raises(StreamInterrupted) as caught:
        for piece in conversation.stream("How is the weather?"):
            pieces.append(piece)
    assert caught.value.partial == "".join(pieces) == "I look.\n\nHalf a reply"


# One turn at a time


def test_a_second_turn_is_refused_while_one_is_under_way(provider: Provider, wire: Wire) -> None:
    replies(wire, text("a", "b"), text("c"))
    conversation = Conversation(provider)
    first = conversation.stream("Hi")
    next(first)
    for attempt in (conversation.stream, conversation.ask, conversation.open):
        with pytest.raises(InvalidRequest, match="in the middle of a turn"):
            attempt("And?")
    with pytest.raises(InvalidRequest, match="in the middle of a turn"):
        conversation.undo()
    assert list(first) == ["b"]
    assert conversation.ask("And?") == "c"


def test_of_two_turns_that_were_only_called_the_first_to_be_read_wins(provider: Provider, wire: Wire) -> None:
    replies(wire, text("a", "b"), text("c"))
    conversation = Conversation(provider)
    first, second = conversation.stream("one"), conversation.stream("two")
    next(second)
    with pytest.raises(InvalidRequest, match="in the middle of a turn"):
        next(first)
    assert list(second) == ["b"]
    assert [message["content"] for message in conversation.messages] == ["two", "ab"]


def test_a_turn_that_was_called_before_another_one_is_asked_with_that(provider: Provider, wire: Wire) -> None:
    replies(wire, text("a"), text("b"))
    conversation = Conversation(provider)
    later = conversation.stream("two")
    conversation.ask("one")
    assert list(later) == ["b"]
    assert questions(wire)[1]["messages"] == [user("one"), assistant("a"), user("two")]


def test_of_many_threads_one_has_the_turn_and_the_others_are_refused(provider_for: Make, wire: Wire) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def wait(request: Recorded, connection: Connection) -> None:
        asked.set()
        assert go_on.wait(PATIENCE)
        speak(OPENAI, ["one"])(request, connection)

    before, rounds, threads = sys.getswitchinterval(), 5, 8
    conversation = Conversation(provider_for(OPENAI, wait))
    sys.setswitchinterval(1e-6)
    try:
        for number in range(1, rounds + 1):
            asked.clear(), go_on.clear()
            start, results = threading.Barrier(threads), []

            def ask(start: threading.Barrier = start, results: list[Any] = results) -> None:
                start.wait(PATIENCE)
                try:
                    results.append(conversation.ask("Hi"))
                except InvalidRequest as error:
                    results.append(error)

            running = [threading.Thread(target=ask) for _ in range(threads)]
            for thread in running:
                thread.start()
            assert asked.wait(PATIENCE)
            assert wait_for(lambda results=results: len(results) == threads - 1)
            go_on.set()
            for thread in running:
                thread.join(PATIENCE)
            assert [result for result in results if isinstance(result, Reply)] == ["one"]
            assert len(conversation.turns) == len(wire.asked(*OPENAI.route)) == number
    finally:
        sys.setswitchinterval(before)


def test_two_threads_never_have_the_floor_at_once() -> None:
    floor, inside, most, taken = Floor(), [0], [0], [0]
    start = threading.Barrier(8)

    def hammer() -> None:
        start.wait(PATIENCE)
        mine = 0
        while mine < 100:
            try:
                hold = floor.take()
            except InvalidRequest:
                continue
            inside[0] += 1  # without a lock: nobody else is here
            for _ in range(100):  # so long that another thread would come in between
                most[0] = max(most[0], inside[0])
            mine += 1
            taken[0] += 1
            inside[0] -= 1
            del hold

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=hammer) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(before)
    assert (inside, most) == ([0], [1])
    assert taken == [800]
    floor.check()


def test_an_error_that_is_kept_does_not_keep_the_floor(provider: Provider, wire: Wire) -> None:
    replies(wire, HALF, text("Whole."))
    conversation = Conversation(provider)
    with pytest.raises(StreamInterrupted) as caught:
        conversation.ask("Hi")
    assert conversation.ask("Go on.") == "Whole."
    assert caught.value.__traceback__ is not None


def test_a_turn_that_another_thread_cancels_gives_the_conversation_back(provider_for: Make) -> None:
    conversation = Conversation(provider_for(OPENAI, silent))
    live = conversation.open("Hi")
    threading.Timer(0.1, live.cancel).start()
    with pytest.raises(Cancelled):
        next(live)
    assert conversation.turns == ()
    live = conversation.open("Hi")
    live.cancel()
    with pytest.raises(Cancelled):
        next(live)


@forks
def test_a_child_of_a_fork_can_go_on_while_the_parent_is_in_a_turn(provider: Provider, wire: Wire) -> None:
    replies(wire, text("a", "b"), text("child"))
    conversation = Conversation(provider)
    pieces = conversation.stream("Hi")
    next(pieces)
    child = os.fork()
    if not child:
        try:
            done = conversation.ask("And?") == "child" and len(conversation.turns) == 1
        finally:
            os._exit(0 if done else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert list(pieces) == ["b"]
    assert conversation.messages == [user("Hi"), assistant("ab")]


# Copies, and taking back


def test_a_fork_goes_on_by_itself(provider: Provider, wire: Wire) -> None:
    replies(wire, text("a"), text("b"), text("c"))
    conversation = Conversation(provider, "Be brief.", temperature=0.3)
    conversation.ask("one")
    other = conversation.fork()
    assert other.ask("two") == "b"
    assert conversation.ask("three") == "c"
    assert [message["content"] for message in other.messages] == ["Be brief.", "one", "a", "two", "b"]
    assert [message["content"] for message in conversation.messages] == ["Be brief.", "one", "a", "three", "c"]
    assert [question["temperature"] for question in questions(wire)] == [0.3] * 3


def test_undo_takes_the_last_turn_back_with_its_tools(provider: Provider, wire: Wire) -> None:
    replies(wire, text("a"), two_calls(), text("b"), text("c"))
    conversation = Conversation(provider, tools=[weather])
    conversation.ask("one")
    conversation.ask("two")
    turn = conversation.undo()
    assert [message["role"] for message in turn.messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert conversation.messages == [user("one"), assistant("a")]
    assert turn.question == [user("two")]
    assert conversation.ask(turn.question) == "c"
    conversation.undo(), conversation.undo()
    with pytest.raises(InvalidRequest, match="no turn"):
        conversation.undo()


def test_a_pickle_has_its_configuration_and_what_was_said(provider: Provider, wire: Wire) -> None:
    replies(wire, text("a"), text("b"), text("c"))
    conversation = Conversation(
        provider, "Be brief.", tools=[weather], trim=last_turns(3), model="own", max_steps=3, temperature=0.1
    )
    conversation.ask("one")
    made = pickle.loads(pickle.dumps(conversation))
    assert made.messages == conversation.messages
    assert (made.turns[0].reply.model, made.max_steps, made.trim(made.messages)) == ("m-1", 3, made.messages)
    with made.provider:
        assert made.ask("two") == "b"
    assert questions(wire)[1].items() > {"model": "own", "temperature": 0.1}.items()
    assert questions(wire)[1]["tools"] == questions(wire)[0]["tools"]
    assert len(conversation.turns) == 1
    copied = copy.copy(made)
    copied.undo()
    assert (len(copied.turns), len(made.turns)) == (1, 2)


def test_a_pickle_in_the_middle_of_a_turn_has_the_turns_before(provider: Provider, wire: Wire) -> None:
    replies(wire, text("a"), text("b", "c"), text("d"))
    conversation = Conversation(provider)
    conversation.ask("one")
    pieces = conversation.stream("two")
    next(pieces)
    made = pickle.loads(pickle.dumps(conversation))
    list(pieces)
    with made.provider:
        assert made.ask("three") == "d"
    assert [message["content"] for message in made.messages] == ["one", "a", "three", "d"]


# What is sent of it


def test_a_policy_says_what_is_sent_and_all_is_kept(provider: Provider, wire: Wire) -> None:
    replies(wire, *(text(word) for word in "abc"))
    conversation = Conversation(provider, "Be brief.", trim=last_turns(2))
    for word in ("one", "two", "three"):
        conversation.ask(word)
    sent = [[message["content"] for message in question["messages"]] for question in questions(wire)]
    assert sent[1:] == [["Be brief.", "one", "a", "two"], ["Be brief.", "two", "b", "three"]]
    assert len(conversation.messages) == 7


def test_a_policy_of_the_callers_is_any_function(provider: Provider, wire: Wire) -> None:
    replies(wire, text("a"), text("b"))
    conversation = Conversation(provider, trim=lambda messages: messages[-1:])
    conversation.ask("one")
    conversation.ask("two")
    assert questions(wire)[1]["messages"] == [user("two")]


LONG: list[Message] = [
    {"role": "system", "content": "s"},
    user("one"),
    {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]},
    {"role": "tool", "tool_call_id": "1", "content": "result"},
    assistant("first"),
    user("two"),
    assistant("second"),
    user("three"),
]


@pytest.mark.parametrize(
    ("trim", "first"),
    [
        (last_turns(9), 1),
        (last_turns(2), 5),
        (last_turns(1), 7),
        (fits(1000), 1),
        (fits(1 + 17 + 9 + 5), 1),
        (fits(1 + 16 + 9 + 5), 5),
        (fits(1 + 9 + 5), 5),
        (fits(1 + 8 + 5), 7),
        (fits(1), 7),
        (fits(3, lambda message: 1), 7),
        (fits(4, lambda message: 1), 5),
    ],
)
def test_whole_turns_are_left_out_and_never_the_system_message(trim: Any, first: int) -> None:
    before = copy.deepcopy(LONG)
    assert trim(LONG) == [LONG[0], *LONG[first:]]
    assert before == LONG


def test_a_call_of_a_tool_is_never_sent_without_its_answer() -> None:
    for limit in range(1, 40):
        kept = fits(limit)(LONG)
        calls = [call["id"] for message in kept for call in message.get("tool_calls", ())]
        assert calls == [message["tool_call_id"] for message in kept if message["role"] == "tool"]
        assert kept[1]["role"] == "user"


def test_a_group_of_providers_has_a_conversation_with_tools(provider: Provider, wire: Wire) -> None:
    replies(wire, two_calls(), text("Rain."), text("b"))
    group = Fallback([OpenAICompatible("http://127.0.0.1:9", retries=0), provider])
    conversation = Conversation(group, tools=[weather])
    assert conversation.ask("How is the weather?") == "Rain."
    with conversation.open("And?") as live:
        assert list(live) == ["b"]
    assert questions(wire)[2]["messages"] == conversation.messages[:-1]


def test_the_provider_can_be_another_one_from_turn_to_turn(provider: Provider, wire: Wire) -> None:
    replies(wire, text("a"), text("b"))
    conversation = Conversation(OpenAICompatible("http://127.0.0.1:9", retries=0))
    with pytest.raises(APIConnectionError):
        conversation.ask("Hi")
    conversation.provider, conversation.model = provider, "other"
    assert conversation.ask("Hi") == "a"
    assert questions(wire)[0]["model"] == "other"


# What is refused


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"provider": OpenAICompatible}, "instance of a Provider"),
        ({"provider": "openai"}, "instance of a Provider"),
        ({"system": 5}, "system is of type int"),
        ({"history": [user("Hi")]}, "messages="),
        ({"messages": [user("Hi")]}, "waits for a reply"),
        ({"messages": [{"role": "user"}]}, "no 'content'"),
        ({"max_steps": 0}, "max_steps"),
        ({"trim": 5}, "last_turns"),
        ({"timeout": 5}, "timeout is no option of a conversation"),
        ({"provider": Berlin("http://127.0.0.1:9"), "tools": [weather]}, "knows no tools"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        Conversation(**{"provider": OpenAICompatible("http://127.0.0.1:9"), **wrong})


@pytest.mark.parametrize("make", [lambda: last_turns(0), lambda: fits(0), lambda: fits(5, count=5)])  # type: ignore[arg-type]
def test_a_wrong_policy_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(InvalidRequest):
        make()


@pytest.mark.parametrize(
    "wrong",
    [
        {"message": ""},
        {"message": [assistant("Hi")]},
        {"deadline": -1},
        {"cancel": 5},
        {"temperature": float("nan")},
        {"tools": []},
        {"extra_body": 5},
    ],
    ids=str,
)
@pytest.mark.parametrize("way", ["stream", "ask", "open"])
def test_a_wrong_question_is_refused_at_the_call(
    way: str, wrong: dict[str, Any], provider: Provider, wire: Wire
) -> None:
    conversation = Conversation(provider, tools=[weather])
    with pytest.raises(InvalidRequest):
        getattr(conversation, way)(**{"message": "Hi", **wrong})
    assert (wire.requests, conversation.messages) == ([], [])
    replies(wire, text("a"))
    assert conversation.ask("Hi") == "a"


def test_a_deadline_is_for_the_whole_turn(provider: Provider, wire: Wire) -> None:
    replies(wire, *(two_calls("slow") for _ in range(8)))
    passed = threading.Event()

    def slow(city: str) -> str:
        passed.wait(0.2)
        return city

    with pytest.raises(APITimeoutError, match=r"the deadline of 0\.5 s"):
        Conversation(provider, tools=[slow]).ask("Hi", deadline=0.5)
    assert len(questions(wire)) <= 2


def test_its_representation_shows_no_secret(wire: Wire) -> None:
    with OpenAICompatible(base_url=wire.url, api_key="sesame-open") as provider:
        shown = repr(Conversation(provider, "Be brief."))
    assert "sesame" not in shown
    assert wire.url in shown


def test_a_server_that_is_gone_costs_nothing_that_was_said() -> None:
    earlier = [user("Hi"), assistant("Hello")]
    with OpenAICompatible(base_url="http://127.0.0.1:9", retries=0) as provider:
        conversation = Conversation(provider, messages=earlier)
        with pytest.raises(APIConnectionError):
            conversation.ask("And?")
    assert conversation.messages == earlier


def test_the_import_of_the_package_leaves_these_modules_alone() -> None:
    wanted = "{'sqlite3', 'inspect', 'dataclasses'}"
    code = f"""if True:
        import sys, requests, tenacity
        before = set(sys.modules)
        import berlin_chat
        print(*{wanted}.intersection(sys.modules) - before)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_what_a_fork_and_the_caller_change_later_is_their_own(provider: Provider, wire: Wire) -> None:
    replies(wire, text("a"))
    parts = [{"type": "text", "text": "as it was"}]
    conversation = Conversation(provider, temperature=0.1)
    conversation.ask([{"role": "user", "content": parts}])
    parts[0]["text"] = "changed"
    conversation.fork().options["temperature"] = 0.9
    assert conversation.options == {"temperature": 0.1}
    assert conversation.messages[0]["content"] == [{"type": "text", "text": "as it was"}]
