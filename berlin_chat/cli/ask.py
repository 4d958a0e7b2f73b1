"""``berlin-chat ask``."""

from __future__ import annotations

from typing import Any

from .options import chosen_provider, click, options, provider_options
from .prompt import ATTACH, OPTION, SYSTEM, question
from .show import SHOW_OPTIONS, show, tell


@click.command()
@click.argument("prompt", nargs=-1)
@options(SYSTEM, ATTACH, OPTION)
@options(*SHOW_OPTIONS)
@provider_options
def ask(
    prompt: tuple[str, ...],
    system: str | None,
    files: tuple[str, ...],
    asked_with: dict[str, Any],
    no_stream: bool,
    raw: bool,
    as_json: bool,
    extract: bool,
    **given: Any,
) -> None:
    """Ask PROMPT, and print the reply as it arrives.

    Standard input, if it is no terminal, follows PROMPT after an empty line. On a terminal the reply is shown as
    Markdown, in a pipe as it is. Without any address, a server inside the process answers.

    \b
    Examples:
      berlin-chat ask "Why is the sky blue?"
      cat notes.txt | berlin-chat ask "Explain:"
      berlin-chat ask "What is this?" -a photo.png -s "Be brief."
      berlin-chat ask "A script that counts words" --extract > count.py
    """
    content = question(prompt, files)
    messages: list[dict[str, Any]] = [
        *([{"role": "system", "content": system}] if system else []),
        {"role": "user", "content": content},
    ]
    with chosen_provider(**given) as provider, provider.open(messages, **asked_with) as live:
        tell(show(live, no_stream, raw, as_json, extract))
