"""``berlin-chat chat``."""

from __future__ import annotations

import sys
from typing import Any

from .options import chosen_provider, click, options, provider_options
from .prompt import OPTION, SYSTEM
from .record import CONTINUE, LOG, conversation_with, history_file, opened_history, recorded
from .words import FAILED, say


@click.command()
@options(SYSTEM, CONTINUE, OPTION, LOG)
@click.option("--raw", is_flag=True, help="Show replies as they are, not as Markdown.")
@provider_options
def chat(system: str | None, goes_on: bool, asked_with: dict[str, Any], log: bool, raw: bool, **given: Any) -> int:
    """Talk at a prompt, turn by turn.

    Ctrl-C stops a reply, of which the part that has come is kept; Ctrl-D or /exit leaves. /help lists the other
    commands: /retry, /undo, /model, /system, /save and /multi.

    From a pipe, each line is a message, Ctrl-C ends it all, and the exit code is 1 if a question failed.

    The lines typed are remembered in a file that only you can read: typed in $XDG_DATA_HOME/berlin-chat, which is
    ~/.local/share/berlin-chat on Linux. --no-log keeps them out of it; berlin-chat history delete empties it.

    \b
    Examples:
      berlin-chat chat
      berlin-chat chat -c
      berlin-chat chat -m llama3 -s "Answer in one sentence."
    """
    from .talk import COMMANDS, Talk
    from .typed import Typed, lines_file

    on_terminal = sys.stdin is not None and sys.stdin.isatty()
    with opened_history(goes_on, log) as history:
        number = recorded(goes_on, history, given)
        with chosen_provider(**given) as provider:
            conversation = conversation_with(provider, system, history, number, log, **asked_with)
            kept = lines_file() if log and history_file() is not None else None
            typed = Typed([*COMMANDS, "/exit"], kept)
            if on_terminal:
                who = f"{provider.name} ({provider.model})"
                say(f"{who}. /help lists commands, Ctrl-D leaves.")
            all_went_well = Talk(conversation, raw).run(typed)
    return 0 if all_went_well or on_terminal else FAILED
