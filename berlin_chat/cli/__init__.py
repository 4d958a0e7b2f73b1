"""The command ``berlin-chat`` (extra ``[cli]``): one file a command, each imported when it is used."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from typing import Any, NoReturn

from ..errors import ChatError
from ..version import __version__
from .options import click
from .words import FAILED, INTERRUPTED, PIPE_CLOSED, complain, discard_output, in_the_commands_words

#: Signals that end the command after it has cleaned up, where the system has them; the exit code is 128 more.
_ENDING = ("SIGTERM", "SIGHUP")
#: The file of each command, in the order of the help: what is used daily comes first.
COMMANDS = {
    "ask": "ask",
    "chat": "chat",
    "history": "history",
    "batch": "batch",
    "models": "look",
    "providers": "look",
    "doctor": "doctor",
    "set-default": "set_default",
    "serve": "serve",
    "completion": "completion",
}


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs the command and exits with its code."""
    for name in _ENDING:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:  # nohup lets SIGHUP be ignored
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # it was closed before the start
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    sys.exit(_exit_code(arguments))


def _exit_code(arguments: list[str] | None) -> int:
    try:
        # On Windows click would take a prompt's ? and * for the names of files.
        result = cli.main(arguments, prog_name="berlin-chat", standalone_mode=False, windows_expand_args=False)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except ChatError as error:
        complain(in_the_commands_words(error))
        return FAILED
    except ImportError as error:  # an extra is not installed: it says which
        complain(_installable_here(str(error)))
        return FAILED
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED


def _installable_here(advice: str) -> str:
    """In a copy of the repository, its own extra: what an index has under this name may be something else."""
    folder = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    copy = os.path.exists(os.path.join(folder, "setup.cfg"))
    return advice.replace("'berlin_chat[", f"'{folder}[") if copy else advice


class _Commands(click.Group):
    """A group whose commands end with our exit codes where standard output takes no more."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> Any:
        if name not in COMMANDS:
            return None
        return getattr(import_module(f".{COMMANDS[name]}", __package__), name.replace("-", "_"))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ChatError:
            raise  # a timeout is an OSError too
        except OSError as error:
            discard_output()
            if isinstance(error, BrokenPipeError):
                ctx.exit(PIPE_CLOSED)
            raise ChatError(in_the_commands_words(error)) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="berlin-chat")
def cli() -> None:
    """Talk to chat servers of four protocols: openai (and ylokh), berlin, h2o and acytoo.

    Passwords and keys come from the environment: BERLIN_CHAT_ACCOUNT, BERLIN_CHAT_PASSWORD, BERLIN_CHAT_TOKEN,
    BERLIN_CHAT_API_KEY. Each command has examples in its own help.

    \b
    Examples:
      berlin-chat ask "Why is the sky blue?"
      berlin-chat ask --help
    """
