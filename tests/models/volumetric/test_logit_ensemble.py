"""Several networks as one."""

from __future__ import annotations

import pytest
import torch

from medseg.errors import ModelError
from medseg.models import build_model
from medseg.models.volumetric.logit_ensemble import LogitEnsemble


def member(seed: int, **options: object):
    torch.manual_seed(seed)
    chosen = {"channels": [4, 8], "num_blocks": 1, **options}
    classes = int(chosen.pop("num_classes", 3))  # type: ignore[call-overload]
    return build_model("unet_2d", in_channels=1, num_classes=classes, **chosen).eval()


def test_logits_are_the_mean_of_the_members():
    members = [member(seed) for seed in range(3)]
    image = torch.randn(2, 1, 12, 8)
    with torch.no_grad():
        wanted = torch.stack([m(image) for m in members]).mean(0)
        torch.testing.assert_close(LogitEnsemble(members)(image), wanted)
    assert wanted.std() > 0.01


def test_half_precision_members_are_averaged_in_float32():
    members = [member(seed).bfloat16() for seed in range(2)]
    assert LogitEnsemble(members)(torch.randn(1, 1, 8, 8, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("members", [[], [member(0), member(0, num_classes=2)]])
def test_members_with_different_outputs_raise(members):
    with pytest.raises(ModelError, match=r"Ensemble: members: found \d kinds of models, expected one"):
        LogitEnsemble(members)
