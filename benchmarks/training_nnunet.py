"""nnU-Net's part of `training.py`: its dataset, trainer and predictions, without medseg."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

Figures = dict[str, Any]
DATASET = "Dataset004_Hippocampus"
CONFIGURATION = "3d_fullres"
FOLD = 0


def set_folders(work: Path) -> Path:
    """Set the environment variables from which nnU-Net reads the location of its files, and return that folder."""
    home = work.resolve() / "nnunet"
    for name in ("raw", "preprocessed", "results"):
        (home / name).mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{name}"] = str(home / name)
    return home


def set_processes(count: int) -> None:
    """Set the number of processes in which nnU-Net augments."""
    name = "nnUNet_n_proc_DA"
    os.environ[name] = str(count)


def prepare(data: str, work: str) -> Figures:
    """Plan and preprocess the Decathlon task as ``nnUNetv2_plan_and_preprocess`` does; the files are linked to."""
    home = set_folders(Path(work))
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api

    _link(Path(data).resolve(), home / "raw" / DATASET)
    api.extract_fingerprint_dataset(4, num_processes=2, show_progress_bar=False)
    api.plan_experiment_dataset(4)
    api.preprocess_dataset(4, configurations=(CONFIGURATION,), num_processes=(2,), show_progress_bar=False)
    trainer_of(Path(work)).do_split()
    # Written last, so that its presence marks a complete dataset; medseg reads it, too.
    shutil.copyfile(home / "preprocessed" / DATASET / "splits_final.json", Path(work) / "splits_final.json")
    return {}


def _link(source: Path, raw: Path) -> None:
    """Write the task in nnU-Net's layout."""
    task = json.loads((source / "dataset.json").read_text())
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True, exist_ok=True)
    for entry in task["training"]:
        image, label = source / entry["image"], source / entry["label"]
        name = image.name.removesuffix(".nii.gz")
        for link, target in (
            (raw / "imagesTr" / f"{name}_0000.nii.gz", image),
            (raw / "labelsTr" / f"{name}.nii.gz", label),
        ):
            link.unlink(missing_ok=True)
            link.symlink_to(target)
    found = {
        "channel_names": task["modality"],
        "labels": {name: int(value) for value, name in task["labels"].items()},
        "numTraining": len(task["training"]),
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(found))


def trainer_of(work: Path, device: str = "cpu") -> Any:
    """Return nnU-Net's own trainer of the fold, as ``nnUNetv2_train`` creates it."""
    set_folders(work)
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    torch.set_num_threads(os.cpu_count() or 1)
    return get_trainer_from_args(DATASET, CONFIGURATION, FOLD, device=torch.device(device))


def begun(work: Path) -> Any:
    """Return the trainer before its first step, with network, loss, loaders and augmentation processes."""
    trainer = trainer_of(work)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    return trainer


def ended(trainer: Any) -> None:
    """End the processes of the loaders."""
    for loader in (trainer.dataloader_train, trainer.dataloader_val):
        if hasattr(loader, "_finish"):
            loader._finish()


def step(work: str, processes: int | None = None) -> tuple[Figures, Callable[[], tuple[float, float]]]:
    """Return a training step, and the facts known before the first one; see `training_workers`."""
    if processes is not None:
        set_processes(processes)
    trainer = begun(Path(work))
    known = {
        "parameters": sum(p.numel() for p in trainer.network.parameters()),
        "without_effect": _without_effect(trainer.network),
        "batch": trainer.batch_size,
        "patch": list(trainer.configuration_manager.patch_size),
    }

    def one() -> tuple[float, float]:
        began = time.perf_counter()
        batch = next(trainer.dataloader_train)
        waited = time.perf_counter()
        trainer.train_step(batch)
        return time.perf_counter() - began, waited - began

    return known, one


def _without_effect(network: Any) -> int:
    """Return the number of parameters without a counterpart in medseg: a head of loss weight 0, and biases removed by a norm."""
    from dynamic_network_architectures.building_blocks.simple_conv_blocks import ConvDropoutNormReLU

    blocks = [module for module in network.modules() if isinstance(module, ConvDropoutNormReLU)]
    biases = {id(block.conv.bias): block.conv.bias.numel() for block in blocks}
    return int(sum(biases.values()) + sum(p.numel() for p in network.decoder.seg_layers[0].parameters()))


def batch(work: str) -> tuple[int, Callable[[], Any]]:
    """Cut and augment the patches of a batch with nnU-Net's loader in this process, without the coarser targets."""
    set_processes(0)
    trainer = trainer_of(Path(work))
    trainer.initialize()
    trainer.enable_deep_supervision = False
    loader = trainer.get_dataloaders()[0].data_loader
    return trainer.batch_size, loader.generate_train_batch


def link_held_out(data: Path, work: Path, kind: str) -> Path:
    """Return a folder with links to the images or label maps of the fold's held-out cases.

    Args:
        data: Folder of the Decathlon task.
        work: Folder with nnU-Net's split.
        kind: ``imagesTr`` or ``labelsTr``.
    """
    folder = work / "held_out" / kind
    folder.mkdir(parents=True, exist_ok=True)
    for case in json.loads((work / "splits_final.json").read_text())[FOLD]["val"]:
        link = folder / f"{case}.nii.gz"
        if not link.is_file():
            link.symlink_to((data / kind / link.name).resolve())
    return folder


def train(work: str, minutes: float, checkpoint: str, since: float = 0, until: float = 1) -> Figures:
    """Train for the given time, with a learning rate that falls by nnU-Net's rule over this time; then save.

    nnU-Net counts epochs, not minutes: here the rate of every step follows from the fraction of the time that has
    passed. Validation on patches is left out, so that all the time is spent on training.

    Args:
        work: Folder with nnU-Net's files.
        minutes: Time of the whole training.
        checkpoint: Name of the checkpoint, which is continued if `since` is above 0.
        since: Fraction of the time that was trained before.
        until: Fraction of the time at which to stop and save.

    Returns:
        Steps and seconds.
    """
    trainer = begun(Path(work))
    path = Path(trainer.output_folder) / f"{checkpoint}.pth"
    if since > 0:
        trainer.load_checkpoint(str(path))
    began, steps = time.perf_counter(), 0
    while (passed := since + (time.perf_counter() - began) / (60 * minutes)) < until:
        for group in trainer.optimizer.param_groups:
            group["lr"] = trainer.initial_lr * (1 - passed) ** 0.9
        trainer.train_step(next(trainer.dataloader_train))
        steps += 1
    seconds = time.perf_counter() - began
    ended(trainer)
    trainer.current_epoch = 1  # one is taken off where a checkpoint is written
    unfinished = path.with_suffix(".unfinished")
    trainer.save_checkpoint(str(unfinished))
    unfinished.replace(path)
    return {"steps": steps, "seconds": seconds}


def predict(work: str, checkpoint: str, output: str) -> Figures:
    """Predict the held-out cases with that checkpoint and nnU-Net's mirroring, as ``nnUNetv2_predict`` does."""
    trainer = trainer_of(Path(work))
    cases = trainer.do_split()[1]
    predictor = _predictor(trainer, checkpoint)
    images = set_folders(Path(work)) / "raw" / DATASET / "imagesTr"
    Path(output).mkdir(parents=True, exist_ok=True)
    predictor.predict_from_files_sequential(
        [[str(images / f"{case}_0000.nii.gz")] for case in cases],
        [str(Path(output) / case) for case in cases],
        save_probabilities=False,
        overwrite=True,
    )
    return {"cases": len(cases)}


def logits(work: str, checkpoint: str, case: str, output: str) -> Figures:
    """Write the logits of one image `(K, *axes of nnU-Net's arrays)` as nnU-Net predicts them, with its mirroring.

    nnU-Net sums the logits of windows in float16. Here it sums in float32, so that rounding hides no difference.
    """
    import numpy as np
    import torch

    trainer = trainer_of(Path(work))
    predictor = _predictor(trainer, checkpoint)
    image = set_folders(Path(work)) / "raw" / DATASET / "imagesTr" / f"{case}_0000.nii.gz"
    plans, configuration = predictor.plans_manager, predictor.configuration_manager
    data, properties = plans.image_reader_writer_class().read_images([str(image)])
    preprocessor = configuration.preprocessor_class(verbose=False)
    prepared, _, _ = preprocessor.run_case_npy(
        data, None, properties, plans, configuration, predictor.dataset_json
    )
    with mock.patch.object(torch, "half", torch.float32):
        found = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(np.asarray(prepared)))
    np.save(output, np.asarray(found))
    return {"transpose_forward": list(plans.transpose_forward)}


def _predictor(trainer: Any, checkpoint: str) -> Any:
    """Return nnU-Net's predictor with a checkpoint of the fold."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(
        trainer.output_folder_base, (FOLD,), checkpoint_name=f"{checkpoint}.pth"
    )
    return predictor
