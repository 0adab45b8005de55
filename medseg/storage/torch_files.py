"""Files that ``torch.save`` wrote: the only place where medseg reads them.

Such a file is a program for the unpickler. Only the restricted one is used, which builds tensors and plain types
and, where the caller lists them, a few more; there is no other way in.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from medseg.errors import ModelError

Allowed = Callable[..., Any] | tuple[Callable[..., Any], str]


def read_torch_file(path: str | Path, allowed: Sequence[Allowed] = (), *, mapped: bool = False) -> Any:
    """Read tensors and plain types.

    Args:
        path: in the zip format that torch writes since 1.6.
        allowed: classes and functions beyond torch's own list that the file may name; as a pair, with the name
            that stands for it in the file.
        mapped: leave tensors in the file until they are used, for files of which only a part is wanted.

    Raises:
        ModelError: missing, damaged, of the older format, or naming anything else; nothing of the file has run.
    """
    import torch

    path = Path(path)
    _check_container(path)
    with torch.serialization.safe_globals(list(allowed)):
        try:
            unknown = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
            if not unknown:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception as error:  # a damaged file makes the unpickler stumble in any way
            reason = " ".join(str(error).split(". ")[0].split())[:200] or type(error).__name__
            raise ModelError(f"{path}: not a readable checkpoint ({reason}). Copy the file again.") from None
    raise ModelError(
        f"{path}: found {', '.join(unknown[:3])} in it, expected tensors and plain values only. Do not load "
        "checkpoints of unknown origin."
    )


def _check_container(path: Path) -> None:
    """Refuse what torch's reader should not be given: older formats, and packed members that grow without end."""
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [m.filename for m in archive.infolist() if m.compress_type != zipfile.ZIP_STORED]
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file. Check the path.") from None
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise ModelError(
            f"{path}: not a checkpoint in torch's zip format ({error}). Older formats cannot be read safely; load "
            "and save the file with a newer torch where it was made."
        ) from None
    if packed:
        raise ModelError(
            f"{path}: member {packed[0]!r} is compressed, which torch never does. Do not load files of unknown origin."
        )
