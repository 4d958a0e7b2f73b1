"""Answers on disk, so that a batch that was killed goes on where it stood."""

from __future__ import annotations

import json
import os
import threading
from array import array
from time import monotonic
from typing import Any, NamedTuple, Protocol

from ..errors import ChatError, InvalidRequest
from ..reply import Reply

#: How often what was written is forced to the disk, in seconds: what a power failure can cost. A killed
#: process costs nothing, for each line is handed to the system at once.
SYNC_INTERVAL = 1.0


class Answer(NamedTuple):
    """What became of one prompt of a batch.

    Attributes:
        index: its place among the prompts, from 0.
        prompt: what was asked.
        reply: the reply, None where there is an error.
        error: why there is no reply, else None.
        seconds: how long it took, without waiting for its turn.
        attempts: how often it was sent, counting retries.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    prompt: Any
    reply: Reply | None
    error: ChatError | None
    seconds: float
    attempts: int


class Format(Protocol):
    """How an answer is written as one JSON object, and read again.

    Attributes:
        beginning: how each line begins, so that a torn one can be told from somebody else's file.
    """

    beginning: bytes

    def encode(self, answer: Answer) -> dict[str, Any]:
        """Returns the object of an answer that has a reply."""

    def decode(self, line: dict[str, Any]) -> tuple[int, Any, Reply]:
        """Returns index, fingerprint of the prompt, and reply; raises KeyError, TypeError or ValueError for others."""

    def fingerprint(self, prompt: Any) -> Any:
        """Returns what ``decode`` gives for that prompt, by which it is known again."""


class PlainFormat:
    """Index, prompt, reply, and what is known about it."""

    beginning = b'{"index": '
    _FACTS = ("provider", "model", "finish_reason", "usage", "seconds", "attempts")

    def encode(self, answer: Answer) -> dict[str, Any]:
        reply = answer.reply
        facts = {name: getattr(reply, name) for name in self._FACTS}
        return {"index": answer.index, "prompt": answer.prompt, "reply": str(reply), **facts}

    def decode(self, line: dict[str, Any]) -> tuple[int, Any, Reply]:
        reply = Reply(line["reply"], **{name: line[name] for name in self._FACTS})
        return int(line["index"]), line["prompt"], reply

    def fingerprint(self, prompt: Any) -> Any:
        return json.loads(json.dumps(prompt))  # as it looks when it comes back


class Checkpoint:
    """A file with one JSON object a line for each answer. Open from ``open`` to ``close``.

    ``record`` may be called from any thread; one lock guards the file. Two processes must not share a file.

    Args:
        path: the file; it is made where there is none. A last line that was torn is mended.
        format: how an answer is written.
    """

    def __init__(self, path: str | os.PathLike[str], format: Format | None = None) -> None:
        self.path = os.fspath(path)
        self._format: Format = format or PlainFormat()
        self._lock = threading.RLock()  # for Ctrl-C may leave it held by the thread that closes the file
        self._places = array("q")  # of each index's line in the file, -1 where there is none
        self._synced = monotonic()

    def open(self) -> None:
        """Reads what is there. Raises InvalidRequest where that is no checkpoint of this format."""
        try:
            self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115 - close() closes it
        except OSError as error:
            raise InvalidRequest(f"the checkpoint cannot be opened: {error}") from None
        try:
            self._read()
        except BaseException:
            self._file.close()
            raise

    def _read(self) -> None:
        place = 0
        line = b"\n"
        with open(self.path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    index, _, _ = self._decode(line)
                except (ValueError, KeyError, TypeError, AttributeError):
                    if self._is_torn(line, place):  # its writer was killed in the middle of it
                        self._file.truncate(place)
                        return
                    raise InvalidRequest(
                        f"{self.path}, line {number}, is no answer of a batch: name another file"
                    ) from None
                self._note(index, place)
                place += len(line)
        if not line.endswith(b"\n"):
            self._file.write(b"\n")

    def _is_torn(self, line: bytes, place: int) -> bool:
        """Whether it is the beginning of an answer, and not a line of a file that is somebody else's."""
        beginning = self._format.beginning
        try:
            json.loads(line)
        except ValueError:
            known = line.startswith(beginning) or (place > 0 and beginning.startswith(line))
            return known and not line.endswith(b"\n")
        return False

    def _decode(self, line: bytes) -> tuple[int, Any, Reply]:
        return self._format.decode(json.loads(line))

    def _note(self, index: int, place: int) -> None:
        if index < 0:
            raise ValueError(index)
        while len(self._places) <= index:
            self._places.append(-1)
        self._places[index] = place

    @property
    def first(self) -> int | None:
        """The lowest index that has an answer, None where there is none."""
        return next((index for index, place in enumerate(self._places) if place >= 0), None)

    def find(self, index: int, prompt: Any) -> Answer | None:
        """Returns the answer that was recorded for a prompt, None where there is none.

        Raises:
            InvalidRequest: the answer at that index belongs to another prompt.
        """
        with self._lock:
            place = self._places[index] if index < len(self._places) else -1
            if place < 0:
                return None
            with open(self.path, "rb") as lines:
                lines.seek(place)
                line = lines.readline()
        _, fingerprint, reply = self._decode(line)
        if fingerprint != self._format.fingerprint(prompt):
            raise InvalidRequest(
                f"{self.path} belongs to other prompts: its answer {index} is for another one. Name another file,"
                " or give the prompts that it was made from"
            )
        return Answer(index, prompt, reply, None, reply.seconds, reply.attempts)

    def record(self, answer: Answer) -> None:
        """Appends an answer, in one write. An answer without a reply is left out: it is asked again next time."""
        if answer.reply is None:
            return
        line = json.dumps(self._format.encode(answer), ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        with self._lock:
            place = self._file.seek(0, os.SEEK_END)
            try:
                if (written := self._file.write(line)) != len(line):
                    raise OSError(f"only {written} of {len(line)} bytes were written: is the disk full?")
            except OSError as error:
                self._file.truncate(place)  # a torn line must be the last, or no later run could read the file
                raise OSError(f"{self.path}: the answer {answer.index} is not on disk: {error}") from error
            self._note(answer.index, place)
            if monotonic() - self._synced > SYNC_INTERVAL:
                self._sync()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = monotonic()

    def __enter__(self) -> Checkpoint:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Forces everything to the disk, and closes the file."""
        with self._lock:
            self._sync()
            self._file.close()
