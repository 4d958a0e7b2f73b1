"""``berlin-chat ask``."""

from __future__ import annotations

from typing import Any

from .options import chosen_provider, click, options, provider_options
from .prompt import ATTACH, OPTION, SYSTEM, question
from .record import CONTINUE, LOG, conversation_with, opened_history, recorded
from .show import SHOW_OPTIONS, show, tell


@click.command()
@click.argument("prompt", nargs=-1)
@options(SYSTEM, ATTACH, CONTINUE, OPTION, *SHOW_OPTIONS, LOG)
@provider_options
def ask(
    prompt: tuple[str, ...],
    system: str | None,
    files: tuple[str, ...],
    goes_on: bool,
    asked_with: dict[str, Any],
    no_stream: bool,
    raw: bool,
    as_json: bool,
    extract: bool,
    log: bool,
    **given: Any,
) -> None:
    """Ask PROMPT, and print the reply as it arrives.

    Standard input, if it is no terminal, follows PROMPT after an empty line. On a terminal the reply is shown as
    Markdown, in a pipe as it is. Without any address, a server inside the process answers.

    \b
    Examples:
      berlin-chat ask "Why is the sky blue?"
      cat notes.txt | berlin-chat ask "Explain:"
      berlin-chat ask -c "Shorter, please."
      berlin-chat ask "What is this?" -a photo.png -s "Be brief."
      berlin-chat ask "A script that counts words" --extract > count.py
    """
    message = {"role": "user", "content": question(prompt, files)}
    with opened_history(goes_on, log) as history:
        number = recorded(goes_on, history, given)
        with chosen_provider(**given) as provider:
            conversation = conversation_with(provider, system, history, number, log, **asked_with)
            with conversation.open(message) as live:
                tell(show(live, no_stream, raw, as_json, extract))
