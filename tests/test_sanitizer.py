"""Markdown of strangers: it looks as they meant it, and nothing in it is alive, however it is read."""

from __future__ import annotations

import html
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from berlin_chat import Reply
from berlin_chat.sanitizer import harmless

TAG = re.compile(r"<(/?[A-Za-z!?][^>]*)>?")


def is_dead(text: str) -> bool:
    """Whether it has no tag but ours, and no address of a script."""
    tags = {tag.strip() for tag in TAG.findall(text)}
    markdown = MarkdownIt("commonmark", {"html": True})
    markdown.validateLink = lambda url: True  # type: ignore[method-assign]  # not every program refuses scripts itself
    rendered = markdown.render(text)
    # What browsers and Markdown make of an address, looked for where it is written and where it has become one.
    addresses = [
        re.sub(r"[\t\r\n\\]", "", html.unescape(found)).lower()
        for found in (text, *re.findall(r'href="(.*?)"', rendered))
    ]
    links = [address for address in addresses[1:] if address.strip("\0 ").startswith("javascript:")]
    return tags <= {"pre", "code", "/code", "/pre"} and not links


@pytest.mark.parametrize(
    "text",
    [
        "**bold**, _italic_ and `code`",
        "# Why\n\n- a\n- b\n\n> quoted\n\n| a | b |\n|---|---|\n| 1 | 2 |",
        "1 < 2 && 3 > 2, a <- b, R&D, AT&T",
        "```python\nif a < b and c > d:\n    pass\n```",
        "[a link](https://example.com/?a=1&b=2) and ![an image](https://example.com/i.png)",
        "$a < b$ and $$\\begin{matrix} a & b \\\\ c & d \\end{matrix}$$",
        "JavaScript: a language. TypeScript, too.",
        "",
    ],
)
def test_what_is_harmless_stays_as_it_is(text: str) -> None:
    assert harmless(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>alert(1)</script>", "&lt;script>alert(1)&lt;/script>"),
        ("a <b>bold</b> \\<i>", "a &lt;b>bold&lt;/b> &lt;i>"),
        ("<!-- hidden --> <?php ?>", "&lt;!-- hidden --> &lt;?php ?>"),
        ("&lt;b&gt; &copy; &amp;lt;", "&lt;b> © &amp;lt;"),
        ("`List<int>` and ``a ` <b>``", None),
        ("```html\n<b>\n\n</b>\n```\nend", None),
        ("~~~\n<b>", None),
        ("- one\n\n  ```\n  <b>\n  ```\n", None),
        ("$a<b$", "$a< b$"),
        ("$$\na&b<c\n$$<b>", "$$\na& b< c\n$$&lt;b>"),
    ],
)
def test_html_is_shown_as_text(text: str, shown: str | None) -> None:
    dead = harmless(text)
    assert is_dead(dead)
    if shown is not None:
        assert dead == shown
    else:  # code: nothing of it is lost
        before, after = (re.sub(r"<[^>]*>|\s", "", _rendered(found)) for found in (text, dead))
        assert html.unescape(before) == html.unescape(after)


def _rendered(text: str) -> str:
    return MarkdownIt("commonmark", {"html": True}).render(text)


@pytest.mark.parametrize(
    "address",
    [
        "javascript:alert(1)",
        "JaVaScRiPt:alert(1)",
        "javascript\\:alert(1)",
        "&#106;avascript:alert(1)",
        "&#106avascript:alert(1)",
        "&#x6A;avascript:alert(1)",
        "javascript&colon;alert(1)",
        "java&Tab;script:alert(1)",
        "&amp;#106;avascript:alert(1)",
        "\x01javascript:alert(1)",
    ],
)
@pytest.mark.parametrize("text", ["[x]({})", "[x][y]\n\n[y]: {}", "![x]({})", "<{}>", "`[x]({})", "$ [x]({}) $"])
def test_no_link_runs_a_script(text: str, address: str) -> None:
    assert is_dead(harmless(text.format(address)))


@pytest.mark.parametrize("space", ["\xa0", "\u2003", "\x85", "\x0b", "\x0c", "&nbsp;"])
def test_only_a_space_a_tab_or_a_line_end_is_taken_for_the_end_of_an_address(space: str) -> None:
    dead = harmless(f"[x](javascript:{space}alert(1))")
    assert dead == f"[x](java script:{html.unescape(space)}alert(1))"
    assert is_dead(dead)


@pytest.mark.parametrize(
    "text", ["[x](< javascript: alert(1)>)", "[x](<&#32;javascript: alert(1)>)", "[x]\n\n[x]: <\xa0{}>"]
)
def test_an_address_in_angle_brackets_runs_no_script_behind_a_space(text: str) -> None:
    assert is_dead(harmless(text.format("javascript: alert(1)")))


def test_mathematics_links_to_no_script() -> None:
    for text in (
        r"$\href{javascript:alert(1)}{x}$",
        "$$\\href{java\nscript: alert(1)}{x}$$",
        r"\(\href{ javascript: a}{x}\)",
    ):
        assert not re.search(r"java\s*script\s*:", harmless(text).replace("java script", ""))


pieces = st.sampled_from(
    [
        "<b>",
        "<",
        "script",
        "/",
        "!",
        "&lt;",
        "&",
        "#60;",
        "`",
        "``",
        "```",
        "```\n",
        "~~~\n",
        "\n",
        " ",
        "    ",
        "$",
        "$$",
    ]
    + [
        "\\",
        "javascript:",
        "[x](",
        ")",
        "a",
        ">",
        "- ",
        "|",
        "</code>",
        "</pre>",
        "\n\n",
        "\\(",
        "&#106;avascript:",
        "\xa0",
    ]
)


@given(st.lists(pieces, max_size=25).map("".join))
def test_nothing_is_alive_whatever_stands_around_it(text: str) -> None:
    assert is_dead(harmless(text))


@pytest.mark.parametrize(
    "text", ["<a`" * 30_000, "$" * 99_999 + "<a", "```\n" * 30_000 + "<a", "`` ` " * 20_000 + "<a", "&#" * 50_000]
)
def test_it_takes_a_time_that_grows_with_the_length_only(text: str) -> None:
    started = time.process_time()
    assert is_dead(harmless(text)[:1000])
    assert time.process_time() - started < 5


def test_a_notebook_is_given_what_is_harmless() -> None:
    assert Reply("**a** <b>")._repr_markdown_() == "**a** &lt;b>"
