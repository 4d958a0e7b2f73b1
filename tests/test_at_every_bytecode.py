"""Finalizers, signal handlers and Ctrl-C may come between any two bytecodes, and leave nothing standing still."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from wire import SPEECHES, Speech

PROGRAM = Path(__file__).parent / "at_every_bytecode.py"
#: At how many moments, spread evenly over a question, and how long all of them may take, in seconds.
MOMENTS, PATIENCE = 150, 90


@pytest.mark.parametrize("speech", SPEECHES, ids=lambda speech: speech.name)
@pytest.mark.parametrize(
    "action",
    [
        pytest.param("abandon", id="a generator is ended by the garbage collector"),
        pytest.param("cancel", id="a signal handler cancels"),
        pytest.param("close", id="a signal handler closes the provider"),
        pytest.param("interrupt", id="Ctrl-C"),
    ],
)
def test_the_next_question_is_answered_and_no_conversation_is_left(action: str, speech: Speech) -> None:
    command = [sys.executable, str(PROGRAM), action, speech.name, str(MOMENTS)]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        pytest.fail(f"it stood still: {' '.join(command[1:])}")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("done"), ran.stdout
    assert ran.stdout.rstrip().endswith("0 conversations left"), ran.stdout
