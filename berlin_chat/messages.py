"""The messages of a conversation: what a caller may give, checked and put into one shape."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from .errors import InvalidRequest

Message: TypeAlias = Mapping[str, Any]
#: A prompt, one message, or several.
Messages: TypeAlias = str | Message | Iterable[Message]

#: What a message may hold instead of a content.
INSTEAD = ("tool_calls", "function_call", "refusal", "audio")
_A_PART = '{"type": "text", "text": …}'
#: How the files of images begin: a place, what stands there, the type.
_IMAGES = (
    (0, b"\x89PNG\r\n\x1a\n", "png"),
    (0, b"\xff\xd8\xff", "jpeg"),
    (0, b"GIF8", "gif"),
    (8, b"WEBP", "webp"),
    (0, b"BM", "bmp"),
    (0, b"II*\0", "tiff"),
    (0, b"MM\0*", "tiff"),
    (4, b"ftypavi", "avif"),
    (4, b"ftyphe", "heic"),
    (4, b"ftypmif1", "heic"),
)


def as_list(messages: Messages) -> list[dict[str, Any]]:
    """Returns the messages as a new list of new dicts; what was given is never modified.

    A ``str`` becomes one message of the role ``user``. A content is a ``str``, a list of parts, or None beside
    ``tool_calls``. All other keys are kept.

    Raises:
        InvalidRequest: it is none of the forms, is empty, or a message has no role or no content.

    >>> as_list("Hi")
    [{'role': 'user', 'content': 'Hi'}]
    """
    if isinstance(messages, str):
        if not messages.strip():
            raise InvalidRequest("the prompt is empty: give it some text")
        messages = [{"role": "user", "content": messages}]
    elif isinstance(messages, Mapping):
        messages = [messages]
    elif isinstance(messages, (bytes, bytearray)) or not isinstance(messages, Iterable):
        raise InvalidRequest(
            f"messages is of type {type(messages).__name__}: give a str, one"
            ' {"role": …, "content": …} mapping, or a list of them'
        )
    checked = [_checked(message, f"messages[{index}]") for index, message in enumerate(messages)]
    if not checked:
        raise InvalidRequest("messages is empty: give at least one message")
    return checked


def _checked(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidRequest(f'{where} is of type {type(message).__name__}, not a {{"role": …, "content": …}} mapping')
    role, content = message.get("role"), message.get("content")
    if "role" not in message:
        raise InvalidRequest(f"{where} has no 'role'")
    if not isinstance(role, str):
        raise InvalidRequest(f"{where}['role'] is of type {type(role).__name__}, not str")
    if not role:
        raise InvalidRequest(f"{where}['role'] is empty: say 'user', 'assistant' or 'system'")
    if content is None and not any(message.get(key) for key in INSTEAD):
        raise InvalidRequest(
            f"{where} has no 'content'"
            if "content" not in message
            else f"{where}['content'] is None, which it may only be beside tool_calls"
        )
    if isinstance(content, list):
        _check_parts(content, f"{where}['content']")
    elif not isinstance(content, (str, type(None))):
        raise InvalidRequest(f"{where}['content'] is of type {type(content).__name__}, not str or a list of parts")
    return dict(message)


def _check_parts(parts: list[Any], where: str) -> None:
    if not parts:
        raise InvalidRequest(f"{where} is an empty list: give it a part, such as {_A_PART}")
    for index, part in enumerate(parts):
        if not isinstance(part, Mapping):
            raise InvalidRequest(f"{where}[{index}] is of type {type(part).__name__}: give a part, such as {_A_PART}")
        if not isinstance(part.get("type"), str):
            raise InvalidRequest(f"{where}[{index}] has no 'type': a part looks like {_A_PART}")
        if part["type"] == "text" and not isinstance(part.get("text"), str):
            raise InvalidRequest(f"{where}[{index}] has no 'text', which is a str")


def image(source: str | os.PathLike[str] | bytes) -> dict[str, Any]:
    """Returns the part of a message that shows a local image, for protocols whose messages have parts.

    Args:
        source: the path of a file, or the file's bytes. Its first bytes tell the type: PNG, JPEG, GIF, WebP, BMP, TIFF,
            AVIF or HEIC.

    Raises:
        InvalidRequest: it is none of these.
        OSError: the file cannot be read.

    >>> image(b"GIF89a")["image_url"]["url"]
    'data:image/gif;base64,R0lGODlh'
    """
    if isinstance(source, bytes):
        data, what = source, "the bytes are"
    else:
        with open(source, "rb") as file:
            data, what = file.read(), f"{os.fspath(source)} is"
    kind = next((kind for place, begin, kind in _IMAGES if data.startswith(begin, place)), None)
    if kind is None:
        raise InvalidRequest(f"{what} no image: PNG, JPEG, GIF, WebP, BMP, TIFF, AVIF and HEIC are told apart")
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{b64encode(data).decode()}"}}


def as_text(message: Mapping[str, Any]) -> str:
    """Returns the content of a message for protocols that have nothing but text: parts of text are joined.

    Raises:
        InvalidRequest: it holds something else.
    """
    content: Any = message.get("content")
    if beside := next((key for key in INSTEAD if message.get(key)), None):
        raise InvalidRequest(f"the protocol has text only, and a message holds {beside!r}")
    if isinstance(content, str):
        return content
    for part in content or ():
        if part["type"] != "text":
            raise InvalidRequest(f"the protocol has text only, and a message holds a part of type {part['type']!r}")
    return "".join(part["text"] for part in content)


def flatten(messages: list[dict[str, Any]]) -> str:
    """Returns several messages as the one prompt of protocols without a history.

    ``PROTOCOLS.md``, "The flattened prompt": one message is its content alone.

    Raises:
        InvalidRequest: a message holds more than text.

    >>> print(flatten([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]))
    User: Hi
    Assistant: Hello
    Assistant:
    """
    if len(messages) == 1:
        return as_text(messages[0])
    lines = [f"{message['role'].capitalize()}: {as_text(message)}" for message in messages]
    return "\n".join([*lines, "Assistant:"])
