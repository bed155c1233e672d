"""The notebooks run from their first cell to the last, and are committed with the outputs of one run, or with none."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from quickstart import write_outputs

FOLDER = Path(__file__).resolve().parent.parent / "scripts" / "notebooks"
PATHS = {path.stem: path for path in sorted(FOLDER.glob("*.ipynb"))}
# Between two notebooks: the next starts with loaded libraries, but without names, in another working folder.
FRESH = "%reset -f\n%cd {}/scripts/notebooks"


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(PATHS[name], as_version=nbformat.NO_CONVERT)


def run(folder: Path, first: nbformat.NotebookNode, *others: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """All in one kernel, whose start takes most of the time; an error for a cell that raises."""
    cells = list(first.cells)
    for other in others:
        cells += [nbformat.v4.new_code_cell(FRESH.format(folder)), *other.cells]
    joined = nbformat.v4.new_notebook(cells=cells, metadata=first.metadata)
    NotebookClient(joined, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return joined


def test_they_run(tmp_path, monkeypatch):
    """The first from the root, the next from their own folder, with untrained models."""
    write_outputs(tmp_path)
    (tmp_path / "scripts" / "notebooks").mkdir(parents=True)
    monkeypatch.delenv("SWEETTOK_OUTPUTS", raising=False)
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):  # else in the home folder
        monkeypatch.setenv(variable, str(tmp_path / variable))
    done = run(tmp_path, read("tokenize"), read("generate"), read("vtok"))
    for cell in done.cells:
        if cell.source.splitlines()[-1].startswith("show("):
            assert "image/png" in cell.outputs[-1].get("data", {}), cell.source
    saved = {path.name for path in (tmp_path / "outputs/tiny/notebooks").iterdir()}
    assert {"A.mp4", "look_A_motion_B.mp4", "generated.png", "generated_rise.mp4"} <= saved


@pytest.mark.parametrize("name", PATHS)
def test_their_files(name):
    """Valid, in the format whose cells have ids; outputs of one run, as from scripts/notebooks/execute.py."""
    notebook, text = read(name), PATHS[name].read_text(encoding="utf-8")
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}
    assert len(text) < 2_000_000 and str(FOLDER.parent.parent) not in text
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in code]
    assert counts in ([None] * len(code), list(range(1, len(code) + 1)))
    for cell in notebook.cells:
        assert cell.metadata in ({}, {"tags": ["parameters"]})
    for output in (output for cell in code for output in cell.outputs):
        assert output.output_type != "error" and output.get("name") != "stderr", output
