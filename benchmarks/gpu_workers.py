"""The stages of `gpu.py`; each runs in its own process and prints JSON lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FAMILIES: dict[str, tuple[int, ...]] = {
    "unet_3d": (48, 48, 48),
    "resunet_3d": (48, 48, 48),
    "attention_unet_3d": (48, 48, 48),
    "unet_2d": (128, 128),
    "fcn_resnet_50": (128, 128),
    "mask_rcnn_resnet_50_fpn": (192, 192),
    "mask_rcnn_vit_adapter_tiny_fpn": (192, 192),
    "maskformer_resnet_18": (160, 160),
    "mask2former_swin_tiny": (160, 160),
}
"""One model of each family and an image size that it takes."""


@dataclass(frozen=True)
class Bench:
    """Where and on what to measure.

    Attributes:
        work: folder for models, images and results.
        device: torch device.
        toy: whether networks and images are small.
    """

    work: Path
    device: str
    toy: bool

    @property
    def patch(self) -> tuple[int, int, int]:
        """Window of the large network."""
        return (32, 32, 32) if self.toy else (128, 128, 128)

    @property
    def features(self) -> tuple[int, ...]:
        """Channels of its stages."""
        return (4, 8, 16) if self.toy else (32, 64, 128, 256, 320, 320)

    @property
    def models(self) -> tuple[Path, Path]:
        """The large network as nnU-Net's trained folder and as a model folder of medseg."""
        return next((self.work / "nnunet_big").iterdir()), self.work / "medseg_big"

    def synchronize(self) -> None:
        """Wait for the device."""
        import torch

        if self.device.startswith("cuda"):
            torch.cuda.synchronize()

    def peak_gb(self) -> float | None:
        """Peak of the device memory that torch allocated, GB; None on a processor."""
        import torch

        return round(torch.cuda.max_memory_allocated() / 1e9, 2) if self.device.startswith("cuda") else None

    def median_seconds(self, call: Callable[[], Any], repeats: int = 6, warm_up: int = 3) -> float:
        """Median of some calls after a warm-up."""
        seconds = []
        for number in range(warm_up + repeats):
            began = time.perf_counter()
            call()
            self.synchronize()
            if number >= warm_up:
                seconds.append(time.perf_counter() - began)
        return float(np.median(seconds))


def say(**figures: Any) -> None:
    """Print one JSON line at once."""
    print(json.dumps(figures), flush=True)


def prepare(bench: Bench, image: str) -> None:
    """Write the large network with random weights and the CT at 0.8 mm."""
    import inference

    import medseg

    volume = medseg.read(image)
    fine = volume.resampled(order=1, spacing=(3.0 if bench.toy else 0.8,) * 3)
    medseg.write(fine.with_data(np.round(fine.data).astype(np.int16)), bench.work / "ct.nii.gz")
    inference._models(bench.work, "big", classes=25, features=bench.features, patch=bench.patch)
    say(stage="prepare", shape=list(fine.data.shape[1:]))


def ceiling(bench: Bench) -> None:
    """Print the device, and how fast it multiplies large matrices and copies a large tensor."""
    import torch

    cuda = bench.device.startswith("cuda")
    name = torch.cuda.get_device_name(bench.device) if cuda else "processor"
    size, values = (512, 1 << 22) if bench.toy else (8192, 1 << 30)
    for dtype in (torch.float16, torch.bfloat16, torch.float32) if cuda else (torch.float32,):
        left, right = torch.randn(2, size, size, device=bench.device).to(dtype)
        seconds = bench.median_seconds(lambda left=left, right=right: left @ right)  # type: ignore[misc]
        say(stage="ceiling", device=name, dtype=str(dtype), tflops=2 * size**3 / seconds / 1e12)
    source = torch.zeros(values, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    seconds = bench.median_seconds(lambda: target.copy_(source))
    say(stage="ceiling", device=name, copy_gb_per_s=2 * values / seconds / 1e9)


def _flops(network: Any, image: Any) -> int:
    """Return the floating-point operations of a call, from the shapes of convolutions and products."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        network(image)
    return int(counter.get_total_flops())


def families(bench: Bench) -> None:
    """Train one step and predict once with a model of each family."""
    import torch

    import medseg
    from medseg.losses import build_loss

    for name, size in FAMILIES.items():
        torch.manual_seed(0)
        model = medseg.build_model(name, in_channels=1, num_classes=3).to(bench.device)
        model.criterion = build_loss("dice_ce")
        image = torch.randn(2, 1, *size, device=bench.device)
        label = torch.zeros(2, 1, *size, dtype=torch.int64, device=bench.device)
        box: tuple[Any, ...] = (..., *[slice(20, 40)] * len(size))
        label[box] = 1
        device_type = torch.device(bench.device).type
        began = time.perf_counter()
        with torch.autocast(device_type, torch.bfloat16):
            loss = torch.stack(list(model.train().losses(image, label).values())).sum()
        loss.backward()
        with torch.inference_mode(), torch.autocast(device_type, torch.bfloat16):
            logits = model.eval()(image)
        seconds = round(time.perf_counter() - began, 2)
        say(stage="families", model=name, loss=float(loss), output=list(logits.shape), seconds=seconds)


def _time_windows(bench: Bench, tool: str, network: Any, dtype: Any, memory_format: Any) -> None:
    import torch

    for batch in (1, 2, 4):
        image = torch.randn((batch, 1, *bench.patch), device=bench.device).to(memory_format=memory_format)
        enabled = dtype != torch.float32
        with torch.inference_mode(), torch.autocast(torch.device(bench.device).type, dtype, enabled=enabled):
            seconds = bench.median_seconds(lambda image=image: network(image)) / batch  # type: ignore[misc]
            flops = None if "compiled" in tool else _flops(network, image) / batch
        say(
            stage="windows",
            tool=tool,
            dtype=str(dtype),
            batch=batch,
            ms=1000 * seconds,
            # to compare with the products of the stage "ceiling" in the same data type
            tflops=None if flops is None else flops / seconds / 1e12,
            peak_gb=bench.peak_gb(),
        )


def windows_nnunet(bench: Bench) -> None:
    """Time one window of nnU-Net's network in float16, eager and compiled."""
    import torch

    torch.backends.cudnn.benchmark = True
    network = _nnunet(bench).network.eval().to(bench.device)
    dtype = torch.float16 if bench.device.startswith("cuda") else torch.bfloat16
    _time_windows(bench, "nnunet", network, dtype, torch.contiguous_format)
    if not bench.toy:
        _time_windows(bench, "nnunet compiled", torch.compile(network), dtype, torch.contiguous_format)


def windows_medseg(bench: Bench) -> None:
    """Time one window of the same network as medseg runs it, in each precision."""
    import torch

    import medseg
    from medseg.runtime.devices import memory_format, set_tf32

    torch.backends.cudnn.benchmark = True
    for precision in ("auto", "tf32", "float32"):
        network = medseg.load(bench.models[1], device=bench.device, precision=precision).network
        layout = memory_format(torch.device(bench.device), 3)
        set_tf32(precision == "tf32")
        _time_windows(bench, f"medseg {precision}", network.volumetric, network.dtype, layout)


def file_nnunet(bench: Bench, mirror: str) -> None:
    """Predict the CT file to file with nnU-Net, twice."""
    for turn in range(2):
        began = time.perf_counter()
        _nnunet(bench, mirror == "true").predict_from_files_sequential(
            [[str(bench.work / "ct.nii.gz")]], [str(bench.work / "nnunet")], False, True
        )
        say(
            stage="file",
            tool="nnunet",
            mirror=mirror,
            turn=turn,
            seconds=time.perf_counter() - began,
            peak_gb=bench.peak_gb(),
        )


def file_medseg(bench: Bench, mirror: str) -> None:
    """Predict the CT file to file with medseg, twice, with the time of each part."""
    import medseg

    settings: dict[str, Any] = {"mirror_axes": [0, 1, 2]} if mirror == "true" else {}
    for turn in range(2):
        marks = [time.perf_counter()]
        predictor = medseg.load(bench.models[1], device=bench.device, **settings)
        marks.append(time.perf_counter())
        prepared = predictor.prepare(bench.work / "ct.nii.gz")
        marks.append(time.perf_counter())
        labels = predictor.run(prepared)
        bench.synchronize()
        marks.append(time.perf_counter())
        medseg.write(labels, bench.work / "medseg.nii.gz")
        marks.append(time.perf_counter())
        parts = dict(zip(("load", "prepare", "run", "write"), np.diff(marks).round(3).tolist(), strict=True))
        say(
            stage="file",
            tool="medseg",
            mirror=mirror,
            turn=turn,
            seconds=marks[-1] - marks[0],
            peak_gb=bench.peak_gb(),
            **parts,
        )
    reference = bench.work / "nnunet.nii.gz"
    if reference.is_file():
        same = medseg.read_labels(bench.work / "medseg.nii.gz").data == medseg.read_labels(reference).data
        say(stage="file", tool="medseg", mirror=mirror, agreement_with_nnunet=float(same.mean()))


def file_monai(bench: Bench, mirror: str) -> None:
    """Predict the CT file to file with MONAI's sliding window around the same network."""
    import inference_workers

    if mirror == "true":
        return  # MONAI has no mirroring
    began = time.perf_counter()
    inference_workers.file_monai(
        str(bench.models[1]), str(bench.work / "ct.nii.gz"), str(bench.work / "monai"), device=bench.device
    )
    say(stage="file", tool="monai", seconds=time.perf_counter() - began, peak_gb=bench.peak_gb())


def steps_nnunet(bench: Bench, data: str, seconds: str) -> None:
    """Train with nnU-Net's trainer for some seconds."""
    import training_nnunet

    if not (bench.work / "splits_final.json").is_file():
        training_nnunet.prepare(data, str(bench.work))
    trainer = training_nnunet.trainer_of(bench.work, bench.device)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    for _ in range(6):
        trainer.train_step(next(trainer.dataloader_train))
    bench.synchronize()
    began, steps, waited = time.perf_counter(), 0, 0.0
    while time.perf_counter() - began < float(seconds):
        asked = time.perf_counter()
        batch = next(trainer.dataloader_train)
        waited += time.perf_counter() - asked
        trainer.train_step(batch)
        steps += 1
    took = time.perf_counter() - began
    say(
        stage="steps",
        tool="nnunet",
        s_per_step=took / steps,
        samples_per_s=steps * trainer.batch_size / took,
        data_wait=waited / took,
        peak_gb=bench.peak_gb(),
    )
    os._exit(0)  # its worker processes would be waited for


def steps_medseg(bench: Bench, data: str, seconds: str) -> None:
    """Train medseg's plan for some seconds and report its speed."""
    from medseg.experiment import Experiment

    plan = _plan(bench, data)
    endless = (
        "train.steps=1000000",
        "train.save_every=1000000",
        "train.validation_batches=0",
        "train.report_every=20",
    )
    experiment = Experiment.load(plan, *endless)
    reports, began = [], 0.0
    for report in experiment.trainer(bench.work / f"steps_{time.time_ns()}"):
        began = began or time.perf_counter()
        reports.append(report)
        if time.perf_counter() - began > float(seconds):
            break
    figures = [
        (r.seconds_per_step, r.samples_per_second, r.data_wait_fraction) for r in reports[1:] or reports
    ]
    step, samples, wait = np.median(figures, axis=0).tolist()
    say(
        stage="steps",
        tool="medseg",
        s_per_step=step,
        samples_per_s=samples,
        data_wait=wait,
        peak_gb=bench.peak_gb(),
    )


def train_medseg(bench: Bench, data: str, seconds: str) -> None:
    """Plan, train for a time budget, predict the held-out cases and evaluate them, by medseg's own commands."""
    run = bench.work / f"train_{time.time_ns()}"
    splits = bench.work / "splits_final.json"
    same_fold = [f"data.splits={splits}", "data.fold=0"] if splits.is_file() else []
    budget = [f"train.max_time={seconds}s", "train.steps=null"]
    _medseg("train", str(_plan(bench, data)), *budget, *same_fold, "--run", str(run))
    _medseg("predict", str(run), "--held-out")
    _medseg("evaluate", str(run))
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    say(stage="train", tool="medseg", seconds=int(seconds), dice=summary["foreground_mean"]["dice"])


def _plan(bench: Bench, data: str) -> Path:
    plan = bench.work / "plan.yaml"
    if not plan.is_file():
        memory = [] if bench.device.startswith("cuda") else ["--device", "cuda"]
        _medseg("plan", data, "-o", str(plan), *memory)
    return plan


def _medseg(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "medseg", *arguments], check=True, stdout=sys.stderr)


def _nnunet(bench: Bench, mirror: bool = False) -> Any:
    """nnU-Net's predictor around the large network."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        tile_step_size=0.5, use_mirroring=mirror, device=torch.device(bench.device), allow_tqdm=False,
        perform_everything_on_device=bench.device.startswith("cuda"),
    )  # fmt: skip
    predictor.initialize_from_trained_model_folder(str(bench.models[0]), (0,))
    return predictor


if __name__ == "__main__":
    settings, worker, *arguments = sys.argv[1:]
    values = json.loads(settings)
    globals()[worker](Bench(Path(values["work"]), values["device"], values["toy"]), *arguments)
