"""Models that can be averaged, and those that cannot."""

from __future__ import annotations

import pytest

from medseg.errors import DataError, ModelError
from medseg.inference.predictor import Predictor
from medseg.inference.predictor_ensemble import require_same_task


def test_models_of_one_task_are_accepted(make_predictor):
    require_same_task([make_predictor(), make_predictor()])


def test_an_ensemble_needs_a_model():
    with pytest.raises(ModelError, match="ensemble: found no model"):
        require_same_task([])


def test_other_channels_are_refused(make_predictor):
    one = make_predictor()
    other = Predictor(one.model, one.saved.replace(channel_names=("MR",)), one.labels, device="cpu")
    with pytest.raises(ModelError, match=r"MR.*channel 0"):
        require_same_task([one, other])


def test_something_that_is_no_image_is_refused(make_predictor):
    with pytest.raises(DataError, match="image: found a int, expected a Volume"):
        make_predictor()(5)
