"""Compare an imported task with TotalSegmentator's own code: labels, seconds and peak memory.

    python benchmarks/totalsegmentator.py theirs RESULTS IMAGE OUTPUT --task total
    medseg import totalsegmentator RESULTS --task total -o MODEL
    medseg predict MODEL IMAGE -o FOLDER precision=float32
    python benchmarks/totalsegmentator.py compare OUTPUT FOLDER/IMAGE

``theirs`` needs TotalSegmentator in an environment of its own; it is not a dependency of medseg. It calls the function below the one
that downloads weights and sends usage statistics, so that neither happens. Tasks that crop images first are not compared.
With ``--exact``, nnU-Net adds up logits in float32 instead of float16, in which many logits are equal.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from pathlib import Path
from unittest import mock

import nibabel as nib
import numpy as np

from medseg.interop.totalsegmentator.tasks import task_named


def theirs(results: Path, image: Path, output: Path, task_name: str, *, exact: bool) -> None:
    """Write the label map of TotalSegmentator and print its seconds and memory."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[name] = str(results)  # read when nnU-Net is imported
    import torch
    from totalsegmentator.nnunet import nnUNet_predict_image

    task = task_named(task_name)
    if task.crop:
        raise SystemExit(f"--task: found {task_name}, expected a task that does not crop images first")
    trained = next(results.glob(f"Dataset{task.datasets[0]:03d}_*/*__*__{task.configuration}"))
    trainer, plans, configuration = trained.name.split("__")
    began = time.perf_counter()
    with mock.patch.object(torch, "half", torch.float32 if exact else torch.half):
        found, _, _ = nnUNet_predict_image(
            image,
            None,
            list(task.datasets) if len(task.datasets) > 1 else task.datasets[0],
            model=configuration,
            folds=None if task.all_folds else [0],
            trainer=trainer,
            plans=plans,
            resample=None if task.spacing is None else list(task.spacing),
            task_name=task_name.removesuffix("_fastest").removesuffix("_fast"),
            device="cpu",
            quiet=True,
        )
    seconds = time.perf_counter() - began
    memory = sum(
        resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    nib.save(found, output)
    print(f"{seconds:.1f} s, {memory / 1024:.0f} MB in the process and its largest child")


def compare(first: Path, second: Path) -> None:
    """Print the share of voxels with equal labels, and the labels that occur."""
    a, b = (np.asanyarray(nib.load(path).dataobj) for path in (first, second))
    equal, found = a == b, (a > 0) | (b > 0)
    print(f"equal labels: {equal.mean():.4%} of all voxels, {equal[found].mean():.4%} of the foreground")
    print(f"labels: {len(np.unique(a))} and {len(np.unique(b))}, background included")


def main() -> None:
    """Run one of the two steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    own = steps.add_parser("theirs")
    for name in ("results", "image", "output"):
        own.add_argument(name, type=Path)
    own.add_argument("--task", default="total")
    own.add_argument("--exact", action="store_true")
    both = steps.add_parser("compare")
    both.add_argument("first", type=Path)
    both.add_argument("second", type=Path)
    options = parser.parse_args()
    if options.step == "compare":
        compare(options.first, options.second)
    else:
        theirs(options.results, options.image, options.output, options.task, exact=options.exact)


if __name__ == "__main__":
    main()
