"""Measure the code of a package: sizes of files and functions, docstrings and annotations.

    python benchmarks/code_measures.py medseg [OTHER_PACKAGE ...]

Prints one row of the table in ``docs/internals/code_quality.md`` per package. Lengths include docstrings and blank lines.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import numpy as np

Function = ast.FunctionDef | ast.AsyncFunctionDef


def measure(package: Path) -> str:
    """Return the row of one package."""
    files = [path for path in sorted(package.rglob("*.py")) if "test" not in path.parts]
    sources = [path.read_text(encoding="utf-8") for path in files]
    lengths = [source.count("\n") for source in sources]
    functions = [
        node for source in sources for node in ast.walk(ast.parse(source)) if isinstance(node, Function)
    ]
    spans = [(node.end_lineno or node.lineno) - node.lineno + 1 for node in functions]
    documented = np.mean([ast.get_docstring(node) is not None for node in functions])
    public = [node for node in functions if not node.name.startswith("_")]
    documented_public = np.mean([ast.get_docstring(node) is not None for node in public])
    arguments = [argument for node in functions for argument in _arguments(node)]
    typed = np.mean([argument.annotation is not None for argument in arguments])
    return (
        f"| {package.name} | {len(files)} | {sum(lengths) / 1000:.1f} k | {_spread(lengths)} | {_spread(spans)} | "
        f"{documented:.0%} (public {documented_public:.0%}) | {typed:.0%} |"
    )


def _arguments(node: Function) -> list[ast.arg]:
    found = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return [argument for argument in found if argument.arg not in ("self", "cls")]


def _spread(values: list[int]) -> str:
    return " / ".join(f"{value:.0f}" for value in (*np.percentile(values, [50, 90]), max(values)))


if __name__ == "__main__":
    print(
        "| package | files | lines | file median / p90 / max | function median / p90 / max | documented | arguments typed |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in sys.argv[1:]:
        print(measure(Path(name)))
