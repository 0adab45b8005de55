"""Small networks of fixed random weights, wrapped as predictors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from medseg.data.preprocessing.normalize import Normalization
from medseg.data.preprocessing.prepare import Preprocessing
from medseg.inference.predictor import Predictor
from medseg.labels.label_table import Labels
from medseg.model_folder.settings import SavedModel
from medseg.models import build_model

MakePredictor = Callable[..., Predictor]
LABELS = Labels.from_names({"background": 0, "liver": 5, "spleen": 7, "tumour": 300})


@pytest.fixture
def make_predictor() -> MakePredictor:
    """Factory: ``make_predictor(dims=2, channels=1, spacing=(2, 2, 2), overlap=0.25)``."""

    def make(
        dims: int = 3,
        *,
        channels: int = 1,
        window: tuple[int, int, int] | None = None,
        slice_axis: int = 2,
        labels: Labels = LABELS,
        spacing: tuple[float, float, float] | None = None,
        method: str = "zscore",
        crop: bool = True,
        **predict: Any,
    ) -> Predictor:
        options = {"channels": [4, 8], "num_blocks": 1}
        torch.manual_seed(3)
        model = build_model(f"unet_{dims}d", in_channels=channels, num_classes=labels.num_outputs, **options)
        sizes = [8, 8, 8]
        if dims == 2:
            sizes[slice_axis] = 1
        preprocessing = Preprocessing.parse(
            {
                "spacing": spacing,
                "crop_to_nonzero": crop,
                "channels": [Normalization(method=method)] * channels,
            }  # type: ignore[arg-type]
        )
        saved = SavedModel.parse(
            {
                "medseg": "0",
                "name": "toy",
                "model": {"name": f"unet_{dims}d", **options},
                "channel_names": [f"channel {index}" for index in range(channels)],
                "preprocessing": preprocessing,
                "window": window or tuple(sizes),
                "slice_axis": slice_axis,
                "predict": {"precision": "float32", **predict},
            }
        )
        return Predictor(model, saved, labels, device="cpu")

    return make
