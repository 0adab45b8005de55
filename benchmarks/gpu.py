"""Compare medseg, nnU-Net and MONAI on one GPU: its ceiling, windows, file to file, training steps, and Dice after some seconds.

    python benchmarks/gpu.py --work WORK --image CT.nii.gz --data Task04_Hippocampus [STAGE ...]

Each stage runs in processes of its own and prints one JSON line as soon as it ends, so that an interrupted run keeps its figures. ``--device cpu --toy``
tries the script itself on a small network without a GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

WORKERS = Path(__file__).with_name("gpu_workers.py")
STAGES = ("ceiling", "prepare", "families", "windows", "file", "steps", "train")


def main() -> None:
    """Run the stages that were asked for, or all of them in order."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "stages", nargs="*", metavar="STAGE", help=f"stages to run: {', '.join(STAGES)} (default: all)"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for models, images and results")
    parser.add_argument("--image", type=Path, help="a CT volume for the stages windows and file")
    parser.add_argument("--data", type=Path, help="the hippocampus task of the Decathlon for steps and train")
    parser.add_argument("--device", default="cuda", help="torch device (default: cuda)")
    parser.add_argument("--seconds", type=int, default=60, help="duration of each training (default: 60)")
    parser.add_argument(
        "--toy", action="store_true", help="small networks and images, to try the script itself"
    )
    options = parser.parse_args()
    unknown = set(options.stages) - set(STAGES)
    if unknown:
        parser.error(f"unknown stage {sorted(unknown)[0]}; stages are {', '.join(STAGES)}")
    options.work.mkdir(parents=True, exist_ok=True)
    for stage in options.stages or STAGES:
        for task in _tasks(stage, options):
            _run(options, *task)


def _tasks(stage: str, options: argparse.Namespace) -> list[tuple[str, ...]]:
    """Return the processes of one stage: the name of a worker and its arguments."""
    if stage == "prepare":
        return [("prepare", str(options.image))]
    if stage == "windows":
        return [("windows_nnunet",), ("windows_medseg",)]
    if stage == "file":
        peers = ("nnunet", "medseg", "monai")
        return [(f"file_{peer}", mirror) for mirror in ("false", "true") for peer in peers]
    if stage == "steps":
        data, seconds = str(options.data), str(options.seconds)
        return [("steps_nnunet", data, seconds), ("steps_medseg", data, seconds)]
    if stage == "train":
        return [("train_medseg", str(options.data), str(options.seconds))]
    return [(stage,)]


def _run(options: argparse.Namespace, worker: str, *arguments: str) -> None:
    """Run one worker; its output goes straight to the terminal."""
    settings = {"work": str(options.work), "device": options.device, "toy": options.toy}
    command = [sys.executable, str(WORKERS), json.dumps(settings), worker, *arguments]
    code = subprocess.run(command, check=False).returncode
    if code:
        print(json.dumps({"stage": worker, "arguments": arguments, "failed": code}), flush=True)


if __name__ == "__main__":
    main()
