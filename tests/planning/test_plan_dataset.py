"""From a dataset to a YAML that trains: the function, the command and the page."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import medseg
from medseg.cli.data.plan import PRESETS as NAMED
from medseg.cli.main import main
from medseg.data.datasets.layouts import read_dataset
from medseg.errors import ConfigError, DataError
from medseg.experiment.experiment import Experiment
from medseg.models.catalog import MODELS, ModelEntry, ModelOptions
from medseg.planning import memory_budget as budget
from medseg.planning.commented_yaml import Explained, plain_values, render_yaml
from medseg.planning.explained_experiment import (
    LONG_STEPS,
    SHORT_BUDGET,
    DatasetSource,
    OtherModel,
    explained_experiment,
)
from medseg.planning.fingerprint.measure import fingerprint
from medseg.planning.memory_budget import MemoryBudget
from medseg.planning.nnunet.presets import PRESETS
from medseg.planning.plan_dataset import _heading, plan
from medseg.planning.plan_options import PlanOptions
from medseg.planning.plan_page import write_page
from medseg.planning.propose import propose
from medseg.runtime.memory import GIB

pytestmark = pytest.mark.slow

EIGHT = MemoryBudget(8, "a test", on_gpu=True)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """The same plan on every machine: a processor with 32 GiB free, as much as the preset unet asks for."""
    monkeypatch.setattr(budget, "_gpu", lambda: ("", None))
    monkeypatch.setattr(budget, "free_memory", lambda: 32 * GIB)


@pytest.fixture(scope="session")
def cache(phantoms, tmp_path_factory):
    """The fingerprint of the phantoms, measured once."""
    path = tmp_path_factory.mktemp("cache") / "fingerprint.json"
    fingerprint(read_dataset(phantoms)).save(path)
    return path


def test_a_plan_is_an_experiment_and_its_text_reads_back(phantoms, cache):
    made = medseg.plan(phantoms, cache=cache)
    assert made.experiment == Experiment.parse(yaml.safe_load(made.text))
    experiment = made.experiment
    assert experiment.name == "phantom_ct_unet_3d"
    assert experiment.data.path == str(phantoms.resolve())
    assert experiment.preprocess.spacing == pytest.approx((5, 5, 8), rel=1e-4)
    assert experiment.preprocess.normalize == ("ct",)
    assert experiment.preprocess.orientation == "RAS"
    assert (experiment.train.steps, experiment.train.max_time) == (None, SHORT_BUDGET)
    assert experiment.train.batch_size == made.proposal.batch_size
    assert all(size % d == 0 for size, d in zip(experiment.patch.size, made.proposal.divisor, strict=True))
    assert "26 x 22 x 14" in made.text


def test_a_short_training_on_a_processor_gets_half_the_widths(phantoms, cache):
    """A GPU, or somebody who asks for as many steps as nnU-Net's recipe needs, gets those of the rules."""
    short, long = (
        plan(phantoms, PlanOptions(preset="resenc-m", steps=steps), cache=cache) for steps in (None, 100_000)
    )
    on_gpu = plan(phantoms, PlanOptions(preset="resenc-m", memory="8GiB"), cache=cache)
    whole = [stage["channels"] for stage in on_gpu.experiment.model.to_plain()["encoder_stages"]]
    assert whole == list(on_gpu.proposal.channels)
    for made, widths in ((short, [width // 2 for width in whole]), (long, whole)):
        model = made.experiment.model.to_plain()
        assert [stage["channels"] for stage in model["encoder_stages"]] == widths
        assert model["stem_channels"] == widths[0]


def test_every_value_has_a_reason(phantoms, cache):
    """A comment behind it or above it, but for what others explain."""
    lines = medseg.plan(phantoms, PlanOptions(preset="resenc-m", dims=2), cache=cache).text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("name:"))
    for before, line in zip(lines[start:], lines[start + 1 :], strict=False):
        if not line.startswith(" ") or line.strip().startswith("#"):
            continue
        told = "#" in line or before.strip().startswith("#")
        assert told or line.split(":")[0].strip() in ("decoder_num_blocks", "stem_channels"), line


@pytest.mark.parametrize("preset", ["unet", "resenc", "resenc-m", "resenc-l", "resenc-xl"])
@pytest.mark.parametrize("dims", [2, 3])
def test_every_preset_builds_a_network_that_takes_its_patch(preset, dims, phantoms, cache):
    made = plan(phantoms, PlanOptions(preset=preset, dims=dims), cache=cache)
    experiment = made.experiment
    assert experiment.model.name == f"{'unet' if preset == 'unet' else 'resunet'}_{dims}d"
    with torch.device("meta"):
        network = experiment.model.build(1, 6)
        logits = network(torch.zeros(1, 1, *experiment.patch.size))
    assert network.divisor == made.proposal.divisor
    assert logits.shape == (1, 6, *experiment.patch.size)


def test_another_model_gets_a_patch_it_divides(phantoms, cache):
    made = plan(phantoms, PlanOptions(model="attention_unet_2d"), cache=cache)
    assert made.experiment.model.options() == MODELS.get("attention_unet_2d").options()
    assert made.experiment.patch.size == (32, 24)
    assert all(size % 8 == 0 for size in made.experiment.patch.size)
    assert "model.channels" not in made.text
    with pytest.raises(ConfigError, match="either --model or --preset"):
        plan(phantoms, PlanOptions(model="unet_3d", preset="resenc-m"), cache=cache)
    with pytest.raises(ConfigError, match=r"found 3, expected 2 because attention_unet_2d"):
        plan(phantoms, PlanOptions(model="attention_unet_2d", dims=3), cache=cache)
    with pytest.raises(ConfigError, match="Did you mean 'attention_unet_2d'"):
        plan(phantoms, PlanOptions(model="atention_unet_2d"), cache=cache)


def test_a_model_that_is_no_unet_gets_its_own_recipe(make_fingerprint, monkeypatch):
    """Large models train slowly and in small batches, whatever a U-Net of the same patch could do."""
    entry = ModelEntry("picture_model", ModelOptions, 2, "for this test", "none")
    monkeypatch.setitem(MODELS._items, "picture_model", entry)
    flat = propose(make_fingerprint((50, 60, 40), count=60), PRESETS["unet"], EIGHT, "2d")
    assert flat.batch_size > 16
    other = OtherModel("picture_model", (32, 32))
    tree = plain_values(
        explained_experiment(make_fingerprint(), flat, DatasetSource(Path("data"), "auto"), None, other)
    )
    assert tree["model"] == {"name": "picture_model"}
    assert tree["patch"]["size"] == [64, 64]
    assert tree["train"]["batch_size"] == 16
    assert tree["train"]["optimizer"]["name"] == "adamw"


def test_memory_decides_the_recipe_and_the_patch(phantoms, cache):
    gpu = plan(phantoms, PlanOptions(memory="8GiB"), cache=cache)
    assert gpu.experiment.train.steps == LONG_STEPS
    assert gpu.experiment.train.optimizer.name == "sgd"
    assert gpu.experiment.train.workers == "auto"
    little = plan(phantoms, PlanOptions(memory="5MiB"), cache=cache)
    assert np.prod(little.experiment.patch.size) < np.prod(gpu.experiment.patch.size)
    assert (
        plan(phantoms, PlanOptions(memory="8GiB", steps=50), cache=cache).experiment.train.optimizer.name
        == "adamw"
    )
    for wrong in (
        {"steps": 0},
        {"dims": 4},
        {"lowres": True, "dims": 2},
        {"memory": "much"},
        {"preset": "unets"},
    ):
        with pytest.raises(ConfigError, match="found"):
            plan(phantoms, PlanOptions(**wrong), cache=cache)


def test_channels_margins_and_missing_names_are_planned_for(write_table):
    """Two MR channels with air of zeros around them, thick coronal slices, labels without names, two subjects."""
    rng = np.random.default_rng(0)
    cases = {}
    for name in ("a", "b"):
        image = np.zeros((2, 40, 12, 44), np.float32)
        image[:, 10:30, 1:11, 10:34] = rng.normal(100, 20, (2, 20, 10, 24))
        label = np.zeros(image.shape[1:], np.uint8)
        label[14:20, 3:6, 14:22] = 3
        cases[name] = (image, label)
    grids = [medseg.Grid.from_spacing((40, 12, 44), (1.0, 5.0, 1.0))] * 2
    made = plan(write_table(cases, grids))
    experiment = made.experiment
    assert experiment.preprocess.normalize == ("zscore_mask", "zscore_mask")
    assert experiment.data.labels == {"background": 0, "label_3": 3}
    assert experiment.data.folds == 2
    assert made.proposal.slice_axis == 1
    assert experiment.patch.size == (20, 10, 24)
    assert experiment.augment.rotate_p == Experiment().augment.rotate_p


def test_flat_patches_are_not_turned_out_of_their_slices(make_fingerprint):
    thick = propose(make_fingerprint((200, 180, 20), (0.8, 0.8, 5.0)), PRESETS["unet"], EIGHT)
    tree = plain_values(
        explained_experiment(make_fingerprint(), thick, DatasetSource(Path("data"), "auto"), None, None)
    )
    assert tree["augment"] == {"dummy_2d_axis": 2, "rotate_degrees": 180.0}
    flat = propose(make_fingerprint((300, 150, 20), (0.8, 0.8, 5.0)), PRESETS["unet"], EIGHT, "2d")
    tree = plain_values(
        explained_experiment(make_fingerprint(), flat, DatasetSource(Path("data"), "table"), None, None)
    )
    assert tree["augment"] == {"rotate_degrees": 15.0}
    assert tree["data"]["layout"] == "table"
    assert Experiment.parse(tree).patch.slice_axis == 2


def test_pictures_are_planned_in_2d_and_their_plan_trains(write_table, tmp_path):
    rng = np.random.default_rng(0)
    cases = {}
    for number in range(4):
        label = np.zeros((40, 36, 1), np.uint8)
        label[10:20, 12:22] = 1
        image = rng.normal(0, 10, (1, 40, 36, 1)).astype(np.float32) + 100 * label[None]
        cases[f"p{number}"] = (image, label)
    made = plan(write_table(cases), PlanOptions(steps=1))
    assert made.experiment.preprocess.spacing == (1.0, 1.0, None)
    assert made.experiment.patch.size == (40, 40)
    small = made.experiment.model.replace(encoder_stages=[{"channels": 4}, {"channels": 4, "stride": 2}])
    experiment = made.experiment.replace(model=small.to_plain())
    (report,) = experiment.trainer(run=tmp_path / "run")
    assert np.isfinite(report.loss)


def test_the_command_writes_a_plan_that_trains(phantoms, tmp_path, capsys):
    target = tmp_path / "plans" / "plan.yaml"
    assert main(["plan", str(phantoms), "-o", str(target), "--memory", "150MiB", "--steps", "2"]) == 0
    told = capsys.readouterr().out
    assert "phantom_ct_unet_3d" in told
    assert "! Only 6 subjects" in told
    assert f"train:   medseg train {target}" in told
    assert sorted(path.name for path in target.parent.iterdir()) == [
        "fingerprint.html",
        "fingerprint.json",
        "plan.yaml",
    ]
    stages = len(yaml.safe_load(target.read_text())["model"]["channels"])
    narrow = f"model.channels=[{','.join(['4'] * stages)}]"
    run = tmp_path / "run"
    assert (
        main(["train", str(target), narrow, "train.batch_size=2", "train.workers=0", "--run", str(run)]) == 0
    )
    assert (run / "model" / "model.safetensors").is_file()


def test_a_plan_that_is_there_is_kept_unless_told(phantoms, cache, tmp_path, capsys):
    target = tmp_path / "plan.yaml"
    target.write_text("edited: true\n")
    shutil.copy(cache, tmp_path / "fingerprint.json")
    assert main(["plan", str(phantoms), "-o", str(target)]) == 1
    assert "found an existing file" in capsys.readouterr().err
    assert target.read_text() == "edited: true\n"
    assert main(["plan", str(phantoms), "-o", str(target), "--overwrite"]) == 0
    assert Experiment.load(target).name == "phantom_ct_unet_3d"


def test_what_cannot_be_planned_is_one_sentence(tmp_path, capsys):
    assert main(["plan", str(tmp_path / "nothing")]) == 1
    assert "no such folder or file" in capsys.readouterr().err


def test_the_command_and_the_choices_of_its_help_agree():
    assert list(NAMED) == list(PRESETS)


class _Inert(HTMLParser):
    """Collects tags and attributes of a page."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.text.append(data)


EVIL = "<script>alert(1)</script>\"'&\u202e\x1b[31m $x$ 漢字"


def test_the_page_runs_nothing_and_loads_nothing(phantoms, cache, tmp_path):
    made = plan(phantoms, cache=cache)
    labels = {EVIL if name == "liver" else name: value for name, value in made.fingerprint.labels.items()}
    finding = {"code": "odd", "text": EVIL, "cases": ["a", "b"]}
    evil = made.fingerprint.replace(dataset=EVIL, channel_names=(EVIL,), labels=labels, findings=(finding,))
    path = tmp_path / "page.html"
    write_page(evil, path, made.proposal, made.experiment)
    page = _Inert()
    page.feed(path.read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert {"img", "table", "figure", "details"} <= set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href"):
            assert (tag, value[:22]) == ("img", "data:image/png;base64,")
    policy = next(value for _, name, value in page.attributes if name == "content" and "default-src" in value)
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    text = "".join(page.text)
    assert "<script>alert(1)</script>" in text  # shown, not run
    assert "\u202e" not in text
    assert "\x1b" not in text
    assert page.tags.count("img") == 4
    assert "unet_3d, 3D, full resolution, preset unet" in text


def test_hostile_names_cannot_leave_a_comment(phantoms, cache):
    made = plan(phantoms, cache=cache)
    text = render_yaml(
        "first\x85line\u2028evil: 1", {"a": Explained(1, "why\u2028b: 2"), "c": {"d": Explained([1], EVIL)}}
    )
    assert yaml.safe_load(text) == {"a": 1, "c": {"d": [1]}}
    heading = _heading(made.fingerprint.replace(dataset="x\nname: evil\x00"), made.proposal, None)
    assert yaml.safe_load(render_yaml(heading, {"a": Explained(1)})) == {"a": 1}


def test_saving_into_an_impossible_folder_is_told(phantoms, cache, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        plan(phantoms, cache=cache).save(tmp_path / "file" / "plan.yaml")


def test_planning_with_given_memory_imports_no_torch(phantoms, cache):
    code = (
        f"import sys, medseg; medseg.plan({str(phantoms)!r}, medseg.PlanOptions(memory='8GiB'), cache={str(cache)!r}); "
        "print([name for name in ('torch', 'matplotlib', 'monai') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_long_page_of_many_labels_can_be_drawn(make_fingerprint, tmp_path):
    crowded = make_fingerprint(labels=60, count=3)
    path = tmp_path / "page.html"
    write_page(crowded, path)
    assert path.stat().st_size > 30_000
    assert len(re.findall(r"<tr>", path.read_text())) > 59


def test_the_proposal_is_told_in_few_lines(phantoms, cache):
    made = plan(phantoms, cache=cache)
    lines = str(made).splitlines()
    assert len(lines) == 4
    assert "6 cases, 6 classes" in lines[0]


def test_a_cascade_is_planned_where_a_low_resolution_sees_more(
    make_fingerprint, monkeypatch, tmp_path, capsys
):
    """Large volumes get two experiments more, with the order of their commands; both are read back whole."""
    from medseg.planning import plan_dataset as module
    from medseg.planning.cascade_plans import stage_file

    large = make_fingerprint((260, 260, 260), count=60, labels=2)
    monkeypatch.setattr(module, "read_dataset", lambda *_: None)
    monkeypatch.setattr(module, "fingerprint", lambda *_, **__: large)
    made = plan(tmp_path / "data", PlanOptions(memory="8GiB"))
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
    assert main(["plan", str(tmp_path / "data"), "-o", str(tmp_path / "big.yaml"), "--memory", "8GiB"]) == 0
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
        assert plan(tmp_path / "data", PlanOptions(memory="8GiB", **others)).cascade == ()


def test_no_cascade_where_a_patch_sees_enough(phantoms, cache, tmp_path):
    made = plan(phantoms, cache=cache)
    assert made.cascade == ()
    assert "cascade" not in made.text


def test_a_short_training_mirrors_left_and_right_alone(make_fingerprint):
    budget = MemoryBudget(8, "a test", on_gpu=False)

    def axes(measured, dims=None, steps=None):
        made = propose(measured, PRESETS["unet"], budget, dims)
        tree = plain_values(
            explained_experiment(measured, made, DatasetSource(Path("data"), "auto"), steps, None)
        )
        return tree["augment"].get("mirror_axes"), tree["predict"]["mirror_axes"]

    volumes, pictures = make_fingerprint((50, 60, 40)), make_fingerprint((50, 60, 1))
    assert axes(volumes) == ([0], [0])
    assert axes(volumes, "2d") == ([0], [0])
    assert axes(volumes, steps=LONG_STEPS) == (None, [0, 1, 2])
    assert axes(pictures, "2d") == (None, [0, 1])


def test_regions_with_sides_are_not_mirrored(make_fingerprint):
    measured = make_fingerprint((50, 60, 40), regions=("organs", "left_kidney", "right_kidney"))
    made = propose(measured, PRESETS["unet"], MemoryBudget(8, "a test", on_gpu=False))
    for steps, axes in ((None, []), (LONG_STEPS, [1, 2])):
        tree = plain_values(
            explained_experiment(measured, made, DatasetSource(Path("data"), "auto"), steps, None)
        )
        assert tree["predict"]["mirror_axes"] == axes
