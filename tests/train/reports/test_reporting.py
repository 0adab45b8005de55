"""The text of reports on few and many labels."""

from __future__ import annotations

import errno
import math
import os
import threading
from contextlib import closing
from dataclasses import replace

import numpy as np
import psutil
import pytest

from medseg.errors import ResourceError
from medseg.train.reports import reporting
from medseg.train.reports.reporting import BestValidation, Report, ReportLog, read_metrics
from tests.helpers.runs import files_of_at_most


def report(dice: dict[str, float]) -> Report:
    return Report(
        step=1,
        steps=2,
        loss=1.0,
        loss_terms={},
        lr=0.1,
        seconds_per_step=1.0,
        samples_per_second=1.0,
        data_wait_fraction=0.0,
        val_dice=dice,
        seconds=1.0,
    )


def test_reports_list_few_labels_completely_and_the_lowest_of_many():
    assert str(report({"liver": 0.5, "spleen": 0.25})).endswith(
        "patch Dice 0.375 (liver 0.500, spleen 0.250)"
    )
    many = {f"organ {i}": i / 100 for i in range(50)} | {"absent": math.nan}
    text = str(report(many))
    assert "(50 labels seen; organ 0 0.000, organ 1 0.010," in text
    assert "absent" not in text
    assert len(text) < 250


def test_a_full_disk_raises_an_error(tmp_path):
    log = ReportLog(tmp_path, 0)
    with pytest.raises(ResourceError, match=r"metrics\.jsonl: cannot be written \("), files_of_at_most(0):
        log.add(report({"liver": 0.5}))
    log.close()
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1]


def test_no_file_stays_open_if_the_curves_cannot_be_written(tmp_path, monkeypatch):
    def refuse(folder: str, **_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", refuse)
    with pytest.raises(ResourceError, match="cannot be written") as caught:
        ReportLog(tmp_path, 0)
    assert caught.tb is not None  # it keeps the log alive, whose end would close the file
    assert str(tmp_path / "metrics.jsonl") not in [file.path for file in psutil.Process().open_files()]


def test_a_damaged_line_of_the_metrics_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"st\xffep": 2\n{"step": 3}\n')
    assert [row["step"] for row in read_metrics(path)] == [1, 3]


@pytest.mark.parametrize(
    "line",
    [
        "5",
        "[]",
        "{}",
        '{"step": "1"}',
        '{"step": null}',
        '{"step": 1.5}',
        '{"step": true}',
        '{"step": 1, "loss": "x"}',
        '{"step": 1, "loss": [1]}',
        '{"step": 1, "mean_dice": {}}',
        f'{{"step": 1, "loss": 1{"0" * 400}}}',
        "[" * 100_000,
    ],
)
def test_a_line_that_is_no_report_is_left_out(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1, "loss": NaN}}\n{line}\n{{"step": 3, "loss": 1, "mean_dice": null}}\n')
    assert [row["step"] for row in read_metrics(path)] == [1, 3]


def test_a_line_names_the_best_validation_so_far_and_the_time_that_is_left():
    before = replace(report({}), seconds_left=3.4)
    assert str(before).endswith("0:00:03 left")
    assert "best" not in str(before)
    best = replace(report({"liver": 0.5}), step=1, best_dice=0.5, best_step=1, seconds_left=3700.0)
    assert str(best).endswith("patch Dice 0.500 (liver 0.500)  (best so far)  1:01:40 left")
    worse = replace(report({"liver": 0.4}), step=2, best_dice=0.5, best_step=1)
    assert str(worse).endswith("patch Dice 0.400 (liver 0.400)  best 0.500 at step 1")
    between = replace(report({}), step=3, best_dice=0.5, best_step=1)
    assert str(between).endswith("best 0.500 at step 1")


def test_the_best_validation_is_the_first_of_equals():
    best = BestValidation()
    assert best.update(0.5, 10)
    assert not best.update(0.5, 20)
    assert not best.update(-math.inf, 30)
    assert (best.dice, best.step, best.without_gain) == (0.5, 10, 2)
    assert best.update(0.6, 40)
    assert best.without_gain == 0


def test_rows_leave_out_what_is_not_known(tmp_path):
    with closing(ReportLog(tmp_path, 0)) as log:
        log.add(report({}))
        log.add(replace(report({}), step=2, best_dice=0.5, best_step=1, seconds_left=2.0))
    first, second = read_metrics(tmp_path / "metrics.jsonl")
    assert not {"best_dice", "best_step", "seconds_left", "val_dice"} & first.keys()
    assert (second["best_dice"], second["best_step"], second["seconds_left"]) == (0.5, 1, 2.0)


def test_an_error_of_the_thread_of_tensorboard_is_raised_and_prints_no_traceback(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", refuse)
    printed: list[object] = []
    monkeypatch.setattr(threading, "excepthook", printed.append)
    reporting._ignore_errors_of_the_writer.cache_clear()
    before = set(threading.enumerate())

    def write_all() -> None:
        log = ReportLog(tmp_path, 0)
        for step in range(3):  # the thread may fail after the first event only
            log.add_image("image", np.zeros((2, 2, 3), np.uint8), step)
            log.close()

    with pytest.raises(ResourceError, match=r"metrics\.jsonl: cannot be written"):
        write_all()
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
    reporting._ignore_errors_of_the_writer.cache_clear()
    assert not printed
