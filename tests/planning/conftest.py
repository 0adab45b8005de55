"""Fingerprints made up from shapes and spacings, and small datasets on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import medseg
from medseg.data.datasets.layouts import read_dataset
from medseg.data.datasets.phantom import write_phantoms
from medseg.data.fingerprint.fingerprint import CaseMeasures, Fingerprint
from medseg.data.preprocessing.histogram import IntensityStatistics
from medseg.planning import memory_budget
from medseg.planning.fingerprint.measure import fingerprint
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

FLAT = IntensityStatistics(
    mean=100, std=20, low=0, percentile_00_5=40, median=100, percentile_99_5=160, high=200
)

MakeFingerprint = Callable[..., Fingerprint]


@pytest.fixture
def make_case() -> Callable[..., CaseMeasures]:
    """One case with values that no check finds odd, but those given."""

    def make(case_id: str = "case", **changes: Any) -> CaseMeasures:
        shape = changes.get("shape", (100, 90, 80))
        usual: dict[str, Any] = {
            "id": case_id,
            "files": "0",
            "stamp": "0",
            "content": "0",
            "orientation": "RAS",
            "shape": shape,
            "shape_after_crop": shape,
            "spacing": (1.0, 1.0, 1.0),
            "voxel_mm3": 1.0,
            "shear": 0.0,
            "label_voxels": {1: 5000},
            "ranges": ((0.0, 200.0),),
            "foreground": (FLAT,),
        }
        return CaseMeasures.model_validate(usual | changes)

    return make


@pytest.fixture
def make_fingerprint(make_case: Callable[..., CaseMeasures]) -> MakeFingerprint:
    """A fingerprint of `count` equal cases, or of the given ones."""

    def make(
        shape: Sequence[int] = (100, 90, 80),
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        count: int = 40,
        cases: Sequence[CaseMeasures] | None = None,
        labels: int = 3,
        channel_names: Sequence[str] = ("MR",),
        **changes: Any,
    ) -> Fingerprint:
        if cases is None:
            cases = [
                make_case(f"case_{n:03d}", shape=tuple(shape), spacing=tuple(spacing)) for n in range(count)
            ]
        names = {"background": 0} | {f"organ_{value}": value for value in range(1, labels)}
        usual: dict[str, Any] = {
            "dataset": "made up",
            "channel_names": tuple(channel_names),
            "labels": names,
            "subjects": len(cases),
            "cases": tuple(cases),
            "intensities": (FLAT,) * len(channel_names),
        }
        return Fingerprint.model_validate(usual | changes)

    return make


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small phantoms, stored in several orientations."""
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    write_phantoms(folder, cases=6, shape=(26, 22, 14), spacing=(5, 5, 8))
    return folder


@pytest.fixture
def write_table(tmp_path: Path) -> Callable[..., Path]:
    """Write images `(C, X, Y, Z)` and label maps `(X, Y, Z)` as a dataset with a table of cases."""

    def write(cases: dict[str, tuple[np.ndarray, np.ndarray]], grids: Sequence[Grid] | None = None) -> Path:
        folder = tmp_path / "table"
        channels = next(iter(cases.values()))[0].shape[0]
        names = ["image"] if channels == 1 else [f"image_c{n}" for n in range(channels)]
        rows = ["\t".join(["case", *names, "label"])]
        for number, (case_id, (image, label)) in enumerate(cases.items()):
            grid = grids[number] if grids else Grid.from_spacing(label.shape)
            files = [f"{case_id}_{name}.nii.gz" for name in names]
            for channel, file in enumerate(files):
                medseg.write(Volume(image[channel : channel + 1], grid), folder / file)
            medseg.write(Volume(label[None], grid, "label"), folder / f"{case_id}_label.nii.gz")
            rows.append("\t".join([case_id, *files, f"{case_id}_label.nii.gz"]))
        (folder / "cases.tsv").write_text("\n".join(rows) + "\n")
        return folder

    return write


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same plan on every machine: for the nominal processor."""
    monkeypatch.setattr(memory_budget, "_gpu", lambda: ("", None))


@pytest.fixture(scope="session")
def cache(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fingerprint of the phantoms, measured once."""
    path = tmp_path_factory.mktemp("cache") / "fingerprint.json"
    fingerprint(read_dataset(phantoms)).save(path)
    return path
