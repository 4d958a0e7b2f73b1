"""Python functions that a model may call: what it is told of them, and how its calls are run."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, get_type_hints

from ..errors import Cancelled, InvalidRequest, ProtocolError
from ..process import importing
from ..reply import ToolCall, whole_characters
from .schemas import Unsuitable, schema_of, values_of

log = logging.getLogger("berlin_chat")

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
#: A parameter in the section "Args:" of a docstring: its name, its type if any, and the beginning of its text.
_PARAMETER = re.compile(r"(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)")


class Tool(NamedTuple):
    """A function that a model may call.

    Attributes:
        function: what is called.
        definition: what the model is told of it.
        hints: the types of its parameters.
        required: the names of those that must be given.
    """

    function: Callable[..., Any]
    definition: dict[str, Any]
    hints: dict[str, Any]
    required: list[str]

    @property
    def name(self) -> str:
        """What the model calls it."""
        return str(self.definition["function"]["name"])


class Tools:
    """The tools of a conversation. It never changes, so threads may share it.

    Args:
        functions: Python functions, with a name, type hints and a docstring. Its first paragraph describes the
            function; a section ``Args:``, or ``Annotated[str, "…"]``, describes a parameter.

    Raises:
        InvalidRequest: one of them is no function that a model could call; it says why.

    >>> def weather(city: str) -> str:
    ...     "Tells the weather."
    ...     return f"rain in {city}"
    >>> tools = Tools([weather])
    >>> tools.definitions[0]["function"]["parameters"]
    {'type': 'object', 'properties': {'city': {'type': 'string'}}, 'required': ['city']}
    >>> tools.answer(ToolCall("call_1", "weather", '{"city": "Oslo"}'))
    {'role': 'tool', 'tool_call_id': 'call_1', 'content': 'rain in Oslo'}
    """

    def __init__(self, functions: Iterable[Callable[..., Any]]) -> None:
        if isinstance(functions, (str, bytes)) or not isinstance(functions, Iterable):
            raise InvalidRequest(f"tools is of type {type(functions).__name__}: give a list of functions")
        self.functions = tuple(functions)
        self._tools: dict[str, Tool] = {}
        for function in self.functions:
            tool = _tool(function)
            if self._tools.setdefault(tool.name, tool) is not tool:
                raise InvalidRequest(f"two tools have the name {tool.name!r}: rename one")
        self.definitions = [tool.definition for tool in self._tools.values()]

    def __bool__(self) -> bool:
        return bool(self.functions)

    def __reduce__(self) -> Any:
        return Tools, (self.functions,)

    def answer(self, call: ToolCall) -> dict[str, Any]:
        """Runs a call in this thread; returns the message that answers it.

        What goes wrong is told to the model as text, so that it can try again: an unknown tool, arguments that are no
        JSON or of a wrong type, an exception of the function's. ``Cancelled``, and what is no ``Exception``, such as
        ``KeyboardInterrupt``, goes through.
        """
        named = {"tool_call_id": call.id} if call.id else {}
        return {"role": "tool", **named, "content": self._run(call)}

    def _run(self, call: ToolCall) -> str:
        tool = self._tools.get(call.name)
        if tool is None:
            return f"Error: there is no tool {call.name!r}. There are: {', '.join(self._tools)}."
        try:
            arguments = values_of(call.parsed(), tool.hints, tool.required, call.name)
        except ProtocolError:
            return "Error: the arguments are no JSON object."
        except (ValueError, TypeError) as error:
            return whole_characters(f"Error: {error}.")
        except Exception as error:  # what makes an object of them may do anything
            return whole_characters(f"Error: the arguments: {type(error).__name__}: {error}")
        try:
            return _text(tool.function(**arguments))
        except Cancelled:
            raise
        except Exception as error:
            log.warning("The tool %s raised %s, which the model is told.", call.name, type(error).__name__)
            log.debug("The tool %s failed.", call.name, exc_info=True)
            return whole_characters(f"Error: {type(error).__name__}: {error}")


def _tool(function: Any) -> Tool:
    with importing:
        import inspect  # here, for it costs as much as the rest of the package

    name = getattr(function, "__name__", None)
    if isinstance(function, type) or not callable(function) or not isinstance(name, str):
        raise InvalidRequest(f"a tool is of type {type(function).__name__}: give a function that was made with def")
    if not _NAME.fullmatch(name):
        raise InvalidRequest(f"the tool {name!r} needs a name of ASCII letters, digits, _ and -, 64 at the most")
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise InvalidRequest(f"the tool {name!r} must be a plain function: neither async nor a generator")
    try:
        parameters = inspect.signature(function).parameters.values()
        found = get_type_hints(function, include_extras=True)
    except (TypeError, ValueError, NameError) as error:
        raise InvalidRequest(f"the parameters of the tool {name!r} are not known: {error}") from None
    if odd := [one.name for one in parameters if one.kind not in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]:
        raise InvalidRequest(f"the tool {name!r} has a parameter {odd[0]!r}, which cannot be given by name")
    hints = {one.name: found.get(one.name, Any) for one in parameters}
    required = [one.name for one in parameters if one.default is one.empty]
    about, described = _documentation(inspect.getdoc(function) or "")
    properties = {}
    for parameter, hint in hints.items():
        try:
            said = {"description": described[parameter]} if parameter in described else {}
            properties[parameter] = {**said, **schema_of(hint)}
        except (Unsuitable, RecursionError, NameError) as error:
            raise InvalidRequest(f"the parameter {parameter!r} of the tool {name!r}: {error}") from None
    schema = {"type": "object", "properties": properties, "required": required}
    definition = {"name": name, **({"description": about} if about else {}), "parameters": schema}
    return Tool(function, {"type": "function", "function": definition}, hints, required)


def _documentation(text: str) -> tuple[str, dict[str, str]]:
    """The first paragraph of a docstring, and what its section ``Args:`` says of each parameter."""
    about = " ".join(text.partition("\n\n")[0].split())
    described: dict[str, str] = {}
    _, _, section = text.partition("\nArgs:\n")
    indent, current = None, ""
    for line in section.splitlines():
        depth = len(line) - len(line.lstrip())
        if not line.strip() or depth == 0:
            break
        indent = depth if indent is None else indent
        if depth == indent and (found := _PARAMETER.match(line.strip())):
            current, described[found[1]] = found[1], found[2]
        elif current:
            described[current] = f"{described[current]} {line.strip()}".strip()
    return about, described


def _text(result: Any) -> str:
    """What a function returned, as text for the model."""
    if isinstance(result, str):
        return whole_characters(result)
    return whole_characters(json.dumps(result, ensure_ascii=False, default=str))
