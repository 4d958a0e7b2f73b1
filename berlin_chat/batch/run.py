"""One run of ``berlin-chat batch``, and what it tells people."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from time import monotonic
from typing import Any, Literal

from .description import described
from .files import Prompts
from .keys import keyed
from .outputs import Errors, Kept, Output
from .pool import ask_many
from .requests import Asker, ByCustomId, Refused, parts_of

#: How many prompts are shown in advance, and of each so many characters.
SHOWN, LENGTH = 3, 100
#: How many reasons of failures are told, and how many are told apart.
TOLD, APART = 5, 1000


def run(
    asker: Asker,
    prompts: Prompts,
    output: Output,
    errors_path: str | None,
    retry_errors: bool,
    say: Callable[[str], None],
    *,
    workers: int | Literal["auto"],
    rate: str | None,
    ordered: bool,
    ask_anew: bool,
) -> int:
    """Asks all prompts; returns how many have failed.

    Args:
        errors_path: where failures are kept; None for nowhere.
        say: is given each line for people.
    """
    started = monotonic()
    answered, failed, reasons = 0, 0, Counter[str]()
    with ExitStack() as stack:
        answers = ask_many(
            asker,
            keyed(ByCustomId(prompts)) if prompts.are_requests else prompts,
            max_workers=workers,
            ordered=ordered,
            rate=rate,
            checkpoint=output.checkpoint,
            checkpoint_mismatch="ask" if ask_anew else "refuse",
            progress=sys.stderr.isatty(),
        )
        errors = None
        if errors_path is not None:
            # Without a file to go on with, all is asked.
            errors = Errors(errors_path, described(asker, None, {}), retry_errors or output.checkpoint is None)
            stack.enter_context(closing(errors))
        if isinstance(output, Kept):
            output.errors = errors
        try:
            for answer in stack.enter_context(closing(answers)):
                output.write(answer)
                if answer.error is None:
                    answered += 1
                    continue
                failed += 1
                if (reason := " ".join(str(answer.error).split())) in reasons or len(reasons) < APART:
                    reasons[reason] += 1
                if errors is not None:
                    errors.write(answer)
        except KeyboardInterrupt:
            go_on = "" if output.checkpoint is None else "; run the same command again to go on"
            say(f"stopped. {answered} answers {output.where}{go_on}.")
            raise
    say(f"{answered} answers {output.where}")
    for reason, count in reasons.most_common(TOLD):
        say(f"{count} failed: {reason}")
    seconds = monotonic() - started
    say(
        f"{answered} answered, {failed} failed; in this run {asker.asked} asked, {asker.tokens} tokens,"
        f" {seconds:.1f} s, {asker.asked / max(seconds, 0.001):.1f} questions a second"
    )
    return failed


def tell(asker: Asker, prompts: Prompts, say: Callable[[str], None]) -> None:
    """Says what would be asked."""
    first: list[Any] = []
    count = refused = 0
    for prompt in prompts:
        if isinstance(prompt, Refused):
            refused += 1
            say(f"would not be asked: {prompt['error']}")
            continue
        count += 1
        if len(first) < SHOWN:
            first.append(prompt)
    asked = described(asker, None, {})
    say(f"{count} questions would be asked of {asked['provider']} at {asked['address']}")
    say(f"the model {asked['model']!r}, the options {asked['options']}, the system message {asked.get('system')!r}")
    for prompt in first:
        messages, model, options = parts_of(prompt)
        own = (f", of the model {model!r}" if model else "") + (f", with {options}" if options else "")
        say(f"such as: {messages!r:.{LENGTH}}{own}")
