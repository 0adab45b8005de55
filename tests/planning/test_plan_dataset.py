"""From a dataset to an experiment that trains."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

import medseg
from medseg.errors import ConfigError, DataError
from medseg.experiment.experiment import Experiment
from medseg.models.catalog import MODELS
from medseg.planning.plan_dataset import plan
from medseg.planning.plan_options import PlanOptions
from medseg.planning.training_length import LONG_STEPS, SHORT_BUDGET
from medseg.runtime.memory import GIB

pytestmark = pytest.mark.slow


def test_plan_is_an_experiment_and_its_text_reads_back(phantoms, cache):
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


def test_short_training_on_a_processor_has_half_the_widths(phantoms, cache):
    """A GPU, or somebody who asks for as many steps as nnU-Net's recipe needs, gets those of the rules."""
    short, long = (
        plan(phantoms, PlanOptions(preset="resenc-m", steps=steps), cache=cache) for steps in (None, 100_000)
    )
    on_gpu = plan(phantoms, PlanOptions(preset="resenc-m", device="cuda"), cache=cache)
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
def test_every_preset_builds_a_network_for_its_patch(preset, dims, phantoms, cache):
    made = plan(phantoms, PlanOptions(preset=preset, dims=dims), cache=cache)
    experiment = made.experiment
    assert experiment.model.name == f"{'unet' if preset == 'unet' else 'resunet'}_{dims}d"
    with torch.device("meta"):
        network = experiment.model.build(1, 6)
        logits = network(torch.zeros(1, 1, *experiment.patch.size))
    assert network.divisor == made.proposal.divisor
    assert logits.shape == (1, 6, *experiment.patch.size)


def test_patch_is_divisible_by_the_chosen_model(phantoms, cache):
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


def test_memory_determines_recipe_and_patch(phantoms, cache):
    gpu = plan(phantoms, PlanOptions(device="cuda"), cache=cache)
    assert gpu.experiment.train.steps == LONG_STEPS
    assert gpu.experiment.train.optimizer.name == "sgd"
    assert gpu.experiment.train.workers == "auto"
    little = plan(phantoms, PlanOptions(device="cuda", memory="5MiB"), cache=cache)
    assert np.prod(little.experiment.patch.size) < np.prod(gpu.experiment.patch.size)
    assert (
        plan(phantoms, PlanOptions(device="cuda", steps=50), cache=cache).experiment.train.optimizer.name
        == "adamw"
    )
    for wrong in (
        {"steps": 0},
        {"dims": 4},
        {"lowres": True, "dims": 2},
        {"memory": "much"},
        {"device": "tpu"},
        {"time": "20"},
        {"time": "20m", "steps": 5},
        {"preset": "unets"},
    ):
        with pytest.raises(ConfigError, match="found"):
            plan(phantoms, PlanOptions(**wrong), cache=cache)


def test_plan_handles_channels_margins_and_missing_names(write_table):
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
    made = plan(write_table(cases, grids), PlanOptions(dims=3))
    experiment = made.experiment
    assert experiment.preprocess.normalize == ("zscore_mask", "zscore_mask")
    assert experiment.data.labels == {"background": 0, "label_3": 3}
    assert experiment.data.folds == 2
    assert made.proposal.slice_axis == 1
    assert experiment.patch.size == (20, 10, 24)
    assert experiment.augment.rotate_p == Experiment().augment.rotate_p


def test_natural_images_are_planned_in_2d_and_the_plan_trains(write_table, tmp_path):
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


def test_saving_to_an_impossible_folder_raises(phantoms, cache, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        plan(phantoms, cache=cache).save(tmp_path / "file" / "plan.yaml")


def test_planning_for_a_given_gpu_does_not_import_torch(phantoms, cache):
    code = (
        f"import sys, medseg; medseg.plan({str(phantoms)!r}, medseg.PlanOptions(device='cuda', memory='8GiB'), cache={str(cache)!r}); "
        "print([name for name in ('torch', 'matplotlib', 'monai') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_text_of_a_plan_says_what_fits_into_its_time(phantoms, cache):
    made = plan(phantoms, cache=cache)
    lines = str(made).splitlines()
    assert len(lines) == 5
    assert "6 cases, 6 classes" in lines[0]
    assert "steps fit into train.max_time=40m" in lines[4]
    assert "on 2 cores of 40 GFLOP/s" in made.text.replace("\n# ", " ")
    assert len(str(plan(phantoms, PlanOptions(device="cuda"), cache=cache)).splitlines()) == 4


def test_plans_of_a_busy_and_an_idle_machine_are_the_same_file(phantoms, cache, tmp_path, monkeypatch):
    written = []
    for free, cores, load in ((4, 1, 12.0), (20, 64, 0.1)):
        memory = SimpleNamespace(total=2 * free * GIB, available=free * GIB)
        monkeypatch.setattr("psutil.virtual_memory", lambda memory=memory: memory)
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        monkeypatch.setattr("os.getloadavg", lambda load=load: (load,) * 3)
        path = tmp_path / f"{free}" / "plan.yaml"
        plan(phantoms, cache=cache).save(path)
        written.append(path.read_bytes())
    assert written[0] == written[1]


def test_a_requested_time_sizes_the_network_and_ends_the_training(phantoms, cache):
    made = plan(phantoms, PlanOptions(time="20s"), cache=cache)
    assert (made.experiment.train.steps, made.experiment.train.max_time) == (None, "20s")
    assert "fit into train.max_time=20s" in str(made)
    other = plan(phantoms, PlanOptions(model="attention_unet_2d", steps=100, device="cpu"), cache=cache)
    assert "100 steps" in (other.time or "")


def test_the_reason_for_2d_is_printed_and_stored(write_table):
    rng = np.random.default_rng(0)
    label = np.zeros((40, 36, 5), np.uint8)
    label[10:20, 12:22] = 1
    cases = {f"p{n}": (rng.normal(0, 10, (1, 40, 36, 5)).astype(np.float32), label) for n in range(3)}
    table = write_table(cases, [medseg.Grid.from_spacing((40, 36, 5), (1.0, 1.0, 8.0))] * 3)
    made = plan(table)
    assert made.experiment.model.name == "unet_2d"
    for text in (str(made), made.text.replace("\n  # ", " ")):
        assert (
            "slices are thick (8.0 times as thick as pixels are wide, more than 3) and few (median 5" in text
        )
    assert "whether --dims 3 or an ensemble of both is better" in made.text.replace("\n# ", " ")
    deep = plan(table, PlanOptions(dims=3))
    assert deep.experiment.model.name == "unet_3d"
    assert "whether --dims 2 or an ensemble of both is better" in deep.text.replace("\n# ", " ")
    flat = plan(table, PlanOptions(dims=2, device="cuda"))
    assert "ensemble" not in flat.text
