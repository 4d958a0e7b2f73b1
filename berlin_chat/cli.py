"""The command ``berlin-chat`` (extra ``[cli]``)."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from contextlib import ExitStack, closing
from typing import Any, NoReturn

from .cli_options import NEEDED, batch_options, chosen_provider, click, given_in, is_answered_here, provider_options
from .errors import ChatError
from .providers import PROVIDERS, get_provider, provider_names
from .providers.openai import OpenAICompatible
from .version import __version__

#: Exit codes: a ChatError, and what shells use for Ctrl-C and a closed pipe.
FAILED, INTERRUPTED, PIPE_CLOSED = 1, 130, 141
#: Signals that end the command after it has cleaned up, where the system has them; the exit code is 128 more.
_ENDING = ("SIGTERM", "SIGHUP")
#: Wide enough for any table that is not shown on a terminal.
_NO_TERMINAL_WIDTH = 1000


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
        _complain(str(error))
        return FAILED
    except ImportError as error:  # an extra is not installed: it says which
        _complain(str(error))
        return FAILED
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED


def _complain(message: str) -> None:
    click.echo(f"berlin-chat: {' '.join(message.split())}", err=True)


class _Commands(click.Group):
    """A group whose commands end with our exit codes where standard output takes no more."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ChatError:
            raise  # a timeout is an OSError too
        except OSError as error:
            _discard_output()
            if isinstance(error, BrokenPipeError):
                ctx.exit(PIPE_CLOSED)
            reason = error.strerror or str(error)
            raise ChatError(f"{error.filename}: {reason}" if error.filename else reason) from error


def _discard_output() -> None:
    """Lets nothing more reach standard output: Python writes what is left at its end, and would complain or wait."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="berlin-chat")
def cli() -> None:
    """Talk to chat servers of four protocols: openai (and ylokh), berlin, h2o and acytoo.

    Passwords and keys come from the environment: BERLIN_CHAT_ACCOUNT, BERLIN_CHAT_PASSWORD, BERLIN_CHAT_TOKEN,
    BERLIN_CHAT_API_KEY.
    """


@cli.command()
@click.argument("prompt", nargs=-1)
@provider_options
@click.option("--no-stream", is_flag=True, help="Wait for the whole reply before printing it.")
def ask(prompt: tuple[str, ...], no_stream: bool, **configuration: Any) -> None:
    """Ask PROMPT, and print the reply as it arrives.

    Without PROMPT, or with -, the prompt is read from standard input. Without any address, a server inside the
    process answers.
    """
    text = _prompt(prompt)
    with (
        chosen_provider(configuration.pop("provider"), **configuration) as provider,
        closing(provider.stream(text)) as pieces,
    ):
        _print_pieces(["".join(pieces)] if no_stream else pieces)


def _prompt(words: tuple[str, ...]) -> str:
    if words and words != ("-",):
        text = " ".join(map(_decoded, words))
    elif sys.stdin is None or (not words and sys.stdin.isatty()):
        text = ""
    else:  # without a BOM, and without the line end that echo adds
        text = sys.stdin.buffer.read().decode("utf-8-sig", "replace").rstrip("\r\n")
    if not text.strip():
        raise click.UsageError('there is no prompt: give one, as in: berlin-chat ask "Why is the sky blue?"')
    return text


def _decoded(word: str) -> str:
    """An argument as text, also where the locale's encoding has no word for its bytes."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return os.fsencode(word).decode("utf-8", "replace")
    return word


def _print_pieces(pieces: Iterable[str]) -> None:
    """Prints each piece as it arrives, and ends the line however the pieces end."""
    piece = ""
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    except (KeyboardInterrupt, SystemExit) as ended:
        if sys.stdout is None or not sys.stdout.isatty():
            _discard_output()  # its reader may have stopped reading, as less does
        elif piece and isinstance(ended, KeyboardInterrupt):
            raise click.Abort from None  # which adds no empty line
        raise
    finally:
        if piece and not piece.endswith("\n"):
            print(flush=True)


@cli.command()
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="The address to listen on. Any but loopback needs --password.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 for a free one.")
@click.option(
    "--upstream",
    metavar="URL",
    help="An OpenAI-compatible server that answers; its key comes from BERLIN_CHAT_API_KEY. Without one, an echo.",
)
@click.option("-m", "--model", help="The upstream's model for questions that do not name one.")
@click.option(
    "--delay",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="Wait so long before each piece.",
)
@click.option(
    "--password",
    envvar="BERLIN_CHAT_SERVER_PASSWORD",
    help="What clients must know; better from BERLIN_CHAT_SERVER_PASSWORD.",
)
def serve(host: str, port: int, upstream: str | None, model: str | None, delay: float, password: str | None) -> None:
    """Serve all four protocols on one port, until Ctrl-C."""
    from .server import LocalServer

    answering = OpenAICompatible(upstream, model=model) if upstream else None
    server = LocalServer(host, port, upstream=answering, delay=delay, password=password)
    try:
        server.start()
    except OSError as error:
        # cheroot puts the system's words at the end of its own.
        reason = str(error).rpartition("] ")[2].rstrip(")")
        raise ChatError(f"cannot listen on {host} port {port}: {reason}") from error
    with server:
        behind = f"{upstream} answers" if upstream else "an echo answers, no model"
        click.echo(
            f"berlin-chat: serving berlin, ylokh, h2o and acytoo at {server.url} ({behind}). Ctrl-C stops.",
            err=True,
        )
        server.wait()


@cli.command()
def providers() -> None:
    """List the providers: name, address in use, and what they need."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        raise ImportError(NEEDED) from None

    table = Table(box=None, pad_edge=False)
    for heading in ("name", "address in use", "working", "needs"):
        table.add_column(heading, overflow="fold")
    for name in provider_names():
        provider = get_provider(name)
        address = provider.base_url
        none = "none: ask answers itself" if name in PROVIDERS else "none"
        table.add_row(name, address or none, "yes" if address else "no", provider.needs)
    console = Console(markup=False, emoji=False)  # which an IPv6 address may look like
    if not console.is_terminal:
        console.width = _NO_TERMINAL_WIDTH
    with console.capture() as shown:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in shown.get().splitlines()))


@cli.command()
@click.argument("prompts")
@batch_options
@provider_options
def batch(
    prompts: str,
    output: str,
    column: str | None,
    encoding: str | None,
    system: str | None,
    options: dict[str, Any],
    limit: int | None,
    errors: str | None,
    retry_errors: bool,
    dry_run: bool,
    provider: str,
    model: str | None,
    base_url: str | None,
    proxy: str | None,
    timeout: float | None,
    **how: Any,
) -> int:
    """Ask every prompt in the file PROMPTS, or in standard input with -.

    One prompt a line (.txt), a column of a .csv or .tsv file, or JSON lines (.jsonl): strings, {"prompt": …},
    {"messages": […]}, both also with a "model" and "options" of their own, or the requests of OpenAI's batch files,
    which are answered in the form of its output.

    Run it again with the same files to go on after an interruption, or to ask once more what has failed.
    """
    from .batch.files import Prompts
    from .batch.outputs import output_named
    from .batch.requests import Asker
    from .batch.run import run, tell

    if retry_errors and errors is None:
        raise click.UsageError("--retry-errors needs the file that holds them: --errors FILE")
    if errors is not None and os.path.abspath(errors) == os.path.abspath(output):
        raise click.UsageError("--errors and --output name the same file")
    configuration = {"model": model, "base_url": base_url, "proxy": proxy, "timeout": timeout}
    chosen = get_provider(provider, **given_in(configuration))
    echo = "echo" if is_answered_here(chosen) else None  # each has another address
    asked = Prompts(prompts, column, encoding, limit)
    if asked.notice:
        _say(asked.notice)
    if dry_run:
        tell(Asker(chosen, system, options, echo), asked, _say)
        return 0
    with ExitStack() as stack:
        answers = output_named(output, asked.are_requests, how["ordered"], limit, stack)
        asker = Asker(stack.enter_context(chosen_provider(provider, **configuration)), system, options, echo)
        return FAILED if run(asker, asked, answers, errors, retry_errors, _say, **how) else 0


def _say(line: str) -> None:
    click.echo(f"berlin-chat: {line}", err=True)
