from __future__ import annotations

import json
from pathlib import Path

import pytest

from medseg.errors import DataError
from medseg.interop.nnunet.model import import_nnunet
from medseg.model_folder.settings import SavedModel
from tests.helpers.nnunet_models import dataset_of, plans_3d, write_trained

FINGERPRINT = {
    "spacings": [[5.0, 0.8, 0.7], [2.5, 0.9, 0.7]],
    "shapes_after_crop": [[40, 200, 210], [50, 190, 200]],
}


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    return write_trained(tmp_path, "3d_fullres", plans_3d([2.0, 1.0, 1.0]), dataset_of())


def imported(trained: Path) -> SavedModel:
    return import_nnunet(trained, trained.parent / "model")


def test_spacings_are_those_of_the_axes_of_files(trained: Path) -> None:
    (trained / "dataset_fingerprint.json").write_text(json.dumps(FINGERPRINT))
    data = imported(trained).training_data
    assert data is not None
    assert data.cases == 2
    assert data.spacing == ((0.7, 0.7), (0.8, 0.9), (2.5, 5.0))
    assert data.foreground == ((-250.0, 330.0),)
    assert SavedModel.load(trained.parent / "model" / "config.yaml").training_data == data


def test_without_a_fingerprint_only_intensities_are_known(trained: Path) -> None:
    data = imported(trained).training_data
    assert data is not None
    assert (data.cases, data.spacing, data.foreground) == (0, None, ((-250.0, 330.0),))


@pytest.mark.parametrize("spacings", [[[1, 2]], [[1, 0, 2]], [["a", 1, 1]], "none"])
def test_a_damaged_fingerprint_is_refused(trained: Path, spacings: object) -> None:
    (trained / "dataset_fingerprint.json").write_text(json.dumps({"spacings": spacings}))
    with pytest.raises(
        DataError, match=r"dataset_fingerprint\.json: spacings: found .*, expected a list of three"
    ):
        imported(trained)
