"""Faults that fuzzing has found, over real sockets."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from berlin_chat import ProtocolError, Provider
from wire import ACYTOO, BERLIN, H2O, Connection, Recorded, Speech, h2o_event, speak

Make = Callable[..., Provider]


def test_a_line_of_the_head_that_is_no_field_is_an_error_and_hides_no_content_length(provider_for: Make) -> None:
    """http.client reads no field behind it, so that a body that was cut would pass for a whole one."""

    def answer(request: Recorded, connection: Connection) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nno field\r\nContent-Length: 17\r\n\r\nabc")
        connection.close()

    with pytest.raises(ProtocolError, match="a line of the head is no header field"):
        provider_for(ACYTOO, answer).ask("Hi")


@pytest.mark.parametrize("speech", [BERLIN, H2O], ids=lambda speech: speech.name)
@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (["a\ud83d", "\ude42b"], "a\U0001f642b"),
        (["a\ude42", "b"], "a\ufffdb"),
        (["a", "\ud83d"], "a\ufffd"),
        (["\ud83d", "b"], "\ufffdb"),
    ],
    ids=["torn", "the second half alone", "the first half at the end", "the first half alone"],
)
def test_halves_of_a_character_are_put_together_or_replaced(
    pieces: list[str], text: str, speech: Speech, provider_for: Make
) -> None:
    told = list(provider_for(speech, speak(speech, pieces)).stream("Hi"))
    assert "".join(told) == text
    assert all(told)
    "".join(told).encode()


def test_the_last_event_may_hold_the_second_half(provider_for: Make) -> None:
    def answer(request: Recorded, connection: Connection) -> None:
        body = h2o_event("a\ud83d") + h2o_event("\ude42", generated="a")
        connection.respond(200, body, {"Content-Type": H2O.kind})

    assert provider_for(H2O, answer).ask("Hi") == "a\U0001f642"
