"""``medseg export``: a model in a format of other programs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "export", help="write a model in a format of other programs", description=__doc__
    )
    formats = parser.add_subparsers(dest="format", metavar="FORMAT", required=True)
    onnx = formats.add_parser(
        "onnx",
        help="ONNX, for onnxruntime and others",
        description="Write the network of a model folder as ONNX: image (n c *window) -> logits (n k *window), the "
        "batch free. Labels, channels, spacing, orientation, normalisation and window go into the file's metadata. "
        "The file is kept only if onnxruntime gives PyTorch's logits.",
    )
    onnx.add_argument("model", help="model folder: RUN/model, or a finished RUN")
    onnx.add_argument("-o", "--output", metavar="FILE", required=True, help="such as model.onnx")
    onnx.add_argument(
        "--dynamic", action="store_true", help="free spatial sizes, in multiples of the model's divisor"
    )


def run(options: argparse.Namespace) -> int:
    from medseg.errors import ConfigError
    from medseg.interop.onnx import export_onnx

    model, output = Path(options.model), Path(options.output)
    if output.suffix != ".onnx" or output.is_dir():
        raise ConfigError(f"--output: found {output}, expected a file name that ends with .onnx.")
    if (output.parent / "manifest.json").is_file():
        raise ConfigError(
            f"{output}: lies in a model folder, whose files are counted. Choose another place for it."
        )
    parity = export_onnx(model, output, dynamic=options.dynamic)
    shapes = ", ".join("x".join(map(str, shape)) for shape in parity.shapes)
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB")
    print(
        f"onnxruntime and PyTorch differ by at most {parity.difference:.2g} (logits up to {parity.largest:.3g}; "
        f"inputs {shapes})"
    )
    return 0
