"""The fault matrix, one test a cell: see ``fault_matrix``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import fault_matrix
from fault_matrix import CELLS, GROUPS, Cell, Expected, Fault, play
from faulty import FRAMINGS, PLACES, QUESTIONS, Scene

SCRIPT = Path(__file__).parent.parent / "scripts" / "matrix"


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_what_a_server_does_wrong_is_told_and_leaves_nothing_behind(cell: Cell) -> None:
    assert play(cell).wrong == []


def test_the_matrix_is_large_and_each_cell_is_another() -> None:
    assert len(CELLS) >= 600
    assert len({str(cell) for cell in CELLS}) == len(CELLS)
    assert {str(cell.place) for cell in CELLS} == set(map(str, PLACES))
    assert {cell.framing for cell in CELLS} == {*FRAMINGS, "-"}
    for group in GROUPS:
        assert {place.speech.name for fault in group() for place in fault.places}, group.__name__


def test_no_cell_is_skipped(request: pytest.FixtureRequest) -> None:
    name = "test_what_a_server_does_wrong_is_told_and_leaves_nothing_behind"
    ours = [item for item in request.session.items if getattr(item, "originalname", "") == name]
    assert not [item for item in ours if any(map(item.get_closest_marker, ("skip", "skipif", "xfail")))]
    assert "pytest.skip" not in Path(fault_matrix.__file__).read_text(encoding="utf-8")


def test_a_cell_that_is_not_as_it_must_be_is_found() -> None:
    """The matrix itself is wrong here: each thing that it looks at is another."""
    silent = Fault("closed", Scene.close, lambda place, framing: Expected("ProtocolError", "a", {"status": 1}))
    wrong = "\n".join(play(Cell(silent, QUESTIONS[0], "-")).wrong)
    assert "APIConnectionError instead of ProtocolError" in wrong
    assert "'' was read instead of 'a'" in wrong
    assert "status is None, not 1" in wrong


def test_the_command_prints_its_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert fault_matrix.main(["refused"]) == 0
    table = capsys.readouterr().out
    assert "openai question" in table
    assert "APIConnectionError" in table
    assert ", 0 of them wrong" in table
    fault = Fault("refused", Scene.close, lambda place, framing: Expected("reply"))
    monkeypatch.setattr(fault_matrix, "CELLS", [Cell(fault, QUESTIONS[0], "-")])
    assert fault_matrix.main([]) == 1
    assert "WRONG: refused" in capsys.readouterr().out
    assert fault_matrix.main(["no cell of that name"]) == 1


def test_the_command_is_a_program() -> None:
    program = [sys.executable, fault_matrix.__file__, "closed inside a status line", "acytoo"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 cells in 0 s, 0 of them wrong" in done.stdout
    assert f"tests/{Path(fault_matrix.__file__).name}" in SCRIPT.read_text(encoding="utf-8")
