"""Checks before the data are prepared."""

from __future__ import annotations

import pytest

from medseg.errors import ConfigError
from medseg.experiment.config import ExperimentConfig
from medseg.experiment.preflight import check_learnable
from medseg.labels.label_sets import LabelSets
from medseg.labels.label_table import Labels


@pytest.mark.parametrize("dims", [2, 3])
def test_models_that_find_instances_refuse_regions(dims):
    name = f"instance_unet_{dims}d"
    values = {"model": {"name": name, "channels": [4, 8]}, "patch": {"size": [16] * dims}}
    experiment = ExperimentConfig.parse(values)
    labels = Labels.from_names({"core": 1, "edge": 2})
    model = experiment.model.build(1, 3)
    check_learnable(experiment, model, LabelSets.from_annotations(labels, {}))
    regions = labels.with_regions({"whole": (1, 2), "core": (1,)}, {})
    with pytest.raises(ConfigError, match=rf"model.name: found {name}, which finds instances, with regions"):
        check_learnable(experiment, model, LabelSets.from_annotations(regions, {}))
