"""``medseg import monai``: convert weights of a MONAI network to a model folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medseg.cli.early_checks import require_paths
from medseg.cli.models.licence_option import add_licence_option

EXAMPLE = """\
example of the config file:

  name: spleen
  network:                 # arguments of MONAI's constructor
    spatial_dims: 3
    in_channels: 1
    out_channels: 2
    channels: [16, 32, 64, 128, 256]
    strides: [2, 2, 2, 2]
    num_res_units: 2
    norm: batch
  channel_names: [CT]
  preprocessing:           # ScaleIntensityRange from -57..164 to 0..1, clipped
    orientation: RAS
    spacing: [1.5, 1.5, 2.0]
    crop_to_nonzero: false
    channels: [{method: ct, low: -57, high: 164, mean: -57, std: 221}]
  window: [96, 96, 96]
  predict: {overlap: 0.25}
"""


def add_parser(sources: Any) -> None:
    """Add the command and its options to the parser."""
    parser = sources.add_parser(
        "monai",
        help="a state dict of MONAI's DynUNet, UNet, AttentionUnet or BasicUNet",
        description="Write a model folder from a state dict of MONAI. The folder is kept only if MONAI's own network "
        "computes the same logits.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "weights", metavar="STATE", help=".safetensors file, or .pt file with tensors and plain values only"
    )
    parser.add_argument("--network", required=True, help="network: dynunet, unet, attentionunet or basicunet")
    parser.add_argument(
        "--config",
        required=True,
        metavar="YAML",
        help="network arguments, channels, preprocessing and window; see the example below",
    )
    parser.add_argument(
        "--labels",
        required=True,
        metavar="TSV",
        help="table with the columns value and name; for a network with sigmoids also kind (label, or region 1 2 3)",
    )
    parser.add_argument("--key", help="entry of STATE that contains the state dict, if there are several")
    parser.add_argument("-o", "--output", metavar="FOLDER", required=True, help="model folder to write")

    add_licence_option(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    require_paths([options.weights, options.config, options.labels])
    from medseg.errors import ConfigError
    from medseg.interop.monai.import_weights import import_monai

    output = Path(options.output)
    if output.exists():
        raise ConfigError(f"--output: {output} exists already. Choose another folder.")
    difference = import_monai(
        options.weights,
        options.network,
        options.config,
        options.labels,
        output,
        key=options.key,
        licence=options.licence,
    )
    print(f"model: {output}")
    print(f"its logits differ from those of MONAI's own network by at most {difference:.2g}")
    return 0
