"""The history that the command keeps: where it is, and how a conversation in it is gone on with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import HistoryError, InvalidRequest
from ..providers import get_provider
from .options import chosen_settings, click, is_answered_here
from .settings import data_folder
from .words import say

if TYPE_CHECKING:
    from ..conversations.conversation import Conversation
    from ..conversations.history import History, Listed
    from ..provider import Provider

CONTINUE = click.option("-c", "--continue", "goes_on", is_flag=True, help="Go on with the last conversation.")
LOG = click.option(
    "--log/--no-log",
    default=True,
    help="Whether to keep the conversation in the history (the default): see berlin-chat history.",
)
#: What turns the history off, as ``BERLIN_CHAT_HISTORY``.
_OFF = "off"


def history_file() -> Path | None:
    """Where the history is; None where it is turned off."""
    named = os.environ.get("BERLIN_CHAT_HISTORY")
    if named is not None and named.lower() == _OFF:
        return None
    try:
        return Path(named).expanduser() if named else data_folder() / "chats.db"
    except RuntimeError:  # so says pathlib
        raise click.UsageError(f"BERLIN_CHAT_HISTORY is {named!r}, and there is no such user") from None


@contextmanager
def opened_history(needed: bool, log: bool = True) -> Iterator[History | None]:
    """The history; None where it is not to be kept, or cannot be.

    Args:
        needed: whether the command makes no sense without one.

    Raises:
        ChatError, OSError: it is needed, and cannot be opened.
    """
    path = history_file()
    if needed and path is None:
        raise click.UsageError(f"there is no history: BERLIN_CHAT_HISTORY is {_OFF!r}")
    history = None
    if path is not None and (log or needed):
        from ..conversations.history import History

        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            history = History(path)
        except (HistoryError, InvalidRequest, OSError) as error:
            if needed:
                raise
            say(f"this is not kept in the history: {' '.join(str(error).split())}")
    try:
        yield history
    finally:
        if history is not None:
            history.close()


def recorded(goes_on: bool, history: History | None, given: dict[str, Any]) -> int | None:
    """The number of the last conversation, if it is to be gone on with.

    It is gone on with where it was held: its provider and model take the place of options that were not given.
    """
    if not goes_on:
        return None
    found = history.conversations(limit=1) if history is not None else []
    if not found:
        raise click.UsageError("there is no conversation to go on with")
    last = found[0]
    if given["provider"] in (None, last.provider):
        given["model"] = given["model"] or last.model
    given["provider"] = given["provider"] or last.provider
    assert history is not None
    _check_address(history, last, given)
    return last.id


def _check_address(history: History, last: Listed, given: dict[str, Any]) -> None:
    """Lets the echo of this process go on with its own conversations, and with no other."""
    from ..server.echo import PREFACE

    name, configuration = chosen_settings(**given)
    with get_provider(name, **configuration) as provider:
        if not is_answered_here(provider):
            return
    said = [message["content"] for message in history.messages(last.id) if message["role"] == "assistant"]
    if not (said and isinstance(said[0], str) and PREFACE.startswith(said[0][: len(PREFACE)])):
        who = f"{last.provider} ({last.model})" if last.model else last.provider
        raise click.UsageError(
            f"the last conversation was with {who}, and no address is configured: give --base-url again, or keep it"
            " with berlin-chat set-default"
        )


def conversation_with(
    provider: Provider, system: str | None, history: History | None, number: int | None, log: bool, **options: Any
) -> Conversation:
    """A new conversation, or the one with that number in the history."""
    from ..conversations.conversation import Conversation

    if number is None or history is None:
        return Conversation(provider, system, history if log else None, **options)
    said = {} if system is None else {"system": system}
    conversation = history.conversation(number, provider, **said, **options)
    if not log:
        conversation.history = None
    return conversation
