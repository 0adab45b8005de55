"""Imported models of overlapping regions, and learned post-processing, against nnU-Net's own functions."""

from __future__ import annotations

import json
import multiprocessing
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

import medseg
from medseg.cli.main import main
from medseg.errors import DataError, ModelError
from tests.helpers.nnunet_models import (
    Oracle,
    dataset_of,
    import_and_load,
    import_without_reference,
    plans_2d,
    plans_3d,
    write_images,
    write_trained,
)

pytestmark = pytest.mark.slow

NESTED = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "active": 3}
CROSSED = {"background": 0, "left part": [1, 2], "right part": [2, 4], "small": [4], "ignore": 5}


def dataset_with(labels: dict[str, Any], order: list[int], channels: int = 1) -> dict[str, Any]:
    return {**dataset_of(channels, labels), "regions_class_order": order}


LARGE = {"shape": (22, 20, 17), "spacing": (1.0, 1.2, 1.5)}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    # plans, dataset, images, checkpoints
    "volume": (
        plans_3d([1.4, 1.1, 1.2]),
        dataset_with(NESTED, [1, 2, 3]),
        LARGE,
        {"mirror_axes": (0, 2)},
    ),
    "slices_turned_cropped_two_folds": (
        plans_2d((2, 0, 1), 2, residual=True),
        dataset_with(CROSSED, [1, 4, 2], 2),
        {"shape": (9, 34, 30), "spacing": (5.0, 0.9, 1.1), "channels": 2, "border": 2},
        {"folds": (0, 1)},
    ),
    "smaller_than_the_patch": (
        plans_3d([1.0, 1.0, 1.0]),
        dataset_with(NESTED, [2, 1, 3]),
        {"shape": (10, 12, 9), "spacing": (1.0, 1.0, 1.0)},
        {},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_label_maps_and_probabilities_equal_nnunet(case, tmp_path):
    plans, dataset, images, more = CASES[case]
    name, folds = next(iter(plans["configurations"])), more.get("folds", (0,))
    folder = write_trained(tmp_path, name, plans, dataset, **more)
    files = write_images(tmp_path / "images", **images)
    predictor = import_and_load(folder, tmp_path / "model")
    found = predictor.run(predictor.prepare(files), probabilities=tmp_path / "p.nii").data[0]
    exact, wanted = Oracle(folder, files, folds).probabilities()
    order = dataset["regions_class_order"]
    assert {0, *order} == set(np.unique(exact))
    # On the edge of a region, where the sigmoid is a half, a rounding decides; there a label may differ.
    assert np.count_nonzero(found != exact) <= 1
    if case == "slices_turned_cropped_two_folds":
        rounded = Oracle(folder, files, folds, exact=False).labels()  # nnU-Net sums in half precision
        assert (found == rounded).mean() > 0.999
    probabilities = nib.load(tmp_path / "p.nii").get_fdata()
    assert (wanted > 0.5).sum(-1).max() > 1  # regions overlap
    np.testing.assert_allclose(probabilities, wanted, atol=5e-5)  # in steps of 1.5e-5


def test_regions_without_an_order_raise(tmp_path):
    folder = write_trained(tmp_path, "3d_fullres", plans_3d([1.0] * 3), dataset_with(NESTED, [1, 2, 3]))
    (folder / "dataset.json").write_text(json.dumps(dataset_of(labels=NESTED)))
    with pytest.raises(DataError, match=r"regions_class_order None, expected a list of 3 output values"):
        import_without_reference(folder, tmp_path / "model")


# --- learned post-processing


def noisy_pair(rng: np.random.Generator, values: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """A reference of nested boxes, and a prediction with specks of the values around them."""
    reference = np.zeros((14, 14, 12), np.uint8)
    for depth, value in enumerate(values):
        inner = slice(3 + depth, 11 - depth)
        reference[inner, inner, inner] = value
    specks = (ndimage.maximum_filter(rng.random(reference.shape), 2) > 0.995) & (reference == 0)
    prediction = reference.copy()
    prediction[specks] = rng.choice(values, size=int(specks.sum()))
    return reference, prediction


def learned(
    folder: Path, plans: dict[str, Any], dataset: dict[str, Any], specks: list[int], monkeypatch
) -> list[Any]:
    """nnU-Net's decision on predictions of which these values have specks; its functions and arguments.

    Args:
        folder: where ``postprocessing.json`` is written, beside the predictions.
    """
    from nnunetv2.postprocessing.remove_connected_components import determine_postprocessing

    threads = SimpleNamespace(Pool=ThreadPool)  # processes would import everything anew
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: threads)
    references = folder.parent / "references"
    folder.mkdir(parents=True)
    references.mkdir()
    values = sorted({v for group in dataset["labels"].values() for v in np.atleast_1d(group).tolist()} - {0})
    for seed in range(3):
        reference, prediction = noisy_pair(np.random.default_rng(seed), [v for v in values if v < 5])
        prediction[(reference == 0) & ~np.isin(prediction, specks)] = 0
        if specks == [3]:  # true pieces that stand apart, which are not to be lost
            reference[12:, 12:] = prediction[12:, 12:] = 2
        for place, data in ((references, reference), (folder, prediction)):
            nib.save(nib.Nifti1Image(data, np.eye(4)), place / f"case_{seed}.nii.gz")
    functions, arguments = determine_postprocessing(str(folder), str(references), plans, dataset, 1)
    return [functions, arguments]


LABELS = {"background": 0, "liver": 1, "spleen": 2, "lesion": 3}


@pytest.mark.parametrize(
    ("dataset", "specks", "expected"),
    [
        (dataset_of(labels=LABELS), [1, 2, 3], (True, ("liver", "spleen", "lesion"))),
        (dataset_of(labels=LABELS), [3], (False, ("lesion",))),
        (dataset_with(NESTED, [1, 2, 3]), [1, 2, 3], (True, ("core",))),
        (dataset_with(NESTED, [1, 2, 3]), [3], (False, ("active",))),
    ],
)
def test_post_processing_equals_nnunet(dataset, specks, expected, tmp_path, monkeypatch, capsys):
    from nnunetv2.postprocessing.remove_connected_components import apply_postprocessing

    plans = plans_2d()
    folder = write_trained(tmp_path, "2d", plans, dataset)
    place = folder / "crossval_results_folds_0_1_2_3_4"
    functions, arguments = learned(place, plans, dataset, specks, monkeypatch)
    monkeypatch.undo()
    (place / "postprocessing.pkl").write_bytes(b"is not read")
    assert main(["import", "nnunet", str(folder), "-o", str(tmp_path / "model")]) == 0
    assert f"({place.name})" in capsys.readouterr().out
    predictor = medseg.load(tmp_path / "model", device="cpu")
    settings = predictor.settings
    assert (settings.keep_largest_foreground, settings.keep_largest) == expected
    for seed in range(10, 14):
        _, prediction = noisy_pair(np.random.default_rng(seed), [1, 2, 3])
        volume = medseg.Volume(prediction[None], medseg.Grid.from_spacing(prediction.shape), "label")
        wanted = apply_postprocessing(prediction, functions, arguments)
        assert (wanted != prediction).any()
        np.testing.assert_array_equal(predictor.post_processed(volume).data[0], wanted)


def write_steps(folder: Path, folds: str, *wanted: Any, **more: Any) -> Path:
    """A ``postprocessing.json`` with these steps."""
    place = folder / f"crossval_results_folds_{folds}"
    place.mkdir(exist_ok=True)
    name = "remove_all_but_largest_component_from_segmentation"
    steps = [{"labels_or_regions": group, **more} for group in wanted]
    content = {"postprocessing_fns": [name] * len(steps), "postprocessing_kwargs": steps}
    (place / "postprocessing.json").write_text(json.dumps(content))
    return place / "postprocessing.json"


def test_post_processing_steps_are_named_in_their_order(tmp_path):
    folder = write_trained(tmp_path, "2d", plans_2d(), dataset_with(NESTED, [1, 2, 3]), folds=(0, 1))
    write_steps(folder, "0_1_2", 3)
    write_steps(folder, "0", [1, 2, 3])
    saved = import_without_reference(folder, tmp_path / "a")
    assert (saved.predict.keep_largest_foreground, saved.predict.keep_largest) == (False, ("active",))
    saved = import_without_reference(folder, tmp_path / "b", folds=["0"])
    assert (saved.predict.keep_largest_foreground, saved.predict.keep_largest) == (True, ())
    write_steps(folder, "0_1", [1, 2, 3], [1, 2, 3], [2, 3], 3, background_label=0)
    saved = import_without_reference(folder, tmp_path / "c")
    assert saved.predict.keep_largest_foreground
    assert saved.predict.keep_largest == ("whole", "core", "active")
    card = (tmp_path / "c" / "README.md").read_text()
    assert "largest component of all labels together, then of whole, then of core, then of active" in card


def test_unknown_post_processing_raises_and_pickle_is_not_read(tmp_path):
    folder = write_trained(tmp_path, "2d", plans_2d(), dataset_of())
    for wanted, more, message in (
        ([7], {}, r"found the values \[7\], expected those of a label or region: liver \[1\], spleen \[2\]"),
        ([1], {"background_label": 2}, "expected label values, and background 0"),
        ([1], {"connectivity": 1}, "expected remove_all_but_largest_component_from_segmentation with"),
        ([True], {}, "expected label values"),
    ):
        file = write_steps(folder, "0", *wanted, **more)
        with pytest.raises(ModelError, match=message):
            import_without_reference(folder, tmp_path / "model")
        assert not (tmp_path / "model").exists()
    file.write_text(json.dumps({"postprocessing_fns": []}))
    with pytest.raises(ModelError, match="expected the lists postprocessing_fns and"):
        import_without_reference(folder, tmp_path / "model")
    file.rename(file.with_suffix(".pkl"))
    saved = import_without_reference(folder, tmp_path / "model")
    assert saved.trained_on["postprocessing"].startswith("not imported: found postprocessing.pkl without")
    assert not saved.predict.keep_largest
