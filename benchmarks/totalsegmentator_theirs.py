"""TotalSegmentator's own code on one image, in the environment of TotalSegmentator; imports nothing of medseg.

    python benchmarks/totalsegmentator_theirs.py RESULTS IMAGE OUTPUT --task total --fastest

Writes to the folder OUTPUT: ``IMAGE``, the label map of the task, with the file name of the image; ``networks/NUMBER_image.nii.gz``
and ``networks/NUMBER.nii.gz``, what nnU-Net receives and returns for each data set; ``coarse/NUMBER.nii.gz``, the label map by
which the image is cropped; and ``versions.json``. RESULTS holds the folders ``DatasetNNN_NAME``.

Weights are not downloaded and no statistics are sent: both functions are replaced, and sockets other than those between processes of
this machine are refused. With ``--exact``, nnU-Net adds up logits in float32 instead of float16, in which many logits are equal.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

PACKAGES = ("TotalSegmentator", "nnunetv2", "torch", "numpy", "scipy", "nibabel")


class LocalSocket(socket.socket):
    """A socket that connects only processes of this machine."""

    def __init__(self, family: int = -1, *arguments: Any, **options: Any) -> None:
        if family != socket.AF_UNIX:
            raise OSError("no connections to other machines")
        super().__init__(family, *arguments, **options)


socket.socket = LocalSocket  # type: ignore[misc]  # in the processes that nnU-Net starts, too, because they import this module


def main() -> None:
    """Run the task and write its results."""
    options = _parser().parse_args()
    here = Path(__file__).resolve().parent
    sys.path[:] = [
        path for path in sys.path if Path(path).resolve() != here
    ]  # `totalsegmentator.py` is not the package
    with tempfile.TemporaryDirectory() as home:
        os.environ["TOTALSEG_HOME_DIR"] = home  # no settings of the user are read or written
        os.environ["TOTALSEG_WEIGHTS_PATH"] = str(options.results.resolve())
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            os.environ[name] = str(options.results.resolve())  # read when nnU-Net is imported
        _run(options)
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    (options.output / "versions.json").write_text(json.dumps({"python": platform.python_version(), **found}))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("results", "image", "output"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--task", default="total", help="name of the task, without _fast and _fastest")
    for name in ("fast", "fastest", "exact"):
        parser.add_argument(f"--{name}", action="store_true")
    return parser


def _run(options: argparse.Namespace) -> None:
    import nibabel as nib
    import torch

    nnunet, python_api = (
        importlib.import_module(f"totalsegmentator.{name}") for name in ("nnunet", "python_api")
    )

    networks, coarse = options.output / "networks", options.output / "coarse"
    for folder in (networks, coarse):
        folder.mkdir(parents=True, exist_ok=True)
    run_network, run_image = nnunet.nnUNetv2_predict, nnunet.nnUNet_predict_image

    def kept_network(dir_in: Path, dir_out: Path, number: int, *arguments: Any, **settings: Any) -> None:
        run_network(dir_in, dir_out, number, *arguments, **settings)
        shutil.copyfile(Path(dir_in) / "s01_0000.nii.gz", networks / f"{number}_image.nii.gz")
        shutil.copyfile(Path(dir_out) / "s01.nii.gz", networks / f"{number}.nii.gz")

    def kept_image(source: Any, target: Path | None, number: Any, *arguments: Any, **settings: Any) -> Any:
        found = run_image(source, target, number, *arguments, **settings)
        if target is None:  # the label map by which the image is cropped
            nib.save(found[0], coarse / f"{number}.nii.gz")
        return found

    with (
        mock.patch.object(python_api, "download_pretrained_weights"),
        mock.patch.object(python_api, "send_usage_stats"),
        mock.patch.object(nnunet, "nnUNetv2_predict", kept_network),
        mock.patch.object(nnunet, "nnUNet_predict_image", kept_image),
        mock.patch.object(torch, "half", torch.float32 if options.exact else torch.half),
    ):
        python_api.totalsegmentator(
            options.image,
            options.output / options.image.name,
            ml=True,
            task=options.task,
            fast=options.fast,
            fastest=options.fastest,
            nr_thr_saving=1,
            device="cpu",
            quiet=True,
        )


if __name__ == "__main__":
    main()
