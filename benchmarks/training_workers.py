"""The functions that `training.py` measures: each runs in its own process.

Functions for ``step`` and ``augment`` return the facts known before the first call, and the function that is timed. That
one computes a training step or a patch, and returns its seconds and how many of them it waited for data.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import training_nnunet as nnunet
from augmentation import monai_transforms

Figures = dict[str, Any]
One = Callable[[], tuple[float, float]]
FOREVER = 1_000_000


def prepare_nnunet(data: str, work: str) -> Figures:
    """Create nnU-Net's plan, prepared cases and split."""
    return nnunet.prepare(data, work)


def train_nnunet(work: str, minutes: float, checkpoint: str, since: float = 0, until: float = 1) -> Figures:
    """Train nnU-Net for some minutes, or for a part of them; return its steps and seconds."""
    return nnunet.train(work, minutes, checkpoint, since, until)


def logits_nnunet(work: str, checkpoint: str, case: str, output: str) -> Figures:
    """Write nnU-Net's logits of a case, and return the order of their axes."""
    return nnunet.logits(work, checkpoint, case, output)


def predict_nnunet(work: str, checkpoint: str, output: str) -> Figures:
    """Predict the held-out cases with nnU-Net."""
    return nnunet.predict(work, checkpoint, output)


def step_nnunet(work: str, processes: int | None = None) -> tuple[Figures, One]:
    """Run nnU-Net's ``train_step`` on its own loader, with `processes` for augmentation or as many as it chooses."""
    return nnunet.step(work, processes)


def step_medseg(work: str, workers: int, precision: str) -> tuple[Figures, One]:
    """Run single steps of medseg's trainer of the planned experiment."""
    run = Path(work) / "runs" / f"step_{os.getpid()}"
    shutil.rmtree(run, ignore_errors=True)
    often = (f"steps={FOREVER}", f"save_every={FOREVER}", "report_every=1", "validation_batches=0")
    own = (f"workers={workers}", f"precision={precision}")
    trainer = planned(work, *(f"train.{value}" for value in (*often, *own))).trainer(run)
    reports = iter(trainer)
    known = {
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "batch": trainer.settings.batch_size,
        "patch": list(trainer.saved.window),
        "precision": trainer.team.precision,
    }

    def one() -> tuple[float, float]:
        report = next(reports)
        return report.seconds_per_step, report.data_wait_fraction * report.seconds_per_step

    return known, one


def step_monai(work: str, workers: int) -> tuple[Figures, One]:
    """Run a plain loop over MONAI's DynUNet and its loss on every head, as in its tutorial, with cases in memory."""
    import torch
    from monai.losses import DiceCELoss
    from monai.networks.nets import DynUNet

    experiment = planned(work)
    classes, size = 3, experiment.patch.window()
    stages = experiment.model.to_plain()["encoder_stages"]
    kernels, strides, widths = ([s[key] for s in stages] for key in ("kernel_size", "stride", "channels"))
    network = DynUNet(
        3, 1, classes, kernels, strides, strides[1:], widths,
        norm_name=("instance", {"affine": True}), deep_supervision=True, deep_supr_num=1, trans_bias=True,
    )  # fmt: skip
    loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.99, nesterov=True, weight_decay=3e-5)
    batches = _monai_batches(_monai_cases(work, experiment, size), experiment.train.batch_size, workers)
    network.train()

    def one() -> tuple[float, float]:
        began = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - began
        optimizer.zero_grad(set_to_none=True)
        heads = network(batch["image"].as_tensor()).unbind(1)
        weights = [0.5**i / sum(0.5**j for j in range(len(heads))) for i in range(len(heads))]
        label = batch["label"].as_tensor()
        value = torch.stack([w * loss(head, label) for w, head in zip(weights, heads, strict=True)]).sum()
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()
        value.item()
        return time.perf_counter() - began, waited

    known = {
        "parameters": sum(p.numel() for p in network.parameters()),
        "batch": experiment.train.batch_size,
        "patch": list(size),
    }
    return known, one


def augment_nnunet(work: str) -> tuple[Figures, One]:
    """Cut a batch of patches with nnU-Net's loader and batchgeneratorsv2's transforms, on one thread."""
    count, make = nnunet.batch(work)
    return {"batch": count}, _on_one_thread(make)


def augment_medseg(work: str) -> tuple[Figures, One]:
    """Do the same with medseg, from its prepared cases."""
    run = Path(work) / "runs" / "augment"
    shutil.rmtree(run, ignore_errors=True)
    patches = planned(work, f"train.steps={FOREVER}").trainer(run).patches.train
    indices = iter(range(FOREVER))
    count = patches.batch_size
    return {"batch": count}, _on_one_thread(lambda: [patches[next(indices)] for _ in range(count)])


def augment_monai(work: str) -> tuple[Figures, One]:
    """Do the same with MONAI, from cases in memory."""
    experiment = planned(work)
    cases = _monai_cases(work, experiment, experiment.patch.window())
    indices = cycle(range(len(cases)))
    count = experiment.train.batch_size
    return {"batch": count}, _on_one_thread(lambda: [cases[next(indices)] for _ in range(count)])


def _on_one_thread(make: Callable[[], Any]) -> One:
    import torch

    torch.set_num_threads(1)

    def one() -> tuple[float, float]:
        began = time.perf_counter()
        make()
        return time.perf_counter() - began, 0.0

    return one


def planned(work: str, *overrides: str) -> Any:
    """Return the experiment that ``medseg plan`` writes for nnU-Net's GPU, with nnU-Net's own split of the cases."""
    from medseg.experiment.experiment import Experiment

    splits = f"data.splits={Path(work).resolve() / 'splits_final.json'}"
    return Experiment.load(Path(work) / "same.yaml", splits, f"data.fold={nnunet.FOLD}", *overrides)


def _monai_cases(work: str, experiment: Any, size: tuple[int, ...]) -> Any:
    """Return random patches by case; cases are read, normalised and padded once."""
    from monai import transforms as t
    from monai.data import CacheDataset

    data = Path(experiment.data.path)
    ids = json.loads((Path(work) / "splits_final.json").read_text())[nnunet.FOLD]["train"]
    files = [
        {"image": str(data / "imagesTr" / f"{i}.nii.gz"), "label": str(data / "labelsTr" / f"{i}.nii.gz")}
        for i in ids
    ]
    both = ["image", "label"]
    once = [
        t.LoadImaged(both),
        t.EnsureChannelFirstd(both),
        t.Orientationd(both, "RAS", labels=None),
        t.NormalizeIntensityd("image"),
        t.SpatialPadd(both, size),
    ]
    drawn = t.RandCropByPosNegLabeld(both, "label", size, pos=0.33, neg=0.67, num_samples=1)
    # The crop returns a list of one sample, to which the following transforms are applied.
    chain: Any = t.Compose([*once, drawn, monai_transforms(experiment.augment, size)])
    return CacheDataset(files, chain, progress=False)


def _monai_batches(cases: Any, batch_size: int, workers: int) -> Iterator[Any]:
    from monai.data import DataLoader

    loader = DataLoader(
        cases,
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    while True:
        yield from loader
