"""What the command says to people beside replies, on standard error, and its exit codes."""

from __future__ import annotations

import copy
import os
import re
import sys

from ..errors import ChatError
from .options import click

#: Exit codes: a ChatError, and what shells use for Ctrl-C and a closed pipe.
FAILED, INTERRUPTED, PIPE_CLOSED = 1, 130, 141
_KEY = "Check BERLIN_CHAT_API_KEY"
_ACCOUNT = "Check BERLIN_CHAT_ACCOUNT and BERLIN_CHAT_PASSWORD"
#: Control characters could do anything to a terminal: signs are shown for them.
_CONTROLS = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | dict.fromkeys(range(127, 160), 0xFFFD)
#: What to check where a server refuses, by provider.
_CREDENTIALS = {
    "openai": _KEY,
    "ylokh": _KEY,
    "acytoo": "Check BERLIN_CHAT_PASSWORD",
    "berlin": f"{_ACCOUNT}, or BERLIN_CHAT_TOKEN",
}
#: The library's advice speaks of its arguments; these are the same in the command's words. The first that fit are used.
_WORDS = (
    (
        r"give account= and password=, or token=, or set (BERLIN_CHAT_ACCOUNT and BERLIN_CHAT_PASSWORD)",
        r"set \1, or BERLIN_CHAT_TOKEN",
    ),
    (r"^Check account and password", _ACCOUNT),
    (r"Give base_url=…, or set (\w+) or (\w+), or start .*", r"Give --base-url, or set \1 or \2"),
    (r"\bbase_url and the model\b", "--base-url and -m"),
    (r"\bbase_url\b=?", "--base-url"),
    (r"^proxy (?=must|is)", "--proxy "),
    (r"\bproxy= and the environment", "--proxy and the environment"),
    (r"give History a longer timeout=", "keep this out of it: --no-log"),
    (r"\btimeout=", "--timeout"),
    (r": conversations\(\) lists them", ": see berlin-chat history list"),
    (r"\bverify=", "REQUESTS_CA_BUNDLE"),
    (r"^See max_event_bytes=", "The library reads longer ones: see its max_event_bytes="),
    (
        r"fields: login_fields=\{('\w+'): ''\}",
        r"fields, such as \1, which only the library can send: see login_fields=",
    ),
    (r'If this server never sends one: end="done".*', "If [DONE] is all that this server sends: -p ylokh"),
    (r'If this server sends neither: end="close"', 'Only the library can tell such replies: see end="close"'),
    (r"give headers=\{'Authorization': …\} instead", "set BERLIN_CHAT_API_KEY instead"),
    (r"^(api_key|token|password|account)(?= holds)", lambda found: f"BERLIN_CHAT_{found[1].upper()}"),
    (r"text only, and a message holds a part of type 'image_url'", "text only, and takes no image: see --attach"),
)


def in_the_commands_words(error: ChatError | OSError) -> str:
    """Returns an error's text, in which what the library says of its arguments names the command's options instead.

    What a server has said stays as it is.
    """
    if not isinstance(error, ChatError):
        reason = error.strerror or str(error)
        return f"{error.filename}: {reason}" if error.filename else reason
    said = copy.copy(error)
    said.args = (_translated(str(error.args[0])) if error.args else "",)
    advice = error.advice
    if advice == "Check the credentials":
        advice = _CREDENTIALS.get(error.provider or "", advice)
    said.advice = _translated(advice)
    return str(said)


def _translated(text: str) -> str:
    for theirs, ours in _WORDS:
        text = re.sub(theirs, ours, text)
    return text


def printable(text: str) -> str:
    """Returns a text of others as a terminal may get it: without control characters but for tabs and line ends."""
    return text.replace("\r\n", "\n").replace("\r", "\n").translate(_CONTROLS)


def say(line: str) -> None:
    """Says a line to people."""
    click.echo(f"berlin-chat: {printable(line)}", err=True)


def complain(message: str) -> None:
    """The same for what may have several lines, such as a server's words: in one."""
    say(" ".join(message.split()))


def discard_output() -> None:
    """Lets nothing more reach standard output: Python writes what is left at its end, and would complain or wait."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
