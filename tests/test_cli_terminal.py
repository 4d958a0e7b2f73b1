"""Replies as Markdown on a terminal: drawn while they grow, printed once, and whole in the scrollback."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from berlin_chat.cli.markdown import MarkdownView
from berlin_chat.server import LocalServer
from terminal import Terminal, needs_tmux
from wire import PATIENCE, YLOKH, Chunked, Connection, Recorded, Wire

#: Where an upstream waits until the test lets it go on.
STOP = "\0"


class Upstream:
    """Says pieces; at each ``STOP`` it waits for the test."""

    def __init__(self, *pieces: str) -> None:
        self._pieces = pieces
        self._permits = threading.Semaphore(0)

    def stream(self, messages: Any, model: str | None = None, **options: Any) -> Iterator[str]:
        for piece in self._pieces:
            if piece == STOP:
                assert self._permits.acquire(timeout=PATIENCE)
            else:
                yield piece

    def go_on(self) -> None:
        self._permits.release()


def in_bits(text: str, size: int = 5) -> list[str]:
    return [text[place : place + size] for place in range(0, len(text), size)]


def shown(*pieces: str, columns: int = 80, rows: int = 24, styled: bool = False, **more: str) -> str:
    """What a terminal shows at the end of a reply, the scrollback included."""
    with (
        LocalServer(upstream=Upstream(*pieces)) as server,
        Terminal("ask", "Hi", "--base-url", server.url, columns=columns, rows=rows, **more) as terminal,
    ):
        assert terminal.code() == 0
        return terminal.screen(styled)


@needs_tmux
def test_a_block_is_drawn_while_it_grows_and_again_when_it_has() -> None:
    upstream = Upstream("# Title\n\nSome **bo", STOP, "ld** words.\n\n- one\n- tw", STOP, "o\n")
    with (
        LocalServer(upstream=upstream) as server,
        Terminal("ask", "Hi", "--base-url", server.url) as terminal,
    ):
        assert terminal.wait_for("Some **bo") == "Title\n\nSome **bo"
        upstream.go_on()
        assert terminal.wait_for(" • tw") == "Title\n\nSome bold words.\n\n • one\n • tw"
        upstream.go_on()
        assert terminal.code() == 0
        assert terminal.screen() == "Title\n\nSome bold words.\n\n • one\n • two"


CODE = "".join(f"x{number} = {number}\n" for number in range(60))
ITEMS = "".join(f"- item {number} is **bold**\n" for number in range(60))


@needs_tmux
@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (40, 10), (200, 50)])
def test_what_is_higher_than_the_screen_stands_in_the_scrollback_once_and_in_its_order(columns: int, rows: int) -> None:
    text = f"Before.\n\n```python\n{CODE}```\n\nBetween.\n\n{ITEMS}\nAfter.\n"
    expected = ["Before.", *CODE.splitlines(), "Between.", *(f" • item {n} is bold" for n in range(60)), "After."]
    lines = shown(*in_bits(text), columns=columns, rows=rows).splitlines()
    assert [line for line in lines if line] == expected


@needs_tmux
def test_code_that_has_ended_is_not_shown_twice_while_half_a_line_follows_it() -> None:
    assert (
        shown_step_by_step((f"```python\n{CODE}", "x59"), ("```\n\nAf", "\nAf"), ("ter", "\nAfter")) == f"{CODE}\nAfter"
    )


@needs_tmux
def test_a_table_that_is_higher_than_the_screen_keeps_its_columns_when_a_wide_cell_comes_late() -> None:
    rows = [f"| {number} | b |\n" for number in range(50)]
    rows[45] = "| a much wider cell | b |\n"
    text = ["| a | b |\n|---|---|\n", *rows]
    steps = (("".join(text[:30]), " 27 "), ("".join(text[30:42]), " 39 "), ("".join(text[42:]), " 49 "))
    _, _, *lines = shown_step_by_step(*steps).splitlines()
    assert [line.split()[0] for line in lines] == [row.split()[1] for row in rows]
    assert {line.rindex("b") for line in lines} == {22}


@needs_tmux
def test_tables_and_wide_characters_keep_their_columns_in_a_narrow_terminal() -> None:
    table = "| name | 値 |\n|---|---:|\n| 日本 | 1 |\n| a | a longer note that has to wrap |\n"
    lines = shown(*in_bits(f"{table}\n日本語の文字が長い行に並ぶ。", 3), columns=30).splitlines()
    assert lines == [
        "  name                   値",
        " ━━━━━━━━━━━━━━━━━━━━━━━━━━━",
        "  日本                    1",
        "  a      a longer note that",
        "                has to wrap",
        "",
        "日本語の文字が長い行に並ぶ。",
    ]


def shown_step_by_step(*steps: tuple[str, str]) -> str:
    """What a terminal shows at the end of pieces, each of which comes when a text of the one before is shown."""
    upstream = Upstream(*(part for piece, _ in steps for part in (piece, STOP)))
    with (
        LocalServer(upstream=upstream) as server,
        Terminal("ask", "Hi", "--base-url", server.url) as terminal,
    ):
        for _, text in steps:
            terminal.wait_for(text)
            upstream.go_on()
        assert terminal.code() == 0
        return terminal.screen()


def test_only_the_last_block_is_drawn_again() -> None:
    paragraphs = [f"begin{n} " + "word " * 40 + f"end{n}" for n in range(20)]
    written = drawn(in_bits("\n\n".join(paragraphs)))
    for number in range(18):  # a block is finished when the next one has a whole line
        assert written.rindex(f"begin{number} ") < written.index(f"begin{number + 2} ")


def drawn(pieces: list[str], **console: Any) -> str:
    """All that is written to a terminal for these pieces."""
    file = io.StringIO()
    view = MarkdownView(Console(file=file, force_terminal=True, width=80, height=24, **console))
    with view:
        for piece in pieces:
            view.add(piece)
            view._next = 0.0  # as if time had passed
    return file.getvalue()


@needs_tmux
def test_reasoning_is_dimmed_and_stands_before_the_text(wire: Wire) -> None:
    def think(request: Recorded, connection: Connection) -> None:
        body = Chunked(connection, "text/event-stream", b"")
        for delta in ('{"reasoning_content": "Hm, "}', '{"reasoning_content": "well."}', '{"content": "**Yes.**"}'):
            body.part(b'data: {"choices": [{"index": 0, "delta": ' + delta.encode() + b"}]}\n\n")
        body.part(b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n')
        body.end()

    wire.on(*YLOKH.route, think)
    with Terminal("ask", "Hi", "--base-url", wire.url) as terminal:
        assert terminal.code() == 0
        assert terminal.screen() == "Hm, well.\n\nYes."
        assert "\x1b[2mHm, well." in terminal.screen(styled=True)


@needs_tmux
def test_no_color_leaves_bold_and_takes_the_colours() -> None:
    text = "**bold** and `code`\n\n```python\nimport os\n```\n"
    coloured, plain = shown(text, styled=True), shown(text, styled=True, NO_COLOR="1")
    colour = re.compile(r"\x1b\[[0-9;]*?(3[0-7]|9[0-7])m")
    assert colour.search(coloured)
    assert not colour.search(plain)
    assert "\x1b[1mbold" in plain


@needs_tmux
def test_raw_shows_the_text_as_it_is() -> None:
    with (
        LocalServer(upstream=Upstream("**bold** ", "text")) as server,
        Terminal("ask", "--raw", "Hi", "--base-url", server.url) as terminal,
    ):
        assert terminal.code() == 0
        assert terminal.screen() == "**bold** text"


@needs_tmux
def test_a_terminal_that_knows_only_lines_gets_the_text_as_it_is() -> None:
    assert shown("**bold** text", TERM="dumb") == "**bold** text"


def test_nothing_of_the_text_vanishes() -> None:
    text = "Use <title> & <br>, see [here](http://a.example/x), ![a](http://b.example/y), [t][1].\n\n[1]: http://c.example\n"
    written = re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", drawn([text]))
    for part in ("<title>", "<br>", "http://a.example/x", "http://b.example/y", "[t][1]", "[1]: http://c.example"):
        assert part in written


def test_control_characters_are_shown_and_not_obeyed() -> None:
    written = drawn(["a\x1b[2Jb\x07c\x9bd"])
    assert "\x1b[2J" not in written
    assert "\x07" not in written
    assert "a␛[2Jb␇c\N{REPLACEMENT CHARACTER}d" in written


def test_line_ends_of_windows_that_come_in_halves_are_line_ends() -> None:
    assert "␍" not in drawn(["one\r", "\n", "\r\n", "two\r", "\nthree\r"])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(st.sampled_from("ab `*_#-+|>\n\t[]()!~:1.日<&\\"), max_size=12), max_size=12))
def test_no_markdown_is_too_strange(pieces: list[str]) -> None:
    whole = drawn(["".join(pieces)])
    assert drawn(pieces).count("日") >= whole.count("日") // 2


def test_lines_of_code_that_stand_are_not_written_again() -> None:
    written = drawn(in_bits(f"```python\n{CODE}```\n\nAfter.\n"))
    assert 1 <= re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", written).count("x7 = 7") <= 3


@needs_tmux
def test_ctrl_c_leaves_what_has_come_and_a_line_for_the_prompt() -> None:
    upstream = Upstream("# Title\n\nSome **bold** words", STOP, " and more.")
    with (
        LocalServer(upstream=upstream) as server,
        Terminal("ask", "Hi", "--base-url", server.url) as terminal,
    ):
        terminal.wait_for("Some bold words")
        terminal.press("C-c")
        assert terminal.code() == 130
        assert terminal.screen() == "Title\n\nSome bold words"
        upstream.go_on()


@needs_tmux
def test_a_terminal_that_changes_its_size_in_mid_reply_loses_nothing() -> None:
    words = [f"word{number}" for number in range(40)]
    upstream = Upstream(" ".join(words[:20]), STOP, " " + " ".join(words[20:]), "\n\nThe end.")
    with (
        LocalServer(upstream=upstream) as server,
        Terminal("ask", "Hi", "--base-url", server.url) as terminal,
    ):
        terminal.wait_for("word19")
        terminal.resize(50, 20)
        upstream.go_on()
        assert terminal.code() == 0
        shown = terminal.screen()
    assert [word for word in words if word not in shown] == []
    assert shown.endswith("\n\nThe end.")
