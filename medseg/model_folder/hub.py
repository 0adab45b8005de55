"""Model folders on the Hugging Face hub; the network is used only by `push_model` and `pull_model`.

A repository holds the files of one model folder at its top. Nothing in it is executed: only files of the kinds of a model
folder are downloaded, and the folder is used only if they are those of its manifest.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from medseg.errors import ConfigError, ModelError
from medseg.model_folder.folder import find_model_folder
from medseg.runtime.formatting import error_reason
from medseg.storage.atomic import replacing_folder
from medseg.storage.manifest import check_manifest

SCHEME = "hf://"
"""Beginning of the name of a model on the hub: ``hf://OWNER/NAME`` or ``hf://OWNER/NAME@REVISION``."""

TIMEOUT = 20.0
"""Seconds to wait for the first answer."""

_KINDS = ("*.yaml", "*.tsv", "*.json", "*.safetensors", "*.md", "int8/*.xml", "int8/*.bin")
_NAME = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+?)(@(?P<revision>[\w./-]+))?")


def is_hub_name(model: object) -> bool:
    """Return whether a model is named by its place on the hub, such as ``hf://OWNER/NAME``."""
    return isinstance(model, str) and model.startswith(SCHEME)


def pull_model(name: str, folder: Path | None = None) -> Path:
    """Download a model folder from the hub, and compare it with its manifest.

    Args:
        name: ``OWNER/NAME`` or ``OWNER/NAME@REVISION``, with or without ``hf://``.
        folder: New folder to write; None for the cache of the hub's client, from which files are not downloaded twice.

    Returns:
        The model folder.

    Raises:
        ConfigError: The name has another form, the folder exists, or the hub's client is not installed.
        ModelError: The model cannot be downloaded, or its files are not those of its manifest.
    """
    found = _NAME.fullmatch(name.removeprefix(SCHEME))
    if found is None:
        raise ConfigError(f"{name}: found no name of a model on the hub, expected OWNER/NAME. Correct it.")
    if folder is None:
        return _download(found, name)
    if folder.exists():
        raise ConfigError(
            f"{folder}: exists already, expected a new folder. Choose another name, or remove it."
        )
    with replacing_folder(folder) as temporary:
        _download(found, name, local_dir=temporary)
        shutil.rmtree(temporary / ".cache", ignore_errors=True)  # notes of the hub's client
    return folder


def push_model(model: str | Path, name: str, *, public: bool = False) -> str:
    """Upload a model folder to the hub.

    Args:
        model: Model folder, or the run that it belongs to.
        name: ``OWNER/NAME``; the repository is created if it does not exist.
        public: Whether a new repository can be seen by everybody; otherwise it is private.

    Returns:
        The address of the upload.

    Raises:
        ConfigError: The name has another form, or the hub's client is not installed.
        ModelError: The folder is damaged, or cannot be uploaded.
    """
    found = _NAME.fullmatch(name.removeprefix(SCHEME))
    if found is None or found["revision"]:
        raise ConfigError(f"{name}: found no name for a model on the hub, expected OWNER/NAME. Correct it.")
    folder = find_model_folder(model)
    check_manifest(folder)
    client = _client().HfApi()
    with _hub_errors(name, "uploaded"):
        client.create_repo(found["repository"], private=not public, exist_ok=True)
        upload = client.upload_folder(
            repo_id=found["repository"],
            folder_path=folder,
            allow_patterns=_KINDS,
            commit_message="Model folder written by medseg",
        )
    return str(upload)


def _download(found: re.Match[str], name: str, **options: Any) -> Path:
    """Download a repository and return its folder, whose files are those of its manifest."""
    client = _client()
    with _hub_errors(name, "downloaded"):
        folder = client.snapshot_download(
            found["repository"],
            revision=found["revision"],
            allow_patterns=_KINDS,
            etag_timeout=TIMEOUT,
            **options,
        )
    check_manifest(Path(folder))
    return Path(folder)


def _client() -> Any:
    """Return the hub's client, which is imported when it is needed."""
    if find_spec("huggingface_hub") is None:
        raise ConfigError(
            'hub: found no package huggingface_hub, expected it. Run: pip install "medseg[hub]".'
        )
    import huggingface_hub

    return huggingface_hub


@contextmanager
def _hub_errors(name: str, what: str) -> Iterator[None]:
    """Raise errors of the hub's client, of the network and of the disk as `ModelError`."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # The base class of its library for HTTP, which depends on the version of the client.
    network_error: Any = HfHubHTTPError.__bases__[0]
    try:
        yield
    except (network_error, HFValidationError, OSError) as error:
        reason = error_reason(error, 300)
        raise ModelError(
            f"{name}: cannot be {what} ({reason}). Check the name, the network, and the access of this account (hf auth login)."
        ) from None
