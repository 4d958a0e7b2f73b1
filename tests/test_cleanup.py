"""The threads that delete what questions made on a server."""

from __future__ import annotations

import threading

from berlin_chat.http.cleanup import Workers


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
    workers._work.append((stray, bool))  # where Ctrl-C tears `run` off: put, and no bell rung
    assert begun.wait(5), "the work that was put was never begun"
    workers.run(lambda: done.append("last"))  # while that thread is at it
    threading.Timer(0.05, go_on.set).start()
    workers.close(5)
    assert done == ["last"], "work that was given before close() was dropped"
