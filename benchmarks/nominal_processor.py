"""Measure the arithmetic per second and core of training steps, from which the nominal processor of plans was chosen.

    OMP_NUM_THREADS=1 python benchmarks/nominal_processor.py

Processor time is measured and not wall time, so that other programs have little influence. A step is forward pass, loss,
backward pass and optimiser of a planned U-Net on random values; patches, validations and idle cores are not included.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
from measurements_page import machine, markdown

from medseg.labels.label_sets import LabelSets
from medseg.labels.label_table import Labels
from medseg.losses.build import build_loss
from medseg.models.catalog import parse_options
from medseg.planning.nnunet.presets import widths
from medseg.planning.nnunet.topology import plan_topology
from medseg.runtime.glibc_memory import keep_freed_memory
from medseg.train.timing.nominal_processor import BACKWARD_COST
from medseg.train.timing.step_estimate import forward_flops

# Spacing, patch, divisor of nnU-Net's channels, input channels.
NETWORKS: tuple[tuple[Sequence[float], Sequence[int], int, int], ...] = (
    ((1.5, 1.5), (224, 256), 2, 1),
    ((1.5, 1.5), (224, 256), 1, 1),
    ((0.5, 0.5), (512, 512), 2, 1),
    ((1, 1, 1), (40, 56, 40), 2, 1),
    ((1, 1, 1), (64, 64, 64), 2, 1),
    ((1, 1, 1), (64, 64, 64), 1, 4),
    ((1, 1, 1), (96, 96, 96), 2, 4),
    ((10, 1.5, 1.5), (10, 224, 256), 2, 1),
)
CLASSES, BATCH = 4, 2


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=3, help="steps per network, of which the fastest counts")
    options = parser.parse_args()
    rows = [_row(*network, options.steps) for network in NETWORKS]
    print(f"{machine()}, {torch.get_num_threads()} thread(s).\n")
    print(markdown(("patch", "first channels", "GFLOP per step", "processor s", "GFLOP/s"), rows))


def _row(
    spacing: Sequence[float], patch: Sequence[int], divisor: int, channels: int, steps: int
) -> list[str]:
    topology = plan_topology(spacing, patch)
    dims = len(patch)
    planned = [width // divisor for width in widths(topology.num_stages, dims)]
    values = {
        "channels": planned,
        "strides": topology.strides,
        "kernel_size": topology.kernels,
        "num_blocks": 2,
        "deep_supervision": True,
    }
    options = parse_options(f"unet_{dims}d", values)
    model = options.build(in_channels=channels, num_classes=CLASSES, spatial_dims=dims)
    names = Labels.from_names({f"label_{value}": value for value in range(1, CLASSES)})
    model.criterion = build_loss("dice_ce", batch_dice=False, label_sets=LabelSets.from_annotations(names))
    optimizer = torch.optim.AdamW(model.parameters())
    image = torch.randn(BATCH, channels, *topology.patch)
    label = torch.randint(0, CLASSES, (BATCH, 1, *topology.patch))
    seconds = []
    with keep_freed_memory(True):
        for _ in range(steps):
            began = time.process_time()
            optimizer.zero_grad()
            torch.stack(list(model.losses(image, label).values())).sum().backward()
            optimizer.step()
            seconds.append(time.process_time() - began)
    gflop = (forward_flops(model, channels, topology.patch) or 0) * (1 + BACKWARD_COST) * BATCH / 1e9
    size = " x ".join(map(str, topology.patch))
    return [size, f"{planned[0]}", f"{gflop:.0f}", f"{min(seconds):.2f}", f"{gflop / min(seconds):.0f}"]


if __name__ == "__main__":
    main()
