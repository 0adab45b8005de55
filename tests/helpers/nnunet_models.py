"""Trained nnU-Net model folders made on the fly with nnU-Net's own classes, and its own predictions."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import nibabel as nib
import numpy as np
import torch

import medseg
from medseg.interop.nnunet.model import import_nnunet
from medseg.model_folder.settings import SavedModel

os.environ.setdefault(
    "nnUNet_def_n_proc", "1"
)  # read when nnU-Net is imported; by default it takes eight threads
KIND = "dynamic_network_architectures.architectures.unet."
RESAMPLING = {"is_seg": False, "order_z": 0, "force_separate_z": None}


def architecture(
    dims: int,
    *,
    residual: bool = False,
    features: tuple[int, ...] = (6, 8, 10),
    kernels: Any = None,
    strides: Any = None,
) -> dict[str, Any]:
    """The ``architecture`` of the plans."""
    n = len(features)
    blocks = "n_blocks_per_stage" if residual else "n_conv_per_stage"
    return {
        "network_class_name": KIND + ("ResidualEncoderUNet" if residual else "PlainConvUNet"),
        "arch_kwargs": {
            "n_stages": n,
            "features_per_stage": list(features),
            "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
            "kernel_sizes": kernels or [[3] * dims] * n,
            "strides": strides or [[1] * dims, *[[2] * dims] * (n - 1)],
            blocks: [1, 2, 1][:n],
            "n_conv_per_stage_decoder": [2, 1][: n - 1],
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def configuration(
    patch: list[int], spacing: list[float], net: dict[str, Any], schemes: list[str], masked: list[bool]
) -> dict[str, Any]:
    """One configuration of the plans."""
    return {
        "data_identifier": "nnUNetPlans",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": patch,
        "median_image_size_in_voxels": patch,
        "spacing": spacing,
        "normalization_schemes": schemes,
        "use_mask_for_norm": masked,
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {**RESAMPLING, "order": 3},
        "resampling_fn_seg_kwargs": {**RESAMPLING, "is_seg": True, "order": 1},
        "resampling_fn_probabilities_kwargs": {**RESAMPLING, "order": 1},
        "architecture": net,
        "batch_dice": True,
    }


def plans_of(
    configurations: dict[str, Any], channels: int = 1, transpose: tuple[int, ...] = (0, 1, 2)
) -> dict[str, Any]:
    """A whole ``plans.json``."""
    statistics = {"mean": 40.0, "median": 45.0, "std": 120.0, "min": -900.0, "max": 900.0}
    statistics |= {"percentile_00_5": -250.0, "percentile_99_5": 330.0}
    return {
        "dataset_name": "Dataset900_Toy",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": list(transpose),
        "transpose_backward": [int(i) for i in np.argsort(transpose)],
        "configurations": configurations,
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(i): statistics for i in range(channels)},
    }


THICK_KERNELS = [[1, 3, 3], [3, 3, 3], [3, 3, 3]]
THICK_STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]


def plans_3d(spacing: list[float], scheme: str = "ZScoreNormalization", **net: Any) -> dict[str, Any]:
    """Return plans of a 3D model of one channel; `net` are arguments of `architecture`."""
    chosen = configuration([16, 16, 12], spacing, architecture(3, **net), [scheme], [False])
    return plans_of({"3d_fullres": chosen})


def plans_2d(transpose: tuple[int, ...] = (0, 1, 2), channels: int = 1, **net: Any) -> dict[str, Any]:
    """Return plans of a 2D model; several channels are normalised in their mask."""
    schemes, masked = ["ZScoreNormalization"] * channels, [channels > 1] * channels
    chosen = configuration([20, 16], [1.1, 1.3], architecture(2, **net), schemes, masked)
    return plans_of({"2d": chosen}, channels, transpose)


def import_and_load(folder: Path, output: Path, **options: Any) -> medseg.Predictor:
    """Import a trained folder to `output`, without a reference output, and return its predictor, in single precision."""
    import_without_reference(folder, output, **options)
    return medseg.load(output, device="cpu", precision="float32")


def import_without_reference(folder: Path, output: Path, **options: Any) -> SavedModel:
    """Import a trained folder without its reference output, which takes half of the time; return the settings."""
    with mock.patch("medseg.interop.nnunet.model.write_reference"):
        return import_nnunet(folder, output, **options)


def dataset_of(channels: int = 1, labels: dict[str, Any] | None = None) -> dict[str, Any]:
    """A whole ``dataset.json``."""
    return {
        "channel_names": {str(i): f"channel {i}" for i in range(channels)},
        "labels": labels or {"background": 0, "liver": 1, "spleen": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }


def write_trained(
    parent: Path,
    name: str,
    plans: dict[str, Any],
    dataset: dict[str, Any],
    *,
    folds: tuple[Any, ...] = (0,),
    mirror_axes: tuple[int, ...] | None = None,
    trainer: str = "nnUNetTrainer",
    seed: int = 0,
    background: float | None = None,
) -> Path:
    """A trained folder with random weights whose logits are far apart; checkpoints are as nnU-Net writes them.

    `background` is the share of noise that the network takes for background; None for no preference.
    """
    folder = parent / f"{trainer}__nnUNetPlans__{name}"
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    for number, fold in enumerate(folds, seed):
        network = random_network(plans, name, dataset, trainer, number, background)
        (folder / f"fold_{fold}").mkdir()
        save_checkpoint(
            folder / f"fold_{fold}" / "checkpoint_final.pth",
            network,
            trainer,
            {"plans": plans, "configuration": name, "fold": fold, "dataset_json": dataset},
            mirror_axes,
        )
    return folder


def random_network(
    plans: dict[str, Any],
    name: str,
    dataset: dict[str, Any],
    trainer: str,
    seed: int,
    background: float | None = None,
) -> torch.nn.Module:
    """The network that the plans describe, built by nnU-Net's own functions."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    torch.manual_seed(seed + 5)
    manager = PlansManager(json.loads(json.dumps(plans)))
    heads = manager.get_label_manager(dataset).num_segmentation_heads
    channels = len(dataset["channel_names"])
    with warnings.catch_warnings(action="ignore"):  # about the older format of plans
        if manager.get_configuration(name).previous_stage_name is not None:
            channels += len(manager.get_label_manager(dataset).foreground_labels)
        network = _built(manager, manager.get_configuration(name), channels, heads, trainer)
    with torch.no_grad():
        for module in network.modules():
            if "Norm" in type(module).__name__ and isinstance(getattr(module, "weight", None), torch.Tensor):
                module.weight.normal_(1.0, 0.3)
                module.bias.normal_(0.0, 0.3)
                if hasattr(module, "running_mean") and module.running_mean is not None:
                    module.running_mean.normal_(0.0, 0.3)
                    module.running_var.uniform_(0.5, 2.0)
        head = network.decoder.seg_layers[-1]
        head.weight.normal_(0.0, 3.0)
        head.bias.zero_()
        # Every class wins somewhere: otherwise equal label maps would say little.
        patch = manager.get_configuration(name).patch_size
        noise = torch.randn(1, channels, *patch)
        head.bias -= network.eval()(noise).mean(dim=(0, *range(2, noise.dim())))
        if background is not None:
            logits = network(noise)
            head.bias[0] += (logits[:, 1:].amax(1) - logits[:, 0]).quantile(background)
    assert isinstance(network, torch.nn.Module)
    return network


def _built(manager: Any, chosen: Any, channels: int, heads: int, trainer: str) -> Any:
    """The network that a trainer class builds; the classes are imported only if they do more than follow the plans."""
    if trainer in ("nnUNetTrainer", "nnUNetTrainerNoMirroring"):
        from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

        return get_network_from_plans(
            chosen.network_arch_class_name,
            chosen.network_arch_init_kwargs,
            chosen.network_arch_init_kwargs_req_import,
            channels,
            heads,
            allow_init=True,
            deep_supervision=False,
        )
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    trainer_class = recursive_find_trainer_class_by_name(trainer)
    return trainer_class.build_network_architecture(manager, chosen, channels, heads, False)


def save_checkpoint(
    path: Path,
    network: torch.nn.Module,
    trainer: str,
    init_args: dict[str, Any],
    mirror_axes: tuple[int, ...] | None,
) -> None:
    """With the keys and kinds of values that nnU-Net's trainer writes."""
    optimizer = torch.optim.SGD(network.parameters(), 1e-2, momentum=0.99, nesterov=True)
    values = [np.float32(0.5), np.float64(0.75)]
    torch.save(
        {
            "network_weights": network.state_dict(),
            "optimizer_state": optimizer.state_dict(),
            "grad_scaler_state": None,
            "logging": {"mean_fg_dice": values, "dice_per_class_or_region": [values], "lrs": [0.01]},
            "_best_ema": np.float64(0.5),
            "current_epoch": 1000,
            "init_args": {**init_args, "device": torch.device("cpu")},
            "trainer_name": trainer,
            "inference_allowed_mirroring_axes": mirror_axes,
        },
        path,
    )


def write_images(
    folder: Path,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    *,
    channels: int = 1,
    border: int = 0,
    axcodes: str = "RAS",
) -> list[Path]:
    """One file per channel in file order: smooth structures and noise, zeros around them, a hole within."""
    rng = np.random.default_rng(7)
    grids = np.meshgrid(*[np.arange(n) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij")
    paths = []
    folder.mkdir(parents=True, exist_ok=True)
    for channel in range(channels):
        wave = sum(np.sin(g / (4.0 + a + channel)) for a, g in enumerate(grids))
        data = (150 * wave + 3 * rng.normal(size=shape) + 40).astype(np.float32)
        if border:
            inner = tuple(slice(border, -border) for _ in shape)
            kept = np.zeros_like(data)
            kept[inner] = data[inner]
            kept[tuple(slice(n // 2, n // 2 + 2) for n in shape)] = 0
            data = kept
        image = nib.Nifti1Image(data, np.diag([*spacing, 1.0]))
        ornt = nib.orientations.axcodes2ornt(tuple(axcodes))
        path = folder / f"case_{channel:04d}.nii.gz"
        nib.save(image.as_reoriented(ornt) if axcodes != "RAS" else image, path)
        paths.append(path)
    return paths


class Oracle:
    """nnU-Net's own predictor.

    Args:
        folder: trained model. images: one file a channel. folds: of the model.
        exact: sum logits in float32; nnU-Net does in float16, where classes come to tie.
    """

    def __init__(
        self, folder: Path, images: list[Path], folds: tuple[Any, ...] = (0,), *, exact: bool = True
    ) -> None:
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        self._sums = mock.patch.object(torch, "half", torch.float32 if exact else torch.half)
        self._predictor = nnUNetPredictor(
            perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
        )
        with warnings.catch_warnings(action="ignore"):
            self._predictor.initialize_from_trained_model_folder(str(folder), folds)
        reader = self._predictor.plans_manager.image_reader_writer_class()
        self._data, self._properties = reader.read_images([str(path) for path in images])

    def probabilities(self) -> tuple[np.ndarray, np.ndarray]:
        """Label map `(X, Y, Z)` and probabilities `(X, Y, Z, K)` in the order of the file's axes."""
        with self._sums:
            labels, probabilities = self._predictor.predict_single_npy_array(
                self._data, self._properties, None, None, True
            )
        return np.asarray(labels).transpose(2, 1, 0), np.asarray(probabilities).transpose(3, 2, 1, 0)

    def labels(self, first_stage: np.ndarray | None = None) -> np.ndarray:
        """Label map `(X, Y, Z)` in the order of the file's axes; `first_stage` is that of a cascade's earlier stage."""
        stage = None if first_stage is None else first_stage.transpose(2, 1, 0)[None].astype(np.int16)
        with self._sums:
            found = self._predictor.predict_single_npy_array(self._data, self._properties, stage, None, False)
        return np.asarray(found).transpose(2, 1, 0)

    def prepared(self) -> np.ndarray:
        """Preprocessed image `(C, *tensor axes)`."""
        chosen = self._predictor
        preprocessor = chosen.configuration_manager.preprocessor_class(verbose=False)
        image, _, _ = preprocessor.run_case_npy(
            self._data,
            None,
            dict(self._properties),
            chosen.plans_manager,
            chosen.configuration_manager,
            chosen.dataset_json,
        )
        return np.asarray(image)

    def logits(self) -> np.ndarray:
        """Logits `(K, *tensor axes)` of the preprocessed image."""
        with self._sums:
            image = torch.from_numpy(self.prepared())
            return np.asarray(self._predictor.predict_logits_from_preprocessed_data(image))
