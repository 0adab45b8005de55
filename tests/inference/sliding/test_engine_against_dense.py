"""The engine against its definition: everything held at once, nothing left out, no slab and no band."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import medseg
from medseg.data.preprocessing.prepare import label_target, prepare
from medseg.inference.sliding.window_network import SLAB_FIRST
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume
from tests.helpers.sliding import dense_logits, interpolated

pytestmark = pytest.mark.slow


@st.composite
def cases(draw):
    shape = tuple(draw(st.integers(2, 22)) for _ in range(3))
    spacing = tuple(draw(st.sampled_from((0.8, 1.0, 1.7, 3.1))) for _ in range(3))
    target = draw(st.one_of(st.none(), st.tuples(*[st.sampled_from((0.9, 1.3, 2.2))] * 3)))
    window = tuple(draw(st.integers(6, 10)) for _ in range(3))
    mirror = tuple(axis for axis in range(3) if draw(st.booleans()))
    return (
        (shape, spacing, target, window, mirror),
        draw(st.sampled_from((0.0, 0.25, 0.5))),
        draw(st.integers(2, 6)),
        draw(st.sampled_from(("RAS", "LPI", "SAR"))),
        draw(st.integers(0, 99)),
    )


def dense_labels(predictor, image):
    """Label map of a volume by the definition, step by step on whole arrays."""
    preprocessing = predictor.saved.preprocessing
    prepared = prepare(image, preprocessing)
    upright = torch.from_numpy(prepared.image.data).movedim(-1, 1)
    logits = dense_logits(
        upright,
        predictor.network,
        predictor.network.window,
        overlap=predictor.settings.overlap,
        blend="gaussian",
        mirror_axes=predictor.engine.sliding.mirror_axes,
    ).movedim(0, -1)
    target = label_target(prepared, preprocessing, np.uint16)
    for axis in (0, 2, 1):
        logits = interpolated(logits, axis, target.maps[SLAB_FIRST[axis]])
    classes = logits.argmax(-1).numpy()
    target.view.transpose(SLAB_FIRST)[:] = predictor.labels.to_values(classes)
    return target.volume.data


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases())
def test_label_maps_equal_those_of_the_definition_voxel_for_voxel(make_predictor, case):
    (shape, spacing, target, window, mirror), overlap, classes, axcodes, seed = case
    labels = medseg.Labels.from_names({f"class {index}": index for index in range(classes)})
    predictor = make_predictor(
        labels=labels, spacing=target, window=window, overlap=overlap, mirror_axes=mirror, skip_empty=False
    )
    data = np.random.default_rng(seed).normal(size=(1, *shape)).astype(np.float32)
    image = Volume(data, Grid.from_spacing(shape, spacing)).reoriented(axcodes)
    with torch.inference_mode():
        expected = dense_labels(predictor, image)
    assert np.array_equal(predictor(image).data, expected)
