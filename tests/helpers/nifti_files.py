"""NIfTI files for the tests beside this module, made with nibabel."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.1, -0.2, 0.3) @ np.diag([0.7, 0.8, 2.5]), [-90.1, 12.3, 456.7]
)


def save(path: Path, data: Any, affine: Any = OBLIQUE, **header: Any) -> Path:
    """Write with nibabel: ``qform`` and ``sform`` give the codes, other names header fields."""
    image = nib.Nifti1Image(np.asarray(data), affine)
    image.set_qform(affine if header.get("qform", 1) else None, code=header.pop("qform", 1))
    image.set_sform(affine if header.get("sform", 1) else None, code=header.pop("sform", 1))
    for name, value in header.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def patched(path: Path, offset: int, content: bytes) -> Path:
    """Overwrite bytes of a raw or gzipped file."""
    packed = path.name.endswith(".gz")
    raw = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    raw[offset : offset + len(content)] = content
    path.write_bytes(gzip.compress(bytes(raw)) if packed else bytes(raw))
    return path
