"""What ``berlin-chat batch`` asks: prompts in text, CSV or JSON lines, and OpenAI's batch files."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest
from ..messages import Messages
from .requests import is_request, prompt_in, requests_in
from .texts import Text

#: How many characters a cell may have; the csv module's own limit is 131072.
LONGEST_CELL = 2**31 - 1


class Prompts:
    """The prompts of a file, read one by one each time it is iterated; those of standard input, once.

    Args:
        path: the file; ``-`` for standard input.
        column: the column of a CSV file; otherwise ``prompt``, or the first.
        encoding: the file's, see ``Text``.
        limit: how many there are at the most, from the beginning.

    Attributes:
        are_requests: whether they are the requests of one of OpenAI's batch files.
        notice: how a CSV file is read, for people; ``""`` for others.

    Raises:
        InvalidRequest: a line is none, with its number. A file is checked when this is made, standard input
            as it is read.
    """

    def __init__(
        self, path: str, column: str | None = None, encoding: str | None = None, limit: int | None = None
    ) -> None:
        self._limit = limit
        self._text = Text(path, encoding)
        self._name = self._text.name
        self._column = column
        self._count: int | None = None
        self.are_requests = False
        self.notice = ""
        self._read = self._reader(Path(path).suffix.lower())
        if path != "-":
            self._count = sum(1 for _ in self)

    def __length_hint__(self) -> int:
        return NotImplemented if self._count is None else self._count

    def __iter__(self) -> Iterator[Messages]:
        return islice(self._read(iter(self._text)), self._limit)

    def _reader(self, suffix: str) -> Callable[[Iterator[str]], Iterator[Messages]]:
        """How the file is read: by its suffix, or else by what its first line looks like."""
        first_line = self._text.first_line
        if suffix in (".csv", ".tsv"):
            self._delimiter = _delimiter(first_line, suffix)
            return self._cells
        if suffix in (".jsonl", ".ndjson", ".json") or (suffix != ".txt" and first_line.lstrip()[:1] in ("{", "[")):
            # Its first line may be a bad one.
            self.are_requests = is_request(_json_or_none(first_line)) or first_line.lstrip().startswith('{"custom_id"')
            return requests_in if self.are_requests else self._objects
        return self._lines

    def _lines(self, text: Iterator[str]) -> Iterator[Messages]:
        for line in text:
            if line.strip():
                yield line.rstrip("\r\n")

    def _cells(self, text: Iterator[str]) -> Iterator[Messages]:
        csv.field_size_limit(LONGEST_CELL)
        rows = csv.DictReader(text, delimiter=self._delimiter, strict=True)
        try:
            column = self._column_in(list(rows.fieldnames or []))
            for row in rows:
                if not (cell := row[column]) or not cell.strip():
                    raise InvalidRequest(f"{self._name}, line {rows.line_num}: the column {column!r} is empty")
                if any(row.get(None, ())):
                    raise InvalidRequest(
                        f"{self._name}, line {rows.line_num}, has more columns than the first line: put a text that"
                        f" holds {self._delimiter!r} into quotes"
                    )
                yield cell
        except csv.Error as error:
            where = f"{self._name}, the row that begins in line {rows.line_num + 1}"
            raise InvalidRequest(f"{where}: {error}") from None

    def _column_in(self, names: list[str]) -> str:
        column = self._column or ("prompt" if "prompt" in names else next(iter(names), None))
        if column is None or column not in names:
            raise InvalidRequest(f"{self._name} has no column {column!r}: it has {', '.join(map(repr, names))}")
        self.notice = (
            f"{self._name} is read as {self._text.encoding} with {self._delimiter!r} between the columns; the prompts"
            f" are in the column {column!r}"
        )
        return column

    def _objects(self, text: Iterator[str]) -> Iterator[Messages]:
        for number, line in enumerate(text, 1):
            if not line.strip():
                continue
            try:
                yield prompt_in(json.loads(line))
            except (ValueError, RecursionError) as error:  # InvalidRequest is a ValueError, too
                raise InvalidRequest(f"{self._name}, line {number}: {error}") from None


def _delimiter(first_line: str, suffix: str) -> str:
    """What separates the columns: their names tell, for the cells are prose, in which commas stand anyway."""
    try:
        return csv.Sniffer().sniff(first_line, ",;\t").delimiter
    except csv.Error:  # there is one column
        return "\t" if suffix == ".tsv" else ","


def _json_or_none(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
