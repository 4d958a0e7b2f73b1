"""``berlin-chat completion``."""

from __future__ import annotations

from .options import click

#: The line that makes each shell complete the command.
_LINES = {
    "bash": 'eval "$(_BERLIN_CHAT_COMPLETE=bash_source berlin-chat)"',
    "zsh": 'eval "$(_BERLIN_CHAT_COMPLETE=zsh_source berlin-chat)"',
    "fish": "_BERLIN_CHAT_COMPLETE=fish_source berlin-chat | source",
}


@click.command()
@click.argument("shell", type=click.Choice(list(_LINES)))
def completion(shell: str) -> None:
    """Print the line that makes SHELL complete commands.

    It completes options and the names of providers, too. The line belongs at the end of ~/.bashrc, ~/.zshrc or
    ~/.config/fish/config.fish.

    \b
    Examples:
      berlin-chat completion bash >> ~/.bashrc
      berlin-chat completion fish
    """
    click.echo(_LINES[shell])
