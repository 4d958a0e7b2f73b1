"""What the logger ``berlin_chat`` is told."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable

import pytest

from berlin_chat import Fallback, OpenAICompatible, Provider
from wire import OPENAI, Connection, Recorded, Speech, Wire, speak

Make = Callable[..., Provider]


@pytest.fixture(autouse=True)
def _everything(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.DEBUG, "berlin_chat")
    monkeypatch.setattr("berlin_chat.http.retries.FIRST_WAIT", 0.01)


def told(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


def test_nothing_is_printed_unless_the_user_says_so() -> None:
    program = "import berlin_chat, logging; logging.getLogger('berlin_chat').warning('unheard')"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("", "")


def test_a_reply_is_one_line(speech: Speech, provider_for: Make, caplog: pytest.LogCaptureFixture) -> None:
    provider_for(speech, speak(speech, ["one", "two"]), model="m-1").ask("Hi")
    (line,) = told(caplog, logging.INFO)
    for said in (speech.name, "attempt 1", "pieces in", "the first piece after", "usage None"):
        assert said in line


def test_a_retry_is_one_line_that_says_what_it_waits_for(
    speech: Speech, provider_for: Make, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def script(request: Recorded, connection: Connection) -> None:
        asked.append(request)
        if len(asked) < 3:
            return connection.respond(503, {"error": {"message": "warming up"}})
        return speak(speech, ["Hi"])(request, connection)

    provider_for(speech, script, retries=2).ask("Hi")
    lines = told(caplog, logging.WARNING)
    assert len(lines) == 2
    for number, line in enumerate(lines, 2):
        assert line.startswith("http://127.0.0.1:")
        assert "503" in line
        assert "warming up" in line
        assert f"Attempt {number} follows in 0." in line
    assert "attempt 3" in told(caplog, logging.INFO)[0]


def test_a_failover_is_one_line(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    wire.on("POST", ".*", speak(OPENAI, ["Hi"]))
    nobody = OpenAICompatible("http://127.0.0.1:9", retries=0)
    Fallback([nobody, OpenAICompatible(wire.url)]).ask("Hi")
    (line,) = told(caplog, logging.WARNING)
    assert "http://127.0.0.1:9" in line
    assert line.endswith("The next provider is asked.")


def test_requests_are_told_without_their_secrets(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    wire.on("POST", ".*", speak(OPENAI, ["Hi"]))
    OpenAICompatible(wire.url, api_key="key-sesame", params={"token": "param-sesame"}).ask("Hi")
    (line,) = told(caplog, logging.DEBUG)
    assert line == f"POST {wire.url}/v1/chat/completions?token=***: 200"
    assert "sesame" not in caplog.text
