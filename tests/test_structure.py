"""The limits that CONTRIBUTING.md states: lengths of files, functions and constructors, entries of folders, unique names."""

from __future__ import annotations

import ast
import shutil
import subprocess
from collections import defaultdict
from itertools import accumulate
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

PACKAGE = ROOT / "medseg"
FILES = sorted(PACKAGE.rglob("*.py"))
SHARED_NAMES = {"config.py", "network.py", "settings.py", "catalog.py", "table.py", "metrics.py", "pairs.py"}
NOT_COUNTED = {"__init__.py", "__init__.pyi", "py.typed", "__main__.py", "__pycache__"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


class CodeLines:
    """The lines of a module without docstrings and blank lines."""

    def __init__(self, source: str) -> None:
        self.tree = ast.parse(source)
        counted = [bool(line.strip()) for line in source.splitlines()]
        for node in ast.walk(self.tree):
            documented = isinstance(node, Function | ast.ClassDef | ast.Module)
            if documented and ast.get_docstring(node, clean=False) is not None:
                docstring = node.body[0]
                for number in range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1):
                    counted[number - 1] = False
        self._until = [0, *accumulate(counted)]  # number of counted lines up to each line

    def __len__(self) -> int:
        return self._until[-1]

    def of(self, node: ast.stmt) -> int:
        """Return the number of lines of a function or class."""
        return self._until[node.end_lineno or node.lineno] - self._until[node.lineno - 1]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_lengths(path: Path) -> None:
    lines = CodeLines(path.read_text(encoding="utf-8"))
    assert len(lines) < 400
    for node in ast.walk(lines.tree):
        if isinstance(node, Function):
            assert lines.of(node) < 60, node.name
            if node.name == "__init__":
                parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                assert len(parameters) - 1 <= 8, f"{path}:{node.lineno}"


def test_training_setup_and_the_predict_command_are_short() -> None:
    for file, names in (("experiment/training_setup.py", None), ("cli/prediction/predict.py", {"run"})):
        lines = CodeLines((PACKAGE / file).read_text(encoding="utf-8"))
        for node in ast.walk(lines.tree):
            if isinstance(node, Function) and (names is None or node.name in names):
                assert lines.of(node) <= 25, f"{file}: {node.name}"


def test_folders_are_small() -> None:
    folders = {path.parent for path in FILES} - {PACKAGE}
    crowded = {
        str(folder.relative_to(PACKAGE)): count
        for folder in folders
        if (count := sum(entry.name not in NOT_COUNTED for entry in folder.iterdir())) > 14
    }
    assert not crowded


def test_file_names_are_unique() -> None:
    homes = defaultdict(list)
    for path in FILES:
        if path.name not in NOT_COUNTED | SHARED_NAMES:
            homes[path.name].append(str(path.parent.relative_to(PACKAGE)))
    assert not {name: folders for name, folders in homes.items() if len(folders) > 1}


def test_the_page_of_packages_lists_the_shared_names() -> None:
    page = (ROOT / "docs" / "internals" / "index.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in SHARED_NAMES)


TOP_LEVEL = {
    *("medseg", "configs", "tests", "notebooks", "data_scripts", "benchmarks", "docs", ".ci"),
    *("pyproject.toml", "constraints.txt", "mkdocs.yml", "Dockerfile", "LICENSE", "CITATION.cff"),
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md"),
    *(".gitignore", ".dockerignore", ".pre-commit-config.yaml"),
}


def test_the_top_level_holds_no_outputs() -> None:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("needs a checkout of git")
    listed = subprocess.run([git, "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    found = {name.split("/")[0] for name in listed.stdout.split("\0") if name}
    assert found <= TOP_LEVEL, sorted(found - TOP_LEVEL)
