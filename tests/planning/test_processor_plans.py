"""Plans without a GPU: enough steps within their time, on whatever machine they are planned."""

from __future__ import annotations

from math import prod
from pathlib import Path

import pytest

from medseg.models.catalog import parse_options
from medseg.planning import memory_budget
from medseg.planning.explained_experiment import DatasetSource, explained_experiment, planned_time
from medseg.planning.memory_budget import MemoryBudget, choose_budget
from medseg.planning.nnunet.presets import PRESETS, PresetName
from medseg.planning.nnunet.small_datasets import deep_supervision
from medseg.planning.nnunet.topology import plan_topology
from medseg.planning.processor_plans import FEW_SLICES, NetworkCost
from medseg.planning.propose import Proposal, propose
from medseg.planning.training_length import AIMED_STEPS, TrainingLength
from medseg.runtime.memory import GIB
from medseg.train.timing.nominal_processor import BACKWARD_COST, CORES, GFLOPS_PER_CORE, LEAST_STEPS
from medseg.train.timing.step_estimate import forward_flops

UNET = PRESETS["unet"]
CARDIAC = ((224, 256, 10), (1.5, 1.5, 10.0))
LARGE = {
    "brain": ((140, 172, 140), (1.0, 1.0, 1.0)),
    "sagittal spine": ((18, 512, 512), (4.0, 0.55, 0.55)),
    "spine in CT": ((512, 512, 300), (0.7, 0.7, 1.0)),
    "large natural images": ((1000, 1000, 1), (1.0, 1.0, 1.0)),
}


def on_processor(fingerprint, kind=None, **length) -> Proposal:
    return propose(fingerprint, UNET, choose_budget(UNET, None, "cpu"), kind, TrainingLength(False, **length))


def step_gflop(p: Proposal) -> float:
    return p.forward_flops * (1 + BACKWARD_COST) * p.trained_batch_size / 1e9


@pytest.mark.parametrize("preset", ["unet", "resenc"])
@pytest.mark.parametrize(
    ("spacing", "patch"),
    [
        ((1, 1, 1), (32, 40, 32)),
        ((5, 1, 1), (6, 64, 64)),
        ((1, 1), (64, 48)),
        ((1, 1), (8, 8)),
        ((1, 1), (20, 20)),
    ],
)
def test_planned_arithmetic_is_that_of_the_network(preset: PresetName, spacing, patch):
    """Counted operation by operation, with all heads in training."""
    topology = plan_topology(spacing, patch)
    cost = NetworkCost(PRESETS[preset], TrainingLength(on_gpu=False), channels=2, outputs=5)
    dims, blocks = len(patch), PRESETS[preset].blocks(topology.num_stages)
    values = {
        "channels": list(cost.widths(topology)),
        "strides": topology.strides,
        "kernel_size": topology.kernels,
        "num_blocks": blocks,
        "deep_supervision": deep_supervision(topology),
    }
    if preset == "resenc":
        values |= {"decoder_block": "basic", "decoder_num_blocks": 1, "stem_channels": values["channels"][0]}
    options = parse_options(f"{'unet' if preset == 'unet' else 'resunet'}_{dims}d", values)
    model = options.build(in_channels=2, num_classes=5, spatial_dims=dims)
    counted = forward_flops(model, 2, topology.patch)
    heads = sum(
        2 * 5 * width * prod(size)
        for width, size in zip(cost.widths(topology)[1:], topology.sizes()[1:], strict=True)
    )
    found = cost.forward_flops(topology)
    assert counted is not None
    assert counted <= found <= counted + heads  # the prediction leaves out the heads of coarser resolutions


@pytest.mark.parametrize("name", LARGE)
def test_enough_steps_fit_into_the_planned_time(name, make_fingerprint):
    shape, spacing = LARGE[name]
    found = on_processor(make_fingerprint(shape, spacing))
    assert step_gflop(found) <= 2400 * CORES * GFLOPS_PER_CORE / AIMED_STEPS
    assert AIMED_STEPS >= 2 * LEAST_STEPS
    assert prod(found.patch) >= (64**2 if found.dims == 2 else 32**3)
    shorter = on_processor(make_fingerprint(shape, spacing), time="10m")
    assert step_gflop(shorter) <= 600 * CORES * GFLOPS_PER_CORE / AIMED_STEPS
    assert prod(shorter.patch) < prod(found.patch)
    assert shorter.limited_by_time


def test_a_time_that_is_too_short_is_answered_with_the_time_that_is_needed(make_fingerprint):
    found = on_processor(make_fingerprint((140, 172, 140)), time="30s")
    assert prod(found.patch) >= 32**3
    said = planned_time(found, None)
    assert said is not None
    assert f"too few to learn much: {LEAST_STEPS} take about" in said


def test_a_plan_says_that_time_limits_its_patch(make_fingerprint):
    for shape, limited in (((200, 200, 200), True), ((30, 30, 30), False)):
        fingerprint = make_fingerprint(shape)
        tree = explained_experiment(
            fingerprint, on_processor(fingerprint), DatasetSource(Path("data"), "auto"), None
        )
        assert ("no larger, so that about 1,000 steps fit" in tree["patch"]["size"].reason) == limited


def test_small_volumes_are_planned_by_nnunets_rules_alone(make_fingerprint):
    fingerprint = make_fingerprint((35, 50, 35))
    found, ruled = (
        on_processor(fingerprint),
        propose(fingerprint, UNET, MemoryBudget(8, "a test", on_gpu=True)),
    )
    assert (found.kind, found.kind_reason, found.limited_by_time) == ("3d", "", False)
    assert (found.patch, found.strides, found.spacing) == (ruled.patch, ruled.strides, ruled.spacing)
    assert found.trained_channels == tuple(width // 2 for width in ruled.channels)
    assert ruled.trained_channels == ruled.channels


@pytest.mark.parametrize(
    ("shape", "spacing", "kind"),
    [
        (*CARDIAC, "2d"),
        ((18, 512, 512), (4.0, 0.6, 0.6), "2d"),
        ((224, 256, FEW_SLICES), (1.5, 1.5, 10.0), "2d"),
        ((96, 96, FEW_SLICES + 1), (1.5, 1.5, 10.0), "3d"),
        ((96, 96, 10), (1.5, 1.5, 4.5), "3d"),  # three times, and not more
        ((40, 40, 40), (1.0, 1.0, 1.0), "3d"),
    ],
)
def test_few_thick_slices_are_planned_in_2d_without_a_gpu(shape, spacing, kind, make_fingerprint):
    fingerprint = make_fingerprint(shape, spacing)
    found = on_processor(fingerprint)
    assert found.kind == kind
    assert ("few" in found.kind_reason) == (kind == "2d")
    assert on_processor(fingerprint, "3d").kind == "3d"
    on_gpu = propose(fingerprint, UNET, MemoryBudget(8, "a test", on_gpu=True))
    assert (on_gpu.kind, on_gpu.kind_reason) == ("3d", "")
    assert on_processor(fingerprint, steps=100_000).kind == "3d"


def test_a_low_resolution_is_planned_where_short_steps_see_too_little(make_fingerprint, make_case):
    shape, spacing = LARGE["spine in CT"]
    cases = [
        make_case(f"case_{n}", shape=shape, spacing=spacing, label_voxels={1: 9_000_000, 2: 40_000})
        for n in range(20)
    ]
    found = on_processor(make_fingerprint(cases=cases))
    assert found.kind == "lowres"
    assert found.covered > 0.24
    assert min(found.spacing) > 2
    assert "covers only" in found.kind_reason
    full = on_processor(make_fingerprint(cases=cases), "3d")
    assert (full.kind, full.spacing) == ("3d", spacing)
    small = [case.replace(label_voxels={1: 9_000_000, 2: 400}) for case in cases]
    assert on_processor(make_fingerprint(cases=small)).kind == "3d"  # label 2 would have 6 voxels


@pytest.mark.parametrize(("free", "load"), [(4, 0.1), (20, 12.0)])
def test_the_state_of_the_machine_has_no_influence(free, load, make_fingerprint, monkeypatch):
    expected = on_processor(make_fingerprint(*CARDIAC))
    monkeypatch.setattr(memory_budget, "_gpu", lambda: ("", None))
    monkeypatch.setattr(
        "psutil.virtual_memory", lambda: pytest.fail("the memory of this machine was asked for")
    )
    monkeypatch.setattr("os.getloadavg", lambda: (load,) * 3)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(free)), raising=False)
    assert propose(make_fingerprint(*CARDIAC), UNET, choose_budget(UNET, None)) == expected
    assert choose_budget(UNET, "8GB").gib * GIB == pytest.approx(2e9)
