"""The example notebook: it runs as it stands there, only shorter, and shows what a run printed."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

PATH = Path(__file__).parents[1] / "examples" / "from-text-to-encoder.ipynb"
SMALL = 'BUDGET = "8s"\nEPOCHS = 1'


@pytest.fixture
def notebook():
    return nbformat.read(PATH, as_version=4)


def text_of(outputs):
    parts = [out.get("text") or out.get("data", {}).get("text/plain", "") for out in outputs]
    return "".join(parts)


@pytest.mark.slow
def test_it_runs(notebook, tmp_path):
    [parameters] = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    assert {line.split(" = ")[0] for line in parameters.source.splitlines()} == {"BUDGET", "EPOCHS"}
    parameters.source = SMALL
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [text_of(cell.outputs) for cell in notebook.cells if cell.cell_type == "code"]
    assert "249 addresses, 25 of them kept aside" in shown[1]
    assert "% right" in "".join(shown)
    assert (tmp_path / "eras" / "finetune.json").is_file()
    assert (tmp_path / "onnx" / "model.onnx").is_file()


def test_what_it_shows_is_of_a_whole_run(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        assert all(out.output_type != "error" for out in cell.outputs)
        assert "/home/" not in text_of(cell.outputs) and "/tmp/" not in text_of(cell.outputs)
