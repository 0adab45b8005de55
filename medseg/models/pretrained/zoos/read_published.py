"""Reading of published models: the file, the zoo that it comes from, and what is stored with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from medseg.errors import ModelError
from medseg.models.pretrained.config import HUB, TORCHVISION
from medseg.models.pretrained.sources import (
    CONFIG,
    PROCESSOR,
    TIMM_NAMES,
    file_in_repository,
    state_in,
    weights_file,
)
from medseg.models.pretrained.zoos.array_pickle import read_array_pickle
from medseg.models.pretrained.zoos.detectron2_names import from_detectron2, is_detectron2
from medseg.models.pretrained.zoos.published_model import IMAGENET, PixelStatistics, PublishedModel
from medseg.models.pretrained.zoos.torchvision_names import (
    from_torchvision_fcn,
    from_torchvision_mask_rcnn,
    is_torchvision_fcn,
    is_torchvision_mask_rcnn,
)
from medseg.models.pretrained.zoos.transformers_names import from_transformers, is_mask_transformer
from medseg.models.pretrained.zoos.vit_adapter_names import from_vit_adapter, is_vit_adapter
from medseg.storage.torch_files import read_torch_file

PICKLE = ".pkl"

_WHOLE_MODELS = ("FCN_", "MaskRCNN_")  # beginnings of torchvision's names
_PIXEL = 255
_USUAL_HEADS = 8  # not stored by transformers, because it is the default
_ROUNDING = 1e-4  # of numbers that were stored in single precision
_MOST_BYTES = 1 << 24  # of a file of settings


def find_published_file(source: str, *, download: bool) -> Path | None:
    """Return the file of a whole published model, from the local cache or, if allowed, downloaded.

    Args:
        source: File, folder or name; see ``weights`` of `PretrainedOptions`.
        download: Whether weights that are not in the local cache may be downloaded.

    Returns:
        The file; None for other weights, such as those of a backbone, and for a path that does not exist.

    Raises:
        ModelError: The weights are not in the local cache and may not be downloaded, or the file is damaged.
    """
    if TORCHVISION.fullmatch(source):
        if not source.startswith(_WHOLE_MODELS):
            return None
    elif source.partition("@")[0] in TIMM_NAMES or (not HUB.fullmatch(source) and not Path(source).exists()):
        return None
    file = weights_file(source, download=download)
    return file if is_published(file) else None


def is_published(path: Path) -> bool:
    """Return whether a file or folder is a whole model of a model zoo.

    Args:
        path: Path that may not exist.

    Returns:
        True also for a pickle that `read_published` refuses with the reason.

    Raises:
        ModelError: The file is damaged, or holds code.
    """
    file = file_in_repository(path)
    if not file.is_file():
        return False
    if file.suffix == PICKLE:
        return True
    if file.suffix == ".safetensors":
        names = _names_in(file, named_by_folder=file != path)
        return is_mask_transformer(dict.fromkeys(names))
    return _is_known(state_in(read_torch_file(file, mapped=True)))


def read_published(path: Path) -> PublishedModel:
    """Read a whole model of a model zoo.

    Args:
        path: ``model_final_*.pkl`` of Detectron2, checkpoint of ViT-Adapter or torchvision, or ``model.safetensors`` of a
            repository of transformers or its folder.

    Returns:
        The model by the names of medseg.

    Raises:
        ModelError: The file is damaged, holds code, or is none of a model that medseg offers.
    """
    file = file_in_repository(path)
    if file.suffix == ".safetensors":
        content: Any = _read_safetensors(file)
    else:
        content = read_array_pickle(file) if file.suffix == PICKLE else read_torch_file(file)
    state = _tensors(content) if file.suffix == PICKLE else state_in(content)
    try:
        return _converted(state, content, file)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    except (KeyError, IndexError, RuntimeError, ValueError) as error:  # tensors of a model are missing or cut
        raise ModelError(
            f"{path}: the tensors are not those of a whole model (found no {error}). Copy the file again."
        ) from None


def _converted(state: Mapping[str, Tensor], content: Any, file: Path) -> PublishedModel:
    if is_detectron2(state):
        return from_detectron2(state)
    if is_vit_adapter(state):
        return from_vit_adapter(state, _listed_classes(content))
    if is_torchvision_mask_rcnn(state):
        return from_torchvision_mask_rcnn(state)
    if is_torchvision_fcn(state):
        return from_torchvision_fcn(state)
    if is_mask_transformer(state):
        return from_transformers(state, _configured_classes(file), _statistics(file), _configured_heads(file))
    example = next(iter(state), "none")
    raise ModelError(
        f"found {len(state)} tensors such as {example}, expected a Mask R-CNN of Detectron2, ViT-Adapter or torchvision, an FCN of "
        "torchvision, or a MaskFormer or Mask2Former of transformers. Give the file of one of these."
    )


def _is_known(state: Mapping[str, Any]) -> bool:
    checks = (
        is_detectron2,
        is_vit_adapter,
        is_torchvision_mask_rcnn,
        is_torchvision_fcn,
        is_mask_transformer,
    )
    return any(check(state) for check in checks)


def _names_in(file: Path, *, named_by_folder: bool) -> list[str]:
    """Return the names of tensors; none for a damaged file that is given by itself, which `read_tensors` refuses."""
    try:
        with safe_open(file, framework="pt") as tensors:
            return list(tensors.keys())
    except (SafetensorError, OSError) as error:
        if not named_by_folder:
            return []
        raise ModelError(f"{file}: not readable ({error}). Copy it again.") from None


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file}: not readable ({error}). Copy it again.") from None


def _tensors(content: Any) -> dict[str, Tensor]:
    """Return the arrays of a pickle of Detectron2."""
    model = content.get("model", content) if isinstance(content, dict) else {}
    arrays = model if isinstance(model, dict) else {}
    return {
        str(name): torch.from_numpy(np.asarray(value, order="C"))
        for name, value in arrays.items()
        if isinstance(value, np.ndarray)
    }


def _listed_classes(content: Any) -> tuple[str, ...] | None:
    """Return the class names in a checkpoint of MMDetection."""
    meta = content.get("meta") if isinstance(content, Mapping) else None
    found = meta.get("CLASSES") if isinstance(meta, Mapping) else None
    if isinstance(found, (list, tuple)) and all(isinstance(name, str) for name in found):
        return tuple(found)
    return None


def _configured_classes(file: Path) -> tuple[str, ...] | None:
    """Return the class names of a repository of transformers; of its configuration only these and the number of heads are read."""
    found = _settings(file.with_name(CONFIG)).get("id2label")
    if not isinstance(found, dict) or not found:
        return None
    names = [found.get(str(number)) for number in range(len(found))]
    if not all(isinstance(name, str) for name in names) or names[0] == "LABEL_0":
        return None
    return tuple(str(name) for name in names)


def _configured_heads(file: Path) -> int | None:
    """Return the attention heads that a repository of transformers states, of Mask2Former or of the decoder of MaskFormer."""
    if not file.with_name(CONFIG).is_file():
        return None
    settings = _settings(file.with_name(CONFIG))
    decoder = settings.get("decoder_config")
    inside = decoder.get("decoder_attention_heads") if isinstance(decoder, dict) else None
    found = settings.get("num_attention_heads", inside)
    return found if isinstance(found, int) else _USUAL_HEADS


def _statistics(file: Path) -> PixelStatistics:
    """Return the normalisation of images that a repository of transformers states, or else that of ImageNet."""
    settings = _settings(file.with_name(PROCESSOR))
    mean, std = (_three_numbers(settings.get(key)) for key in ("image_mean", "image_std"))
    if mean is None or std is None:
        return IMAGENET
    usual = zip((*mean, *std), IMAGENET.mean + IMAGENET.std, strict=True)
    return (
        IMAGENET if all(abs(own - known) < _ROUNDING for own, known in usual) else PixelStatistics(mean, std)
    )


def _three_numbers(found: Any) -> tuple[float, float, float] | None:
    """Return three numbers for pixels from 0 to 1 as those for pixels from 0 to 255."""
    if not isinstance(found, list) or len(found) != 3:
        return None
    if not all(isinstance(number, (int, float)) for number in found):
        return None
    return (found[0] * _PIXEL, found[1] * _PIXEL, found[2] * _PIXEL)


def _settings(file: Path) -> dict[str, Any]:
    """Return a small file of settings; empty if there is none."""
    if not file.is_file() or file.stat().st_size > _MOST_BYTES:
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ModelError(f"{file}: not readable as JSON. Copy it again.") from None
    return found if isinstance(found, dict) else {}
