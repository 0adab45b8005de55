"""Toy networks gain nothing from threads, and lose much when threads of other work wait for the same cores."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.networks import toy_options
from tests.helpers.runs import single_thread

__all__ = ["single_thread"]


@pytest.fixture
def toy():
    """Factory of tiny models: ``toy("fcn_resnet_50", in_channels=2, num_classes=3, auxiliary_head=False)``."""
    from medseg.models import build_model

    def make(name, *, in_channels=2, num_classes=3, seed=0, **options):
        torch.manual_seed(seed)
        chosen = toy_options(name) | options
        return build_model(name, in_channels=in_channels, num_classes=num_classes, **chosen)

    return make
