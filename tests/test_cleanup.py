"""The threads that delete what questions made on a server."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from berlin_chat import APIConnectionError, APIStatusError, Cancelled, ChatError, H2o
from berlin_chat.cancellation import Limits
from berlin_chat.http import cleanup
from berlin_chat.http.cleanup import RemoteResource, RemoteResources, Workers
from wire import wait_for


def test_work_is_done_even_if_ctrl_c_came_between_putting_it_and_waking_a_thread() -> None:
    """Then an idle thread finds it by itself."""
    workers, done = Workers(), []
    begun, go_on = threading.Event(), threading.Event()

    def stray() -> None:
        begun.set()
        go_on.wait(5)

    first = threading.Event()
    workers.run(first.set)
    assert first.wait(5), "the first work was never done"
    while not workers._idle:  # its thread waits for more
        threading.Event().wait(0.001)
    assert all(thread.daemon for thread in workers._threads), "the end of the process would wait for them"
    workers._work.append((stray, bool))  # where Ctrl-C tears `run` off: put, and no bell rung
    assert begun.wait(5), "the work that was put was never begun"
    workers.run(lambda: done.append("last"))  # while that thread is at it
    threading.Timer(0.05, go_on.set).start()
    workers.close(5)
    assert done == ["last"], "work that was given before close() was dropped"


def test_a_thread_does_all_there_is_before_it_waits_and_the_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleanup, "IDLE", 30.0)
    workers, done, over = Workers(), [], threading.Event()

    def first() -> None:  # while it is at work, more comes, and nobody rings
        workers._work += [(lambda: done.append("second"), bool), (lambda: done.append("third"), over.set)]

    workers.run(first)
    assert over.wait(5), "what was there was not done"
    assert done == ["second", "third"]
    workers.close(5)


def test_an_idle_thread_takes_the_next_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleanup, "IDLE", 30.0)
    workers, threads = Workers(), []
    for _ in range(3):
        done = threading.Event()
        workers.run(lambda: threads.append(threading.current_thread()), done.set)
        assert done.wait(5), "the work was never done"
        while not workers._idle:
            threading.Event().wait(0.001)
    assert len(set(threads)) == 1
    workers.close(5)


def test_a_bell_that_is_rung_just_when_its_thread_gives_up_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    class Idle(list[Any]):
        def remove(self, bell: Any) -> None:
            self.pop()  # by who rings it
            super().remove(bell)

    monkeypatch.setattr(cleanup, "IDLE", 0.001)
    workers = Workers()
    workers._idle = Idle()
    assert workers._wait(), "work would wait for the next thread"


def test_close_waits_for_a_thread_that_is_only_about_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever gives work may be between making its thread and starting it: the work would come after the end."""
    workers, done = Workers(), []
    about, go_on = threading.Event(), threading.Event()
    start = threading.Thread.start

    def late(thread: Any) -> None:
        if thread.name == "cleaning up":
            about.set()
            go_on.wait(5)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", late)
    giver = threading.Thread(target=workers.run, args=[lambda: done.append("work")])
    giver.start()
    assert about.wait(5), "nobody makes a thread for the work"
    threading.Timer(0.05, go_on.set).start()
    workers.close(5)
    assert done == ["work"], "close() did not wait for work that was given before it"
    giver.join(5)


def test_close_waits_for_work_under_way_as_long_as_it_may_and_no_longer() -> None:
    workers, done = Workers(), []
    begun, go_on = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait(20)
        done.append("work")

    workers.run(work)
    assert begun.wait(5)
    began = time.monotonic()
    workers.close(0.05)
    assert done == [], "the work was not to be over yet"
    threading.Timer(0.05, go_on.set).start()
    workers.close(30)
    assert done == ["work"], "close() did not wait"
    assert time.monotonic() - began < 10, "close() waited although all was done"


def test_work_may_close_what_it_is_done_by() -> None:
    workers, ended, over = Workers(), [], threading.Event()

    def work() -> None:
        try:
            workers.close(1)
            ended.append("closed")
        finally:
            over.set()

    workers.run(work)
    assert over.wait(5)
    assert ended == ["closed"], "a thread cannot wait for itself"


# What is made on a server, and deleted there


@pytest.fixture
def asked() -> list[str]:
    """What the server was asked for, in turn."""
    return []


@pytest.fixture
def resource(asked: list[str]) -> Iterator[RemoteResource[str]]:
    """One that nobody has made yet."""
    with H2o("http://127.0.0.1:9", retries=0) as provider:
        transport = provider._transport
        resources = RemoteResources[str](
            transport, lambda own, made: asked.append(f"delete {made}"), lambda own, made: asked.append(f"stop {made}")
        )
        exchange = transport.exchange(Limits(), transport.settings)
        yield RemoteResource(resources, exchange, lambda own: "it")


def no_thread(*_: Any) -> None:
    raise ChatError("no thread could be started")


@pytest.mark.parametrize("at_work", [False, True])
def test_only_a_server_that_is_at_work_is_stopped(
    at_work: bool, resource: RemoteResource[str], asked: list[str]
) -> None:
    assert resource.create() == "it"
    if at_work:
        resource.at_work = True
    resource.delete()
    assert asked == (["stop it", "delete it"] if at_work else ["delete it"])


def test_what_is_left_is_deleted_without_a_thread_where_there_is_none(
    resource: RemoteResource[str], asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    resource.create()
    resources: Any = resource._resources
    monkeypatch.setattr(resources.workers, "run", no_thread)
    resources.close()
    assert asked == ["delete it"]


def test_what_no_thread_could_make_is_not_waited_for(
    resource: RemoteResource[str], asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource._resources.workers, "run", no_thread)
    began = time.monotonic()
    with pytest.raises(ChatError):
        resource.create()
    resource.delete()
    assert time.monotonic() - began < cleanup.LAST_TIMEOUT / 2
    assert asked == []


def test_what_nobody_has_begun_to_make_is_not_deleted(
    resource: RemoteResource[str], asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource._resources.workers, "run", lambda *_: pytest.fail("a thread is asked to"))
    resource.delete()
    assert asked == []


def test_what_is_the_parents_is_not_deleted(
    resource: RemoteResource[str], asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    resource.create()
    monkeypatch.setattr(type(resource._exchange), "is_copy", True)
    monkeypatch.setattr(resource._resources.workers, "run", lambda *_: pytest.fail("a thread is asked to"))
    resource.delete()
    assert asked == []


def test_what_is_still_being_made_is_deleted_when_it_is_there(resource: RemoteResource[str], asked: list[str]) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def make(own: Any) -> str:
        begun.set()
        assert go_on.wait(10)
        return "it"

    resource._create = make
    threading.Thread(target=lambda: begun.wait(5) and resource._exchange.stop()).start()
    with pytest.raises(Cancelled):
        resource.create()
    threading.Timer(0.02, go_on.set).start()
    resource.delete()
    assert wait_for(lambda: asked) == ["delete it"]


@pytest.mark.parametrize(("error", "times"), [(APIConnectionError, 2), (APIStatusError, 1), (KeyError, 1)])
def test_a_deletion_is_tried_twice_where_the_connection_broke_and_a_stop_once(
    error: type[Exception], times: int, resource: RemoteResource[str], asked: list[str]
) -> None:
    def fails(what: str) -> Any:
        def step(own: Any, made: str) -> None:
            asked.append(what)
            raise error("no")

        return step

    resource._resources.stop, resource._resources.delete = fails("stop"), fails("delete")
    resource.create()
    resource.at_work = True
    resource.delete()
    assert asked == ["stop"] + ["delete"] * times
