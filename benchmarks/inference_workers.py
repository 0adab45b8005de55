"""The functions that `inference.py` measures: each runs in its own process and returns its results.

Each takes its settings as plain values. Wall and CPU seconds and the peak of resident memory of the whole process are
added by `worker_process.answer`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

Figures = dict[str, Any]
REPEATS = 2


def window_nnunet(folder: str, dtype: str) -> Figures:
    """Time one window of the network as nnU-Net builds and runs it."""
    import torch

    predictor = _nnunet(folder)
    return _timed_window(predictor.network.eval(), torch.contiguous_format, dtype)


def window_medseg(model: str, dtype: str, compiled: bool = False) -> Figures:
    """Time one window of the same network as medseg runs it."""
    import torch

    import medseg
    from medseg.runtime.glibc_memory import keep_freed_memory

    predictor = medseg.load(model, device="cpu", precision=dtype, compile=compiled)
    network = predictor.network.volumetric
    with keep_freed_memory():  # as in a prediction
        return _timed_window(network, torch.channels_last_3d, dtype, turned=True)


def _timed_window(network: Any, layout: Any, dtype: str, *, turned: bool = False) -> Figures:
    """Return the seconds of the fastest of some calls; `turned` for a network with axes x, y, z instead of nnU-Net's z, y, x."""
    import torch

    window = (128, 128, 128)
    image = torch.randn((1, 1, *window), generator=torch.Generator().manual_seed(0))
    if turned:
        image = image.permute(0, 1, 4, 3, 2).contiguous()
    image = image.to(memory_format=layout)
    seconds = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        for _ in range(REPEATS + 1):
            began = time.perf_counter()
            logits = network(image)
            seconds.append(time.perf_counter() - began)
    logits = logits.float()
    if turned:
        logits = logits.permute(0, 1, 4, 3, 2)
    return {"seconds": min(seconds[1:]), "probe": logits[0, :, ::9, ::9, ::9].flatten().tolist()}


def file_nnunet(folder: str, image: str, output: str, overlap: float = 0.5) -> Figures:
    """Predict file to file with nnU-Net's predictor in this process; threads as in ``nnUNetv2_predict -device cpu``."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    predictor = _nnunet(folder, overlap)
    began = time.perf_counter()
    predictor.predict_from_files_sequential([[image]], [output], save_probabilities=False, overwrite=True)
    return {"seconds": time.perf_counter() - began}


def file_medseg(model: str, image: str, output: str, **settings: Any) -> Figures:
    """Predict file to file with medseg."""
    import medseg

    predictor = medseg.load(model, device="cpu", **settings)
    began = time.perf_counter()
    windows = [0]

    def progress(done: int, total: int, what: str) -> None:
        windows[0] = total

    medseg.write(predictor(image, progress=progress), f"{output}.nii.gz")
    return {"seconds": time.perf_counter() - began, "windows": windows[0]}


def estimate_medseg(model: str, image: str, **settings: Any) -> Figures:
    """Return the seconds, memory and bands that medseg estimates for the same call."""
    import medseg
    from medseg.inference.estimate import estimate_image

    found = estimate_image(medseg.load(model, device="cpu", **settings), image)
    return {"seconds": found.seconds, "memory": found.memory, "bands": found.bands}


def file_monai(model: str, image: str, output: str, overlap: float = 0.5, device: str = "cpu") -> Figures:
    """Predict file to file with MONAI's sliding window around the same network, argmax and nearest resampling back."""
    import torch
    from monai.inferers import sliding_window_inference
    from monai.transforms import Compose, EnsureChannelFirst, Invert, LoadImage, SaveImage, Spacing

    import medseg

    predictor = medseg.load(model, device=device, precision="float32")
    saved = predictor.saved.preprocessing
    channel = saved.channels[0]
    steps: list[Any] = [LoadImage(image_only=True), EnsureChannelFirst()]
    if saved.spacing is not None:
        steps.append(Spacing(saved.spacing, mode="bilinear"))
    prepare = Compose(steps)
    began = time.perf_counter()
    network = predictor.model.to(memory_format=torch.contiguous_format)
    on_gpu = device.startswith("cuda")
    with torch.inference_mode(), torch.autocast("cuda", torch.float16, enabled=on_gpu):
        loaded = prepare(image)
        values = (torch.clamp(loaded, channel.low, channel.high) - channel.mean) / channel.std
        values = values.to(device)
        logits = sliding_window_inference(
            values[None], predictor.saved.window, 1, network, overlap, mode="gaussian", sigma_scale=0.125
        )
        labels = logits[0].argmax(0, keepdim=True).cpu()
        del logits
        labels = type(loaded)(
            labels.to(torch.uint8), meta=loaded.meta, applied_operations=loaded.applied_operations
        )
        labels = Invert(prepare, nearest_interp=True)(labels) if saved.spacing is not None else labels
        SaveImage(
            output_dir=Path(output).parent, output_postfix="", resample=False, separate_folder=False,
            output_name_formatter=lambda meta, _: {"subject": Path(output).name, "idx": 0}, print_log=False,
        )(labels)  # fmt: skip
    return {"seconds": time.perf_counter() - began}


def export_nnunet(shape: list[int], target: list[int], classes: int) -> Figures:
    """Resample logits `(k, z, y, x)` to another grid and convert them to labels, as nnU-Net's export does."""
    import torch
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    logits = _smooth_logits(shape, classes).half()
    began = time.perf_counter()
    spacing = [t / s for t, s in zip(target, shape, strict=True)]
    resampled = resample_data_or_seg_to_shape(
        logits, target, spacing, [1.0] * 3, is_seg=False, order=1, order_z=0, force_separate_z=None
    )
    labels = torch.as_tensor(resampled).float().argmax(0).numpy()
    return {"seconds": time.perf_counter() - began, "probe": labels[::7, ::7, ::7].ravel().tolist()}


def export_medseg(shape: list[int], target: list[int], classes: int) -> Figures:
    """Do the same with medseg."""
    from medseg.inference.sliding.labelling import Argmax
    from medseg.inference.sliding.to_file_grid import LinearWeights, export_labels
    from medseg.volumes.resampling import AxisMap

    blocks = _smooth_logits(shape, classes).half().float().movedim(0, -1).contiguous().split(32)
    axes = [LinearWeights.from_axis_map(AxisMap.resize(a, b)) for a, b in zip(shape, target, strict=True)]
    out = np.empty(target, np.uint8)
    began = time.perf_counter()
    export_labels(blocks, axes, Argmax(np.arange(classes)), out)
    return {"seconds": time.perf_counter() - began, "probe": out[::7, ::7, ::7].ravel().tolist()}


def many_medseg(model: str, images: list[str], folder: str) -> Figures:
    """Predict many small cases in one call; return the total seconds and those in the network."""
    import torch

    import medseg
    from medseg.data.datasets.image_inputs import read_images
    from medseg.inference.cohort.batch import predict_files

    predictor = medseg.load(model, device="cpu")
    network, seconds = predictor.network.volumetric, [0.0]

    class Timed(torch.nn.Module):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            began = time.perf_counter()
            logits: torch.Tensor = network(batch)
            seconds[0] += time.perf_counter() - began
            return logits

    predictor.network.volumetric = Timed()
    cases = read_images([Path(image) for image in images], 1)
    began = time.perf_counter()
    done = list(predict_files(predictor, [(case, Path(folder) / f"{case.id}.nii.gz") for case in cases]))
    whole = time.perf_counter() - began
    failed = [str(outcome.error) for outcome in done if outcome.error is not None]
    return {"seconds": whole, "network": seconds[0], "cases": len(done), "failed": failed}


def _smooth_logits(shape: list[int], classes: int) -> Any:
    """Return blobs of classes `(k, *shape)` float32, similar to the output of a trained network."""
    import torch
    from torch.nn import functional

    coarse = torch.randn(
        1, classes, *[max(2, n // 16) for n in shape], generator=torch.Generator().manual_seed(0)
    )
    return functional.interpolate(coarse, size=shape, mode="trilinear")[0] * 5


def _nnunet(folder: str, overlap: float = 0.5) -> Any:
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        tile_step_size=1 - overlap, use_mirroring=False, perform_everything_on_device=False,
        device=torch.device("cpu"), allow_tqdm=False,
    )  # fmt: skip
    predictor.initialize_from_trained_model_folder(folder, (0,))
    return predictor
