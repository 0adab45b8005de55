"""Safe reading of files that ``torch.save`` wrote; medseg reads them nowhere else.

Such a file is a program for the unpickler. Only the restricted unpickler is used, which builds tensors, plain types
and the few further types that a caller lists.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from medseg.errors import ModelError, no_such_path

Allowed = Callable[..., Any] | tuple[Callable[..., Any], str]


def read_torch_file(path: str | Path, allowed: Sequence[Allowed] = (), *, mapped: bool = False) -> Any:
    """Read tensors and plain types from a file of ``torch.save``.

    Args:
        path: File in the zip format that torch writes since version 1.6.
        allowed: Classes and functions that the file may name besides torch's own list; a pair gives the name that the
            file uses for one.
        mapped: Leave tensors in the file until they are used, to read only a part of a file.

    Returns:
        The content of the file, on the CPU.

    Raises:
        ModelError: The file is missing, damaged, in an older format, or names anything else. Nothing in it was run.
    """
    import torch

    path = Path(path)
    _check_container(path)
    with torch.serialization.safe_globals(list(allowed)):
        try:
            unknown = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
            if not unknown:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception as error:  # a damaged file may raise anything in the unpickler
            reason = " ".join(str(error).split(". ")[0].split())[:200] or type(error).__name__
            raise ModelError(f"{path}: not a readable checkpoint ({reason}). Copy the file again.") from None
    raise ModelError(
        f"{path}: found {', '.join(unknown[:3])} in it, expected tensors and plain values only. Do not load "
        "checkpoints of unknown origin."
    )


def _check_container(path: Path) -> None:
    """Raise for older formats, for damage, and for compressed members, which could expand without end."""
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [m.filename for m in archive.infolist() if m.compress_type != zipfile.ZIP_STORED]
            damaged = None if packed else archive.testzip()
    except FileNotFoundError:
        raise ModelError(no_such_path(path, "file")) from None
    except PermissionError:
        raise ModelError(f"{path}: cannot be read (Permission denied). Ask its owner for access.") from None
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, ValueError) as error:
        raise ModelError(
            f"{path}: not a checkpoint in torch's zip format ({error}). If the file is damaged, copy it again. "
            "Formats before torch 1.6 cannot be read safely: load the file and save it again with a newer torch, where it "
            "was created."
        ) from None
    if packed:
        raise ModelError(
            f"{path}: member {packed[0]!r} is compressed, which torch never does. Do not load files of unknown origin."
        )
    if damaged is not None:
        raise ModelError(
            f"{path}: member {damaged!r}: found another CRC-32 than recorded, so its content has changed. Copy the file again."
        )
