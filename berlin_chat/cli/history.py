"""``berlin-chat history``: what was asked and answered before."""

from __future__ import annotations

import os
import sys
from typing import Any

from ..errors import ChatError
from .look import show_table
from .options import click
from .record import history_file, opened_history
from .typed import forget_lines
from .words import FAILED, say

#: The largest number that SQLite knows.
_LARGEST = 2**63 - 1
#: How many characters of a question or a place are shown in a table.
_SHOWN = 60


class _InOrder(click.Group):
    """A group whose help lists the commands as they stand in this file."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder)
def history() -> None:
    """List, show, search, export and delete conversations.

    ask and chat keep theirs in a file that only you can read: chats.db in $XDG_DATA_HOME/berlin-chat, which is
    ~/.local/share/berlin-chat on Linux. BERLIN_CHAT_HISTORY names another file, or turns the history off: off.
    SQLite and Datasette can open it. Beside it, the file named typed remembers the lines typed in chat.

    \b
    Examples:
      berlin-chat history list
      berlin-chat history search sky
    """


@history.command("list")
@click.option(
    "-n", "--limit", type=click.IntRange(min=1), default=20, show_default=True, metavar="N", help="The last N of them."
)
def list_(limit: int) -> None:
    """List the last conversations.

    \b
    Example:
      berlin-chat history list -n 5
    """
    with opened_history(needed=True) as kept:
        assert kept is not None
        found = kept.conversations(min(limit, _LARGEST))
    if not found:
        say(f"there are no conversations in {history_file()}")
        return
    rows = [(str(one.id), _local(one.updated), one.model or "", str(one.messages), _short(one.title)) for one in found]
    show_table(("id", "last used", "model", "messages", "began with"), rows)


@history.command()
@click.argument("number", metavar="[ID]", type=click.IntRange(1, _LARGEST), required=False)
@click.option("--raw", is_flag=True, help="Print the Markdown as it is, also on a terminal.")
def show(number: int | None, raw: bool) -> None:
    """Show the conversation ID, or the last one.

    \b
    Examples:
      berlin-chat history show
      berlin-chat history show 1
    """
    from .show import print_text

    with opened_history(needed=True) as kept:
        assert kept is not None
        number = kept.latest() if number is None else number
        if number is None:
            raise ChatError(f"there are no conversations in {history_file()}")
        text = "".join(kept.markdown(number))
    print_text(text, raw)


@history.command()
@click.argument("words", nargs=-1, required=True)
@click.option(
    "-n", "--limit", type=click.IntRange(min=1), default=20, show_default=True, metavar="N", help="The best N of them."
)
def search(words: tuple[str, ...], limit: int) -> int:
    """Find messages that hold all WORDS. The exit code is 1 if there are none.

    \b
    Example:
      berlin-chat history search blue sky
    """
    with opened_history(needed=True) as kept:
        assert kept is not None
        found = kept.search(" ".join(words), min(limit, _LARGEST))
    if not found:
        say("nothing was found")
        return FAILED
    show_table(
        ("id", "date", "who", "where"),
        [(str(one.conversation), _local(one.created), one.role, _short(one.text)) for one in found],
    )
    return 0


@history.command()
@click.argument("numbers", metavar="[ID]...", type=click.IntRange(1, _LARGEST), nargs=-1)
@click.option("-o", "--output", metavar="FILE", help="A new file: Markdown if it ends with .md, else JSON lines.")
@click.option("--markdown", is_flag=True, help="Markdown, also on standard output.")
def export(numbers: tuple[int, ...], output: str | None, markdown: bool) -> None:
    """Write conversations as JSON lines or Markdown.

    All of them, the oldest first, or those with these IDs.

    \b
    Examples:
      berlin-chat history export > chats.jsonl
      berlin-chat history export 1 -o first.md
    """
    with opened_history(needed=True) as kept:
        assert kept is not None
        as_markdown = markdown or (output or "").endswith(".md")
        lines = kept.markdown(*numbers) if as_markdown else kept.jsonl(*numbers)
        if output is None:
            for line in lines:
                click.echo(line, nl=False)
        else:
            write_new(output, "".join(lines))


@history.command()
@click.argument("numbers", metavar="ID...", type=click.IntRange(1, _LARGEST), nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask whether you mean it.")
def delete(numbers: tuple[int, ...], yes: bool) -> int:
    """Delete conversations, their text included.

    What was typed may also stand among the lines that chat remembers, in the file named typed: it is emptied.

    \b
    Example:
      berlin-chat history delete 1 --yes
    """
    numbers = tuple(dict.fromkeys(numbers))
    many = f"{len(numbers)} conversations" if len(numbers) > 1 else f"conversation {numbers[0]}"
    if not yes and not (sys.stdin is not None and sys.stdin.isatty()):
        raise click.UsageError("say --yes, for there is no terminal to ask on")
    if not yes and not click.confirm(f"Delete {many}?", err=True):
        return FAILED
    with opened_history(needed=True) as kept:
        assert kept is not None
        for number in numbers:
            kept.messages(number)  # before any is deleted, for one may not be there
        for number in numbers:
            kept.delete(number)
        forgotten = forget_lines()
    say(f"deleted {many}{', and the lines typed in chat' if forgotten else ''}")
    return 0


def write_new(path: str, text: str) -> None:
    """Writes a file that only its owner can read, and that was not there before."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def _local(moment: str) -> str:
    """A moment in UTC as the clock on the wall showed it."""
    from datetime import datetime

    return datetime.fromisoformat(moment.replace("Z", "+00:00")).astimezone().strftime("%Y-%m-%d %H:%M")


def _short(text: Any) -> str:
    words = " ".join(str(text).split())
    return words if len(words) <= _SHOWN else f"{words[: _SHOWN - 1]}…"
