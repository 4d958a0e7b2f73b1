"""``berlin-chat serve``."""

from __future__ import annotations

from ..errors import ChatError
from .options import click
from .words import say


@click.command()
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
@click.option(
    "--allowed-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="A name by which clients may ask, such as that of the machine, beside localhost and addresses. Repeatable.",
)
def serve(
    host: str,
    port: int,
    upstream: str | None,
    model: str | None,
    delay: float,
    password: str | None,
    allowed_hosts: tuple[str, ...],
) -> None:
    """Serve all four protocols on one port, until Ctrl-C.

    \b
    Examples:
      berlin-chat serve
      berlin-chat serve --port 8081 --upstream http://127.0.0.1:11434 -m llama3
      berlin-chat serve --allowed-host chat.example.org
    """
    from ..providers.openai import OpenAICompatible
    from ..server import LocalServer

    answering = OpenAICompatible(upstream, model=model) if upstream else None
    server = LocalServer(host, port, upstream=answering, delay=delay, password=password, allowed_hosts=allowed_hosts)
    try:
        server.start()
    except OSError as error:
        # cheroot puts the system's words at the end of its own.
        reason = str(error).rpartition("] ")[2].rstrip(")")
        raise ChatError(f"cannot listen on {host} port {port}: {reason}") from error
    with server:
        behind = f"{upstream} answers" if upstream else "an echo answers, no model"
        say(f"serving openai, berlin, ylokh, h2o and acytoo at {server.url} ({behind}). Ctrl-C stops.")
        server.wait()
