"""How a reply is shown: as it arrives, as Markdown, as JSON, or only the code in it; and what is said of it."""

from __future__ import annotations

import sys
from contextlib import ExitStack, suppress
from typing import Any

from ..errors import ChatError
from ..live import LiveReply
from ..reply import Reply
from .options import click
from .words import discard_output, printable, say

#: What ``--json`` tells of a reply beside its text and tool calls.
_TOLD = (
    *("provider", "model", "finish_reason", "usage", "seconds", "first_piece_seconds", "attempts"),
    *("reasoning", "refusal", "citations", "id"),
)

SHOW_OPTIONS = (
    click.option("--no-stream", is_flag=True, help="Wait for the end of the reply before printing it."),
    click.option("--raw", is_flag=True, help="Print the text as it is, also on a terminal."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object: text, model, usage, finish_reason …"),
    click.option("-x", "--extract", is_flag=True, help="Print only the code in the reply's first code block."),
)


def show(
    live: LiveReply, no_stream: bool = False, raw: bool = False, as_json: bool = False, extract: bool = False
) -> Reply:
    """Reads a reply to its end and prints it; returns it."""
    if as_json or extract or no_stream:
        try:
            for _ in live.events():
                pass
        except BaseException:
            _print_what_came(live.text, raw, aside=as_json or extract)
            raise
        reply = _whole(live)
        if as_json:
            click.echo(as_object(reply))
        elif extract:
            click.echo(_first_code(reply), nl=False)
        else:
            print_text(str(reply), raw)
    else:
        _print(((event.kind, event.text) for event in live.events()), raw)
        reply = _whole(live)
    return reply


def print_text(text: str, raw: bool = False) -> None:
    """Prints a text, as Markdown on a terminal."""
    _print(iter([("text", text)]), raw)


def _print_what_came(text: str, raw: bool, aside: bool) -> None:
    """Prints what came of a reply that was to be printed whole; ``aside``: standard output is for something else."""
    if not text:
        return
    with suppress(OSError):  # what ended the reply is what is told
        if aside:
            click.echo(printable(text), err=True)
        else:
            print_text(text, raw)


def _whole(live: LiveReply) -> Reply:
    assert live.reply is not None  # it was read to its end
    return live.reply


def _print(parts: Any, raw: bool) -> None:
    """Prints each piece of the text as it arrives, and ends the line however the pieces end."""
    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    with ExitStack() as stack:
        view = stack.enter_context(_view()) if on_terminal and not raw else None
        piece, begun = "", False
        try:
            for kind, text in parts:
                begun = begun or kind == "text" or (view is not None and kind == "reasoning")
                if view is not None and kind == "reasoning":
                    view.think(text)
                elif view is not None and kind == "text":
                    view.add(text)
                elif kind == "text":
                    piece = text
                    print(piece, end="", flush=True)
        except (KeyboardInterrupt, SystemExit) as ended:
            if not on_terminal:
                discard_output()  # its reader may have stopped reading, as less does
            elif begun and isinstance(ended, KeyboardInterrupt):
                raise click.Abort from None  # which adds no empty line
            raise
        finally:
            if piece and not piece.endswith("\n"):
                print(flush=True)


def _view() -> Any:
    """What shows Markdown; None for a terminal that knows nothing but lines."""
    from contextlib import nullcontext

    from rich.console import Console

    from .markdown import MarkdownView

    console = Console(highlight=False, markup=False, emoji=False)
    return nullcontext() if console.is_dumb_terminal else MarkdownView(console)


def as_object(reply: Reply) -> str:
    """Returns what ``--json`` prints."""
    import json

    told: dict[str, Any] = {name: getattr(reply, name) for name in _TOLD}
    calls = [call.message for call in reply.tool_calls]
    return json.dumps({"text": str(reply), "tool_calls": calls, **told}, ensure_ascii=False, default=dict)


def _first_code(reply: Reply) -> str:
    from .markdown import code_blocks

    found = code_blocks(reply)
    if not found:
        click.echo(printable(str(reply)), err=True)  # it has cost time and money
        raise ChatError("the reply has no code block: all of it stands above")
    return found[0]


def tell(reply: Reply) -> None:
    """Says on standard error what one cannot see in the text: that it is not whole, or is no answer."""
    if reply.refusal:
        say(f"the model refused: {' '.join(reply.refusal.split())}")
    if reply.tool_calls:
        calls = ", ".join(f"{call.name}({call.arguments})" for call in reply.tool_calls)
        say(f"the model {'calls tools' if reply else 'only calls tools'}: {' '.join(calls.split())}")
    if reply.finish_reason == "length":
        say("the reply is cut off: it has reached the limit of tokens; see -o max_tokens=… and the model's context")
    elif reply.finish_reason == "content_filter":
        say("the reply is cut off by the server's content filter")
    elif not reply.strip() and not reply.tool_calls and not reply.refusal:
        say("the reply has no text" + (", only reasoning" if reply.reasoning else ""))
