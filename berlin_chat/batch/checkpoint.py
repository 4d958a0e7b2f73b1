"""Answers on disk, so that a batch that was killed goes on where it stood."""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

from ..errors import InvalidRequest, tell_in_one_line
from .answers import Answer, Format, PlainFormat, Recorded, as_line
from .description import differences
from .journal import Journal
from .keys import Asked, key_bytes, number_of, written
from .places import Places

#: What a line raises that is no answer.
_WRONG = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


class Checkpoint:
    """A file with one JSON object a line for each answer, for one writer. Open from ``open`` to ``close``.

    The first answer of each run also holds, as ``asked``, a description of what is asked of whom. It counts for the
    lines that follow; the file's first, for those before it, too. Answers to other questions are not found.

    ``record`` may be called from any thread; one lock guards the file.

    Args:
        path: the file, see ``Journal``. A last line that was torn is mended.
        format: how an answer is written.

    Attributes:
        description: what is asked of whom, see ``description.described``; None where that does not matter.
        has_keys: whether a prompt is known by its key, and not by its place.
        expected: how many prompts there are, 0 where that is not known.
        is_watched: whether people see how it goes on, so that they are told where it is left.
        ask_anew: whether answers to other questions are asked anew; otherwise they are refused.
        first: the lowest index that has an answer, None where there is none.
        how_to_ask_anew: what errors advise.
    """

    how_to_ask_anew = 'let those that differ be asked anew: checkpoint_mismatch="ask"'

    def __init__(self, path: str | os.PathLike[str], format: Format | None = None) -> None:
        self.path = os.fspath(path)
        self.description: dict[str, Any] | None = None
        self.has_keys = False
        self.expected, self.is_watched = 0, False
        self.ask_anew = False
        self._format: Format = format or PlainFormat()
        self._lock = threading.RLock()  # for Ctrl-C may leave it held by the thread that closes the file

    def open(self) -> None:
        """Reads what is there.

        Raises:
            InvalidRequest: it cannot be opened, is no checkpoint of this format, belongs to other questions, or another
                batch writes to it.
        """
        journal = Journal(self.path)
        try:
            self._read(journal)
        except BaseException:
            journal.close()
            raise
        self._journal = journal

    def _read(self, journal: Journal) -> None:
        self._forget()
        self._described = self.description is None
        asked: dict[str, Any] | None = None  # the description that counts for the line
        belongs = True
        identity, line = self._format.identity.match, b"\n"
        for number, place, line in journal.lines(self._format.beginning):
            match = identity(line)
            if match and line.endswith(b"}\n") and b"\0" not in line:
                if belongs:
                    self._note(int(match[1]), match[2] if match.lastindex == 2 else None, place)
                continue
            try:
                recorded = self._parsed(line)
            except _WRONG:
                if not self._is_torn(journal, line, place):
                    raise InvalidRequest(
                        f"{self.path}, line {number}, is no answer of a batch: name another file. If it was damaged,"
                        " delete the line, and its prompt is asked again"
                    ) from None
                journal.cut(place)  # its writer was killed in the middle of it
                line = b"\n"
                break
            if recorded.asked is not None:
                belongs = self.description in (None, recorded.asked)
                if asked is None and not belongs:
                    self._forget()
                asked = recorded.asked
            if belongs:
                self._note(recorded.index, None if recorded.key is None else key_bytes(recorded.key), place)
        if not belongs and not self.ask_anew:
            fields = "; ".join(differences(asked, self.description))
            raise InvalidRequest(
                f"{self.path} holds answers to other questions ({fields}): name another file, ask as before, or"
                f" {self.how_to_ask_anew}"
            )
        if not line.endswith(b"\n"):
            journal.append(b"\n")

    def _forget(self) -> None:
        self._places = Places()
        self.first: int | None = None

    def _parsed(self, line: bytes) -> Recorded:
        recorded = self._format.decode(json.loads(line))
        if not 0 <= recorded.index < 10**18 or not isinstance(recorded.asked, (dict, type(None))):
            raise ValueError(line)
        return recorded

    def _is_torn(self, journal: Journal, line: bytes, place: int) -> bool:
        """Whether it is the beginning of an answer, and not a line of a file that is somebody else's."""
        if line.endswith(b"\n"):
            return False
        if line == bytes(len(line)):
            return place > 0 and journal.is_empty_from(place)
        beginning = self._format.beginning
        try:
            json.loads(line)
        except (ValueError, RecursionError):
            return line.startswith(beginning) or (place > 0 and beginning.startswith(line))
        return False

    def _note(self, index: int, key: bytes | None, place: int) -> None:
        if self.has_keys == (key is not None):
            self._places[number_of(index, key)] = place
            if self.first is None or index < self.first:
                self.first = index
        elif not self.ask_anew:
            there, here = ("have no keys", "have keys") if self.has_keys else ("have keys", "have none")
            raise InvalidRequest(
                f"the answers in {self.path} {there}, and these prompts {here}: name another file, give the prompts as"
                f" before, or {self.how_to_ask_anew}"
            )

    def take(self, asked: Asked) -> None:
        """Is told that a prompt is taken. Raises InvalidRequest if its key has come before, or no file can hold it."""
        if self.has_keys:
            with self._lock:
                marked = self._places.mark(self._number(asked))
            if marked:
                raise InvalidRequest(
                    f"the key {asked.key!r:.100} comes twice, again with prompt {asked.index}: give each prompt a key"
                    " of its own, or its answer could not be told from the other's"
                )

    def find(self, asked: Asked) -> Answer | None:
        """Returns the answer that was recorded for a prompt, None where there is none.

        The answer to a prompt that no file can hold is an error.

        Raises:
            InvalidRequest: the answer belongs to another prompt, or was damaged.
        """
        try:
            fingerprint = self._format.fingerprint(asked.prompt)
        except (TypeError, ValueError, RecursionError) as error:
            refused = InvalidRequest(f"prompt {asked.index} cannot be kept in {self.path}: {error}")
            return Answer(asked.index, asked.prompt, None, refused, 0.0, 0, asked.key)
        with self._lock:
            place = self._places.get(self._number(asked))
            if place is None:
                return None
            recorded = self._recorded(place)
        if recorded.fingerprint == fingerprint:
            reply = recorded.reply
            return Answer(asked.index, asked.prompt, reply, None, reply.seconds, reply.attempts, asked.key)
        if self.ask_anew:
            return None
        name = f"to the key {asked.key!r:.100}" if self.has_keys else str(asked.index)
        raise InvalidRequest(
            f"{self.path} belongs to other prompts: its answer {name} is for another one. Name another file, give the"
            f" prompts that it was made from, or {self.how_to_ask_anew}"
        )

    def _recorded(self, place: int) -> Recorded:
        try:
            return self._format.decode(json.loads(self._journal.line_at(place)))
        except _WRONG:
            raise InvalidRequest(
                f"{self.path}: the answer at byte {place} cannot be read: another program has changed the file while it"
                " was in use, or the line was damaged. Delete that line, and its prompt is asked again"
            ) from None

    def _number(self, asked: Asked | Answer) -> int:
        return number_of(asked.index, key_bytes(written(asked.key)) if self.has_keys else None)

    def record(self, answer: Answer) -> None:
        """Appends an answer, in one write. An answer without a reply is left out: it is asked again next time.

        Raises:
            OSError: it is not on disk. What was recorded before is.
        """
        if answer.reply is None:
            return
        kept = answer._replace(key=written(answer.key)) if self.has_keys else answer
        with self._lock:
            line = as_line(self._format.encode(kept, None if self._described else self.description))
            try:
                place = self._journal.append(line)
            except OSError as error:
                raise OSError(f"{self.path}: the answer {answer.index} is not on disk: {error}") from error
            self._described = True
            self._places[self._number(answer)] = place

    def __enter__(self) -> Checkpoint:
        self.open()
        return self

    def __exit__(self, kind: object = None, error: object = None, traceback: object = None) -> None:
        """Closes it; Ctrl-C, or a notebook's stop button, then says how to go on."""
        self.close()
        if isinstance(error, (KeyboardInterrupt, GeneratorExit)):
            _tell_how_to_go_on(error, self)

    def close(self) -> None:
        """Forces everything to the disk, and closes the file."""
        with self._lock:
            self._journal.close()


def _tell_how_to_go_on(stopped: BaseException, checkpoint: Checkpoint) -> None:
    kept, expected = len(checkpoint._places), checkpoint.expected
    there = f"{kept:,} of {expected:,}" if expected else f"{kept:,}"
    said = f"{there} are answered, and kept in {checkpoint.path}: run the same again to go on"
    if isinstance(stopped, KeyboardInterrupt):
        stopped.args = (said,)
        tell_in_one_line(stopped, f"Stopped: {said}.")
    elif checkpoint.is_watched and kept != expected:  # what ended the loop did not come here, and cannot say it
        print(f"Stopped: {said}.", file=sys.stderr)
