"""``History``: what is said is in the file as it is said, and found again; the file is private and looked after."""

from __future__ import annotations

import json
import os
import pickle
import resource
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from berlin_chat import (
    Conversation,
    Found,
    History,
    HistoryError,
    InvalidRequest,
    OpenAICompatible,
    Provider,
    StreamInterrupted,
)
from berlin_chat.conversations import migrations, steps
from scripted import chunk, questions, replies, text, two_calls
from test_conversation import HALF, assistant, forks, half_and_silence, strict, user, weather
from wire import OPENAI, Connection, Recorded, Stopwatch, Wire


@pytest.fixture
def provider(wire: Wire) -> Iterator[Provider]:
    with OpenAICompatible(base_url=wire.url, model="m", retries=0, api_key="sesame-key") as made:
        yield made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "chats.db"


@pytest.fixture
def history(file: Path) -> Iterator[History]:
    with History(file) as made:
        yield made


def rows(file: Path, query: str) -> list[Any]:
    """What somebody else finds in the file, while we have it open."""
    connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def everything(file: Path) -> bytes:
    """All bytes of the file and of those beside it."""
    return b"".join(path.read_bytes() for path in file.parent.glob(f"{file.name}*"))


# What is in it


def test_the_tables_are_plain_to_whoever_opens_the_file(
    provider: Provider, wire: Wire, history: History, file: Path
) -> None:
    replies(wire, [chunk({"reasoning_content": "Hm"}), *text("Rain", ".")], text("Sun."))
    conversation = Conversation(provider, "Be brief.", history)
    assert conversation.id is None
    conversation.ask("How is the\nweather in Oslo?")
    conversation.ask([{"role": "user", "content": [{"type": "text", "text": "And"}, {"type": "x"}], "name": "me"}])
    assert conversation.id == 1
    assert rows(file, "SELECT id, title, system, provider, model FROM conversations") == [
        (1, "How is the weather in Oslo?", "Be brief.", "openai", "m")
    ]
    columns = "conversation_id, position, turn, role, content, reasoning, finish_reason, cut, undone, provider, model"
    assert rows(file, f"SELECT {columns} FROM messages ORDER BY id") == [
        (1, 0, 0, "user", "How is the\nweather in Oslo?", None, None, 0, 0, None, None),
        (1, 1, 0, "assistant", "Rain.", "Hm", "stop", 0, 0, "openai", "m-1"),
        (1, 2, 1, "user", "And", None, None, 0, 0, None, None),
        (1, 3, 1, "assistant", "Sun.", None, "stop", 0, 0, "openai", "m-1"),
    ]
    ((parts, extra),) = rows(file, "SELECT parts, extra FROM messages WHERE position = 2")
    assert (json.loads(parts)[1], json.loads(extra)) == ({"type": "x"}, {"name": "me"})
    ((usage, seconds),) = rows(file, "SELECT usage, seconds FROM messages WHERE position = 1")
    assert json.loads(usage)["total_tokens"] == 18
    assert 0 < seconds < 10
    now = "strftime('%s', 'now')"  # SQLite itself understands the times
    assert rows(file, f"SELECT {now} - strftime('%s', created) < 60, created GLOB '*T*Z' FROM messages") == [(1, 1)] * 4
    assert rows(file, "PRAGMA journal_mode") == [("wal",)]


def test_a_question_is_in_the_file_before_it_is_sent(
    provider: Provider, wire: Wire, history: History, file: Path
) -> None:
    found = []

    def look(request: Recorded, connection: Connection) -> None:
        found.extend(rows(file, "SELECT role, content FROM messages"))
        connection.respond(400, {"error": {"message": "no"}})

    wire.on(*OPENAI.route, look)
    conversation = Conversation(provider, history=history)
    with pytest.raises(RuntimeError):
        conversation.ask("Hi")
    assert set(found) == {("user", "Hi")}
    assert rows(file, "SELECT role, content FROM messages") == [("user", "Hi")]
    strict(wire, text("Hello"))
    conversation.ask("Hi")
    assert [message["content"] for message in history.messages(1)] == ["Hi", "Hello"]
    assert rows(file, "SELECT count(*) FROM messages") == [(3,)]


def test_a_conversation_without_a_question_is_not_in_it(provider: Provider, history: History) -> None:
    Conversation(provider, "Be brief.", history)
    assert (history.latest(), history.conversations()) == (None, [])


@pytest.mark.parametrize("how", ["close", "cut off"])
def test_a_reply_that_is_cut_off_is_in_it_with_a_mark(
    how: str, provider: Provider, wire: Wire, history: History, file: Path
) -> None:
    replies(wire, HALF)
    if how == "close":
        wire.on(*OPENAI.route, half_and_silence(wire))
    conversation = Conversation(provider, history=history)
    pieces = conversation.stream("Hi")
    next(pieces)
    assert rows(file, "SELECT role, content, cut FROM messages") == [("user", "Hi", 0), ("assistant", "Half a ", 1)]
    if how == "close":
        next(pieces)
        pieces.close()
    else:
        with pytest.raises(StreamInterrupted):
            list(pieces)
    assert rows(file, "SELECT role, content, cut FROM messages") == [
        ("user", "Hi", 0),
        ("assistant", "Half a reply", 1),
    ]
    assert "cut off here" in next(history.markdown())
    again = history.conversation(1, provider)
    assert [turn.cut for turn in again.turns] == [True]
    assert again.messages == [user("Hi"), assistant("Half a reply")]


def test_a_growing_reply_is_written_now_and_then(
    provider: Provider, wire: Wire, history: History, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("berlin_chat.conversations.steps.WRITE_INTERVAL", 0.0)
    replies(wire, text("a", "b", "c"))
    found = []
    for _ in Conversation(provider, history=history).stream("Hi"):
        found += rows(file, "SELECT content, cut FROM messages WHERE role = 'assistant'")
    assert found == [("a", 1), ("ab", 1), ("abc", 1)]
    assert rows(file, "SELECT content, cut FROM messages WHERE role = 'assistant'") == [("abc", 0)]


def test_no_credential_is_in_it(provider: Provider, wire: Wire, history: History, file: Path) -> None:
    replies(wire, text("a"), text("b"))
    conversation = Conversation(provider, history=history, user="sesame-user")
    conversation.ask("Hi", headers={"X-Api-Key": "sesame-header"}, extra_body={"password": "sesame-body"})
    conversation.ask("Hi", metadata={"token": "sesame-option"})
    assert "sesame-user" in questions(wire)[1]["user"]
    assert b"Hi" in everything(file)
    assert b"sesame" not in everything(file)


# Going on with it


def test_a_conversation_goes_on_where_it_was_left(provider: Provider, wire: Wire, history: History, file: Path) -> None:
    strict(wire, two_calls(), text("Rain."), text("b"), text("c"))
    first = Conversation(provider, "Be brief.", history, tools=[weather])
    first.ask("How is the weather?")
    again = history.conversation(first.id, provider, tools=[weather], temperature=0.5)  # type: ignore[arg-type]
    assert again.messages == first.messages == history.messages(1)
    assert (again.id, again.system, len(again.turns)) == (1, "Be brief.", 1)
    again.ask("And?")
    assert questions(wire)[2]["messages"] == [*first.messages, user("And?")]
    assert rows(file, "SELECT count(*), max(position), max(turn) FROM messages") == [(7, 6, 1)]
    first.ask("Both go on.")  # nothing of either is lost
    assert rows(file, "SELECT count(*), max(position), max(turn) FROM messages") == [(9, 8, 2)]


def test_what_was_cut_off_among_its_tools_can_be_gone_on_with(
    provider: Provider, wire: Wire, history: History, file: Path
) -> None:
    strict(wire, two_calls(), text("Whole."))
    conversation = Conversation(provider, history=history, tools=[weather])
    live = conversation.open("How is the weather?")
    events = live.events()
    while next(events).kind != "tool_result":
        pass
    # As a process that is killed here would leave it:
    again = history.conversation(1, provider, tools=[weather])
    live.close()
    assert again.turns[0].cut
    assert again.ask("Go on.") == "Whole."


def test_the_last_one_that_was_used_is_the_latest(provider: Provider, wire: Wire, history: History) -> None:
    replies(wire, *(text(word) for word in "abc"))
    first, second = Conversation(provider, history=history), Conversation(provider, history=history)
    first.ask("one"), second.ask("two")
    assert history.latest() == second.id
    first.ask("three")
    assert history.latest() == first.id
    listed = history.conversations()
    assert [(one.id, one.title, one.messages) for one in listed] == [(1, "one", 4), (2, "two", 2)]
    assert listed[0].started < listed[0].updated
    assert history.conversations(limit=1) == listed[:1]


def test_an_undone_turn_is_marked_and_left_out(provider: Provider, wire: Wire, history: History, file: Path) -> None:
    replies(wire, text("alpha"), text("beta"), text("gamma"))
    conversation = Conversation(provider, history=history)
    conversation.ask("one"), conversation.ask("two")
    conversation.undo()
    assert history.messages(1) == conversation.messages == [user("one"), assistant("alpha")]
    assert (history.search("beta"), len(history.search("alpha"))) == ([], 1)
    assert "beta" not in "".join(history.markdown()) + "".join(history.jsonl())
    conversation.ask("three")
    assert rows(file, "SELECT content, undone FROM messages ORDER BY position") == [
        *(("one", 0), ("alpha", 0), ("two", 1), ("beta", 1), ("three", 0), ("gamma", 0))
    ]


def test_a_fork_and_earlier_messages_are_a_conversation_of_their_own(
    provider: Provider, wire: Wire, history: History
) -> None:
    replies(wire, text("a"), text("b"), text("c"))
    conversation = Conversation(provider, history=history, messages=[user("zero"), assistant("0")])
    conversation.ask("one")
    fork = conversation.fork()
    assert fork.id is None
    fork.ask("two"), conversation.ask("three")
    assert (conversation.id, fork.id) == (1, 2)
    assert [message["content"] for message in history.messages(1)] == ["zero", "0", "one", "a", "three", "c"]
    assert [message["content"] for message in history.messages(2)] == ["zero", "0", "one", "a", "two", "b"]


def test_a_pickle_of_a_conversation_goes_on_in_the_same_record(
    provider: Provider, wire: Wire, history: History, file: Path
) -> None:
    replies(wire, text("a"), text("b"))
    conversation = Conversation(provider, history=history)
    conversation.ask("one")
    made = pickle.loads(pickle.dumps(conversation))
    with made.history, made.provider:
        made.ask("two")
    assert [message["content"] for message in history.messages(1)] == ["one", "a", "two", "b"]


@pytest.mark.parametrize("id", [7, None, "1x"])
def test_an_unknown_conversation_is_refused(id: Any, provider: Provider, history: History) -> None:
    for ask in (lambda: history.conversation(id, provider), lambda: history.messages(id), lambda: history.delete(id)):
        with pytest.raises(InvalidRequest, match="there is no conversation"):
            ask()


# Searching, exporting, deleting


@pytest.fixture
def searched(provider: Provider, wire: Wire, history: History) -> History:
    said = [
        ("Why is the sky blue?", "Because short waves scatter most."),
        ("What's 100%_sure in C++?", 'Nothing "quoted" is.'),
        ("Größe des Himmels?", "天空是蓝色的"),
    ]
    replies(wire, *(text(answer) for _, answer in said))
    for question, _ in said:
        Conversation(provider, history=history).ask(question)
    return history


SEARCHES = [
    ("sky", ["Why is the sky blue?"]),
    ("BLUE sky", ["Why is the sky blue?"]),
    ("sky green", []),
    ("WAVES", ["Because short waves scatter most."]),
    ("What's", ["What's 100%_sure in C++?"]),
    ("C++", ["What's 100%_sure in C++?"]),
    ("100%_", ["What's 100%_sure in C++?"]),
    ('"quoted"', ['Nothing "quoted" is.']),
    ("scatt", ["Because short waves scatter most."]),
    ("Größe", ["Größe des Himmels?"]),
    ("天空", ["天空是蓝色的"]),
    ("OR", ["Because short waves scatter most."]),
    ("NEAR(", []),
    ("content:", []),
    ("*", []),
]


@pytest.mark.parametrize(("words", "found"), SEARCHES)
def test_a_search_finds_the_messages_with_all_words(words: str, found: list[str], searched: History) -> None:
    assert [one.text for one in searched.search(words)] == found


@pytest.mark.parametrize(("words", "found"), [one for one in SEARCHES if one[0] != "OR"])
def test_without_fts5_a_search_finds_the_same(
    words: str, found: list[str], searched: History, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "can_search", lambda connection: False)
    with History(file) as plain:
        assert [one.text for one in plain.search(words)] == found
        plain.delete(1)


def test_what_was_written_without_fts5_is_in_the_index_later(
    provider: Provider, wire: Wire, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies(wire, text("alpha"), text("beta"))
    with History(file) as history:
        Conversation(provider, history=history).ask("one")
    with monkeypatch.context() as without:
        without.setattr(migrations, "can_search", lambda connection: False)
        with History(file) as history:
            Conversation(provider, history=history).ask("two")
    with History(file) as history:
        matched = "SELECT rowid FROM messages_fts WHERE messages_fts MATCH 'alpha OR beta'"
        assert rows(file, matched) == [(2,), (4,)]
        assert [one.conversation for one in history.search("beta")] == [2]


def test_a_search_says_where_and_how_much(searched: History) -> None:
    (found,) = searched.search("short")
    assert isinstance(found, Found)
    assert (found.conversation, found.title, found.role) == (1, "Why is the sky blue?", "assistant")
    assert len(searched.search("is", limit=2)) == 2
    with pytest.raises(InvalidRequest, match="empty"):
        searched.search(" ")


def test_a_search_shows_the_place_in_a_long_message(provider: Provider, wire: Wire, history: History) -> None:
    replies(wire, text("far " * 1000 + "needle" + " away" * 1000))
    Conversation(provider, history=history).ask("Where?")
    for words in ("needle", "needl"):
        (found,) = history.search(words)
        assert "needle" in found.text
        assert len(found.text) < 200


def test_jsonl_has_one_conversation_a_line_ready_to_be_sent(provider: Provider, wire: Wire, history: History) -> None:
    replies(wire, two_calls(), text("Rain ☔."), text("b"))
    first = Conversation(provider, "Be brief.", history, tools=[weather])
    first.ask("How is the weather?")
    second = Conversation(provider, history=history)
    second.ask("two")
    lines = [json.loads(line) for line in history.jsonl()]
    assert [line["messages"] for line in lines] == [first.messages, second.messages]
    assert lines[0].keys() == {"id", "started", "title", "provider", "model", "messages"}
    assert [json.loads(line)["id"] for line in history.jsonl(2)] == [2]
    assert "☔" in "".join(history.jsonl())


def test_markdown_can_be_read(provider: Provider, wire: Wire, history: History) -> None:
    replies(wire, two_calls(), text("**Rain**."))
    Conversation(provider, "Be brief.", history, tools=[weather]).ask("How is the weather?")
    (found,) = history.markdown(1)
    title, about, *others = found.split("\n\n")
    assert title == "# How is the weather?"
    assert about.endswith("Z · openai · m*")
    assert others == [
        *("## System", "Be brief.", "## User", "How is the weather?", "## Assistant"),
        *('```\nweather({"city": "Berlin"})\n```', '```\nweather({"city": "Osló 🙂"})\n```'),
        *("## Tool", "```\nrain in Berlin\n```", "## Tool", "```\nrain in Osló 🙂\n```"),
        *("## Assistant", "**Rain**.\n"),
    ]


def test_what_is_deleted_is_in_none_of_the_files(provider: Provider, wire: Wire, history: History, file: Path) -> None:
    replies(wire, text("Whisper-4711 " * 2000), text("b"))
    Conversation(provider, history=history).ask("Tell me a Secret-0815! " * 2000)
    Conversation(provider, history=history).ask("two")
    assert b"Whisper-4711" in everything(file)
    history.delete(1)
    found = everything(file).lower()
    for word in (b"whisper", b"4711", b"secret", b"0815"):
        assert word not in found
    assert [one.id for one in history.conversations()] == [2]
    assert history.search("Whisper") == []


def test_a_conversation_that_was_deleted_says_so_at_the_next_question(
    provider: Provider, wire: Wire, history: History
) -> None:
    replies(wire, text("a"))
    conversation = Conversation(provider, history=history)
    conversation.ask("one")
    history.delete(1)
    with pytest.raises(HistoryError, match="conversation 1 was deleted"):
        conversation.ask("two")
    assert len(wire.asked(*OPENAI.route)) == 1


# The file


def test_the_file_and_those_beside_it_are_private_from_the_first_moment(
    provider: Provider, wire: Wire, file: Path
) -> None:
    replies(wire, text("a"))
    before, modes = os.umask(0), []
    opened = os.open

    def note(path: Any, *arguments: Any, **named: Any) -> int:
        descriptor = opened(path, *arguments, **named)
        modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        return descriptor

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "open", note)
            history = History(file)
        with history:
            Conversation(provider, history=history).ask("Hi")
            beside = {path.name: stat.S_IMODE(path.stat().st_mode) for path in file.parent.iterdir()}
    finally:
        os.umask(before)
    assert modes == [0o600]
    assert beside == {"chats.db": 0o600, "chats.db-wal": 0o600, "chats.db-shm": 0o600}


@pytest.mark.parametrize("there", [False, True], ids=["missing", "empty"])
def test_a_missing_and_an_empty_file_become_a_history(there: bool, file: Path) -> None:
    if there:
        file.touch()
    with History(file) as history:
        assert history.conversations() == []
    assert rows(file, "PRAGMA user_version") == [(1,)]
    with History(str(file)) as history:
        assert repr(history) == f"History({str(file)!r})"


def changed(file: Path, *statements: str) -> None:
    connection = sqlite3.connect(file)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def test_a_file_of_a_newer_version_is_refused_and_left_alone(file: Path) -> None:
    History(file).close()
    changed(file, "PRAGMA user_version = 2")
    before = file.read_bytes()
    with pytest.raises(InvalidRequest, match="newer version of berlin_chat: it has format 2"):
        History(file)
    assert file.read_bytes() == before


@pytest.mark.parametrize("version", [0, 1])
def test_the_database_of_another_program_is_refused_and_left_alone(version: int, file: Path) -> None:
    changed(file, "CREATE TABLE messages (text)", f"PRAGMA user_version = {version}")
    before = file.read_bytes()
    with pytest.raises(InvalidRequest, match="another program"):
        History(file)
    assert file.read_bytes() == before


def test_a_file_that_is_no_database_is_refused_and_left_alone(file: Path) -> None:
    file.write_text("Dear diary, " * 100)
    with pytest.raises(InvalidRequest, match="is no history: file is not a database"):
        History(file)
    assert file.read_text() == "Dear diary, " * 100


@pytest.mark.parametrize("path", [":memory:", "", 5, "missing/chats.db", "."])
def test_what_names_no_file_is_refused(path: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidRequest):
        History(path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_an_older_version_is_migrated_with_all_that_is_in_it(
    provider: Provider, wire: Wire, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies(wire, text("a"), text("b"))
    with History(file) as history:
        Conversation(provider, history=history).ask("one")
    newer = ("ALTER TABLE conversations ADD COLUMN rating INTEGER", "UPDATE conversations SET rating = 5")
    monkeypatch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, newer))
    with History(file) as history:
        assert history.messages(1) == [user("one"), assistant("a")]
        history.conversation(1, provider).ask("two")
    assert rows(file, "PRAGMA user_version") == [(2,)]
    assert rows(file, "SELECT title, rating FROM conversations") == [("one", 5)]


def test_a_migration_that_fails_changes_nothing(
    provider: Provider, wire: Wire, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies(wire, text("a"))
    with History(file) as history:
        Conversation(provider, history=history).ask("one")
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, ("DROP TABLE messages", "nonsense")))
        with pytest.raises(HistoryError, match="nonsense"):
            History(file)
    with History(file) as history:
        assert history.messages(1) == [user("one"), assistant("a")]


def test_a_closed_history_says_so(provider: Provider, file: Path) -> None:
    history = History(file)
    history.close()
    history.close()
    with pytest.raises(InvalidRequest, match="was closed"):
        history.latest()
    with pytest.raises(InvalidRequest, match="was closed"):
        Conversation(provider, history=history).ask("Hi")
    assert not list(file.parent.glob("*-wal"))


@pytest.mark.parametrize("using", ["SELECT * FROM messages", "DELETE FROM messages"], ids=["read", "write"])
def test_a_file_that_another_program_uses_without_wal_is_waited_for(using: str, file: Path) -> None:
    History(file).close()
    changed(file, "PRAGMA journal_mode = DELETE")
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    other.execute(using)
    release = threading.Timer(0.2, other.execute, ["COMMIT"])
    release.start()
    with History(file, timeout=5) as history:
        assert history.conversations() == []
    release.join()
    other.close()


# What can go wrong with it


def test_a_file_that_is_locked_too_long_stops_the_question(provider: Provider, wire: Wire, file: Path) -> None:
    replies(wire, text("a"))
    other = sqlite3.connect(file, isolation_level=None)
    with History(file, timeout=0.2) as history:
        conversation = Conversation(provider, history=history)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(HistoryError, match=r"kept .*chats\.db locked for 0\.2 s.*timeout="):
            conversation.ask("Hi")
        assert (wire.requests, conversation.messages) == ([], [])
        other.execute("ROLLBACK")
        assert conversation.ask("Hi") == "a"
    other.close()


def test_a_file_that_is_locked_during_a_reply_costs_nothing_of_it(provider: Provider, wire: Wire, file: Path) -> None:
    replies(wire, text("a", "b", "c"), text("d"))
    other = sqlite3.connect(file, isolation_level=None)
    with History(file, timeout=0.1) as history:
        conversation = Conversation(provider, history=history)
        pieces = conversation.stream("one")
        found = [next(pieces)]
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(HistoryError, match="locked") as caught:
            found.extend(pieces)
        assert found == ["a", "b", "c"]
        assert (caught.value.partial, conversation.turns[0].reply, conversation.turns[0].cut) == ("abc", "abc", False)
        assert rows(file, "SELECT content, cut FROM messages") == [("one", 0), ("a", 1)]
        other.execute("ROLLBACK")
        conversation.ask("two")  # and with it all that could not be written before
        assert rows(file, "SELECT content, cut FROM messages ORDER BY position") == [
            *(("one", 0), ("abc", 0), ("two", 0), ("d", 0))
        ]
    other.close()


def test_an_undo_that_could_not_be_written_is_written_with_the_next_turn(
    provider: Provider, wire: Wire, file: Path
) -> None:
    replies(wire, text("a"), text("b"), text("c"))
    with History(file, timeout=0.1) as history:
        conversation = Conversation(provider, history=history)
        conversation.ask("keep")
        conversation.ask("take me back")
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(HistoryError, match="locked"):
                conversation.undo()
        conversation.ask("next")
        assert conversation.id is not None
        again = history.conversation(conversation.id, provider)
    assert [turn.question[0]["content"] for turn in again.turns] == ["keep", "next"]


def test_a_growing_reply_does_not_wait_for_a_file_that_is_locked(
    provider: Provider, wire: Wire, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only its end does."""
    monkeypatch.setattr(steps, "WRITE_INTERVAL", 0.0)
    replies(wire, text("a", "b", "c"))
    patience = 3.0
    with History(file, timeout=patience) as history:
        stream = Conversation(provider, history=history).stream("Hi")
        next(stream)
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            watch = Stopwatch()
            assert [next(stream), next(stream)] == ["b", "c"]
            assert watch.seconds < patience
        assert list(stream) == []


def test_a_deletion_whose_text_another_program_keeps_says_so(provider: Provider, wire: Wire, file: Path) -> None:
    replies(wire, text("a"))
    with History(file, timeout=0.1) as history:
        Conversation(provider, history=history).ask("secret word")
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN")
            other.execute("SELECT count(*) FROM messages").fetchone()
            with pytest.raises(HistoryError, match="its text is still in the file beside it"):
                history.delete(1)
        assert history.latest() is None
    assert b"secret word" not in everything(file)


@pytest.mark.parametrize("limit", ["x", 0, 1.5])
def test_a_limit_that_is_no_number_is_refused(limit: Any, history: History) -> None:
    with pytest.raises(InvalidRequest, match="limit"):
        history.search("a", limit)


def test_an_error_of_the_reply_comes_before_one_of_the_file(provider: Provider, wire: Wire, file: Path) -> None:
    replies(wire, HALF)
    other = sqlite3.connect(file, isolation_level=None)
    with History(file, timeout=0.1) as history:
        conversation = Conversation(provider, history=history)
        pieces = conversation.stream("one")
        next(pieces)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StreamInterrupted):
            list(pieces)
    assert conversation.messages == [user("one"), assistant("Half a reply")]
    other.close()


def in_a_child(act: Callable[[], None]) -> int:
    """Runs it in a fork; returns 0 if nothing was raised."""
    child = os.fork()
    if not child:
        code = 1
        try:
            act()
            code = 0
        except BaseException as error:
            print(repr(error), file=sys.stderr)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@forks
def test_a_full_disk_costs_nothing_of_the_reply_and_is_one_clear_error(
    provider: Provider, wire: Wire, file: Path
) -> None:
    long = "x" * 300_000
    replies(wire, text("a", long), text("b"))

    def act() -> None:
        with History(file) as history:
            conversation = Conversation(provider, history=history)
            pieces = conversation.stream("one")
            next(pieces)
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
            with pytest.raises(HistoryError, match=r"chats\.db cannot be used: ") as caught:
                list(pieces)
            assert caught.value.partial == f"a{long}"
            assert conversation.turns[0].reply == f"a{long}"
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            assert conversation.ask("two") == "b"
            assert [message["content"] for message in history.messages(1)] == ["one", f"a{long}", "two", "b"]

    assert in_a_child(act) == 0
    assert rows(file, "PRAGMA integrity_check") == [("ok",)]


@forks
def test_a_folder_that_cannot_be_written_is_refused() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)

        def act() -> None:
            if os.getuid() == 0:  # who may write anywhere
                os.setuid(65534)
            with pytest.raises(InvalidRequest, match=r"cannot be opened: .*Name a file that can be written"):
                History(os.path.join(folder, "chats.db"))

        assert in_a_child(act) == 0


@forks
def test_a_file_that_cannot_be_written_is_refused() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = os.path.join(folder, "chats.db")
        History(path).close()
        os.chmod(path, 0o444)

        def act() -> None:
            if os.getuid() == 0:
                os.setuid(65534)
            with pytest.raises(InvalidRequest, match="cannot be opened"):
                History(path)

        assert in_a_child(act) == 0


def test_tool_results_that_are_no_text_are_written_all_the_same(
    provider: Provider, wire: Wire, history: History
) -> None:
    def odd(city: str) -> str:
        return "half \ud83d, and \0"

    replies(wire, two_calls("odd"), text("a"))
    Conversation(provider, history=history, tools=[odd]).ask("Hi")
    assert [message["content"] for message in history.messages(1)][2] == "half \ufffd, and \0"


@pytest.mark.parametrize("action", ["ctrl_c", "finalizer"])
def test_between_any_two_bytecodes_of_a_turn_it_loses_and_doubles_nothing(action: str) -> None:
    program = Path(__file__).parent / "history_at_every_bytecode.py"
    command = [sys.executable, str(program), action, "150"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("done")


def test_one_history_serves_many_threads(wire: Wire, provider: Provider, history: History) -> None:
    wire.on(*OPENAI.route, answering)
    failed = []

    def talk(number: int) -> None:
        try:
            conversation = Conversation(provider, history=history)
            for turn in range(3):
                conversation.ask(f"{number}-{turn}")
                history.search(f"{number}-{turn}")
        except BaseException as error:
            failed.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=talk, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(before)
    assert failed == []
    check_talks(history, [f"{number}" for number in range(16)], 3)


def answering(request: Recorded, connection: Connection) -> None:
    """Repeats the question."""
    body = b"".join(text("To ", request.json["messages"][-1]["content"]))
    connection.respond(200, body, {"Content-Type": "text/event-stream"})


def check_talks(history: History, names: list[str], turns: int) -> None:
    """Each conversation has all of its turns, in their order, and nothing of another's."""
    found = {}
    for listed in history.conversations():
        contents = [message["content"] for message in history.messages(listed.id)]
        found[contents[0].rpartition("-")[0]] = contents
    assert found.keys() == set(names)
    for name, contents in found.items():
        expected = [said for turn in range(turns) for said in (f"{name}-{turn}", f"To {name}-{turn}")]
        assert contents == expected
