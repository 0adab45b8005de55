"""Reading and writing of DICOM datasets with pydicom, without a word of their content in messages or logs."""

from __future__ import annotations

import contextlib
import importlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from medseg.errors import ConfigError, DataError, MedsegError, collected_warnings, warn_once
from medseg.io.file_content import require_readable
from medseg.storage.atomic import replacing

SEG, LABELMAP_SEG, RTSTRUCT = (
    "1.2.840.10008.5.1.4.1.1.66.4",
    "1.2.840.10008.5.1.4.1.1.66.7",
    "1.2.840.10008.5.1.4.1.1.481.3",
)
"""UIDs of the SOP classes of segmentations."""


def require_dicom_packages(where: str | Path) -> None:
    """Raise unless the packages of the extra ``dicom`` are installed, which read and write DICOM segmentations.

    Args:
        where: The file, for the message.

    Raises:
        ConfigError: A package is missing.
    """
    _require(("pydicom", "highdicom"), where, "DICOM segmentations")


def require_pydicom(where: str | Path, what: str) -> None:
    """Raise unless pydicom is installed.

    Args:
        where: The file, for the message.
        what: What needs it, for the message.

    Raises:
        ConfigError: It is missing.
    """
    _require(("pydicom",), where, what)


def _require(names: Sequence[str], where: str | Path, what: str) -> None:
    for name in names:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(name)
        except ImportError:
            raise ConfigError(
                f"{where}: found no {name}, expected this package for {what}. Install it: pip install 'medseg[dicom]'."
            ) from None


@contextlib.contextmanager
def without_content(where: str | Path, fix: str) -> Iterator[None]:
    """Keep values of a dataset, which may identify a patient, out of warnings, logs and messages.

    The libraries quote values that break a rule of the standard, such as a name that is too long. Their warnings and log
    records are silenced, and an error is replaced by one that names its class only.

    Args:
        where: The file, for the message.
        fix: Advice at the end of the message, without a period.

    Raises:
        DataError: The libraries raised an error.
    """
    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    levels = [one.level for one in loggers]
    try:
        for one in loggers:
            one.setLevel(logging.CRITICAL + 1)
        with collected_warnings() as notes, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
        for note in notes:
            warn_once(note)
    except (MedsegError, OSError, MemoryError):
        raise
    except Exception as error:
        raise DataError(
            f"{where}: found a value that breaks the DICOM standard ({type(error).__name__}). {fix}."
        ) from None
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)


def read_dataset(path: Path, *, pixels: bool = True, only: Sequence[str] | None = None) -> Any:
    """Read a DICOM file.

    Args:
        path: The file.
        pixels: Whether the pixel data are also read.
        only: Names of the attributes to read; None for all.

    Returns:
        A pydicom dataset.

    Raises:
        DataError: The file is missing or damaged.
        ConfigError: pydicom is not installed.
    """
    require_pydicom(path, "a DICOM file with sequences")
    require_readable(path, "a DICOM file")
    import pydicom

    with without_content(path, "Export or copy the file again"):
        return pydicom.dcmread(
            path, stop_before_pixels=not pixels, specific_tags=None if only is None else list(only)
        )


def write_dataset(dataset: Any, path: Path) -> None:
    """Write a DICOM file in one step.

    Args:
        dataset: A pydicom dataset with its file meta information.
        path: The file to create or replace.

    Raises:
        DataError: The file cannot be written; an existing one is then unchanged.
    """
    with replacing(path) as temporary, without_content(path, "Write .nii.gz instead"):
        dataset.save_as(temporary, enforce_file_format=True)
