"""Folders that tests read."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The root of the repository."""

SHARED_FOLDER = ROOT.parent / "shared"
"""Real data and golden values beside the repository; tests that need them are skipped where it is absent."""
