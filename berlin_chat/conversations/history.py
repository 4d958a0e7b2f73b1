"""``History``: conversations in an SQLite file, written down while they happen."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from time import time
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import HistoryError, InvalidRequest
from ..provider import Provider
from ..validation import checked_count, checked_seconds
from . import migrations
from .conversation import Conversation
from .database import Database
from .markdown import rendered
from .rows import COLUMNS, moment, row_of, title_of, turns_of
from .turns import Entry, Turn

if TYPE_CHECKING:
    import sqlite3


class Listed(NamedTuple):
    """A conversation in a history.

    Attributes:
        id: its number.
        title: the beginning of its first question.
        started: when, in UTC, such as ``"2025-01-31T23:59:59.000Z"``.
        updated: when its last message was made.
        provider: the name of the provider that it began with.
        model: the model that it began with.
        messages: how many it has.
    """

    id: int
    title: str
    started: str
    updated: str
    provider: str | None
    model: str | None
    messages: int


class Found(NamedTuple):
    """A message that a search has found.

    Attributes:
        conversation: the number of its conversation.
        title: that conversation's.
        role: whose message it is.
        text: the place in it that was searched for.
        created: when it was made, in UTC.
    """

    conversation: int
    title: str
    role: str
    text: str
    created: str


class History:
    """A record of conversations in an SQLite file, which ``sqlite3`` or Datasette can open too.

    Any number of threads may use one instance, and any number of processes one file: see ``Database``. It can be
    pickled, and used after a fork. Each message is committed when it is made, a question before it is sent; a reply
    that grows is written every half second, so that a process that is killed leaves what had come. The file is made
    for its owner alone (mode 0600), and holds no settings of a provider or a question, so no credentials.

    Args:
        path: the file, which is made where there is none.
        timeout: how many seconds to wait while another process writes.

    Raises:
        InvalidRequest: an argument is wrong, the file cannot be opened, is something else, or is of a newer version.
        HistoryError: from all methods: the file cannot be read or written.

    >>> import os, tempfile
    >>> from berlin_chat.server import LocalServer
    >>> folder = tempfile.TemporaryDirectory()
    >>> with LocalServer() as server, History(os.path.join(folder.name, "chats.db")) as history:
    ...     provider = server.provider("openai")
    ...     reply = Conversation(provider, history=history).ask("Why is the sky blue?")
    ...     again = history.conversation(history.latest(), provider)
    ...     len(history.search("sky")), [message["role"] for message in again.messages]
    (2, ['user', 'assistant'])
    >>> folder.cleanup()
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = 10.0) -> None:
        if not isinstance(path, (str, os.PathLike)) or os.fspath(path) in ("", ":memory:"):
            raise InvalidRequest("path must name a file")
        checked_seconds(timeout, "timeout")
        self.path = os.path.abspath(path)
        self._database = Database(self.path, timeout)

    def __repr__(self) -> str:
        return f"History({self.path!r})"

    def __reduce__(self) -> Any:
        return _restored, (self.path, self._database.timeout)

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    def __enter__(self) -> History:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What was written

    def conversations(self, limit: int | None = None) -> list[Listed]:
        """Returns the conversations, the one that was used last first; ``limit`` of them at the most."""
        with self._database.reading() as connection:
            rows = connection.execute(
                """
                SELECT conversations.id, title, started, max(created), conversations.provider, conversations.model,
                       count(*)
                FROM conversations JOIN messages ON conversation_id = conversations.id
                WHERE NOT undone GROUP BY conversations.id ORDER BY max(messages.id) DESC LIMIT ?
                """,
                (-1 if limit is None else checked_count(limit, "limit", 1),),
            ).fetchall()
        return [Listed(*row) for row in rows]

    def latest(self) -> int | None:
        """Returns the number of the conversation that was used last; None where there is none."""
        with self._database.reading() as connection:
            row = connection.execute("SELECT conversation_id FROM messages ORDER BY id DESC LIMIT 1").fetchone()
        return None if row is None else int(row[0])

    def conversation(self, id: int, provider: Provider, **settings: Any) -> Conversation:
        """Returns a conversation, to go on with it in the same record.

        Questions of which nothing came are not in it, and turns that were taken back neither.

        Args:
            provider: who is asked from now on.
            settings: the other arguments of ``Conversation``, such as ``tools``, which no file can hold.

        Raises:
            InvalidRequest: there is no such conversation.
        """
        facts, rows = self._read(id)
        settings = {"system": facts["system"], "history": self, **settings}
        return Conversation.resumed(turns_of(rows), id, provider, **settings)

    def messages(self, id: int) -> list[dict[str, Any]]:
        """Returns the messages of a conversation, ready to be sent, as ``Conversation.messages`` has them."""
        return _messages(*self._read(id))

    def search(self, text: str, limit: int = 20) -> list[Found]:
        """Returns the messages that hold all words of a text, the best first.

        Where no message has them as whole words, those are found that hold them in any way.
        """
        words = text.split()
        if not words:
            raise InvalidRequest("the text to search for is empty")
        checked_count(limit, "limit", 1)
        with self._database.reading() as connection:
            rows = _matching(connection, words, limit) if migrations.can_search(connection) else []
            rows = rows or _holding(connection, words, limit)
        return [Found(*row) for row in rows]

    def jsonl(self, *ids: int) -> Iterator[str]:
        """Yields a line of JSON for each conversation, or for those with these numbers, the oldest first.

        Each has ``id``, ``title``, ``started``, ``provider``, ``model``, and ``messages`` as ``messages`` returns them.
        """
        for id in ids or self._ids():
            facts, rows = self._read(id)
            messages = _messages(facts, rows)
            del facts["system"]
            yield json.dumps({**facts, "messages": messages}, ensure_ascii=False) + "\n"

    def markdown(self, *ids: int) -> Iterator[str]:
        """Yields a text in Markdown for each conversation, or for those with these numbers, the oldest first.

        It is there to be read: questions that got no answer are in it too.
        """
        for id in ids or self._ids():
            yield rendered(*self._read(id))

    def delete(self, id: int) -> None:
        """Deletes a conversation, and its text from the file.

        Raises:
            InvalidRequest: there is no such conversation.
            HistoryError: it is deleted, but its text is still in the file beside it, for another program reads that.
        """

        def work(connection: sqlite3.Connection) -> None:
            if not connection.execute("DELETE FROM conversations WHERE id = ?", (id,)).rowcount:
                raise _unknown(id)
            if migrations.can_search(connection):  # else the index keeps its words for a while
                connection.execute("INSERT INTO messages_fts (messages_fts) VALUES ('optimize')")

        self._database.write(work)
        with self._database.reading() as connection:
            busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]  # which has them as well
        if busy:
            raise HistoryError(
                f"conversation {id} is deleted, but another program reads {self.path}: its text is still in the file"
                " beside it",
                advice="It goes when the next conversation is deleted, or when all programs have closed the file",
            )

    def _ids(self) -> list[int]:
        with self._database.reading() as connection:
            return [row[0] for row in connection.execute("SELECT id FROM conversations ORDER BY id")]

    def _read(self, id: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """What is known of a conversation, and the rows of its messages that were not taken back."""
        with self._database.reading() as connection:
            facts = _dicts(connection.execute("SELECT * FROM conversations WHERE id = ?", (id,)))
            query = "SELECT * FROM messages WHERE conversation_id = ? AND NOT undone ORDER BY position"
            rows = _dicts(connection.execute(query, (id,)))
        if not facts:
            raise _unknown(id)
        return facts[0], rows

    # Writing

    def write(
        self, conversation: int | None, about: Mapping[str, str | None], turns: Iterable[Turn], wait: bool = True
    ) -> int:
        """Writes what has changed in the turns of a conversation, all of it or nothing; for ``Conversation``.

        Args:
            conversation: its number; None for a new one.
            about: its system message, and the names of its provider and model.
            turns: those that may have changed.
            wait: whether to wait for other processes that write.

        Returns:
            The number of the conversation.
        """
        turns = list(turns)
        before = [(turn, turn.number, [(entry, entry.row, entry.written) for entry in turn.entries]) for turn in turns]

        def take_back() -> None:
            for turn, number, entries in before:
                turn.number = number
                for entry, row, written in entries:
                    entry.row, entry.written = row, written

        def work(connection: sqlite3.Connection) -> int:
            id = conversation
            if id is None:
                facts = (moment(time()), title_of(turns), about["system"], about["provider"], about["model"])
                id = connection.execute(_BEGIN, facts).lastrowid
            elif not connection.execute("SELECT 1 FROM conversations WHERE id = ?", (id,)).fetchone():
                raise HistoryError(f"conversation {id} was deleted from {self.path}")
            assert id is not None
            for turn in turns:
                for entry in turn.entries:
                    if not entry.written:
                        _write(connection, id, turn, entry)
            return id

        return self._database.write(work, take_back, wait)


_BEGIN = "INSERT INTO conversations (started, title, system, provider, model) VALUES (?, ?, ?, ?, ?)"
_INSERT = f"""
    INSERT INTO messages (conversation_id, turn, undone, position, {", ".join(COLUMNS)})
    SELECT ?1, ?2, ?3, coalesce(max(position), -1) + 1, {", ".join(f"?{n + 4}" for n in range(len(COLUMNS)))}
    FROM messages WHERE conversation_id = ?1
"""
_UPDATE = f"UPDATE messages SET undone = ?, {', '.join(f'{name} = ?' for name in COLUMNS)} WHERE id = ?"
_NEXT_TURN = "SELECT coalesce(max(turn), -1) + 1 FROM messages WHERE conversation_id = ?"
_FOUND = "SELECT conversation_id, title, role, {text}, created FROM messages"
_JOINED = "JOIN conversations ON conversations.id = conversation_id"


def _write(connection: sqlite3.Connection, conversation: int, turn: Turn, entry: Entry) -> None:
    if turn.number is None:
        turn.number = connection.execute(_NEXT_TURN, (conversation,)).fetchone()[0]
    if entry.row is None:
        values = (conversation, turn.number, int(turn.undone), *row_of(entry))
        entry.row = connection.execute(_INSERT, values).lastrowid
    else:
        connection.execute(_UPDATE, (int(turn.undone), *row_of(entry), entry.row))
    entry.written = True


def _matching(connection: sqlite3.Connection, words: list[str], limit: int) -> list[Any]:
    """By the index: each word as it is, whatever the index's own language would make of it."""
    quoted = " ".join('"' + word.replace('"', '""') + '"' for word in words)
    snippet = "snippet(messages_fts, 0, '', '', '…', 24)"
    query = f"""
        {_FOUND.format(text=snippet).replace("FROM messages", "FROM messages_fts")}
        JOIN messages ON messages.id = messages_fts.rowid {_JOINED}
        WHERE messages_fts MATCH ? AND NOT undone ORDER BY rank, messages.id DESC LIMIT ?
    """
    return connection.execute(query, (quoted, limit)).fetchall()


def _holding(connection: sqlite3.Connection, words: list[str], limit: int) -> list[Any]:
    """Without the index: what holds the words anywhere, the newest first."""
    text = "substr(content, max(1, instr(lower(content), lower(?)) - 60), 160)"
    query = f"""
        {_FOUND.format(text=text)} {_JOINED}
        WHERE NOT undone {" ".join("AND content LIKE ? ESCAPE '!'" for _ in words)}
        ORDER BY messages.id DESC LIMIT ?
    """
    escaped = ["".join(f"!{letter}" if letter in "!%_" else letter for letter in word) for word in words]
    return connection.execute(query, (words[0], *(f"%{word}%" for word in escaped), limit)).fetchall()


def _dicts(cursor: sqlite3.Cursor) -> list[dict[str, Any]]:
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def _messages(facts: dict[str, Any], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    system = [] if facts["system"] is None else [{"role": "system", "content": facts["system"]}]
    return [*system, *(message for turn in turns_of(rows) for message in turn.messages)]


def _unknown(id: Any) -> InvalidRequest:
    return InvalidRequest(f"there is no conversation {id!r} in the history: conversations() lists them")


def _restored(path: str, timeout: float) -> History:
    return History(path, timeout=timeout)
