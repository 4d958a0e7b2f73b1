"""``berlin-chat batch``."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Any

from ..providers import get_provider
from .options import (
    chosen_provider,
    chosen_settings,
    click,
    is_answered_here,
    options,
    provider_options,
    question_options,
)
from .words import FAILED, say


def _checked_encoding(context: Any, parameter: Any, name: str | None) -> str | None:
    try:
        b"any".decode(name or "utf-8", "replace")
    except LookupError:
        raise click.BadParameter(f"there is no encoding of text {name!r}") from None
    return name


_OPTIONS = (
    click.option(
        "-o",
        "--output",
        required=True,
        metavar="FILE",
        help="Where the answers go: a file of JSON lines, a new .csv file, or - for standard output.",
    ),
    click.option(
        "-w",
        "--workers",
        type=lambda text: text if text == "auto" else click.IntRange(1)(text),
        metavar="N",
        default=8,
        show_default=True,
        help='Questions at once; "auto" for as many as make it faster.',
    ),
    click.option("--rate", metavar="RATE", help='At most so many questions: "20/s", "60/min", "1000/hour".'),
    click.option("--column", metavar="NAME", help='The column of a CSV file; otherwise "prompt", or the first.'),
    click.option(
        "--encoding",
        callback=_checked_encoding,
        metavar="NAME",
        help="How PROMPTS is encoded, such as cp1252; otherwise UTF-8, or UTF-16 if its first bytes say so.",
    ),
    click.option("--system", metavar="TEXT", help="The system message of prompts that have none."),
    click.option(
        "--option",
        "asked_with",
        multiple=True,
        callback=question_options,
        metavar="NAME=VALUE",
        help="An option of each question, such as temperature=0.2: JSON, or else text. A line's own come first.",
    ),
    click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N prompts of the file."),
    click.option(
        "--ordered",
        is_flag=True,
        help="Write the answers in the order of the prompts. If the command is killed, those that wait for their turn"
        " are lost, up to four a worker.",
    ),
    click.option(
        "--errors",
        metavar="FILE",
        help="Where what has failed is kept, as in OpenAI's errors file. The next run does not ask it again.",
    ),
    click.option("--retry-errors", is_flag=True, help="Ask again what --errors has kept."),
    click.option(
        "--ask-anew",
        is_flag=True,
        help="Ask anew where the output has answers to other questions, of another model for instance, instead of"
        " refusing it.",
    ),
    click.option("--dry-run", is_flag=True, help="Only say what would be asked."),
)


@click.command()
@click.argument("prompts")
@options(*_OPTIONS)
@provider_options
def batch(
    prompts: str,
    output: str,
    column: str | None,
    encoding: str | None,
    system: str | None,
    asked_with: dict[str, Any],
    limit: int | None,
    errors: str | None,
    retry_errors: bool,
    dry_run: bool,
    workers: Any,
    rate: str | None,
    ordered: bool,
    ask_anew: bool,
    **given: Any,
) -> int:
    """Ask every prompt in the file PROMPTS (- for standard input).

    One prompt a line (.txt), a column of a .csv or .tsv file, or JSON lines (.jsonl): strings, {"prompt": …},
    {"messages": […]}, both also with a "model" and "options" of their own, or the requests of OpenAI's batch files,
    which are answered in the form of its output.

    Run it again with the same files to go on after an interruption, or to ask once more what has failed.

    \b
    Examples:
      berlin-chat batch prompts.txt -o answers.jsonl
      berlin-chat batch prompts.csv -o answers.csv --column question -w 32
    """
    from ..batch.files import Prompts
    from ..batch.outputs import output_named
    from ..batch.requests import Asker
    from ..batch.run import run, tell

    if retry_errors and errors is None:
        raise click.UsageError("--retry-errors needs the file that holds them: --errors FILE")
    if errors is not None and os.path.abspath(errors) == os.path.abspath(output):
        raise click.UsageError("--errors and --output name the same file")
    name, configuration = chosen_settings(**given)
    chosen = get_provider(name, **configuration)
    echo = "echo" if is_answered_here(chosen) else None  # each has another address
    asked = Prompts(prompts, column, encoding, limit)
    if asked.notice:
        say(asked.notice)
    if dry_run:
        tell(Asker(chosen, system, asked_with, echo), asked, say)
        return 0
    how = {"workers": workers, "rate": rate, "ordered": ordered, "ask_anew": ask_anew}
    with ExitStack() as stack:
        answers = output_named(output, asked.are_requests, ordered, limit, stack)
        asker = Asker(stack.enter_context(chosen_provider(**given)), system, asked_with, echo)
        return FAILED if run(asker, asked, answers, errors, retry_errors, say, **how) else 0
