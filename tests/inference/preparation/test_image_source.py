"""What can be predicted, and what is refused before it is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import medseg
from medseg.errors import ConfigError, DataError
from medseg.inference.preparation import image_source
from medseg.inference.preparation.image_source import read_source
from medseg.io.files import decoded_bytes
from medseg.model_folder.settings import SavedModel


def saved(*channels: str, **settings: object) -> SavedModel:
    methods = [{"method": "zscore"}] * len(channels)
    values = {
        "medseg": "0.1",
        "name": "toy",
        "model": {"name": "unet_3d"},
        "channel_names": channels,
        "window": [8, 8, 8],
    }
    return SavedModel.parse({**values, "preprocessing": {"channels": methods}, **settings})


def written(path: Path, value: int = 1) -> Path:
    data = np.arange(value, 505 * value, value, dtype=np.int16).reshape(1, 9, 8, 7)
    medseg.write(medseg.Volume(data, medseg.Grid.from_spacing((9, 8, 7))), path)
    return path


def test_a_file_files_and_a_volume_are_read(tmp_path: Path) -> None:
    t1, t2 = written(tmp_path / "t1.nii.gz", 1), written(tmp_path / "t2.nii.gz", 2)
    image, where = read_source([t1, str(t2)], saved("T1", "T2"))
    assert [int(channel.max()) for channel in image.data] == [504, 1008]
    assert where == str(t1)
    assert read_source(image, saved("T1", "T2")) == (image, "image")
    assert read_source(str(t1), saved("T1"))[0].data.shape == (1, 9, 8, 7)


def test_an_array_without_a_grid_raises() -> None:
    with pytest.raises(DataError, match=r"found a ndarray, expected a Volume, .* Give an array its grid"):
        read_source(np.zeros((4, 4, 4)), saved("CT"))  # type: ignore[arg-type]


def test_absent_channels_are_read_only_for_models_that_were_trained_with_them(tmp_path: Path) -> None:
    t1 = written(tmp_path / "t1.nii.gz")
    with pytest.raises(DataError, match=r"t1.nii.gz: channels: found no file of T2, expected 2 \(T1, T2\)"):
        read_source([t1, None], saved("T1", "T2"))
    image, _ = read_source([t1, None], saved("T1", "T2", absent_channels="zeros"))
    assert image.absent == (1,)


def test_an_image_larger_than_the_budget_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = medseg.Volume(np.zeros((1, 200, 200, 100), np.int16), medseg.Grid.from_spacing((200, 200, 100)))
    medseg.write(volume, tmp_path / "zeros.nii.gz")
    assert decoded_bytes(tmp_path / "zeros.nii.gz") == volume.data.nbytes
    monkeypatch.setattr("medseg.io.nifti.nifti_files._fill", None)
    monkeypatch.setattr(image_source, "_ALWAYS_READ", 10**6)
    with pytest.raises(ConfigError, match=r"zeros.nii.gz: max_memory: found 1 MB, expected more than"):
        read_source(tmp_path / "zeros.nii.gz", saved("CT"), 10**6)
