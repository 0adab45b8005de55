"""Statistics of intensities that an experiment gives instead of measuring them."""

from __future__ import annotations

from pathlib import Path

import pytest

from medseg.data.datasets.cases import Dataset
from medseg.errors import ConfigError
from medseg.experiment.experiment import Experiment
from medseg.experiment.resolve_data import resolve_preprocessing
from medseg.labels.label_table import Labels

STATISTICS = {"mean": 70.0, "std": 30.0, "low": -80.0, "high": None}


def resolve(channels: tuple[str, ...], **preprocess: object):
    """The dataset has no cases, so that measuring it would fail."""
    dataset = Dataset("toy", Path("nowhere"), (), channels, Labels.from_names({"liver": 1}))
    experiment = Experiment.parse({"preprocess": preprocess})
    return resolve_preprocessing(experiment, dataset, Labels.from_names({"liver": 1}), ())


def test_given_statistics_are_used_without_measuring():
    found = resolve(("T1", "CT"), intensities={"CT": STATISTICS}).channels
    assert found[0].method == "zscore"
    assert found[1].to_plain() == {"method": "ct", **STATISTICS}


@pytest.mark.parametrize(
    ("preprocess", "message"),
    [
        ({"intensities": {"ct": STATISTICS}}, "preprocess.intensities: found 'ct', expected one of T1, CT. Correct the name."),
        ({"intensities": {"T1": STATISTICS}}, "preprocess.intensities.T1: found statistics with the method zscore, expected ct"),
        ({"intensities": {"CT": {**STATISTICS, "std": 0}}}, "preprocess.intensities.CT.std: "),
    ],
)  # fmt: skip
def test_statistics_of_other_channels_are_refused(preprocess, message):
    with pytest.raises(ConfigError) as error:
        resolve(("T1", "CT"), **preprocess)
    assert message in str(error.value)
