"""A session of the caller's, made ready for a question: its adapters, cookies, hooks and what it logs in by stay."""

from __future__ import annotations

from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection

from .connecting import check_proxy
from .connections import Interruptible

#: How a connection sends that has a socket; a class of another way, such as a player of records, is left as it is.
_SEND = HTTPConnection.send


def make_interruptible(pool: Any) -> None:
    """Lets a pool that is not ours make interruptible connections from now on.

    Threads that do so at the same moment make a class each, one of which is kept: either will do. What the pool has is
    read once, for between two looks another thread may have replaced it.
    """
    plain = pool.ConnectionCls
    if getattr(getattr(type(pool), "ConnectionCls", None), "send", _SEND) is not _SEND:
        vars(pool).pop("ConnectionCls", None)  # what stands in for all connections of the kind
    elif isinstance(plain, type) and not issubclass(plain, Interruptible):
        pool.ConnectionCls = type(plain.__name__, (Interruptible, plain), {})


def as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Stands for an authentication where there is none: requests would look into ``~/.netrc``, and replace the key."""
    return request


def make_ready(session: requests.Session, request: requests.PreparedRequest, settings: dict[str, Any]) -> None:
    """Looks at the proxy, and lets the connections be interrupted that a request will use.

    Raises:
        InvalidRequest: there is something wrong with the proxy that the environment or the session names.
    """
    check_proxy(str(request.url), settings["proxies"])
    request.register_hook("response", _not_followed)
    adapter = session.get_adapter(str(request.url))
    if isinstance(adapter, HTTPAdapter):
        pool = adapter.get_connection_with_tls_context(
            request, settings["verify"], proxies=settings["proxies"], cert=settings["cert"]
        )
        make_interruptible(pool)


def _not_followed(response: requests.Response, **_: Any) -> None:
    """Keeps requests from finding out where a redirect would lead: it reads the whole body for that."""
    if response.is_redirect:
        response.__class__ = type("Response", (type(response),), {"is_redirect": False})
