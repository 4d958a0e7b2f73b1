"""Messages as servers take them today, and what becomes of them in protocols that have text only."""

from __future__ import annotations

import copy
import json
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from berlin_chat import InvalidRequest, ProtocolError, Provider, Reply, ToolCall, image
from wire import ACYTOO, BERLIN, H2O, OPENAI, YLOKH, Speech, Wire, speak

Make = Callable[..., Provider]

TEXT = {"type": "text", "text": "What is this?"}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/gif;base64,R0lGODlh", "detail": "low"}}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
WHOLE: list[dict[str, Any]] = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "name": "ann", "content": [TEXT, PICTURE, {"type": "input_audio", "input_audio": {"data": ""}}]},
    {"role": "assistant", "content": None, "tool_calls": [CALL], "further": {"kept": True}},
    {"role": "tool", "tool_call_id": "c1", "content": "42"},
    {"role": "user", "content": [{"type": "of-tomorrow", "anything": 1}]},
]


@pytest.mark.parametrize("speech", [OPENAI, YLOKH], ids=lambda speech: speech.name)
def test_messages_are_passed_on_as_they_are(speech: Speech, provider_for: Make, wire: Wire) -> None:
    given = copy.deepcopy(WHOLE)
    provider_for(speech, speak(speech, ["Hi"])).ask(given)
    assert wire.asked(*speech.route)[0].json["messages"] == WHOLE == given


@pytest.mark.parametrize("speech", [BERLIN, H2O], ids=lambda speech: speech.name)
def test_parts_of_text_are_joined_where_there_is_text_only(speech: Speech, provider_for: Make, wire: Wire) -> None:
    provider = provider_for(speech, speak(speech, ["Hi"]))
    provider.ask([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}])
    sent = wire.asked(*speech.route)[0].json
    assert (sent.get("prompt") or sent.get("inputs")) == "ab"


@pytest.mark.parametrize("speech", [BERLIN, H2O], ids=lambda speech: speech.name)
@pytest.mark.parametrize(
    ("message", "named"),
    [
        ({"role": "user", "content": [TEXT, PICTURE]}, "image_url"),
        ({"role": "assistant", "content": None, "tool_calls": [CALL]}, "tool_calls"),
        ({"role": "assistant", "content": "I look.", "tool_calls": [CALL]}, "tool_calls"),
    ],
)
def test_what_is_no_text_is_refused_with_a_sentence_there(
    message: dict[str, Any], named: str, speech: Speech, provider_for: Make, wire: Wire
) -> None:
    provider = provider_for(speech, speak(speech, ["Hi"]))
    for messages in ([message], [{"role": "user", "content": "Hi"}, message]):
        with pytest.raises(InvalidRequest, match="text only") as caught:
            provider.stream(messages)
        assert named in str(caught.value)
    assert wire.requests == []


@pytest.mark.parametrize(
    ("message", "where"),
    [
        ({"role": "user", "content": []}, "messages[0]['content'] is an empty list"),
        ({"role": "user", "content": ["Hi"]}, "messages[0]['content'][0] is of type str"),
        ({"role": "user", "content": [TEXT, {"text": "Hi"}]}, "messages[0]['content'][1] has no 'type'"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0]['content'][0] has no 'text'"),
        ({"role": "user", "content": [{"type": "text", "text": 5}]}, "messages[0]['content'][0] has no 'text'"),
        ({"role": "user", "content": {"type": "text"}}, "messages[0]['content'] is of type dict"),
        ({"role": "assistant", "content": None}, "messages[0]['content'] is None"),
        ({"role": "assistant", "content": None, "tool_calls": []}, "messages[0]['content'] is None"),
        ({"role": "assistant"}, "messages[0] has no 'content'"),
    ],
)
def test_wrong_parts_are_named_at_the_call(
    message: dict[str, Any], where: str, speech: Speech, provider_for: Make, wire: Wire
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        provider_for(speech, speak(speech, ["Hi"])).stream([message])
    assert where in str(caught.value)
    assert wire.requests == []


# Images


@pytest.mark.parametrize(
    ("begin", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n\0", "png"),
        (b"\xff\xd8\xff\xe0", "jpeg"),
        (b"GIF87a", "gif"),
        (b"GIF89a", "gif"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "webp"),
        (b"BM\0\0", "bmp"),
        (b"II*\0", "tiff"),
        (b"MM\0*", "tiff"),
        (b"\0\0\0\x1cftypavif", "avif"),
        (b"\0\0\0\x1cftypheic", "heic"),
    ],
)
def test_an_image_has_the_type_that_its_bytes_say(begin: bytes, kind: str, tmp_path: Path) -> None:
    file = tmp_path / "photo.txt"
    file.write_bytes(begin + b"rest")
    for part in (image(file), image(str(file)), image(begin + b"rest")):
        assert part["type"] == "image_url"
        head, _, data = part["image_url"]["url"].partition(",")
        assert (head, b64decode(data)) == (f"data:image/{kind};base64", begin + b"rest")


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    file = tmp_path / "notes.png"
    file.write_text("no image")
    with pytest.raises(InvalidRequest, match=r"notes\.png is no image"):
        image(file)
    with pytest.raises(InvalidRequest, match="the bytes are no image"):
        image(b"")
    with pytest.raises(FileNotFoundError):
        image(tmp_path / "nowhere.png")


# A reply as the next message


def test_a_reply_is_the_message_that_goes_into_the_next_question() -> None:
    assert Reply("Hi").message == {"role": "assistant", "content": "Hi"}
    assert Reply("").message == {"role": "assistant", "content": ""}
    call = ToolCall("c1", "f", '{"a": 1}', {"extra_content": {"signature": "x"}})
    assert Reply("", tool_calls=(call,), refusal="No.").message == {
        "role": "assistant",
        "content": None,
        "refusal": "No.",
        "tool_calls": [{**CALL, "extra_content": {"signature": "x"}}],
    }
    assert "id" not in Reply("", tool_calls=(ToolCall("", "f", ""),)).message["tool_calls"][0]


@pytest.mark.parametrize("broken", ["{", "[]", "5", '"a"', "null", "[" * 100_000])
def test_arguments_that_are_no_object_are_an_error_that_shows_them(broken: str) -> None:
    with pytest.raises(ProtocolError, match="tool call 'f'") as caught:
        ToolCall("c1", "f", broken).parsed()
    assert caught.value.detail == broken


def test_no_arguments_are_an_empty_dict() -> None:
    assert ToolCall("c1", "f", "").parsed() == {}
    assert ToolCall("c1", "f", json.dumps({"ü": [1]})).parsed() == {"ü": [1]}


def test_a_notebook_shows_a_reply_as_markdown() -> None:
    assert Reply("# Why\n\n*This* is why.")._repr_markdown_() == "# Why\n\n*This* is why."


def test_a_reply_has_no_other_attributes() -> None:
    with pytest.raises(TypeError, match="modle"):
        Reply("Hi", modle="m")


@pytest.mark.parametrize("speech", [ACYTOO], ids=lambda speech: speech.name)
def test_a_history_is_sent_as_it_is(speech: Speech, provider_for: Make, wire: Wire) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    provider_for(speech, speak(speech, ["Hi"])).ask(messages)
    assert wire.asked(*speech.route)[0].json["messages"] == messages
