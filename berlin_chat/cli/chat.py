"""``berlin-chat chat``."""

from __future__ import annotations

import sys
from typing import Any

from .options import chosen_provider, click, options, provider_options
from .prompt import OPTION, SYSTEM
from .words import say


@click.command()
@options(SYSTEM, OPTION)
@click.option("--raw", is_flag=True, help="Show replies as they are, not as Markdown.")
@provider_options
def chat(system: str | None, asked_with: dict[str, Any], raw: bool, **given: Any) -> None:
    """Talk at a prompt, turn by turn.

    Ctrl-C stops a reply, of which the part that has come is kept; Ctrl-D or /exit leaves. /help lists the other
    commands: /retry, /undo, /model, /system, /save and /multi.

    \b
    Examples:
      berlin-chat chat
      berlin-chat chat -m llama3 -s "Answer in one sentence."
    """
    from ..conversations.conversation import Conversation
    from .settings import data_folder
    from .talk import COMMANDS, Talk
    from .typed import Typed

    with chosen_provider(**given) as provider:
        conversation = Conversation(provider, system, **asked_with)
        typed = Typed([*COMMANDS, "/exit"], data_folder() / "typed")
        if sys.stdin is not None and sys.stdin.isatty():
            say(
                f"{provider.name} ({provider.model}). /help lists what you can do, Ctrl-C stops a reply, Ctrl-D leaves."
            )
        Talk(conversation, raw).run(typed)
