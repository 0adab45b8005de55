"""The planned experiment: recipe, augmentation and mirroring by dataset, model and device."""

from __future__ import annotations

from pathlib import Path

from medseg.experiment.experiment import Experiment
from medseg.models.catalog import MODELS, ModelEntry, ModelOptions
from medseg.planning.commented_yaml import plain_values
from medseg.planning.explained_experiment import (
    DatasetSource,
    OtherModel,
    explained_experiment,
)
from medseg.planning.memory_budget import MemoryBudget
from medseg.planning.nnunet.presets import PRESETS
from medseg.planning.propose import propose
from medseg.planning.training_length import LONG_STEPS, TrainingLength

EIGHT = MemoryBudget(8, "a test", on_gpu=True)


def test_other_model_has_its_own_recipe(make_fingerprint, monkeypatch):
    """Large models train slowly and in small batches, whatever a U-Net of the same patch could do."""
    entry = ModelEntry("picture_model", ModelOptions, 2, "for this test", "none")
    monkeypatch.setitem(MODELS._items, "picture_model", entry)
    flat = propose(make_fingerprint((50, 60, 40), count=60), PRESETS["unet"], EIGHT, "2d")
    assert flat.batch_size > 16
    other = OtherModel("picture_model", (32, 32))
    tree = plain_values(
        explained_experiment(make_fingerprint(), flat, DatasetSource(Path("data"), "auto"), other)
    )
    assert tree["model"] == {"name": "picture_model"}
    assert tree["patch"]["size"] == [64, 64]
    assert tree["train"]["batch_size"] == 16
    assert tree["train"]["optimizer"]["name"] == "adamw"


def test_rotation_of_flat_patches_stays_in_the_plane(make_fingerprint):
    thick = propose(make_fingerprint((200, 180, 20), (0.8, 0.8, 5.0)), PRESETS["unet"], EIGHT)
    tree = plain_values(
        explained_experiment(make_fingerprint(), thick, DatasetSource(Path("data"), "auto"), None)
    )
    assert tree["augment"] == {"dummy_2d_axis": 2, "rotate_degrees": 180.0}
    flat = propose(make_fingerprint((300, 150, 20), (0.8, 0.8, 5.0)), PRESETS["unet"], EIGHT, "2d")
    tree = plain_values(
        explained_experiment(make_fingerprint(), flat, DatasetSource(Path("data"), "table"), None)
    )
    assert tree["augment"] == {"rotate_degrees": 15.0}
    assert tree["data"]["layout"] == "table"
    assert Experiment.parse(tree).patch.slice_axis == 2


def test_short_training_rotates_volumes_little_and_natural_images_freely(make_fingerprint):
    budget = MemoryBudget(8, "a test", on_gpu=False)

    def degrees(measured, kind, steps=None):
        made = propose(measured, PRESETS["unet"], budget, kind, TrainingLength(False, steps))
        tree = explained_experiment(measured, made, DatasetSource(Path("data"), "auto"), None)
        return plain_values(tree)["augment"]["rotate_degrees"]

    thick = make_fingerprint((60, 60, 8), (1.0, 1.0, 8.0))
    for kind in ("2d", "3d"):
        assert degrees(thick, kind) == 30
        assert degrees(thick, kind, LONG_STEPS) == 180
    assert degrees(make_fingerprint((60, 60, 1)), "2d") == 180
    assert degrees(make_fingerprint((90, 50, 1)), "2d") == 15


def test_short_training_mirrors_only_left_and_right(make_fingerprint):
    budget = MemoryBudget(8, "a test", on_gpu=False)

    def axes(measured, dims=None, steps=None):
        made = propose(measured, PRESETS["unet"], budget, dims, TrainingLength(False, steps))
        tree = plain_values(explained_experiment(measured, made, DatasetSource(Path("data"), "auto"), None))
        return tree["augment"].get("mirror_axes"), tree["predict"]["mirror_axes"]

    volumes, pictures = make_fingerprint((50, 60, 40)), make_fingerprint((50, 60, 1))
    assert axes(volumes) == ([0], [0])
    assert axes(volumes, "2d") == ([0], [0])
    assert axes(volumes, steps=LONG_STEPS) == (None, [0, 1, 2])
    assert axes(pictures, "2d") == (None, [0, 1])


def test_regions_with_sides_are_not_mirrored(make_fingerprint):
    measured = make_fingerprint((50, 60, 40), regions=("organs", "left_kidney", "right_kidney"))
    for steps, axes in ((None, []), (LONG_STEPS, [1, 2])):
        budget = MemoryBudget(8, "a test", on_gpu=False)
        made = propose(measured, PRESETS["unet"], budget, length=TrainingLength(False, steps))
        tree = plain_values(explained_experiment(measured, made, DatasetSource(Path("data"), "auto"), None))
        assert tree["predict"]["mirror_axes"] == axes
