"""Files that a training writes to its run folder besides checkpoints and reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseg.inference.reference_output import write_reference
from medseg.labels.label_table import Labels
from medseg.model_folder.folder import first_stage_folder, save_model
from medseg.model_folder.model_card import keep_edits
from medseg.model_folder.settings import SavedModel
from medseg.models.base import Model
from medseg.storage.lock import RunLock
from medseg.storage.temporary_names import sweep

CHECKPOINTS, BEST, MODEL = "last", "best", "model"


@dataclass(frozen=True)
class TrainingRun:
    """The run folder as the trainer sees it, and the contents of the model folders in it.

    Attributes:
        folder: The run folder.
        saved: The settings of the exported model.
        labels: The labels of the exported model.
        extensions: How often the finished run was extended.
        settings: All settings of the experiment as plain values, for loggers.
    """

    folder: Path
    saved: SavedModel
    labels: Labels
    extensions: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def checkpoints(self) -> Path:
        """The folder of the newest checkpoints."""
        return self.folder / CHECKPOINTS

    @property
    def best(self) -> Path:
        """The model folder with the best validation so far."""
        return self.folder / BEST

    @property
    def model(self) -> Path:
        """The model folder of the finished training."""
        return self.folder / MODEL

    def lock(self) -> RunLock:
        """Return the lock that allows one writer at a time."""
        return RunLock(self.folder)

    def sweep(self) -> None:
        """Remove what a killed process left in the run, also where this training may have nothing to write."""
        for folder in (self.folder, self.checkpoints):
            sweep(folder)

    def export(self, model: Model, step: int, target: Path) -> None:
        """Write a model folder.

        Args:
            model: Model with the weights to export.
            step: Optimiser steps done.
            target: Model folder to write.
        """
        saved = self.saved.replace(trained_on={**self.saved.trained_on, "steps": step})

        def finish(folder: Path) -> None:
            keep_edits(target, folder)
            # The best model so far is written often, so that only the finished one gets a reference output.
            if target == self.model:
                write_reference(folder)

        save_model(target, model, saved, self.labels, first_stage_folder(self.folder, saved), finish)
