"""Networks of TotalSegmentator's tasks at 8 base features, trained on CT phantoms with medseg, as folders that nnU-Net reads.

A phantom has few organs. Each network learns some of them under the names of labels of its own. Its other labels do not occur: they
are added to the last layer after the training, with a low logit everywhere.
TotalSegmentator publishes its plans only together with its weights. The plans here have its voxel sizes, and the patch, the number of
stages and the convolutions per stage that nnU-Net plans for such voxels on a card of 8 GB.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from medseg.data.datasets.phantom import phantom_case
from medseg.experiment.experiment import Experiment
from medseg.inference.predictor import load
from medseg.interop.nnunet.checkpoint_files import convert_weights
from medseg.interop.nnunet.model import FileAxes, import_nnunet
from medseg.interop.nnunet.plans import read_plans
from medseg.interop.totalsegmentator.tasks import TASKS
from medseg.io.files import write
from medseg.models.unet.network_config import UNetConfig
from medseg.storage.atomic import write_text
from medseg.volumes.volume import Volume

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

TISSUES: tuple[str, ...] = (
    *("liver", "spleen", "right_kidney", "left_kidney", "spine"),
    *("fat", "muscle", "stomach", "aorta", "gas", "rib"),
)
CASES, HELD_OUT = 12, 3
ENOUGH = 0.7  # mean Dice of the labels that occur
ROI_MARGIN = 20.0  # mm
ABSENT = -30.0  # logit of labels that do not occur


@dataclass(frozen=True)
class Size:
    """The size of phantoms and networks.

    Attributes:
        shape: Voxels of a phantom.
        spacing: Their size in mm.
        base: Features of the first stage.
        stages: Largest number of stages.
        divide: Divisor of all patches.
    """

    shape: tuple[int, int, int] = (100, 90, 66)
    spacing: tuple[float, float, float] = (2.0, 2.2, 3.0)
    base: int = 8
    stages: int = 6
    divide: int = 1


FULL = Size()
SMALL = Size((44, 40, 30), (2.4, 2.6, 3.6), base=4, stages=3, divide=4)
"""For trying out that everything runs; the networks learn little."""


@dataclass(frozen=True)
class Part:
    """A network of a task.

    Attributes:
        number: Number of its data set.
        name: Name of the data set, as TotalSegmentator has it.
        labels: Names of its labels.
        organs: Label by tissue of the phantom.
        spacing: Voxel size in mm, in the order of the plans.
        patch: Patch in the order of the plans.
        trained_on: Smaller patch of the training, in the same order. Images of 6 mm are smaller than their patch, so that the
            padding takes part in the training, too.
        strides: Strides of the stages in the order of the plans.
        trainer: Name of nnU-Net's trainer.
        around: Tissue to whose box, with a margin, the images are cropped; None for whole images.
    """

    number: int
    name: str
    labels: tuple[str, ...]
    organs: Mapping[str, str]
    spacing: tuple[float, float, float] = (1.5, 1.5, 1.5)
    patch: tuple[int, int, int] = (128, 128, 128)
    trained_on: tuple[int, int, int] = (64, 64, 64)
    strides: tuple[tuple[int, int, int], ...] = ((1, 1, 1), *[(2, 2, 2)] * 5)
    trainer: str = "nnUNetTrainerNoMirroring"
    around: str | None = None

    @property
    def folder(self) -> str:
        """The name of the folder of the data set."""
        return f"Dataset{self.number:03d}_{self.name}"

    @property
    def present(self) -> tuple[str, ...]:
        """The labels that occur in the phantoms."""
        return tuple(dict.fromkeys(self.organs.values()))

    @property
    def values(self) -> tuple[int, ...]:
        """Their values."""
        return tuple(self.labels.index(name) + 1 for name in self.present)


_TOTAL = TASKS["total"].labels
_ENDS = (0, *accumulate((24, 26, 18, 23, 26)))
_OWN = [_TOTAL[start:stop] for start, stop in pairwise(_ENDS)]
_COARSE: dict[str, Any] = {
    "spacing": (6.0, 6.0, 6.0),
    "patch": (64, 64, 64),
    "strides": ((1, 1, 1), *[(2, 2, 2)] * 4),
}
_KIDNEYS = {"right_kidney": "iliopsoas_left", "left_kidney": "iliopsoas_left"}

PARTS = (
    Part(291, "TotalSegmentator_part1_organs_1559subj", _OWN[0], {"liver": "liver", "gas": "colon"}),
    Part(292, "TotalSegmentator_part2_vertebrae_1532subj", _OWN[1], {"spine": "vertebrae_L3"}),
    Part(
        293, "TotalSegmentator_part3_cardiac_1559subj", _OWN[2], {"aorta": "aorta", "right_kidney": "heart"}
    ),
    Part(294, "TotalSegmentator_part4_muscles_1559subj", _OWN[3], _KIDNEYS),
    Part(295, "TotalSegmentator_part5_ribs_1559subj", _OWN[4], {"rib": "costal_cartilages"}),
    Part(
        298,
        "TotalSegmentator_total_6mm_1559subj",
        _TOTAL,
        {"liver": "liver", "gas": "colon", "spine": "vertebrae_L3", **_KIDNEYS},
        trainer="nnUNetTrainer_4000epochs_NoMirroring",
        **_COARSE,
    ),
    Part(
        300,
        "body_6mm_1559subj",
        TASKS["body_fast"].labels,
        dict.fromkeys(TISSUES, "body_trunc"),
        trainer="nnUNetTrainer",
        **_COARSE,
    ),
    Part(
        8,
        "HepaticVessel",
        TASKS["liver_vessels"].labels,
        {"spine": "liver_vessels", "gas": "liver_tumor"},
        spacing=(1.5, 0.8, 0.8),
        patch=(64, 192, 192),
        trained_on=(32, 96, 96),
        strides=((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
        trainer="nnUNetTrainer",
        around="liver",
    ),
)


def train_part(part: Part, results: Path, work: Path, size: Size, minutes: float) -> dict[str, Any]:
    """Train a network until its Dice on held-out phantoms is high enough or the time is over, and write its folder.

    A folder that exists is not written again.

    Args:
        part: The network.
        results: Folder of the data sets of nnU-Net.
        work: Folder for phantoms and runs.
        size: Size of phantoms and networks.
        minutes: Longest time.

    Returns:
        Dice by label on held-out phantoms, predicted by the imported folder; steps and minutes.
    """
    record = results / part.folder / "trained.json"
    if record.is_file():
        found: dict[str, Any] = json.loads(record.read_text())
        return found
    data = work / "data" / part.folder
    statistics = _write_phantoms(part, data, size)
    trained = _write_untrained(part, results, size, statistics)
    began = time.perf_counter()
    run, steps = _trained(part, data, trained, work / "runs" / part.folder, size, minutes, statistics)
    _write_weights(part, trained, load_file(run / "model" / "model.safetensors"))
    dice = _held_out_dice(part, trained, work / "imported" / part.folder, size)
    found = {
        "steps": steps,
        "minutes": (time.perf_counter() - began) / 60,
        "dice": dice,
        "mean": float(np.mean(list(dice.values()))),
    }
    write_text(record, json.dumps(found) + "\n")
    return found


def _write_phantoms(part: Part, folder: Path, size: Size) -> dict[str, float]:
    """Write training cases with the labels that occur; return the statistics of the foreground's intensities."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    places = np.zeros(len(part.labels) + 1, np.uint8)
    places[list(part.values)] = np.arange(1, len(part.values) + 1)
    values, entries = [], []
    for index in range(CASES):
        image, label = labelled_phantom(part, index, size)
        values.append(image.data[label.data > 0])
        file = f"phantom_{index:03d}.nii.gz"
        write(image, folder / "imagesTr" / file)
        write(label.with_data(places[label.data]), folder / "labelsTr" / file)
        entries.append({"image": f"./imagesTr/{file}", "label": f"./labelsTr/{file}"})
    names = {str(value): name for value, name in enumerate(("background", *part.present))}
    description = {"name": part.name, "modality": {"0": "CT"}, "labels": names, "training": entries}
    write_text(folder / "dataset.json", json.dumps(description) + "\n")
    every = np.concatenate(values)
    low, high = np.percentile(every, [0.5, 99.5])
    return {"mean": float(every.mean()), "std": float(every.std()), "low": float(low), "high": float(high)}


def labelled_phantom(part: Part, seed: int, size: Size) -> tuple[Volume, Volume]:
    """Return a CT phantom and its label map with the labels of a network.

    Args:
        part: The network.
        seed: Seed of the phantom.
        size: Size of the phantom.

    Returns:
        Image and label map.
    """
    image, tissues = phantom_case((7, seed), "ct", size.shape, size.spacing, organs=TISSUES)
    values = [part.labels.index(part.organs[name]) + 1 if name in part.organs else 0 for name in TISSUES]
    label = tissues.with_data(np.array([0, *values], np.uint8)[tissues.data])
    if part.around is None:
        return image, label
    inside = np.argwhere(tissues.data[0] == TISSUES.index(part.around) + 1)
    margin = (ROI_MARGIN / np.array(image.spacing)).astype(int)
    start = np.maximum(inside.min(0) - margin, 0)
    stop = np.minimum(inside.max(0) + 1 + margin, image.data.shape[1:])
    return image.cropped(start, stop - start), label.cropped(start, stop - start)


def _write_untrained(part: Part, results: Path, size: Size, statistics: Mapping[str, float]) -> Path:
    """Write the folder of a data set with nnU-Net's random weights."""
    from tests.helpers.nnunet_models import architecture, configuration, dataset_of, plans_of, write_trained

    shutil.rmtree(results / part.folder, ignore_errors=True)
    strides = part.strides[: size.stages]
    net = architecture(
        3, features=tuple(size.base * 2**i for i in range(len(strides))), strides=[list(s) for s in strides]
    )
    blocks = [2] * len(strides)
    net["arch_kwargs"] |= {"n_conv_per_stage": blocks, "n_conv_per_stage_decoder": blocks[1:]}
    patch = [n // size.divide for n in part.patch]
    chosen = configuration(patch, list(part.spacing), net, ["CTNormalization"], [False])
    plans = plans_of({"3d_fullres": chosen})
    plans["dataset_name"] = part.folder
    plans["foreground_intensity_properties_per_channel"]["0"] |= {
        "mean": statistics["mean"],
        "std": statistics["std"],
        "percentile_00_5": statistics["low"],
        "percentile_99_5": statistics["high"],
    }
    labels = {name: value for value, name in enumerate(("background", *part.labels))}
    return write_trained(
        results / part.folder, "3d_fullres", plans, dataset_of(labels=labels), trainer=part.trainer
    )


def _trained(
    part: Part,
    data: Path,
    trained: Path,
    run: Path,
    size: Size,
    minutes: float,
    statistics: Mapping[str, float],
) -> tuple[Path, int]:
    """Train the network of the plans with medseg; return its run folder and the number of steps."""
    shutil.rmtree(run, ignore_errors=True)
    axes, network = _network(trained)
    patch = [n // size.divide for n in part.trained_on]
    without = dict.fromkeys(("rotate_p", "scale_p", "blur_p", "low_resolution_p", "gamma_inverted_p"), 0.0)
    experiment = Experiment.parse(
        {
            "name": f"part_{part.number}",
            "data": {"path": str(data), "folds": CASES // HELD_OUT},
            "preprocess": {
                "spacing": axes.per_file_axis(part.spacing, across=None),
                "normalize": "ct",
                "intensities": {"CT": dict(statistics)},
            },
            "model": {**network, "deep_supervision": True},
            "patch": {"size": axes.per_file_axis(patch, across=1)},
            "augment": {"mirror_axes": [], **without},
            "train": {
                "max_time": f"{minutes:g}m",
                "batch_size": 1,
                "batch_dice": True,
                "oversample_foreground": 0.5,
                "optimizer": {"name": "adamw", "lr": 0.006, "weight_decay": 0.01, "schedule": "cosine"},
                "report_every": 10,
                "validate_every": 10,
                "validation_batches": 6,
                "save_every": 1000,
            },
        }
    )
    trainer = experiment.trainer(run)
    for report in trainer:
        print(f"  {part.folder}: {report}", flush=True)
        if (
            report.mean_dice is not None and report.mean_dice >= ENOUGH + 0.1
        ):  # of patches, not of whole images
            trainer.export()
            break
    return run, trainer.step


def _network(trained: Path) -> tuple[FileAxes, dict[str, Any]]:
    """Return the order of the axes of a trained folder, and its network as a model of medseg."""
    plans = read_plans(trained / "plans.json", "3d_fullres")
    axes = FileAxes(plans.transpose_forward, 3)
    return axes, plans.configuration.architecture.model(axes.order)


def _write_weights(part: Part, trained: Path, weights: dict[str, Tensor]) -> None:
    """Replace the weights of a checkpoint by those of the same network in medseg, with all labels."""
    path = trained / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    theirs = checkpoint["network_weights"]
    axes, network = _network(trained)
    outputs = len(part.labels) + 1
    for name, filled in (("head.weight", 0.0), ("head.bias", ABSENT)):
        own = weights[name]
        weights[name] = torch.full((outputs, *own.shape[1:]), filled)
        weights[name][[0, *part.values]] = own
    options = {key: value for key, value in network.items() if key != "name"}
    sizes = {"in_channels": 1, "out_channels": outputs}
    config = UNetConfig.parse({**options, **sizes}, source=str(trained))
    # Each tensor is filled with its number, so that the import shows which tensor becomes which.
    numbered = {name: torch.full_like(tensor, i) for i, (name, tensor) in enumerate(theirs.items())}
    back = (0, 1, *(2 + int(axis) for axis in np.argsort(axes.order)))
    names = list(theirs)
    for key, number in convert_weights(numbered, config, "plain", axes.order).items():
        tensor = weights[key].permute(back) if weights[key].ndim == len(back) else weights[key]
        theirs[names[int(number.flatten()[0])]].copy_(tensor)
    torch.save(checkpoint, path)


def _held_out_dice(part: Part, trained: Path, model: Path, size: Size) -> dict[str, float]:
    """Return the Dice of each label that occurs, over phantoms of which training and its validation know nothing."""
    shutil.rmtree(model, ignore_errors=True)
    import_nnunet(trained, model, orientation="RAS")
    predictor = load(model, device="cpu", precision="float32", mirror_axes=[])
    common, voxels = dict.fromkeys(part.present, 0), dict.fromkeys(part.present, 0)
    for seed in range(CASES, CASES + HELD_OUT):
        image, reference = labelled_phantom(part, seed, size)
        found = predictor(image).data
        for name, value in zip(part.present, part.values, strict=True):
            a, b = found == value, reference.data == value
            common[name] += 2 * int((a & b).sum())
            voxels[name] += int(a.sum() + b.sum())
    return {name: common[name] / max(voxels[name], 1) for name in part.present}
