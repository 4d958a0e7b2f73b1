"""In a notebook: a plain loop in a real kernel, and a bar that is one of the notebook's."""

from __future__ import annotations

from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

SETUP = """
from berlin_chat import ask_many
from berlin_chat.server import LocalServer
server = LocalServer().start()
provider = server.provider("h2o")
"""
STREAM = """
for piece in provider.stream("Hello from a notebook"):
    print(piece, end="", flush=True)
"""
BATCH = """
answers = list(ask_many(provider, [f"q{n}" for n in range(20)], progress=True))
print(len(answers), server.conversations)
"""


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The cells of a notebook that was run by a kernel of this Python."""
    # The kernel that ipykernel has installed beside this Python; no notebook of the person's is looked for.
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("JUPYTER_PREFER_ENV_PATH", "1")
        environment.setenv("JUPYTER_CONFIG_DIR", str(tmp_path_factory.mktemp("jupyter")))
        environment.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
        codes = (SETUP, STREAM, BATCH)
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in codes])
        NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    return list(notebook.cells)


def printed(cell: Any) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def test_a_loop_in_a_notebook_prints_the_reply(cells: list[Any]) -> None:
    assert printed(cells[1]).endswith("You said: Hello from a notebook")


def test_the_bar_in_a_notebook_is_one_of_the_notebooks(cells: list[Any]) -> None:
    kinds = {kind for output in cells[2].outputs for kind in output.get("data", {})}
    assert "application/vnd.jupyter.widget-view+json" in kinds
    assert printed(cells[2]).strip() == "20 []"
