"""Settings of data, patches and augmentation, and their messages."""

from __future__ import annotations

import subprocess
import sys

import pytest

from medseg.data.settings import (
    Augmentation,
    DataSettings,
    FirstStageAugmentation,
    PatchSettings,
    PreprocessSettings,
)
from medseg.errors import ConfigError


def test_import_does_not_load_torch():
    code = "import sys, medseg.data.settings, medseg.train.settings, medseg.model_folder.settings; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("size", "axis", "window"),
    [
        ((8, 9, 10), 2, (8, 9, 10)),
        ((8, 9), 2, (8, 9, 1)),
        ((8, 9), 1, (8, 1, 9)),
        ((8, 9), 0, (1, 8, 9)),
    ],
)
def test_window(size, axis, window):
    assert PatchSettings(size=size, slice_axis=axis).window() == window


@pytest.mark.parametrize(
    ("kind", "values", "told"),
    [
        (PatchSettings, {"size": [0, 4]}, "size: expected positive sizes"),
        (PatchSettings, {"size": [4]}, "size"),
        (PatchSettings, {"size": [4, 4], "slice_axis": 3}, "slice_axis"),
        (PreprocessSettings, {"orientation": "RAX"}, "expected one letter each of R/L, A/P and S/I"),
        (PreprocessSettings, {"normalise": "ct"}, "Did you mean 'normalize'"),
        (DataSettings, {"folds": 1}, "folds"),
        (Augmentation, {"noise_p": 1.5}, "noise_p"),
        (Augmentation, {"mirror_axes": [-1]}, "mirror_axes"),
        (Augmentation, {"gama_p": 0.1}, "Did you mean 'gamma_p'"),
        (Augmentation, {"rotate_degrees": -5}, "rotate_degrees"),
        (Augmentation, {"scale": [1.4, 0.7]}, "scale: expected the smaller number first: found ["),
        (Augmentation, {"noise_std": [0.1, 0]}, "noise_std: expected the smaller number first: found ["),
        (Augmentation, {"gamma": [1.5, 0.7]}, "gamma: expected the smaller number first: found ["),
        (Augmentation, {"scale": [0, 0]}, "scale.0: expected greater than 0"),
        (Augmentation, {"scale": [-1, 1]}, "scale.0: expected greater than 0"),
        (Augmentation, {"scale": [1, 1000]}, "scale.1: expected less than or equal to 10"),
        (Augmentation, {"blur_sigma": [0, 0]}, "blur_sigma.0: expected greater than 0"),
        (Augmentation, {"gamma": [-1, 1]}, "gamma.0: expected greater than 0"),
        (Augmentation, {"low_resolution": [0.5, 2]}, "low_resolution.1: expected less than or equal to 1"),
        (Augmentation, {"noise_std": [-1, 1]}, "noise_std.0: expected greater than or equal to 0"),
        (Augmentation, {"brightness": [-1, 1]}, "brightness.0"),
        (FirstStageAugmentation, {"radius": [3, 2]}, "radius: expected the smaller number first: found ["),
    ],
)
def test_invalid_settings_raise(kind, values, told):
    with pytest.raises(ConfigError) as caught:
        kind.parse(values)
    assert told in str(caught.value)


def test_orientation_is_upper_case():
    assert PreprocessSettings(orientation="lps").orientation == "LPS"
