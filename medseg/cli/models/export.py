"""``medseg export``: write a model in a format for other programs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medseg.cli.early_checks import require_paths
from medseg.errors import ModelError


def add_parser(commands: Any) -> None:
    """Add the command and its options to the parser."""
    parser = commands.add_parser(
        "export", help="write a model in a format for other programs", description=__doc__
    )
    formats = parser.add_subparsers(dest="format", metavar="FORMAT", required=True)
    onnx = formats.add_parser(
        "onnx",
        help="ONNX, for onnxruntime and others",
        description="Write the network of a model folder as ONNX: image (n c *window) -> logits (n k *window), with any "
        "batch size n. The metadata of the file contain labels, channels, spacing, orientation, normalisation and "
        "window. The file is kept only if onnxruntime computes the same logits as PyTorch.",
    )
    onnx.add_argument("model", help="model folder: RUN/model, or a finished RUN")
    onnx.add_argument(
        "-o", "--output", metavar="FILE", required=True, help="ONNX file to write, such as model.onnx"
    )
    onnx.add_argument(
        "--dynamic",
        action="store_true",
        help="allow any spatial sizes that are multiples of the model's divisor",
    )


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    require_paths([options.model], "folder", expected="a model folder", error=ModelError)
    from medseg.errors import ConfigError
    from medseg.interop.onnx import export_onnx

    model, output = Path(options.model), Path(options.output)
    if output.suffix != ".onnx" or output.is_dir():
        raise ConfigError(f"--output: found {output}, expected a file name that ends with .onnx.")
    if (output.parent / "manifest.json").is_file():
        raise ConfigError(
            f"{output}: is inside a model folder, which must not contain other files. Choose another folder."
        )
    parity = export_onnx(model, output, dynamic=options.dynamic)
    shapes = ", ".join("x".join(map(str, shape)) for shape in parity.shapes)
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB")
    print(
        f"onnxruntime and PyTorch differ by at most {parity.difference:.2g} (logits up to {parity.largest:.3g}; "
        f"inputs {shapes})"
    )
    return 0
