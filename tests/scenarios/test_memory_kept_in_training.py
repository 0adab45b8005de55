"""Memory that a step frees is kept for the next step, and released after training."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from medseg.runtime.glibc_memory import keep_freed_memory
from medseg.train import trainer


@pytest.mark.parametrize("ending", [list, lambda reports: reports.close()], ids=["finished", "left"])
def test_memory_is_kept_while_the_loop_runs(make_experiment, tmp_path, monkeypatch, ending):
    seen = []

    @contextmanager
    def watched(wanted):
        assert wanted == (not torch.cuda.is_available())
        seen.append("kept")
        try:
            with keep_freed_memory():
                yield
        finally:
            seen.append("given back")

    monkeypatch.setattr(trainer, "keep_freed_memory", watched)
    reports = iter(make_experiment("train.steps=2", "train.validation_batches=0").trainer(tmp_path / "run"))
    next(reports)
    assert seen == ["kept"]
    ending(reports)
    assert seen == ["kept", "given back"]
