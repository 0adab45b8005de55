"""The notebooks run, write nowhere but in temporary folders, and are stored clean, with the outputs of a run.

After a change of a notebook, or of what it shows, execute and store all of them anew::

    python tests/test_notebooks.py
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from tests.helpers.paths import ROOT

pytestmark = pytest.mark.slow

FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}
# Shorter trainings of the same cells on coarser phantoms, for a test; the stored pages show the whole ones.
SHORTER = {
    "03": {
        "cases=10": "cases=5, shape=(24, 20, 16), spacing=(14, 15, 17)",
        "spacing: [2.5, 2.5, 4]": "spacing: [14, 14, 16]",
        "size: [48, 48, 32]": "size: [16, 16, 16]",
        "report_every: 25": "report_every: 2",
        "validate_every: 50": "validate_every: 4",
        '"train.steps=200"': '"train.steps=8"',
        "report.step == 100": "report.step == 4",
    },
    "04": {
        "cases=8, shape=(64, 56, 30), spacing=(1.8, 1.8, 3.6)": "cases=4, shape=(32, 28, 15), spacing=(3.6, 3.6, 7.2)",
        '"spacing": [2, 2, 4]': '"spacing": [4, 4, 8]',
        '"size": [48, 48]': '"size": [32, 32]',
        '"steps": 100': '"steps": 4',
        '"steps": 30': '"steps": 2',
        '"steps": 130': '"steps": 4',
        '"steps": 150': '"steps": 4',
    },
    "05": {"shape=(48, 40, 28), spacing=(8, 8, 10)": "shape=(24, 20, 14), spacing=(16, 16, 20)"},
}
WIDGET = "application/vnd.jupyter.widget-view+json"
TIMEOUT_S = 240  # of one cell; on two quiet cores the slowest takes less than 20 s
LARGEST_BYTES = 5_000_000  # a viewer takes 1.1 MB and its volumes
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/<\\])(?:/(?:[\w.+~-]+/)+[\w.+~-]*|[A-Za-z]:\\\\?\w+)")

# Runs in the kernel before the notebook: every file that Python opens for writing, and every folder that it
# makes, outside the allowed folders fails the cell.
GUARD = """
import os, sys

def _guard(event, arguments, allowed={allowed!r}, writing=os.O_WRONLY | os.O_RDWR | os.O_CREAT, os=os):
    opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & writing
    if (opened or event == "os.mkdir") and isinstance(arguments[0], (str, bytes, os.PathLike)):
        path = os.path.realpath(os.fsdecode(arguments[0]))
        if not path.startswith(allowed):
            raise PermissionError("the notebook writes to " + path)

sys.addaudithook(_guard)
del os, sys
"""


def execute(path: Path, folder: Path, *, shorter: bool = False) -> NotebookNode:
    """The notebook with the outputs of a run in its own kernel, which works in `folder`."""
    notebook = nbformat.read(path, as_version=4)
    for long, short in SHORTER.get(path.name[:2], {}).items() if shorter else ():
        assert any(long in cell.source for cell in notebook.cells), long
        for cell in notebook.cells:
            cell.source = cell.source.replace(long, short)
    for name in ("work", "tmp"):
        (folder / name).mkdir()
    allowed = tuple(os.path.realpath(place) + os.sep for place in (folder, matplotlib.get_cachedir(), "/dev"))
    notebook.cells.insert(0, nbformat.v4.new_code_cell(GUARD.format(allowed=allowed)))
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT_S,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder / "work")}},
        record_timing=False,
        store_widget_state=False,
    )
    client.execute(env=kernel_environment(folder))
    return cleaned(notebook)


def kernel_environment(folder: Path) -> dict[str, str]:
    """Temporary files and IPython's own go to `folder`; one thread, because tiny networks gain nothing from more."""
    return {
        **os.environ,
        "TMPDIR": str(folder / "tmp"),
        "IPYTHONDIR": str(folder / "ipython"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
    }


def cleaned(executed: NotebookNode) -> NotebookNode:
    """Without the guard, and without what differs by machine or is dead on a stored page, such as widgets."""
    notebook = nbformat.v4.new_notebook(cells=executed.cells[1:], metadata=METADATA)
    for number, cell in enumerate(code_cells(notebook), start=1):
        cell.metadata = {}
        cell.execution_count = number
        cell.outputs = merged(cell.outputs)
        for output in cell.outputs:
            output.get("data", {}).pop(WIDGET, None)
            if output.output_type == "execute_result":
                output.execution_count = number
    return notebook


def merged(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Pieces of one stream as one output; where it breaks is a matter of timing."""
    result: list[NotebookNode] = []
    for output in outputs:
        last = result[-1] if result else None
        if last is not None and output.output_type == "stream" and output.get("name") == last.get("name"):
            last.text += output.text
        else:
            result.append(output)
    return result


def code_cells(notebook: NotebookNode) -> Iterator[NotebookNode]:
    return (cell for cell in notebook.cells if cell.cell_type == "code")


def shape_of(notebook: NotebookNode) -> list[list[Any]]:
    """Kinds of outputs by cell: what must agree between the stored notebook and a new run."""
    return [
        [(output.output_type, output.get("name"), sorted(output.get("data", {}))) for output in cell.outputs]
        for cell in code_cells(notebook)
    ]


def text_of(notebook: NotebookNode) -> str:
    """All that a page shows as text: sources and outputs, except pages of the viewer."""
    texts = [cell.source for cell in notebook.cells]
    for cell in code_cells(notebook):
        for output in cell.outputs:
            texts.append(output.get("text", ""))
            texts += [value for kind, value in output.get("data", {}).items() if kind == "text/plain"]
    return "\n".join(texts)


def test_there_are_five() -> None:
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_and_shows_what_is_stored(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    before = path.read_bytes()
    executed = execute(path, tmp_path, shorter=True)  # raises at the first cell that fails
    assert shape_of(executed) == shape_of(nbformat.read(path, as_version=4)), (
        "run: python tests/test_notebooks.py"
    )
    assert path.read_bytes() == before
    assert list((tmp_path / "work").iterdir()) == []  # nothing beside the notebook
    assert list((tmp_path / "tmp").iterdir()) == []  # temporary folders are removed


def test_the_stored_training_has_learnt_something() -> None:
    text = text_of(nbformat.read(next(FOLDER.glob("03*.ipynb")), as_version=4))
    dice = re.search(r"mean Dice of the held-out case: ([\d.]+)", text)
    assert dice is not None
    assert float(dice[1]) > 0.6


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_clean(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata == METADATA
    cells = list(code_cells(notebook))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert not [output for output in outputs if WIDGET in output.get("data", {})]
    assert not [cell.metadata for cell in cells if cell.metadata]
    assert ABSOLUTE_PATH.findall(text_of(notebook)) == []
    assert path.stat().st_size < LARGEST_BYTES


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see /tmp/abc/runs", ["/tmp/abc/runs"]),
        ("'/home/me/x.nii'", ["/home/me/x.nii"]),
        (r"C:\\Users", [r"C:\\Users"]),
        ("runs/first and https://arxiv.org/abs/1505 and 3 / 4 and a/b/c", []),
    ],
)
def test_paths_are_recognised(text: str, found: list[str]) -> None:
    assert ABSOLUTE_PATH.findall(text) == found


def test_the_guard_refuses_other_folders(tmp_path: Path) -> None:
    source = "open('inside.txt', 'w').close(); open('../../outside.txt', 'w')"
    stray = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    nbformat.write(stray, tmp_path / "stray.ipynb")
    (tmp_path / "allowed").mkdir()
    with pytest.raises(CellExecutionError, match=r"the notebook writes to .*outside\.txt"):
        execute(tmp_path / "stray.ipynb", tmp_path / "allowed")
    assert (tmp_path / "allowed" / "work" / "inside.txt").exists()


def store() -> None:
    """Execute every notebook and write it back with its new outputs."""
    for path in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(execute(path, Path(folder)), path)
        print(path.name, path.stat().st_size // 1000, "kB")


if __name__ == "__main__":
    store()
