"""The magic ``%%chat``: a cell is a question."""

from __future__ import annotations

import argparse
import atexit
import keyword
import os
import shlex
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_cell_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments

from ..conversations.conversation import Conversation
from ..errors import ChatError, InvalidRequest, tell_in_one_line
from ..provider import Provider
from ..providers import PROVIDERS, get_provider, guessed
from ..reply import Reply
from .showing import Stopped, show

#: The variable that keeps the reply where the cell names no other.
VARIABLE = "reply"


@magics_class
class ChatMagics(Magics):
    """The conversation of one notebook. It owns its provider, and the server that answers where there is no address."""

    def __init__(self, shell: Any) -> None:
        super().__init__(shell)
        self._namespace: dict[str, Any] = shell.user_ns
        self._conversation: Conversation | None = None
        self._settings: dict[str, str] = {}
        self._providers: list[Provider] = []  # of all conversations, for who has got one may go on with it
        self._server: Any = None
        atexit.register(self.close)

    def close(self) -> None:
        """Ends the conversation, and closes all that was opened for it."""
        atexit.unregister(self.close)
        for opened in (*self._providers, self._server):
            if opened is not None:
                opened.close()
        self._conversation = self._server = None
        self._providers.clear()

    @magic_arguments()
    @argument("-p", "--provider", metavar="NAME", help="The protocol: openai, ylokh, berlin, h2o or acytoo.")
    @argument("--base-url", metavar="URL", help="The server's address; otherwise from the environment.")
    @argument("-m", "--model", metavar="NAME", help="The model to ask; otherwise the protocol's default.")
    @argument("-s", "--system", metavar="TEXT", help="The system message. It begins a new conversation.")
    @argument("-n", "--new", action="store_true", help="Begin a new conversation.")
    @argument("variable", nargs="?", help=f"The variable that keeps the reply; otherwise {VARIABLE}.")
    @line_cell_magic
    def chat(self, line: str, cell: str | None = None) -> Conversation | None:
        """Ask what the cell says, and show the reply while it grows.

        The next cell goes on with the same conversation and the same options, but for those that it gives anew. The
        stop button ends the reply, and keeps what has come. %chat, as a line, returns the conversation.

        Without --provider it is the one that the environment has an address for, otherwise openai. Passwords and keys
        come from the environment, too, such as BERLIN_CHAT_API_KEY. If there is no address at all, an echo inside the
        notebook answers.
        """
        given = self._given(line)
        name = given.variable or VARIABLE
        if cell is None and given.variable:
            raise UsageError(f"to ask, write %%chat, and the question below it: %chat {given.variable} asks nothing")
        if not name.isidentifier() or keyword.iskeyword(name):
            raise UsageError(f"{name!r} cannot be the name of a variable: the question stands below the line")
        if cell is not None and not cell.strip():
            raise UsageError("there is no question: write it below the line with %%chat")
        try:
            conversation = self._going_on(given)
            if cell is None:
                return conversation
            self._ask(conversation, cell.strip(), name)
        except ChatError as error:
            tell_in_one_line(error, f"{type(error).__name__}: {error}")
            raise
        return None

    def _given(self, line: str) -> argparse.Namespace:
        try:
            words = shlex.split(line)  # IPython's own way keeps the quotes
        except ValueError as error:
            raise UsageError(f"%%chat {line}: {error}") from None
        given: argparse.Namespace = self.chat.parser.parse_args(words)
        return given

    def _going_on(self, given: argparse.Namespace) -> Conversation:
        """The conversation that these options ask for: the one before, unless they want another."""
        names = ("provider", "base_url", "model", "system")
        wanted = {name: value for name in names if (value := getattr(given, name)) is not None}
        kept = self._settings
        if any(wanted.get(name, kept.get(name)) != kept.get(name) for name in ("provider", "base_url")):
            kept = {"system": kept.get("system", "")}  # all else is another server's
        settings = {**kept, **wanted}
        system = settings.pop("system", "")
        name, configuration = chosen(**settings)
        settings.update(provider=name, system=system)
        old = self._conversation
        begins = old is None or given.new or given.system is not None
        if old is None or begins or settings != self._settings:
            messages = [] if old is None or begins else old.messages
            first = system or None if begins else None  # else it is among the messages
            self._conversation = old = Conversation(self._provider(name, configuration), first, messages=messages)
            self._settings = settings
        return old

    def _provider(self, name: str, configuration: dict[str, str]) -> Provider:
        provider = get_provider(name, **configuration)
        if provider.base_url is None and provider.name in PROVIDERS:
            if self._server is None:
                from ..server import LocalServer

                self._server = LocalServer().start()
                print("No address is configured, so an echo inside this notebook answers, no model: see --base-url.")
            provider = self._server.provider(name, **configuration)
        self._providers.append(provider)
        return provider

    def _ask(self, conversation: Conversation, question: str, variable: str) -> None:
        """Asks, shows what comes, and keeps it, however it ends."""
        reply, turns = Reply(), len(conversation.turns)
        live = conversation.open(question)
        try:
            reply = show(live)
        except Stopped as stopped:
            reply = stopped.reply
            kept = f"What has come is kept as {variable} and in the conversation."
            nothing = "Nothing had come, and the question is taken back."
            said = kept if len(conversation.turns) > turns else nothing
            raise Stopped(f"Stopped. {said}", reply) from None
        except ChatError as error:
            reply = Reply(error.partial)
            raise
        finally:
            self._namespace[variable] = reply


def chosen(
    provider: str | None = None, base_url: str | None = None, model: str | None = None
) -> tuple[str, dict[str, str]]:
    """Returns the name of the provider that is meant, and its arguments.

    Raises:
        InvalidRequest: the environment has several addresses.
    """
    name = provider or os.environ.get("BERLIN_CHAT_PROVIDER") or (_guessed() if base_url is None else "openai")
    given = {"base_url": base_url, "model": model or os.environ.get("BERLIN_CHAT_MODEL")}
    return name, {key: value for key, value in given.items() if value}


def _guessed() -> str:
    try:
        return guessed()
    except InvalidRequest as error:
        raise InvalidRequest(f"{error}, with -p or BERLIN_CHAT_PROVIDER") from None


def load(shell: Any) -> None:
    """Gives the magic to a shell of IPython; one that it had before is closed."""
    if (before := shell.magics_manager.registry.get(ChatMagics.__name__)) is not None:
        before.close()
    shell.register_magics(ChatMagics)
