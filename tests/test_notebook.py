"""In a notebook: replies that grow, %%chat, the stop button and bars, in a real kernel."""

from __future__ import annotations

import os
import pickle
import re
import signal
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

from berlin_chat import ChatError, InvalidRequest, Reply
from berlin_chat.notebook import Stopped, show
from berlin_chat.notebook.drawing import INTERVAL, RATE
from berlin_chat.notebook.magic import chosen
from berlin_chat.server import LocalServer
from upstream import END, PATIENCE, Upstream

ROOT = Path(__file__).parent.parent
README, TOUR = ROOT / "README.md", ROOT / "scripts" / "tour.ipynb"
#: How long a cell may take, and when the stop button is pressed again, in seconds.
CELL, PRESSED_AGAIN = 60.0, 2.0


@pytest.fixture(scope="module")
def jupyter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The kernel that ipykernel has installed beside this Python; nothing of the person's is looked for."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("JUPYTER_PREFER_ENV_PATH", "1")
        environment.setenv("JUPYTER_CONFIG_DIR", str(tmp_path_factory.mktemp("jupyter")))
        environment.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
        environment.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
        yield


def executed(*codes: str) -> list[Any]:
    """The cells of a notebook that was run."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in codes])
    NotebookClient(notebook, timeout=CELL, kernel_name="python3").execute()
    return list(notebook.cells)


def printed(cell: Any) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def shown(cell: Any, kind: str = "text/markdown") -> list[str]:
    """What a cell shows, of that type."""
    return [output.data[kind] for output in cell.outputs if kind in output.get("data", {})]


# A notebook that is run from its first cell to its last

SETUP = """
from berlin_chat import ask_many, stream_many
from berlin_chat.notebook import show
from berlin_chat.server import LocalServer
server = LocalServer().start()
provider = server.provider("h2o")
"""
STREAM = """
for piece in provider.stream("Hello from a notebook"):
    print(piece, end="", flush=True)
"""
BATCH = """
answers = list(ask_many(provider, [f"q{n}" for n in range(20)], progress=True))
print(len(answers), server.conversations)
"""
SHOW = 'show(server.provider("openai").stream("**Hello**"))'
AGAIN = "_"
ASK = 'provider.ask("<img src=x onerror=alert(1)> and **more**")'
GRID = 'replies = show(stream_many(provider, ["one", "<b>two</b>"]))\nreplies'
LOAD = "%load_ext berlin_chat"
CHAT = "%%chat\nHow do you do?"
GO_ON = "%%chat second\nAnd **now**?"
LOOKED = "talk = %chat\nprint(reply.finish_reason, reply, second, [message['role'] for message in talk.messages])"


@pytest.fixture(scope="module")
def cells(jupyter: None) -> dict[str, Any]:
    """What became of each cell, by its code."""
    codes = (SETUP, STREAM, BATCH, SHOW, AGAIN, ASK, GRID, LOAD, CHAT, GO_ON, LOOKED)
    return dict(zip(codes, executed(*codes), strict=True))


def test_a_loop_in_a_notebook_prints_the_reply(cells: dict[str, Any]) -> None:
    assert printed(cells[STREAM]).endswith("You said: Hello from a notebook")


def test_the_bar_in_a_notebook_is_one_of_the_notebooks(cells: dict[str, Any]) -> None:
    assert shown(cells[BATCH], "application/vnd.jupyter.widget-view+json")
    assert printed(cells[BATCH]).strip() == "20 []"


def test_a_reply_is_shown_as_markdown_and_once_only(cells: dict[str, Any]) -> None:
    (text,) = shown(cells[SHOW])
    assert text.endswith("You said: **Hello**")
    assert len(cells[SHOW].outputs) == 1


def test_a_reply_that_was_shown_can_be_shown_again_in_another_cell(cells: dict[str, Any]) -> None:
    assert shown(cells[AGAIN]) == shown(cells[SHOW])


def test_html_in_a_reply_is_text(cells: dict[str, Any]) -> None:
    (text,) = shown(cells[ASK])
    assert text.endswith("&lt;img src=x onerror=alert(1)> and **more**")


def test_replies_stand_side_by_side_and_their_html_is_text(cells: dict[str, Any]) -> None:
    (grid,) = shown(cells[GRID], "text/html")
    assert grid.count("You said: ") == 2
    assert "&lt;b&gt;two&lt;/b&gt;" in grid
    assert "<b>" not in grid
    assert len(cells[GRID].outputs) == 1


def test_without_any_address_an_echo_answers_and_says_so(cells: dict[str, Any]) -> None:
    assert "an echo inside this notebook answers" in printed(cells[CHAT])
    (text,) = shown(cells[CHAT])
    assert text.endswith("You said: How do you do?")
    assert printed(cells[GO_ON]) == ""


def test_the_next_cell_goes_on_with_the_conversation(cells: dict[str, Any]) -> None:
    (text,) = shown(cells[GO_ON])
    assert "And **now**?" in text  # what was said before is tested by the messages, below


def test_the_replies_are_in_variables(cells: dict[str, Any]) -> None:
    looked = printed(cells[LOOKED])
    assert looked.startswith("stop This is the echo")
    assert "['user', 'assistant', 'user', 'assistant']" in looked


def test_the_tour_runs_and_is_kept_without_outputs(jupyter: None, tmp_path: Path) -> None:
    notebook = nbformat.read(TOUR, as_version=4)
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(codes) > 5
    assert not any(cell.outputs or cell.execution_count for cell in codes)
    NotebookClient(notebook, timeout=CELL, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    assert [cell.source.partition(" ")[0] for cell in codes if not cell.outputs] == ["from", "%load_ext"]


# A kernel at work, whose replies come when the test lets them


class Kernel:
    """A real kernel."""

    def __init__(self) -> None:
        self.manager, self.client = start_new_kernel(kernel_name="python3")
        self.process = int(self.value("__import__('os').getpid()"))

    def run(self, code: str, seen: Callable[[str, Any], None] | None = None) -> list[tuple[str, Any]]:
        """Runs a cell; returns its messages: type and content. ``seen`` is given each as it comes."""
        messages: list[tuple[str, Any]] = []

        def hook(message: Any) -> None:
            kind, content = message["header"]["msg_type"], message["content"]
            if kind in ("stream", "display_data", "update_display_data", "execute_result", "error"):
                messages.append((kind, content))
                if seen is not None:
                    seen(kind, content)

        self.client.execute_interactive(code, timeout=CELL, output_hook=hook, store_history=True)
        return messages

    def value(self, expression: str) -> str:
        """What an expression is in the kernel, as printed."""
        return "".join(content["text"] for kind, content in self.run(f"print(({expression}))") if kind == "stream")[:-1]

    def interrupt(self) -> None:
        """What the stop button does; for any thread, as the manager's own is not."""
        os.kill(self.process, signal.SIGINT)

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel()


def drawn(messages: list[tuple[str, Any]], kind: str = "text/markdown") -> list[str]:
    """What was drawn, in its order."""
    return [content["data"][kind] for _, content in messages if kind in content.get("data", {})]


def complaint(messages: list[tuple[str, Any]]) -> list[str]:
    """The lines of the error that a cell shows."""
    (error,) = (content for kind, content in messages if kind == "error")
    return "\n".join(error["traceback"]).splitlines()


@pytest.fixture(scope="module")
def running(jupyter: None) -> Iterator[Kernel]:
    kernel = Kernel()
    try:
        kernel.run(
            "%load_ext berlin_chat\nfrom berlin_chat import OpenAICompatible\nfrom berlin_chat.notebook import show"
        )
        yield kernel
    finally:
        kernel.close()


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


@pytest.fixture
def server(upstream: Upstream) -> Iterator[LocalServer]:
    with LocalServer(upstream=upstream) as server:
        yield server


@pytest.fixture
def kernel(running: Kernel, server: LocalServer) -> Kernel:
    """One that has a provider for the server."""
    running.run(f"provider = OpenAICompatible(base_url={server.url!r}, retries=0)\nreply = None")
    return running


def chat(server: LocalServer, question: str, options: str = "-s ''") -> str:
    return f"%%chat --base-url {server.url} {options}\n{question}"


@contextmanager
def stopping(kernel: Kernel, upstream: Upstream, text: str, questions: int = 1) -> Iterator[Callable[[str, Any], None]]:
    """Presses the stop button as soon as this is shown, and so many questions have arrived.

    It is pressed again if nothing happens, as people do: a signal that comes in the moment in which a read begins does
    not end that read, in any program of Python's, and this moment is a likely one here.
    """
    shown, done = threading.Event(), threading.Event()

    def seen(kind: str, content: Any) -> None:
        if text in content.get("data", {}).get("text/plain", ""):
            shown.set()

    def press() -> None:
        if shown.wait(PATIENCE) and upstream.has_been_asked(questions):
            kernel.interrupt()
        while not done.wait(PRESSED_AGAIN):
            kernel.interrupt()

    pressing = threading.Thread(target=press)
    pressing.start()
    try:
        yield seen
    finally:
        done.set()
        pressing.join()
    assert shown.is_set(), f"{text!r} was never shown"


def test_each_piece_is_drawn_although_none_follows(kernel: Kernel, upstream: Upstream) -> None:
    waiting = ["# One", "\n\ntwo", " **three**"]

    def seen(kind: str, content: Any) -> None:
        # The next piece is said when all before it is seen; several come too fast for a redraw each.
        if "data" in content and content["data"]["text/plain"] in ("…", "# One", "# One\n\ntwo"):
            upstream.pieces.put(waiting.pop(0))
        elif "data" in content and not waiting:
            upstream.pieces.put(END)

    texts = drawn(kernel.run('reply = show(provider.stream("Hi"))', seen))
    assert list(dict.fromkeys(texts)) == ["…", "# One", "# One\n\ntwo", "# One\n\ntwo **three**"]
    assert kernel.value("reply.finish_reason, len(reply)") == "('stop', 20)"


class Paced:
    """Says a piece so many times, evenly spaced: what takes no time is drawn once."""

    default_model = "m-1"

    def __init__(self, piece: str, times: int, seconds: float) -> None:
        self.said = piece * times
        self._piece, self._times, self._pause = piece, times, seconds / times

    def stream(self, messages: Any, model: str | None = None, **options: Any) -> Iterator[str]:
        for _ in range(self._times):
            time.sleep(self._pause)
            yield self._piece


def shown_paced(kernel: Kernel, paced: Paced) -> tuple[list[str], float]:
    """All that was drawn of it, and the seconds that it took."""
    with LocalServer(upstream=paced) as server:
        code = f'reply = show(OpenAICompatible(base_url={server.url!r}).stream("Hi"))\nprint(reply.seconds)'
        messages = kernel.run(code)
    (seconds,) = (content["text"] for kind, content in messages if kind == "stream")
    return drawn(messages), float(seconds)


def test_a_fast_reply_is_drawn_twenty_times_a_second_at_most(kernel: Kernel) -> None:
    paced = Paced("word ", 500, 1.0)
    texts, seconds = shown_paced(kernel, paced)
    assert texts[-1] == paced.said
    assert len(texts) <= seconds / INTERVAL + 4  # before the first piece, at it, on the way, at the end


def test_a_long_reply_is_not_sent_again_and_again(kernel: Kernel) -> None:
    paced = Paced("x" * 1999 + "\n", 100, 1.5)
    texts, seconds = shown_paced(kernel, paced)
    assert texts[-1] == paced.said
    # One more may be under way, and the last is always drawn.
    assert sum(map(len, texts)) <= seconds * RATE + 2 * len(paced.said)


def test_no_thread_is_left_when_a_reply_is_whole(kernel: Kernel, upstream: Upstream) -> None:
    upstream.say("Hi")
    kernel.run('reply = show(provider.stream("Hi"))\nimport threading')
    assert "canvas" not in kernel.value("[thread.name for thread in threading.enumerate()]")


def test_the_thoughts_are_shown_until_the_text_comes(kernel: Kernel) -> None:
    code = """
    from berlin_chat.notebook.growing import Growing
    from berlin_chat import Event
    growing = Growing()
    growing.add(Event("reasoning", "Hm, <b> or"))
    print(growing.content())
    growing.add("Yes")
    print(growing.content())
    """
    (thoughts, text) = kernel.run(textwrap.dedent(code))[0][1]["text"].splitlines()
    assert "Hm, &lt;b&gt; or" in thoughts
    assert "Hm" not in text


stops = pytest.mark.skipif(os.name == "nt", reason="sends SIGINT to another process")


@stops
def test_the_stop_button_ends_a_reply_and_keeps_its_text(
    kernel: Kernel, upstream: Upstream, server: LocalServer
) -> None:
    upstream.pieces.put("Half of")
    with stopping(kernel, upstream, "Half of") as seen:
        messages = kernel.run('try:\n    show(provider.stream("Hi"))\nexcept KeyboardInterrupt as e: stopped = e', seen)
    assert upstream.was_left()
    assert drawn(messages)[-1] == "Half of"
    assert kernel.value("stopped.reply") == "Half of"
    assert kernel.value("type(stopped.reply).__mro__[2].__name__") == "Reply"


@stops
def test_the_stop_button_is_told_in_one_line(kernel: Kernel, upstream: Upstream) -> None:
    upstream.pieces.put("Half of")
    with stopping(kernel, upstream, "Half of") as seen:
        messages = kernel.run('show(provider.stream("Hi"))', seen)
    assert upstream.was_left()
    assert complaint(messages) == ["Stopped. The text so far stands above, and is the .reply of this exception."]


def test_chat_streams_a_cell_and_keeps_the_reply(kernel: Kernel, upstream: Upstream, server: LocalServer) -> None:
    upstream.say("So", " **so**")
    messages = kernel.run(chat(server, "How are\nyou?", '-n -s "Be brief."'))
    assert drawn(messages)[-1] == "So **so**"
    assert [message["content"] for message in upstream.asked[0]] == ["Be brief.", "How are\nyou?"]
    assert kernel.value("reply, reply.finish_reason, type(reply).__name__") == "('So **so**', 'stop', 'ShownReply')"


def test_chat_goes_on_with_what_was_said_until_it_is_to_begin_anew(
    kernel: Kernel, upstream: Upstream, server: LocalServer
) -> None:
    for question in (
        chat(server, "one", '-s "Be brief."'),
        "%%chat -p openai\ntwo",
        "%%chat -m other third\nthree",
        "%%chat -n\nfour",
    ):
        upstream.say("yes")
        kernel.run(question)
    roles = [[message["content"] for message in messages] for messages in upstream.asked]
    assert roles == [
        ["Be brief.", "one"],
        ["Be brief.", "one", "yes", "two"],
        ["Be brief.", "one", "yes", "two", "yes", "three"],
        ["Be brief.", "four"],
    ]
    assert kernel.value("third") == "yes"


@stops
def test_a_chat_that_is_stopped_keeps_its_turn(kernel: Kernel, upstream: Upstream, server: LocalServer) -> None:
    upstream.pieces.put("Half of")
    with stopping(kernel, upstream, "Half of") as seen:
        messages = kernel.run(chat(server, "Why?"), seen)
    assert complaint(messages) == ["Stopped. What has come is kept as reply and in the conversation."]
    assert upstream.was_left()
    assert drawn(messages)[-1] == "Half of"
    assert kernel.value("repr(reply)") == "'Half of'"
    upstream.say("Well")
    kernel.run("%%chat\nGo on")
    assert [message["content"] for message in upstream.asked[-1]] == ["Why?", "Half of", "Go on"]


@stops
def test_a_chat_that_is_stopped_before_anything_comes_takes_the_question_back(
    kernel: Kernel, upstream: Upstream, server: LocalServer
) -> None:
    with stopping(kernel, upstream, "…") as seen:
        messages = kernel.run(chat(server, "Why?"), seen)
    assert complaint(messages) == ["Stopped. Nothing had come, and the question is taken back."]
    assert kernel.value("repr(reply)") == "''"
    assert upstream.was_left()
    assert kernel.value("get_ipython().run_line_magic('chat', '').turns") == "()"


def test_an_error_in_a_chat_is_one_line_and_keeps_what_came(kernel: Kernel, server: LocalServer) -> None:
    kernel.run("reply = 'old'")
    (line,) = complaint(kernel.run("%%chat -n -p openai --base-url http://127.0.0.1:9\nHi"))
    assert line.startswith("APIConnectionError: openai at http://127.0.0.1:9")
    assert kernel.value("repr(reply)") == "''"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("%%chat -p gpt\nHi", "there is no provider 'gpt': choose from berlin, ylokh, h2o, acytoo, openai"),
        ("%%chat\n \n", "there is no question: write it below the line with %%chat"),
        ("%%chat --what\nHi", "unrecognized arguments: --what"),
        ("%%chat Why is it\nHi", "unrecognized arguments: is it"),
        ("%%chat Why?\nHi", "'Why?' cannot be the name of a variable"),
        ('%%chat -s "Be\nHi', "No closing quotation"),
        ("%chat Why", "to ask, write %%chat, and the question below it"),
    ],
)
def test_wrong_use_of_chat_is_told_in_one_line(kernel: Kernel, code: str, said: str) -> None:
    messages = kernel.run(code)
    told = "".join(content.get("text", "") for kind, content in messages if kind == "stream")
    told += "".join("".join(content["traceback"]) for kind, content in messages if kind == "error")
    assert said in told
    assert len(told.strip().splitlines()) == 1


def test_loading_the_extension_again_leaves_one_magic_that_works(
    kernel: Kernel, upstream: Upstream, server: LocalServer
) -> None:
    kernel.run("%reload_ext berlin_chat")
    upstream.say("yes")
    assert drawn(kernel.run(chat(server, "Hi")))[-1] == "yes"


@stops
def test_the_stop_button_ends_a_batch_and_says_how_to_go_on(
    kernel: Kernel, server: LocalServer, upstream: Upstream, tmp_path: Path
) -> None:
    upstream.say("first")
    file = tmp_path / "answers.jsonl"
    code = f"""
    from berlin_chat import ask_many
    display("asking")
    answers = list(ask_many(provider, ["a", "b", "c"], max_workers=1, checkpoint={str(file)!r}))
    """
    with stopping(kernel, upstream, "asking", questions=2) as seen:
        messages = kernel.run(textwrap.dedent(code), seen)
    assert upstream.was_left()
    told = f"Stopped: 1 of 3 are answered, and kept in {file}: run the same again to go on."
    assert complaint(messages) == [told]


@stops
def test_a_batch_with_a_bar_says_it_also_where_its_loop_is_left(
    kernel: Kernel, server: LocalServer, upstream: Upstream, tmp_path: Path
) -> None:
    upstream.say("first")
    file = tmp_path / "answers.jsonl"
    code = f"""
    import time
    from berlin_chat import ask_many
    for answer in ask_many(provider, ["a", "b", "c"], max_workers=1, checkpoint={str(file)!r}, progress=True):
        display(answer.reply)
        time.sleep({CELL})
    """
    with stopping(kernel, upstream, "first", questions=2) as seen:
        messages = kernel.run(textwrap.dedent(code), seen)
    assert upstream.was_left()
    told = "".join(content["text"] for kind, content in messages if kind == "stream")
    assert told == f"Stopped: 1 of 3 are answered, and kept in {file}: run the same again to go on.\n"


def test_the_cells_of_the_readme_run(kernel: Kernel, upstream: Upstream, server: LocalServer) -> None:
    load, first, second = re.findall(
        r"^```ipython\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert "error" not in [kind for kind, _ in kernel.run(load.replace("load_ext", "reload_ext"))]
    upstream.say("Because.")
    assert drawn(kernel.run(first.replace("http://127.0.0.1:11434", server.url)))[-1] == "Because."
    upstream.say("So.")
    assert drawn(kernel.run(second))[-1] == "So."
    assert kernel.value("str(reply), str(answer)") == "('Because.', 'So.')"
    said = [message["content"] for message in upstream.asked[-1]]
    assert said == ["Be brief.", "Why is the sky blue?", "Because.", "And at sunset?"]


# Outside of a notebook


def test_outside_of_a_notebook_a_reply_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with LocalServer() as server:
        reply = show(server.provider("openai").open("Hi"))
    assert capsys.readouterr().out == f"{reply}\n"
    assert reply.finish_reason == "stop"


def test_any_pieces_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert show(["a", "b\n"]) == "ab\n"
    assert show("text") == show(Reply("text")) == "text"
    assert capsys.readouterr().out == "ab\ntext\ntext\n"


def test_a_reply_that_is_shown_keeps_what_is_known_about_it() -> None:
    reply = show(show(Reply("text", model="m-1", usage={"total_tokens": 3})))
    assert (reply, reply.model, reply.usage) == ("text", "m-1", {"total_tokens": 3})
    copy = pickle.loads(pickle.dumps(reply))
    assert (copy, copy.model) == ("text", "m-1")


def test_nothing_stands_where_nothing_came(kernel: Kernel, upstream: Upstream) -> None:
    messages = kernel.run("reply = show([])")
    assert drawn(messages) == ["…", ""]


def test_several_replies_are_printed_one_after_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    failed = ChatError("it failed")
    replies = show([(1, "b"), (0, "a"), (1, "c"), (2, "part"), (2, failed)])
    assert replies == ["a", "bc", failed]
    assert capsys.readouterr().out == "0: a\n\n1: bc\n\n2: part\nChatError: it failed\n"


def test_ctrl_c_ends_what_is_shown_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    ended = []

    def pieces() -> Iterator[str]:
        try:
            yield "a"
            raise KeyboardInterrupt
        finally:
            ended.append(True)

    with pytest.raises(Stopped) as stopped:
        show(pieces())
    assert (stopped.value.reply, ended) == ("a", [True])
    assert capsys.readouterr().out == "a\n"


def test_a_reply_is_closed_where_showing_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []

    def pieces() -> Iterator[str]:
        try:
            yield "a"
        finally:
            ended.append(True)

    monkeypatch.setattr("builtins.print", None)
    with pytest.raises(TypeError):
        show(pieces())
    assert ended == [True]


# Who is asked


@pytest.mark.parametrize(
    ("given", "environment", "name"),
    [
        ({}, {}, "openai"),
        ({"provider": "h2o"}, {"BERLIN_CHAT_PROVIDER": "ylokh"}, "h2o"),
        ({"base_url": "http://127.0.0.1:1"}, {"BERLIN_CHAT_H2O_URL": "http://127.0.0.1:2"}, "openai"),
        ({}, {"BERLIN_CHAT_PROVIDER": "ylokh"}, "ylokh"),
        ({}, {"BERLIN_CHAT_H2O_URL": "http://127.0.0.1:2"}, "h2o"),
        ({}, {"BERLIN_CHAT_URL": "http://127.0.0.1:2", "BERLIN_CHAT_ACCOUNT": "me"}, "berlin"),
        ({}, {"BERLIN_CHAT_URL": "http://127.0.0.1:2"}, "openai"),
    ],
)
def test_who_is_asked_is_said_or_guessed(
    given: dict[str, str], environment: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    found, configuration = chosen(**given)
    assert found == name
    assert configuration.get("base_url") == given.get("base_url")


def test_two_addresses_are_no_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERLIN_CHAT_H2O_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("BERLIN_CHAT_OPENAI_URL", "http://127.0.0.1:2")
    with pytest.raises(InvalidRequest, match=r"^BERLIN_CHAT_H2O_URL, BERLIN_CHAT_OPENAI_URL are set: say which"):
        chosen()
