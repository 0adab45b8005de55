"""Toy networks with known names at both ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from medseg.fine_tuning.match_weights import TrainedWeights, take_weights
from medseg.fine_tuning.network_ends import Ends, end_axes
from medseg.fine_tuning.settings import AdaptSettings
from medseg.model_folder.started_from import TransferRow
from medseg.models import build_model
from medseg.models.base import Model
from tests.helpers.networks import randomise
from tests.helpers.runs import single_thread

__all__ = ["single_thread"]


@dataclass(frozen=True)
class Network:
    """A network with random weights that builds itself for other ends."""

    name: str
    ends: Ends
    options: dict[str, object]
    model: Model

    def build(self, in_channels: int, num_outputs: int) -> Model:
        return build_model(self.name, in_channels=in_channels, num_classes=num_outputs, **self.options)

    @property
    def trained(self) -> TrainedWeights:
        axes = end_axes(self.build, self.model.in_channels, self.model.num_classes)
        heads = frozenset(name for name, found in axes.items() if any(end.kind == "output" for end in found))
        return TrainedWeights("source", self.model.state_dict(), self.ends, self.model.spatial_dims, 2, heads)

    def take(self, source: Network, **adapt: object) -> list[tuple[str, str, str, str, str]]:
        """Take the weights of another network and return the table."""
        settings = AdaptSettings.parse(dict(adapt))
        rows = take_weights(self.model, self.build, self.ends, source.trained, settings)
        return [cells(row) for row in rows]

    def logits(self, image: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.model.eval()(image)


def cells(row: TransferRow) -> tuple[str, str, str, str, str]:
    return (row.part, row.here, row.source, row.result, row.note)


@pytest.fixture
def network() -> Callable[..., Network]:
    """A factory: ``network("unet_2d", ["CT"], ["background", "liver"], seed=1, channels=[4, 8])``."""

    def make(name, inputs, outputs, *, seed=0, regions=False, **options) -> Network:
        torch.manual_seed(seed)
        model = build_model(name, in_channels=len(inputs), num_classes=len(outputs), **options)
        found = Network(name, Ends(tuple(inputs), tuple(outputs), regions), options, model)
        randomise(model, kernels=seed > 0)
        return found

    return make
