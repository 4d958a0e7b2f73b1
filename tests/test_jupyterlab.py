"""In a real JupyterLab, as a person uses it: keys are pressed in a browser, and what the page shows is looked at."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from berlin_chat import InvalidRequest
from berlin_chat.server import LocalServer
from lab import MISSING, Page, lab, until
from upstream import Upstream

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

#: The cells of the notebook, by their places.
SETUP, CHAT, LOOK, BATCH, GRID = range(5)
#: How soon the stop button must have its effect, in seconds: a busy machine takes its time.
AT_ONCE = 10.0


class Model:
    """Hands what is asked in the notebook to what the test has prepared for it."""

    default_model = "m-1"

    def __init__(self) -> None:
        self.chat, self.columns = Upstream(), [Upstream(), Upstream()]

    def stream(self, messages: Any, model: str | None = None, **options: Any) -> Iterator[str]:
        question = messages[-1]["content"]
        if question.startswith("column "):
            return self.columns[int(question[-1])].stream(messages)
        return _batch(question) if question.startswith("q") else self.chat.stream(messages)


def _batch(question: str) -> Iterator[str]:
    if question.endswith("3"):
        raise InvalidRequest("a question that fails")
    time.sleep(0.1)  # so that the batch takes its time
    yield question


@pytest.fixture(scope="module")
def model() -> Model:
    return Model()


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[LocalServer]:
    with LocalServer(upstream=model) as server:
        yield server


@pytest.fixture(scope="module")
def page(server: LocalServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    setup = f"""%load_ext berlin_chat
from berlin_chat import OpenAICompatible, ask_many, stream_many
from berlin_chat.notebook import show
provider = OpenAICompatible(base_url="{server.url}", retries=0)"""
    batch = """prompts = [f"q{n}" for n in range(1000)]
for answer in ask_many(provider, prompts, max_workers="auto", progress=True, checkpoint="answers.jsonl"):
    pass"""
    grid = 'show(stream_many(provider, ["column 0", "column 1"]))'
    folder = tmp_path_factory.mktemp("lab")
    with lab(folder) as url:
        page = Page(url, folder, setup, "", "print(repr(reply))", batch, grid)
        try:
            page.run(SETUP)
            until(lambda: page.is_done(SETUP))
            yield page
        finally:
            page.close()


def test_a_chat_grows_in_the_page_and_the_stop_button_keeps_its_text(
    page: Page, server: LocalServer, model: Model
) -> None:
    page.type(CHAT, f"%%chat --base-url {server.url}\nWhy is the sky blue?")
    page.run(CHAT)
    model.chat.pieces.put("# Head")
    until(lambda: page.output(CHAT, "h1") == "Head")
    model.chat.pieces.put("line\n\nSome **bold** text")
    until(lambda: page.output(CHAT, "h1") == "Headline")
    until(lambda: page.output(CHAT, "strong") == "bold")
    assert not model.chat.ended.is_set()
    assert not page.is_done(CHAT)
    alive = "<img src=x onerror=\"document.body.dataset.caught = 'alive'\"> [a link](javascript:void)"
    model.chat.pieces.put(f", {alive}\n\n```python\nfor x in y:\n    print(x)\n```\n\n$a_1$ and `List<int>`")
    until(lambda: page.output(CHAT, "code").startswith("for x in y:"))
    page.screenshot(CHAT, "growing")
    pressed = time.monotonic()
    page.press_stop()
    until(lambda: page.is_done(CHAT))
    assert time.monotonic() - pressed < AT_ONCE
    assert model.chat.was_left()
    shown = page.output(CHAT)
    assert shown.startswith("Headline\nSome bold text, <img src=x onerror=")
    assert shown.endswith("Stopped. What has come is kept as reply and in the conversation.")
    page.run(LOOK)
    until(lambda: "# Headline" in page.output(LOOK))
    assert page.script("return document.body.dataset.caught") is None
    assert page.script("return [...document.links].filter(link => link.protocol == 'javascript:').length") == 0
    assert page.screenshot(CHAT, "stopped").stat().st_size > 10_000


def test_the_bar_of_a_batch_says_all_and_the_stop_button_how_to_go_on(page: Page) -> None:
    page.run(BATCH)
    until(lambda: "errors=" in page.output(BATCH) and "workers=" in page.output(BATCH))
    page.screenshot(BATCH, "bar")
    bar = page.output(BATCH)
    assert re.search(r"\d/1000\s\[\d\d:\d\d<\d\d:\d\d,", bar)  # the time that has passed, and what is left
    assert "answers/s" in bar
    pressed = time.monotonic()
    page.press_stop()
    until(lambda: page.is_done(BATCH))
    assert time.monotonic() - pressed < AT_ONCE
    last = page.output(BATCH).splitlines()[-1]
    assert last.startswith("Stopped: ")
    assert last.endswith(" of 1,000 are answered, and kept in answers.jsonl: run the same again to go on.")
    assert "Traceback" not in page.output(BATCH)
    page.screenshot(BATCH, "bar-stopped")


def test_replies_grow_side_by_side(page: Page, model: Model) -> None:
    first, second = model.columns
    page.run(GRID)
    first.pieces.put("one <b>")
    second.pieces.put("two")
    until(lambda: page.output(GRID).split() == ["0", "one", "<b>", "1", "two"])
    assert not page.is_done(GRID)
    second.say(" three")
    first.say(" more")
    until(lambda: page.is_done(GRID))
    until(lambda: page.output(GRID).split() == ["0", "one", "<b>", "more", "1", "two", "three"])
    page.screenshot(GRID, "grid")
    left, right = page.places(GRID, "div[style*='border']")
    assert left[1] == right[1]
    assert left[0] < right[0]
