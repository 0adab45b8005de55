"""Checkpoints: folders that are valid only with their manifest, which is written last.

``step-0000500/  weights.safetensors  state.pt  manifest.json``. ``state.pt`` holds tensors and plain types only
and is read with ``weights_only=True``.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from medseg.errors import ModelError, warn_once
from medseg.storage.atomic import replacing_folder
from medseg.storage.formats import check_format
from medseg.storage.manifest import check_manifest, is_complete, write_manifest
from medseg.storage.temporary_names import temporary_folder
from medseg.storage.torch_files import read_torch_file

FORMAT = 2
_NAME = re.compile(r"step-([0-9]+)")


def save_checkpoint(
    folder: Path, step: int, weights: dict[str, Tensor], state: dict[str, Any], keep: int = 2
) -> Path:
    """Write ``folder/step-NNNNNNN`` and remove older checkpoints, see `remove_old_checkpoints`.

    Args:
        folder: Folder of the checkpoints of one kind, such as ``RUN/last``.
        step: Optimiser steps done.
        weights: State dict of the model.
        state: Tensors, numbers, strings, lists and dicts.
        keep: Number of checkpoints to keep.

    Returns:
        Folder of the new checkpoint.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    target = folder / f"step-{step:07d}"
    with replacing_folder(target) as temporary:
        (temporary / "weights.safetensors").write_bytes(save(contiguous))
        with (temporary / "state.pt").open(
            "wb"
        ) as file:  # Python's file keeps the reason why it cannot be written
            torch.save({"format": FORMAT, **state}, file)
        write_manifest(temporary)
    remove_old_checkpoints(folder, step, keep)
    return target


def remove_old_checkpoints(folder: Path, step: int, keep: int = 2) -> None:
    """Remove all but the newest checkpoints up to a step; later ones are left alone.

    Args:
        folder: Folder of the checkpoints of one kind, such as ``RUN/last``.
        step: Step of a complete checkpoint.
        keep: Number of checkpoints to keep.
    """
    saved = [path for number, path in _checkpoints(folder).items() if number <= step]
    for old in saved[:-keep]:
        trash = temporary_folder(old)
        old.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)


def has_checkpoint(folder: Path) -> bool:
    """Return whether `folder` holds a complete checkpoint."""
    return any(map(is_complete, _checkpoints(folder).values()))


def _checkpoints(folder: Path) -> dict[int, Path]:
    """Return the checkpoints of a folder by step, in ascending order; copies under other names are none of them."""
    matches = ((_NAME.fullmatch(path.name), path) for path in folder.glob("step-*"))
    return dict(sorted((int(match[1]), path) for match, path in matches if match is not None))


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read the newest complete checkpoint.

    Args:
        folder: Folder of the checkpoints of one kind, such as ``RUN/last``.

    Returns:
        Weights and state; None if there is no checkpoint. A damaged checkpoint is left out with a `DataWarning`.

    Raises:
        ModelError: There are checkpoints, but none is complete.
    """
    damage: list[ModelError] = []
    for path in reversed(_checkpoints(folder).values()):
        try:
            check_manifest(path)
        except ModelError as error:
            damage.append(error)
            continue
        for fault in damage:
            warn_once(f"{fault} Training goes on from {path.name}.")
        state = read_torch_file(path / "state.pt")
        check_format(state.get("format"), FORMAT, path / "state.pt", "checkpoint", error=ModelError)
        return load_file(path / "weights.safetensors"), state
    if damage:
        raise damage[0]
    return None
