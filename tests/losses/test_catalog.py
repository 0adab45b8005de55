"""Names of losses: registration, validation without torch, and what a loss does not support."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from medseg.errors import ConfigError
from medseg.labels.label_sets import LabelSets
from medseg.labels.label_table import Labels
from medseg.losses import LossContext, build_loss, list_losses, register_loss
from medseg.losses.catalog import LOSSES
from medseg.train.settings import TrainSettings

ORGANS = Labels.from_names({"a": 1, "b": 2})


@pytest.fixture
def catalog(monkeypatch):
    """The catalog without names that other tests add."""
    monkeypatch.setattr(LOSSES, "_items", dict(LOSSES._items))
    return LOSSES


def mean_square(context: LossContext):
    def loss(logits, label):
        assert label.shape[1] == 1
        return logits.square().mean() * (2 if context.batch_dice else 1)

    return loss


def test_a_registered_loss_is_a_valid_setting_and_is_built_from_its_context(catalog):
    with pytest.raises(ConfigError, match=r"loss: unknown loss 'mean_square'.*losses"):
        TrainSettings.parse({"loss": "mean_square"})
    register_loss("mean_square", mean_square, reference="none")
    assert TrainSettings.parse({"loss": "mean_square"}).loss == "mean_square"
    assert "mean_square" in list_losses("mean*")
    logits, label = torch.ones(1, 2, 4, 4), torch.zeros(1, 1, 4, 4)
    assert float(build_loss("mean_square")(logits, label)) == 1
    assert float(build_loss("mean_square", batch_dice=True)(logits, label)) == 2


def test_a_builder_can_be_named_by_its_module(catalog):
    register_loss("again", "medseg.losses.builtin:dice", reference="none")
    logits, label = torch.randn(1, 3, 4, 4), torch.ones(1, 1, 4, 4)
    assert torch.equal(build_loss("again")(logits, label), build_loss("dice")(logits, label))


def test_what_a_registered_loss_does_not_support_is_refused(catalog):
    register_loss("mean_square", mean_square, reference="none")
    partial = LabelSets.from_annotations(ORGANS, {"case": ("a",)})
    with pytest.raises(ConfigError, match=r"train\.loss: found mean_square with partially annotated cases"):
        build_loss("mean_square", label_sets=partial)
    with pytest.raises(ConfigError, match=r"train\.loss: found mean_square with an ignore label"):
        build_loss("mean_square", label_sets=LabelSets.from_annotations(replace(ORGANS, ignore=9)))
    with pytest.raises(ConfigError, match=r"train\.class_weights: found weights with the loss mean_square"):
        build_loss("mean_square", label_sets=LabelSets(ORGANS), class_weights={"a": 2})


def test_a_name_is_registered_once(catalog):
    with pytest.raises(ConfigError, match="loss 'dice' is registered twice"):
        register_loss("dice", mean_square, reference="none")


def test_every_loss_has_a_reference_and_settings_accept_it():
    for name in list_losses():
        assert LOSSES.get(name).reference
        assert TrainSettings.parse({"loss": name}).loss == name


def test_settings_and_names_do_not_import_torch():
    code = (
        "import sys; from medseg.train.settings import TrainSettings; from medseg.losses import list_losses; "
        "TrainSettings.parse({'loss': 'dice'}); list_losses(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
