"""The lines of a file of prompts, in the encoding that it has."""

from __future__ import annotations

import codecs
import io
import re
import sys
from collections.abc import Generator, Iterator
from itertools import chain
from typing import IO, Any

from ..errors import InvalidRequest

#: How a file begins that says itself how it is encoded.
_BEGINNINGS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
#: What stands for bytes that are no text of the encoding: half of a surrogate pair, which is no text in any.
_MARK, _UNDECODABLE = "\udcff", "berlin_chat.undecodable"
_WRONG = re.compile(f"[{_MARK}\0]")


def _marked(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return _MARK, error.end


# Decoders work ahead of the line that is read: an error of theirs could not be told with its line.
codecs.register_error(_UNDECODABLE, _marked)


class Text:
    """The lines of a file, read one by one each time it is iterated; those of standard input, once.

    Args:
        path: the file; ``-`` for standard input.
        encoding: otherwise what the file's first bytes say, or UTF-8.

    Attributes:
        name: what errors call it.
        first_line: ``""`` in an empty file.

    Raises:
        InvalidRequest: it cannot be read, or while a line is read, its bytes are no text of the encoding.
    """

    def __init__(self, path: str, encoding: str | None = None) -> None:
        self._path = path
        self.name = "standard input" if path == "-" else path
        binary = self._open()
        begins = binary.peek(4)
        said = next((name for begin, name in _BEGINNINGS if begins.startswith(begin)), "utf-8")
        self.encoding = encoding or said
        lines = self._lines(binary)
        self.first_line = next(lines, "")
        if path == "-":
            self._once = chain([self.first_line], lines) if self.first_line else iter(())
        else:
            lines.close()

    def __iter__(self) -> Iterator[str]:
        return self._once if self._path == "-" else self._lines(self._open())

    def _open(self) -> Any:
        try:
            return sys.stdin.buffer if self._path == "-" else open(self._path, "rb")
        except OSError as error:
            raise InvalidRequest(f"the prompts cannot be read: {error}") from None

    def _lines(self, binary: IO[bytes]) -> Generator[str, None, None]:
        with io.TextIOWrapper(binary, self.encoding, _UNDECODABLE, newline="") as text:
            for number, line in enumerate(text, 1):
                if wrong := _WRONG.search(line):
                    reason = "holds a NUL byte" if wrong[0] == "\0" else f"has bytes that are no {self.encoding}"
                    raise InvalidRequest(
                        f"{self.name}, line {number}, {reason}: name the encoding of the file, as in --encoding cp1252"
                        " or --encoding utf-16"
                    )
                yield line.removeprefix("\ufeff") if number == 1 else line
