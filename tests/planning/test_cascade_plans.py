"""Plans of cascades, and datasets for which none is planned."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import yaml

from medseg.cli.main import main
from medseg.errors import ConfigError
from medseg.experiment.experiment import Experiment
from medseg.planning.plan_dataset import plan
from medseg.planning.plan_options import PlanOptions

pytestmark = pytest.mark.slow


def test_cascade_is_planned_if_a_low_resolution_covers_more(make_fingerprint, monkeypatch, tmp_path, capsys):
    """Large volumes get two experiments more, with the order of their commands; both are read back whole."""
    from medseg.planning import plan_dataset as module
    from medseg.planning.cascade_plans import stage_file

    large = make_fingerprint((260, 260, 260), count=60, labels=2)
    monkeypatch.setattr(module, "read_dataset", lambda *_: SimpleNamespace(labelled_cases=()))
    monkeypatch.setattr(module, "fingerprint", lambda *_, **__: large)
    made = plan(tmp_path / "data", PlanOptions(device="cuda"))
    low, behind = made.cascade
    assert low.experiment.name == "made_up_unet_3d_lowres"
    assert low.experiment.preprocess.spacing[0] > 1.2
    assert behind.experiment.name == "made_up_unet_3d_cascade"
    assert behind.experiment.cascade.first_stage == "runs/made_up_unet_3d_lowres"
    ours, theirs = behind.experiment.to_plain(), made.experiment.to_plain()
    assert {key for key in ours if ours[key] != theirs[key]} == {"name", "cascade"}
    assert made.experiment.train.batch_dice
    assert not low.experiment.train.batch_dice
    order = (
        "#   medseg train plan_lowres.yaml --run runs/made_up_unet_3d_lowres --all-folds",
        "#   medseg train plan_cascade.yaml --run runs/made_up_unet_3d_cascade ",
        "#   medseg predict runs/made_up_unet_3d_cascade/model IMAGE.nii.gz -o segmented",
    )
    for stage in made.cascade:
        assert stage.experiment == Experiment.parse(yaml.safe_load(stage.text))
        places = [stage.text.index(line) for line in order]
        assert places == sorted(places)
    assert "plan_cascade.yaml is this network as the second stage" in made.text.replace("\n# ", " ")
    (tmp_path / "data").mkdir()
    assert main(["plan", str(tmp_path / "data"), "-o", str(tmp_path / "big.yaml"), "--device", "cuda"]) == 0
    told = capsys.readouterr().out
    assert (
        f"cascade: medseg train {tmp_path}/big_lowres.yaml --run runs/made_up_unet_3d_lowres --all-folds"
        in told
    )
    for mark, stage in zip(("_lowres", "_cascade"), made.cascade, strict=True):
        assert Experiment.load(stage_file(tmp_path / "big.yaml", mark)) == stage.experiment
    (tmp_path / "big.yaml").unlink()
    with pytest.raises(ConfigError, match=r"big_lowres\.yaml: found an existing file"):
        made.save(tmp_path / "big.yaml")
    assert not (tmp_path / "big.yaml").exists()
    for others in ({"lowres": True}, {"dims": 2}, {"model": "unet_3d"}):
        assert plan(tmp_path / "data", PlanOptions(device="cuda", **others)).cascade == ()


def test_no_cascade_is_planned_if_the_patch_covers_enough(phantoms, cache, tmp_path):
    made = plan(phantoms, cache=cache)
    assert made.cascade == ()
    assert "cascade" not in made.text
