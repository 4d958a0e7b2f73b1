"""What g4f's module of that name keeps, for all threads: ``logging`` prints who is asked, and the last one is noted."""

from __future__ import annotations

from ...provider import Provider

logging = False
#: Without effect: nothing looks for another version.
version_check = False
last_provider: type[Provider] | Provider | None = None
last_model: str | None = None
