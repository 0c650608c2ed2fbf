"""The notebook runs from its first cell to its last, and is committed without what it printed."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "notebooks" / "first_steps.ipynb"


def test_the_notebook_runs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    ).execute()
    picture, answer, *others, evaluation = cells
    assert any("image/png" in output.get("data", {}) for output in picture.outputs)
    printed = ["".join(output.get("text", "") for output in cell.outputs) for cell in (answer, *others, evaluation)]
    assert all(printed) and "is sent" in printed[0] and '<root BTCPP_format="4"' in printed[2]
    assert "leading robot right" in printed[-1]
