"""What many tests share."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from berlin_chat import Provider, get_provider
from tls import Authority, Secure
from wire import SPEECHES, Script, Speech, Wire

pytest_plugins = ["pytester"]


def pytest_configure(config: pytest.Config) -> None:
    """Loads our own plugin, which setup.cfg keeps from being loaded before coverage is measured."""
    config.pluginmanager.unblock("berlin_chat.testing")
    config.pluginmanager.import_plugin("berlin_chat.testing")


@pytest.fixture(autouse=True)
def _no_configuration_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("BERLIN_CHAT_") or name.lower() in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", os.devnull)  # below which there is no folder, and no file of the command's


@pytest.fixture(autouse=True)
def _signals_are_not_ignored() -> Iterator[None]:
    """A shell lets background jobs ignore Ctrl-C, and children inherit that; a handler they do not inherit.

    Ctrl-C then does what it does in the foreground.
    """
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    ignored = [number for number in numbers if signal.getsignal(number) == signal.SIG_IGN]
    for number in ignored:
        on_signal = signal.default_int_handler if number == signal.SIGINT else lambda number, frame: None
        signal.signal(number, on_signal)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture
def wire() -> Iterator[Wire]:
    """A socket server without routes; its scripts' faults fail the test."""
    with Wire() as server:
        yield server
    assert not server.faults, f"the server's script failed: {server.faults!r}"


@pytest.fixture(params=SPEECHES, ids=lambda speech: speech.name)
def speech(request: pytest.FixtureRequest) -> Speech:
    """Each of the four protocols in turn."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def provider_for(wire: Wire) -> Iterator[Callable[..., Provider]]:
    """Makes a provider for a protocol, and a server at ``wire`` that answers its question with a script."""
    made: list[Provider] = []

    def make(speech: Speech, script: Script, **config: Any) -> Provider:
        wire.routes[:] = [*speech.before, (*speech.route, script)]
        config = {"base_url": wire.url, "retries": 0, **speech.config, **config}
        made.append(get_provider(speech.name, **config))
        return made[-1]

    yield make
    for provider in made:
        provider.close()


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who vouches for the servers behind TLS."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def make_secure(authority: Authority) -> Iterator[Callable[..., Provider]]:
    """Makes a provider that trusts the authority, and a server behind TLS that answers its question with a script."""
    servers: list[Secure] = []
    made: list[Provider] = []

    def make(speech: Speech, script: Script, context: Any = None, **config: Any) -> Provider:
        server = Secure(context or authority.server(), [*speech.before, (*speech.route, script)])
        servers.append(server)
        config = {"base_url": server.url, "retries": 0, "verify": authority.pem, **speech.config, **config}
        made.append(get_provider(speech.name, **config))
        return made[-1]

    yield make
    for provider in made:
        provider.close()
    for server in servers:
        server.close()
        assert not server.faults, f"the server's script failed: {server.faults!r}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a batch may keep its answers."""
    return tmp_path / "answers.jsonl"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two worker processes of Dask, whose import is left to those who need it: it takes a second."""
    import dask
    from distributed import LocalCluster

    with (
        dask.config.set({"distributed.worker.profile.enabled": False}),  # which hangs on Python below 3.12
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",  # else its port may be another cluster's, which is a warning
            host="127.0.0.1",
            silence_logs="CRITICAL",
        ) as cluster,
    ):
        yield cluster


def pytest_collection_finish() -> None:
    """What stands there before the first test is no garbage, and looking through it takes a second each time."""
    import hypothesis  # noqa: F401 - it looks for what refers to things, which nobody finds any more afterwards

    gc.collect()
    gc.freeze()
