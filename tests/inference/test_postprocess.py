"""Post-processing of label maps."""

from __future__ import annotations

import numpy as np
import pytest

import medseg
from medseg.errors import ConfigError, DataError
from medseg.inference.postprocess import component_groups, has_postprocessing, post_process
from medseg.model_folder.settings import PredictSettings

LABELS = medseg.Labels.from_names({"background": 0, "liver": 1, "cyst": 4})


def label_map() -> medseg.Volume:
    """Cysts of 1, 2 and 3 ml and a liver in two parts, in voxels of half a millilitre."""
    data = np.zeros((1, 12, 8, 3), np.uint8)
    for number, start in enumerate((0, 2, 4), 1):
        data[0, start, : 2 * number, 0] = 4
    data[0, 7:9], data[0, 11, 0, 0] = 1, 1
    return medseg.Volume(data, medseg.Grid.from_spacing((12, 8, 3), (10, 10, 5)), "label")


def test_components_up_to_a_volume_are_removed() -> None:
    found = label_map()
    settings = PredictSettings(keep_largest=("liver",), min_component_ml={"cyst": 2.0})
    cleaned = post_process(found, settings, LABELS)
    assert np.count_nonzero(cleaned.data == 4) == 6, "only the cyst of 3 ml is larger"
    assert np.count_nonzero(cleaned.data == 1) == 48, "the largest part of the liver"
    assert np.count_nonzero(found.data == 4) == 12
    assert cleaned.grid == found.grid


def test_a_label_map_without_post_processing_is_returned_itself() -> None:
    found = label_map()
    assert post_process(found, PredictSettings(), LABELS) is found
    assert not has_postprocessing(PredictSettings())
    assert has_postprocessing(PredictSettings(min_component_ml={"cyst": 1.0}))


def test_unknown_labels_and_volumes_of_nothing_are_refused() -> None:
    with pytest.raises(DataError, match="min_component_ml: unknown label 'cist'"):
        component_groups(PredictSettings(min_component_ml={"cist": 1.0}), LABELS)
    with pytest.raises(ConfigError):
        PredictSettings().merged({"min_component_ml": {"cyst": 0}})
