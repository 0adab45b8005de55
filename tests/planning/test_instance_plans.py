"""Plans of datasets with instance maps, and of those whose label maps look like them."""

from __future__ import annotations

import json

import pytest

from medseg.data.datasets.phantom import write_instance_phantoms
from medseg.errors import DataError
from medseg.planning.fingerprint.findings import find
from medseg.planning.plan_dataset import plan
from medseg.planning.plan_options import PlanOptions


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cells") / "data"
    write_instance_phantoms(folder, cases=3, count=12, shape=(40, 40, 32), radii=(3, 6))
    return folder


@pytest.mark.parametrize("preset", ["unet", "resenc-m"])
def test_an_instance_unet_is_proposed_for_instance_maps(folder, preset):
    proposed = plan(folder, PlanOptions(preset=preset))
    options = proposed.experiment.model.options()
    assert proposed.experiment.model.name == "instance_unet_3d"
    assert options.block == ("basic" if preset == "unet" else "res")
    assert "finds instances, because the dataset has instance maps" in proposed.text
    plain = plan(folder, PlanOptions(preset=preset, dims=2)).experiment
    assert plain.model.name == "instance_unet_2d"


def test_label_maps_that_look_like_instance_maps_are_pointed_out(folder, tmp_path):
    copy = tmp_path / "data"
    copy.mkdir()
    for name in ("imagesTr", "labelsTr"):
        (copy / name).symlink_to(folder / name)
    values = json.loads((folder / "dataset.json").read_text())
    del values["instances"]
    (copy / "dataset.json").write_text(json.dumps(values))
    with pytest.raises(
        DataError, match=r'consecutive numbers. If they are ids of instances, state "instances": true'
    ):
        plan(copy)


def test_unnamed_values_that_differ_in_number_look_like_ids(make_fingerprint, make_case):
    def codes(*counts):
        cases = [make_case(f"case_{n}", label_voxels=dict.fromkeys(range(1, n + 1), 900)) for n in counts]
        found = make_fingerprint(cases=cases, named=False, labels=max(counts) + 1)
        return [finding.code for finding in find(found)]

    assert "looks-like-instances" in codes(31, 12, 20)
    assert "looks-like-instances" not in codes(20, 20, 20)  # organs that every case has
    assert "looks-like-instances" not in codes(31, 3, 20)
