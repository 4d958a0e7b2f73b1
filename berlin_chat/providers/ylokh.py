"""Ylokh: OpenAI's chat completions with what the hosted service was sent. ``PROTOCOLS.md``, section "Ylokh"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from .openai import OpenAICompatible

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .openai import OpenAIConfiguration


class Ylokh(OpenAICompatible):
    """A server of the Ylokh family: :class:`OpenAICompatible` with fixed defaults, to which ``[DONE]`` is end enough.

    Args:
        base_url: the server's address; its other arguments are those of :class:`OpenAICompatible`.

    >>> Ylokh(base_url="http://127.0.0.1:8080/v1", model="llama3")
    Ylokh(base_url='http://127.0.0.1:8080', model='llama3')
    """

    name = "ylokh"
    url = "https://chat.ylokh.xyz"
    defaults: ClassVar[dict[str, Any]] = {
        "temperature": 1,
        "presence_penalty": 0,
        "top_p": 1,
        "frequency_penalty": 0,
        "allow_fallback": True,
        "stream": True,
    }
    #: The hosted service had its API at another address than its page.
    api_url = "https://chatapi.ylokh.xyz"

    def __init__(
        self, base_url: str | None = None, *, end: str = "done", **configuration: Unpack[OpenAIConfiguration]
    ) -> None:
        super().__init__(base_url, end=end, **configuration)
        if self.base_url is not None:
            origin = self.base_url.removesuffix("/v1")
            self._headers.update(Origin=origin, Referer=f"{origin}/")
        if self.base_url == self.url:
            self._api = f"{self.api_url}/v1"
