"""What can happen to DICOM series with uneven gaps between slices; importing this module loads nothing else."""

from __future__ import annotations

from typing import Literal

Uneven = Literal["refuse", "resample"]
"""Refuse such a series, or interpolate slices linearly between the true positions."""
