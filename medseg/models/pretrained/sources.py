"""Weights by name: files, torchvision names and the Hugging Face hub. Downloads happen only if they are allowed.

Only tensors are read, from safetensors or from PyTorch files with ``weights_only=True``. Of the configuration files of a hub
repository, only the names of classes, the number of attention heads and the normalisation of images are read.
"""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor

from medseg.errors import ModelError, did_you_mean, error_message
from medseg.models.pretrained.config import HUB, TORCHVISION
from medseg.runtime.formatting import error_reason
from medseg.storage.atomic import make_folder, write_bytes
from medseg.storage.torch_files import read_torch_file

TIMM_NAMES = {
    "deit_tiny_patch16_224": "timm/deit_tiny_patch16_224.fb_in1k",
    "deit_small_patch16_224": "timm/deit_small_patch16_224.fb_in1k",
    "deit_base_patch16_224": "timm/deit_base_patch16_224.fb_in1k",
    "vit_large_patch16_384.augreg_in21k_ft_in1k": "timm/vit_large_patch16_384.augreg_in21k_ft_in1k",
}
"""timm names of the initial weights of ViT and ViT-Adapter, and their repositories on the hub."""

TIMEOUT = 20.0
"""Seconds to wait for an answer; requests are not repeated."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
WEIGHTS, CONFIG, PROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"
"""Files of a repository of transformers: the weights, the settings with the class names, and those of the images."""


def read_weights(source: str, *, download: bool) -> dict[str, Tensor]:
    """Return the tensors of a source of weights.

    Args:
        source: File or name; see ``weights`` of `PretrainedOptions`.
        download: Whether weights that are not in the local cache may be downloaded.

    Returns:
        The tensors by their published names.

    Raises:
        ModelError: The source is unknown, missing, unreadable, or not in the local cache and may not be downloaded.
    """
    return read_tensors(weights_file(source, download=download))


def weights_file(source: str, *, download: bool) -> Path:
    """Return the file of a source of weights, downloaded if necessary and allowed.

    Args:
        source: File, repository folder or name; see ``weights`` of `PretrainedOptions`.
        download: Whether weights that are not in the local cache may be downloaded.

    Returns:
        The file.

    Raises:
        ModelError: The source is unknown, missing, or not in the local cache and may not be downloaded.
    """
    if TORCHVISION.fullmatch(source):
        return _torchvision_file(source, download=download)
    name, _, revision = source.partition("@")
    if name in TIMM_NAMES:
        source = f"hub:{TIMM_NAMES[name]}" + (f"@{revision}" if revision else "")
    if source.startswith("hub:"):
        return _hub_file(source, download=download)
    path = file_in_repository(Path(source))
    if not path.is_file():
        hint = did_you_mean(source, TIMM_NAMES)
        fix = (
            "Give a .safetensors, .pth or .pkl file, a torchvision name such as ResNet50_Weights.IMAGENET1K_V2, "
            "or hub:ORGANISATION/NAME"
        )
        raise ModelError(
            error_message("weights", f"no such file or name: {source!r}.{hint}".rstrip("."), fix=fix)
        )
    return path


def file_in_repository(path: Path) -> Path:
    """Return the file of weights in the folder of a repository of transformers, or the path itself if it is none."""
    return path / WEIGHTS if (path / CONFIG).is_file() else path


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a ``.safetensors`` file, or a PyTorch file that contains only tensors and plain values.

    Args:
        path: The file.

    Returns:
        The tensors by name.

    Raises:
        ModelError: The file cannot be read, has another format, or contains no named tensors.
    """
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except Exception as error:  # a damaged file can raise any exception
            reason = error_reason(error)
            fix = "Copy it again"
            raise ModelError(error_message(path, f"not a file of weights ({reason})", fix=fix)) from None
    state = state_in(read_torch_file(path))
    if not state:
        fix = "Save the state dict of the model"
        raise ModelError(error_message(path, "the file contains no tensors by name", fix=fix))
    return state


def state_in(found: Any) -> dict[str, Tensor]:
    """Return the state dict itself, or the one under a common key of a checkpoint.

    Args:
        found: Content of a checkpoint.

    Returns:
        The tensors by name; empty if there are none.
    """
    if not isinstance(found, Mapping):
        return {}
    for key in ("state_dict", "model", "model_state", "teacher"):
        if isinstance(found.get(key), Mapping):
            found = found[key]
            break
    return {str(key): value for key, value in found.items() if isinstance(value, Tensor)}


def _torchvision_file(name: str, *, download: bool) -> Path:
    """Return the file of a torchvision weights name in torch's cache, downloaded if allowed."""
    from torchvision.models import get_weight

    try:
        weight = get_weight(name)
    except (ValueError, AttributeError, KeyError):
        fix = "Look the name up in torchvision's list of weights"
        raise ModelError(
            error_message("weights", f"torchvision has no weights called {name!r}", fix=fix)
        ) from None
    url = str(weight.url)
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if not path.is_file():
        _require_leave(name, str(path), download=download)
        content = _fetch(url)
        _require_digits(content, path, url)
        make_folder(path.parent)
        write_bytes(path, content)
    _require_digits(path.read_bytes(), path, str(path))
    return path


def _fetch(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            return bytes(answer.read())
    except OSError as error:
        raise _unreachable(url, error) from None


def _require_digits(content: bytes, path: Path, where: str) -> None:
    """Raise unless the SHA-256 of the content starts with the digits at the end of torchvision's file name."""
    digits, found = path.stem.rpartition("-")[2], sha256(content).hexdigest()
    if not found.startswith(digits):
        fix = "Remove the file and download it again"
        raise ModelError(error_message(where, "sha256", found=found, expected=f"{digits}…", fix=fix))


def _hub_file(source: str, *, download: bool) -> Path:
    """Return ``model.safetensors`` of a hub repository, from the local cache or, if allowed, downloaded."""
    match = HUB.fullmatch(source)
    if match is None:
        fix = "Write hub:ORGANISATION/NAME or hub:ORGANISATION/NAME@COMMIT"
        raise ModelError(error_message("weights", f"{source!r} is not the name of a hub repository", fix=fix))
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    repository, revision = match["repository"], match["revision"]
    # Not hf_hub_download(local_files_only=True): it looks up a list of programs on the hub for its user agent.
    cached = try_to_load_from_cache(repository, WEIGHTS, cache_dir=constants.HF_HUB_CACHE, revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    _require_leave(source, f"{WEIGHTS} in the local cache", download=download)
    if revision is None or not _COMMIT.fullmatch(revision):
        fix = "Write hub:ORGANISATION/NAME@COMMIT with the 40 digits of a commit"
        expected = "a commit, as branches and tags can be moved"
        raise ModelError(
            error_message("weights", "revision to download", found=revision, expected=expected, fix=fix)
        )
    _require_connection()
    try:
        file = Path(hf_hub_download(repository, WEIGHTS, revision=revision, etag_timeout=TIMEOUT))
        for settings in (CONFIG, PROCESSOR):  # the class names and the normalisation of images
            with suppress(EntryNotFoundError):
                hf_hub_download(repository, settings, revision=revision, etag_timeout=TIMEOUT)
        return file
    except (OSError, HfHubHTTPError, ValueError) as error:
        raise _unreachable(source, error) from None


def _require_connection() -> None:
    """Raise unless the hub answers one request; without a network, the hub's client would retry for minutes."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        fix = "Unset HF_HUB_OFFLINE, or give a file"
        raise ModelError(error_message("weights", "the hub is switched off by HF_HUB_OFFLINE", fix=fix))
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=TIMEOUT).close()
    except OSError as error:
        raise _unreachable(constants.ENDPOINT, error) from None


def _require_leave(source: str, wanted: str, *, download: bool) -> None:
    if not download:
        fix = "Set download: true, or download the file on another machine and give its path"
        raise ModelError(
            error_message("weights", f"{source}: not on this machine: found no {wanted}", fix=fix)
        )


def _unreachable(where: str, error: Exception) -> ModelError:
    reason = error_reason(error)
    fix = "Download the file on another machine and give its path"
    return ModelError(error_message("weights", f"{where}: cannot be fetched ({reason})", fix=fix))
