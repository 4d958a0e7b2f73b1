"""The tables of a history, and how a file of an older version gets them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import InvalidRequest

if TYPE_CHECKING:
    import sqlite3

#: What tells our files from those of other programs (``PRAGMA application_id``): "bchh".
APPLICATION = 0x62636868

_VERSION_1 = (
    # AUTOINCREMENT: the number of a conversation that was deleted is never another one's.
    """
    CREATE TABLE conversations (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        started TEXT NOT NULL,  -- UTC, such as 2025-01-31T23:59:59.000Z
        title TEXT NOT NULL,    -- the beginning of the first question
        system TEXT,            -- the system message
        provider TEXT,
        model TEXT
    )
    """,
    """
    CREATE TABLE messages (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        conversation_id INTEGER NOT NULL REFERENCES conversations(id) ON DELETE CASCADE,
        position INTEGER NOT NULL,  -- in the conversation, from 0
        turn INTEGER NOT NULL,      -- a question and all that came of it have one number
        role TEXT NOT NULL,         -- user, assistant, tool
        content TEXT,               -- the text
        parts TEXT,                 -- JSON: the content where it is a list of parts
        tool_calls TEXT,            -- JSON: what the model called
        tool_call_id TEXT,          -- of a tool: which call it answers
        extra TEXT,                 -- JSON: all other keys of the message
        reasoning TEXT,             -- the model's thoughts
        finish_reason TEXT,
        cut INTEGER NOT NULL DEFAULT 0,     -- 1: more should have followed
        undone INTEGER NOT NULL DEFAULT 0,  -- 1: the turn was taken back
        provider TEXT,
        model TEXT,
        usage TEXT,                 -- JSON: the server's count of tokens
        seconds REAL,               -- how long the reply took
        created TEXT NOT NULL       -- UTC
    )
    """,
    "CREATE UNIQUE INDEX messages_of_a_conversation ON messages (conversation_id, position)",
    f"PRAGMA application_id = {APPLICATION}",
)

#: What makes version 1 of nothing, version 2 of version 1, and so on.
MIGRATIONS: tuple[tuple[str, ...], ...] = (_VERSION_1,)

#: The full-text index, kept by the database itself, so that whoever writes to the tables keeps it right.
_SEARCH = (
    "CREATE VIRTUAL TABLE IF NOT EXISTS messages_fts USING fts5(content, content='messages', content_rowid='id')",
    """
    CREATE TRIGGER messages_inserted AFTER INSERT ON messages BEGIN
        INSERT INTO messages_fts (rowid, content) VALUES (new.id, new.content);
    END
    """,
    """
    CREATE TRIGGER messages_deleted AFTER DELETE ON messages BEGIN
        INSERT INTO messages_fts (messages_fts, rowid, content) VALUES ('delete', old.id, old.content);
    END
    """,
    """
    CREATE TRIGGER messages_updated AFTER UPDATE OF content ON messages BEGIN
        INSERT INTO messages_fts (messages_fts, rowid, content) VALUES ('delete', old.id, old.content);
        INSERT INTO messages_fts (rowid, content) VALUES (new.id, new.content);
    END
    """,
    "INSERT INTO messages_fts (messages_fts) VALUES ('rebuild')",
)
_TRIGGERS = ("messages_inserted", "messages_deleted", "messages_updated")


def check(connection: sqlite3.Connection, path: str) -> int:
    """Returns the version of a history's file; 0 for an empty one. Changes nothing.

    Raises:
        InvalidRequest: it is no history, or one of a newer version.
    """
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if (version or tables or application) and application != APPLICATION:
        raise InvalidRequest(f"{path} is the database of another program: name another file")
    if version > len(MIGRATIONS):
        raise InvalidRequest(
            f"{path} was written by a newer version of berlin_chat: it has format {version}, and this one knows no more"
            f" than {len(MIGRATIONS)}. Update berlin_chat, or name another file"
        )
    return version


def migrate(connection: sqlite3.Connection, path: str) -> None:
    """Brings a file to the newest version, inside of a transaction of the caller's.

    Raises:
        InvalidRequest: as ``check`` does.
    """
    version = check(connection, path)
    for statements in MIGRATIONS[version:]:
        for statement in statements:
            connection.execute(statement)
    if version < len(MIGRATIONS):
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    _make_search(connection)


def can_search(connection: sqlite3.Connection) -> bool:
    """Whether this SQLite has the full-text index, which not every build has."""
    modules = connection.execute("SELECT name FROM pragma_module_list").fetchall()
    return ("fts5",) in modules


def is_current(connection: sqlite3.Connection) -> bool:
    """Whether there is nothing to migrate in a file that ``check`` has found to be a history."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    return bool(version == len(MIGRATIONS) and _is_indexed(connection) == can_search(connection))


def _is_indexed(connection: sqlite3.Connection) -> bool:
    """Whether the index is kept."""
    query = "SELECT count(*) FROM sqlite_master WHERE type = 'trigger' AND name = 'messages_updated'"
    return bool(connection.execute(query).fetchone()[0])


def _make_search(connection: sqlite3.Connection) -> None:
    """Makes the index where it is not; where it cannot be kept, the triggers that would are taken away."""
    indexed, possible = _is_indexed(connection), can_search(connection)
    if indexed and not possible:
        for name in _TRIGGERS:
            connection.execute(f"DROP TRIGGER {name}")
    elif possible and not indexed:
        for statement in _SEARCH:
            connection.execute(statement)
