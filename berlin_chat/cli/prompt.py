"""What is asked: the words of the command line, standard input, and the files that are attached."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

from ..errors import InvalidRequest
from ..messages import image
from .options import click, question_options
from .words import say

#: Standard input by name, as a prompt and as a file.
DASH = "-"
#: After so many seconds without a byte, the command says what it waits for.
_PATIENCE = 3.0
SYSTEM = click.option("-s", "--system", metavar="TEXT", help="The system message.")
OPTION = click.option(
    "-o",
    "--option",
    "asked_with",
    multiple=True,
    callback=question_options,
    metavar="NAME=VALUE",
    help="An option of the question, such as temperature=0.2: JSON, or else text. May be given several times.",
)
ATTACH = click.option(
    "-a",
    "--attach",
    "files",
    multiple=True,
    metavar="FILE",
    help="Send an image, or the text of a file with its name; - for standard input. May be given several times.",
)


def question(words: tuple[str, ...], files: tuple[str, ...]) -> str | list[dict[str, Any]]:
    """Returns the content of the message that a command line asks for: a text, or parts if there are images.

    Standard input follows the words, after an empty line, if it is named by ``-`` or is no terminal.
    """
    named = DASH in words
    texts = [" ".join(_decoded(word) for word in words if word != DASH)]
    if DASH not in files and sys.stdin is not None and (named or not sys.stdin.isatty()):
        # Without a BOM, and without the line end that echo adds.
        texts.append(_standard_input().decode("utf-8-sig", "replace").rstrip("\r\n"))
    images = []
    for path in files:
        part = _attached(path)
        if isinstance(part, str):
            texts.append(part)
        else:
            images.append(part)
    text = "\n\n".join(text for text in texts if text.strip())
    if not text and not images:
        raise click.UsageError('there is no prompt: give one, as in: berlin-chat ask "Why is the sky blue?"')
    if not images:
        return text
    return [*([{"type": "text", "text": text}] if text else []), *images]


def _decoded(word: str) -> str:
    """An argument as text, also where the locale's encoding has no word for its bytes."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return os.fsencode(word).decode("utf-8", "replace")
    return word


def _standard_input() -> bytes:
    """All of it. If nothing comes for a while, it says what it waits for: a pipe may have been inherited by mistake."""
    told = os.name == "nt" or sys.stdin.isatty()  # select knows no pipes there
    parts: list[bytes] = []
    try:
        while True:
            if not told:
                from select import select

                if not select([sys.stdin], [], [], _PATIENCE)[0]:
                    told = True
                    say("waiting for the end of standard input; if the words were all, give it none: </dev/null")
            data = os.read(sys.stdin.fileno(), 2**16)
            if not data:
                return b"".join(parts)
            parts.append(data)
    except OSError:  # nohup gives one that cannot be read
        return b"".join(parts)


def _attached(path: str) -> str | dict[str, Any]:
    """A file as a part of the message that shows an image, or else as text with its name."""
    if path == DASH:
        data = b"" if sys.stdin is None else _standard_input()
    else:
        with open(path, "rb") as file:
            data = file.read()
    try:
        return image(data)
    except InvalidRequest:
        pass
    name = "standard input" if path == DASH else os.path.basename(path)
    try:
        text = data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except ValueError:
        text = "\0"
    if "\0" in text:
        raise click.BadParameter(f"{path} is neither an image nor text in UTF-8", param_hint="--attach")
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`{3,}", text))])
    return f"{_decoded(name)}:\n{fence}\n{text.rstrip()}\n{fence}"
