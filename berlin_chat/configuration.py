"""What a provider is made with: its arguments, the environment, credentials; and how it is made anew from them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar, TypedDict

import requests

from . import validation
from .errors import InvalidRequest, ProviderNotWorking
from .http.transport import Transport
from .process import importing
from .redaction import Redactor, secrets_in_address, secrets_in_headers

#: Seconds for a connection, and between two reads.
DEFAULT_TIMEOUT = (10.0, 120.0)
#: Bytes of an answer.
MAX_REPLY = 64 * 2**20

#: A file's or folder's name; and those of a client's certificate: one file, or the certificate's and the key's.
_Path = str | os.PathLike[str]
_Cert = _Path | tuple[_Path, _Path] | None
_NOTHING: Mapping[str, Any] = {}
_NO_ADDRESS = (
    "no base URL, and the hosted service is gone. Give base_url=…, or set BERLIN_CHAT_URL or BERLIN_CHAT_{name}_URL, or"
    " start a berlin_chat.server.LocalServer"
)
_HOSTED = "; or name the hosted address on purpose: {cls}(base_url={cls}.url)"


def address_variable(name: str) -> str:
    """Returns the variable of the environment in which a provider's address stands."""
    return f"BERLIN_CHAT_{name.upper()}_URL"


class Configuration(TypedDict, total=False):
    """The arguments that all providers have, for the signatures of those that pass them on."""

    model: str | None
    proxy: str | None
    timeout: float | tuple[float | None, float | None] | None
    headers: Mapping[str, str | None] | None
    verify: bool | _Path
    cert: _Cert
    retries: int
    pool_size: int
    max_reply_bytes: int
    session: requests.Session | None


class OfOneQuestion(TypedDict, total=False):
    """The arguments of which one question may have its own."""

    timeout: float | tuple[float | None, float | None] | None
    headers: Mapping[str, str | None] | None
    retries: int | None


class Configured:
    """The part of :class:`~berlin_chat.Provider` that keeps its arguments, which are described there."""

    name: ClassVar[str] = ""
    url: ClassVar[str] = ""
    working: ClassVar[bool] = False
    default_model: ClassVar[str] = ""

    #: One instance a configuration, for ``create_completion`` on the class, whose callers have nowhere to keep one;
    #: ``dict.setdefault``, which is atomic, gives the same to all threads.
    _shared: ClassVar[dict[Any, Configured]] = {}

    def __init__(
        self,
        base_url: str | None = None,
        *,
        model: str | None = None,
        proxy: str | None = None,
        timeout: float | tuple[float | None, float | None] | None = DEFAULT_TIMEOUT,
        headers: Mapping[str, str | None] | None = None,
        verify: bool | _Path = True,
        cert: _Cert = None,
        retries: int = 2,
        pool_size: int = 1000,
        max_reply_bytes: int = MAX_REPLY,
        session: requests.Session | None = None,
    ) -> None:
        given = {**locals(), "headers": dict(headers) if headers else None}
        self._configuration: dict[str, Any] = {name: given[name] for name in given if name not in ("self", "__class__")}
        found, source = (base_url, "base_url") if base_url else self._url_from_environment()
        self.base_url: str | None = validation.checked_url(found, source) if found else None
        self.model = validation.checked_text(model, "model") or self.default_model
        self._secrets = Redactor()
        checked = validation.Settings(
            self.base_url,
            validation.checked_headers(headers),
            session,
            validation.checked_proxy(proxy),
            validation.checked_timeout(timeout),
            validation.checked_verify(verify),
            validation.checked_cert(cert),
            validation.checked_count(retries, "retries", 0),
            validation.checked_count(pool_size, "pool_size", 1),
            validation.checked_count(max_reply_bytes, "max_reply_bytes", 1),
        )
        self._secrets.add(*secrets_in_headers(checked.headers), *secrets_in_address(checked.proxy))
        self._transport = Transport(checked, self._secrets)

    def check_address(self) -> None:
        """Raises ProviderNotWorking, with the ways out, if it is not known whom to ask."""
        if self.base_url is None:
            ways_out = _NO_ADDRESS + (_HOSTED if self.url else "")
            raise ProviderNotWorking(
                ways_out.format(cls=type(self).__name__, name=self.name.upper()), provider=self.name
            )

    def credential(self, name: str, given: str | None) -> str | None:
        """Returns an argument, or else the environment's ``BERLIN_CHAT_<NAME>``; from then on no error shows it.

        Raises:
            InvalidRequest: it is no ``str``, or holds control characters.
        """
        self._configuration[name] = given
        value = given if given is not None else os.environ.get(f"BERLIN_CHAT_{name.upper()}")
        validation.checked_text(value, name)
        if name != "account":
            self._secrets.add(value)
        return value or None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(base_url={self.base_url!r}, model={self.model!r})"

    def __reduce__(self) -> Any:
        if self._configuration.get("session") is not None:
            raise TypeError("a provider with a session of the caller's cannot be pickled")
        return _restored, (type(self), self.full_configuration())

    def full_configuration(self) -> dict[str, Any]:
        """Returns the arguments that make another one like it, here or in another process."""
        return {name: self.base_url if name == "base_url" else value for name, value in self._configuration.items()}

    def _url_from_environment(self) -> tuple[str | None, str]:
        for variable in (address_variable(self.name), "BERLIN_CHAT_URL"):
            if value := os.environ.get(variable):
                return value, variable
        return (self.url, "url") if self.working else (None, "")


def arguments_of(cls: type[Configured]) -> set[str]:
    """Returns the names of the arguments of its constructor, those that it passes on included."""
    with importing:
        from inspect import signature  # here, for it costs as much as the rest of the package

    known: set[str] = set()
    for base in cls.__mro__:  # up to the first constructor that passes nothing on
        parameters = signature(vars(base)["__init__"]).parameters if "__init__" in vars(base) else {}
        known.update(parameters)
        if parameters and not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
            break
    return known


def configured(target: Any, options: dict[str, Any], given: Mapping[str, Any] = _NOTHING) -> Any:
    """Returns the one that answers a call on ``target``, a class or an instance; the same for equal configurations.

    Args:
        options: those of the call. ``base_url`` and ``proxy`` are taken out, and for a class all that its constructor
            has, but for what a question may have of its own, such as headers: that needs no instance of its own.
        given: further arguments of the constructor.

    Raises:
        InvalidRequest: the constructor has no such argument.
    """
    named = {name: options.pop(name, None) for name in ("base_url", "proxy")}
    given = {**{name: value for name, value in named.items() if value is not None}, **given}
    if not given and isinstance(target, Configured):
        return target
    cls: type[Configured] = target if isinstance(target, type) else type(target)
    known = arguments_of(cls) - {"timeout", "headers", "retries"}
    if unknown := sorted(given.keys() - known):
        raise InvalidRequest(f"{unknown[0]} is a setting of each provider of a {cls.__name__}")
    if "providers" in known and cls is target:
        raise InvalidRequest(f"make a {cls.__name__} first: the class alone has no providers to ask")
    if cls is target:
        made = cls(**{**{name: options.pop(name) for name in list(options) if name in known}, **given})
    else:
        made = cls(**{**target._configuration, **given})
    if "providers" in known:
        return made  # its providers are what can be shared
    # What stands for the same: the environment's part of the configuration included.
    environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith("BERLIN_CHAT_")))
    identity = (cls, repr(sorted(made.full_configuration().items())), environment)
    return Configured._shared.setdefault(identity, made)


def _restored(cls: type[Configured], configuration: dict[str, Any]) -> Configured:
    return cls(**configuration)
