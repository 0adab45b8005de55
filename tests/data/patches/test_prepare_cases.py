"""Preparation of many cases: in several processes, case by case, with all failures at the end."""

from __future__ import annotations

import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from psutil import process_iter

import medseg
from medseg.cluster.case_map import CaseExecutor
from medseg.data.datasets.phantom import PHANTOM_LABELS, write_phantoms
from medseg.data.patches.drawn_patch import PackedPatches
from medseg.data.patches.prepare_cases import CaseStore, fill_store
from medseg.data.preprocessing.normalize import Normalization
from medseg.data.preprocessing.prepare import Preprocessing
from medseg.data.settings import Augmentation
from medseg.errors import CasesFailedError
from medseg.labels.label_sets import LabelSets
from tests.helpers.children import start_program
from tests.helpers.patches import patch_dataset

SPACING = (25, 26, 26)
# The spacing of the images: nothing is resampled, for which each process would load torch.
SETTINGS = Preprocessing(spacing=SPACING, channels=(Normalization(),))


@pytest.fixture
def dataset(tmp_path):
    return write_phantoms(tmp_path / "data", cases=4, shape=(12, 11, 10), spacing=SPACING)


def store_in(folder: Path, settings: Preprocessing = SETTINGS) -> CaseStore:
    return CaseStore(folder, settings, LabelSets.from_annotations(PHANTOM_LABELS))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.suffix in (".npy", ".json") and file.parent != folder
    }


@pytest.mark.slow
def test_processes_prepare_what_one_process_prepares(tmp_path, dataset):
    seen = []
    resampled = SETTINGS.replace(spacing=(20, 21, 22))
    alone = store_in(tmp_path / "alone", resampled).fill(
        dataset.cases, progress=lambda done, total, case: seen.append((done, total, case))
    )
    assert seen == [(n + 1, 4, case.id) for n, case in enumerate(dataset.cases)]
    seen.clear()
    together = store_in(tmp_path / "together", resampled).fill(
        dataset.cases, CaseExecutor(2), lambda done, total, case: seen.append((done, total))
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [case.folder.name for case in together] == [case.folder.name for case in alone]
    assert contents(tmp_path / "together") == contents(tmp_path / "alone")
    assert len(contents(tmp_path / "together")) == 20


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_cases_that_fail_are_listed_and_the_others_are_prepared(tmp_path, dataset, workers):
    dataset.cases[0].images[0].write_bytes(b"\x1f\x8bno")
    dataset.cases[2].label.unlink()
    store = store_in(tmp_path / "store")
    with pytest.raises(CasesFailedError) as caught:
        store.fill(dataset.cases, CaseExecutor(workers))
    first, *lines, last = str(caught.value).split("\n")
    assert first == f"preparation in {store.folder}: 2 of 4 cases cannot be used:"
    assert "phantom_000.nii.gz" in lines[0]
    assert "phantom_002.nii.gz: cannot be read (No such file or directory)" in lines[1]
    assert last.startswith("Fix them, or remove them from the dataset")
    prepared = {path.name.rpartition("-")[0] for path in store.folder.iterdir() if path.is_dir()}
    assert prepared == {"phantom_001", "phantom_003"}


def test_progress_counts_the_cases_that_are_not_prepared_yet(tmp_path, dataset):
    store = store_in(tmp_path / "store")
    first = store.fill(dataset.cases[1:3])
    seen = []
    assert store.fill(dataset.cases, progress=lambda *news: seen.append(news))[1:3] == first
    assert seen == [(1, 2, "phantom_000"), (2, 2, "phantom_003")]
    seen.clear()
    store.fill(dataset.cases, progress=lambda *news: seen.append(news))
    assert seen == []


SCRIPT = """
import os, signal, sys, threading, time
from pathlib import Path

from medseg.cluster.case_map import CaseExecutor
from medseg.data.datasets.layouts import read_dataset
from medseg.data.datasets.phantom import PHANTOM_LABELS
from tests.data.patches.test_prepare_cases import store_in


def seen(done, total, case):
    print(case, flush=True)
    for _ in range(600):  # a signal right before a long sleep would be noticed at its end
        time.sleep(0.1)


store_in(Path(sys.argv[1])).fill(read_dataset(sys.argv[2]).cases, CaseExecutor(2), seen)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="processes are ended by signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_finished_cases_stay_after_an_interruption(tmp_path, dataset, number):
    (tmp_path / "script.py").write_text(SCRIPT)
    process = start_program(tmp_path / "script.py", tmp_path / "store", dataset.root)
    try:
        done = process.stdout.readline().strip()
        process.send_signal(number)
        process.wait(120)
    finally:
        process.kill()
        process.communicate(60)
    (finished,) = (tmp_path / "store").glob(f"{done}-*")
    before = finished.stat().st_mtime_ns
    end = time.monotonic() + 60
    while any(
        f"serve({process.pid})" in " ".join(one.info["cmdline"] or ()) for one in process_iter(["cmdline"])
    ):
        assert time.monotonic() < end, "workers outlive their parent"
        time.sleep(0.05)
    cases = store_in(tmp_path / "store").fill(dataset.cases)
    assert finished.stat().st_mtime_ns == before
    assert sorted(path.name for path in (tmp_path / "store").iterdir() if path.is_dir()) == sorted(
        case.folder.name for case in cases
    )


def test_the_first_stage_does_not_count_without_a_cascade(tmp_path, dataset):
    case = dataset.cases[0]
    (plain,) = fill_store(tmp_path, [case], PHANTOM_LABELS, SETTINGS)
    missing = replace(case, first_stage=tmp_path / "missing.nii.gz")
    assert fill_store(tmp_path, [missing], PHANTOM_LABELS, SETTINGS) == [plain]
    assert np.isfinite(plain.image).all()


def test_images_are_stored_as_float16_if_it_holds_them(tmp_path, dataset):
    """As the network sees them: float16 rounds its input in the same way."""
    exact = store_in(tmp_path / "store").fill(dataset.cases[:1])[0]
    half = replace(store_in(tmp_path / "store"), image_type="float16")
    (stored,) = half.fill(dataset.cases[:1])
    assert stored.folder != exact.folder
    assert (exact.image.dtype, stored.image.dtype) == (np.float32, np.float16)
    assert np.array_equal(stored.image, exact.image.astype(np.float16))
    assert np.array_equal(stored.label, exact.label)
    large = half.settings.replace(channels=(Normalization(method="none"),))
    image = medseg.read(dataset.cases[0].images[0])
    medseg.write(image.with_data(image.data.astype(np.float32) * 1000), dataset.cases[0].images[0])
    (beyond,) = replace(half, settings=large).fill(dataset.cases[:1])
    assert beyond.image.dtype == np.float32


def test_patches_of_both_types_are_float32(tmp_path, dataset):
    exact = store_in(tmp_path / "store").fill(dataset.cases[:1])
    half = replace(store_in(tmp_path / "store"), image_type="float16").fill(dataset.cases[:1])
    for settings in (None, Augmentation(rotate_p=1)):
        one, two = (
            patch_dataset(cases, (8, 8, 8), augmentation=settings)[1]["image"] for cases in (exact, half)
        )
        assert one.dtype == two.dtype == torch.float32
        assert 0 < float((one - two).abs().max()) < 4e-3
    drawn = Augmentation(device="device")
    mixed = patch_dataset([*exact, *half], (8, 8, 8), augmentation=drawn)
    batch = mixed.finish_batch(PackedPatches.pack([mixed[n] for n in range(8)]))
    assert batch["image"].shape[0] == 8
    assert batch["image"].dtype == torch.float32
