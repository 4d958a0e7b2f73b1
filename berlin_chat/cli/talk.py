"""A conversation as ``berlin-chat chat`` leads it: turns, and the commands that begin with a slash."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from time import strftime
from typing import Any, cast

from ..conversations.conversation import Conversation
from ..errors import ChatError
from .options import click
from .show import show, tell
from .typed import Typed
from .words import complain, in_the_commands_words, say

#: How many characters of a question are shown to tell which one it was.
_SHOWN = 60


class Talk:
    """Leads a conversation from what is typed. It belongs to one thread.

    Args:
        conversation: what the turns belong to.
        raw: whether replies are shown as they are.
    """

    def __init__(self, conversation: Conversation, raw: bool) -> None:
        self._conversation = conversation
        self._raw = raw
        self._unanswered: Any = None  # the last question, if nothing came of it
        self._failed = False  # whether a question has
        self._typed: Typed

    def run(self, typed: Typed) -> bool:
        """Reads and answers messages until there are none any more; whether no question failed."""
        self._typed = typed
        while True:
            try:
                text = typed.message()
                if not self._do(text):
                    break
            except KeyboardInterrupt:  # at the prompt: it has dropped the line
                if typed.piped:
                    raise
            except EOFError:
                break
        return not self._failed

    def _do(self, text: str) -> bool:
        """Answers a message or runs a command; whether to go on."""
        if not text.strip():
            return True
        if not text.startswith("/"):
            self._ask(text)
        elif text.startswith("//"):
            self._ask(text[1:])
        else:
            name, _, rest = text.partition(" ")
            if name in ("/exit", "/quit"):
                return False
            command = COMMANDS.get(name)
            if command is None:
                say(f"there is no command {name}: see /help; // begins a message with a slash")
            else:
                try:
                    command[0](self, rest.strip())
                except (ChatError, OSError) as error:
                    complain(in_the_commands_words(error))
        return True

    def _ask(self, question: Any) -> None:
        self._unanswered = question
        try:
            with self._conversation.open(question) as live:
                tell(show(live, raw=self._raw))
            if sys.stdout is not None and sys.stdout.isatty():
                click.echo()  # sets the reply apart from what is typed next
            self._unanswered = None
        except (KeyboardInterrupt, click.Abort) as stopped:
            if self._typed.piped or sys.stdout is None or not sys.stdout.isatty():
                raise click.Abort from None  # what is asked from now on comes, or its reply goes, where nobody is
            if isinstance(stopped, KeyboardInterrupt):
                click.echo(err=True)  # after the ^C that a terminal shows
            self._say_what_is_kept("stopped")
        except ChatError as error:
            self._failed = True
            complain(in_the_commands_words(error))
            self._say_what_is_kept("the reply was cut off")

    def _say_what_is_kept(self, what: str) -> None:
        """Says it if the conversation has kept a part of the reply."""
        turns = self._conversation.turns
        if turns and turns[-1].cut:
            self._unanswered = None
            say(f"{what}; this part is kept: /retry asks again, /undo drops it")

    # The commands

    def help(self, rest: str) -> None:
        """List the commands."""
        width = max(len(usage) for _, usage, _ in COMMANDS.values())
        for _, usage, about in COMMANDS.values():
            click.echo(f"{usage:{width}}  {about}", err=True)
        click.echo(
            f"{'/exit':{width}}  Leave, as Ctrl-D does. Ctrl-C stops a reply.\n"
            'Several lines: Alt-Enter, a \\ at the end of a line, or """ around them.',
            err=True,
        )

    def retry(self, rest: str) -> None:
        """Ask the last question again."""
        earlier = self._conversation
        if self._unanswered is not None:
            self._ask(self._unanswered)
        elif not earlier.turns:
            say("there is no question to ask again")
        else:
            self._conversation = again = _without_its_last_turn(earlier)
            try:
                self._ask(earlier.turns[-1].question)
            finally:
                if len(again.turns) == len(earlier.turns):
                    earlier.undo()  # in the history too
                else:
                    self._conversation, self._unanswered = earlier, None
                    say("the earlier reply stays")

    def undo(self, rest: str) -> None:
        """Take the last turn back."""
        question = self._conversation.undo().messages[0]["content"]
        words = " ".join(question.split()) if isinstance(question, str) else "…"
        say(f"taken back: {words[:_SHOWN]}{'…' if len(words) > _SHOWN else ''}")

    def model(self, rest: str) -> None:
        """Show the model, or ask another one from now on."""
        if rest:
            self._conversation.model = rest
        say(f"the model is {self._conversation.model or self._conversation.provider.model}")

    def system(self, rest: str) -> None:
        """Show the system message, or set it."""
        if rest:
            self._conversation.system = rest
        system = self._conversation.system
        say("there is no system message" if system is None else f"the system message is: {system}")

    def save(self, rest: str) -> None:
        """Write the conversation to a new file: .md or .jsonl."""
        from .history import write_new

        path = rest or strftime("chat-%Y%m%d-%H%M%S.md")
        write_new(path, as_jsonl(self._conversation) if path.endswith(".jsonl") else as_markdown(self._conversation))
        say(f"saved in {path}")

    def multi(self, rest: str) -> None:
        """Read several lines, up to one that says /end."""
        if text := self._typed.lines().strip("\n"):
            self._ask(text)


def _without_its_last_turn(conversation: Conversation) -> Conversation:
    """Returns one that goes on in the same record, from before a turn that stays in both until it is taken back."""
    return Conversation.resumed(
        conversation.turns[:-1],
        cast(int, conversation.id),  # it has none where no history is kept
        conversation.provider,
        system=conversation.system,
        history=conversation.history,
        model=conversation.model,
        **conversation.options,
    )


def _described(method: Callable[[Talk, str], None], usage: str) -> tuple[Callable[[Talk, str], None], str, str]:
    return method, usage, (method.__doc__ or "").strip()


#: What each command does, how it is typed, and what is said of it.
COMMANDS = {
    "/help": _described(Talk.help, "/help"),
    "/retry": _described(Talk.retry, "/retry"),
    "/undo": _described(Talk.undo, "/undo"),
    "/save": _described(Talk.save, "/save [FILE]"),
    "/model": _described(Talk.model, "/model [NAME]"),
    "/system": _described(Talk.system, "/system [TEXT]"),
    "/multi": _described(Talk.multi, "/multi"),
}


def as_markdown(conversation: Conversation) -> str:
    """Returns a conversation as a text to be read."""
    from ..conversations.markdown import rendered
    from ..conversations.rows import COLUMNS, moment, row_of, title_of

    turns = conversation.turns
    entries = [entry for turn in turns for entry in turn.entries]
    facts = {
        "title": title_of(turns),
        "started": moment(entries[0].at) if entries else None,
        "system": conversation.system,
        "provider": conversation.provider.name,
        "model": conversation.model or conversation.provider.model,
    }
    return rendered(facts, [dict(zip(COLUMNS, row_of(entry), strict=True)) for entry in entries])


def as_jsonl(conversation: Conversation) -> str:
    """Returns a conversation as a line of JSON."""
    provider = conversation.provider
    facts = {"provider": provider.name, "model": conversation.model or provider.model}
    return json.dumps({**facts, "messages": conversation.messages}, ensure_ascii=False) + "\n"
