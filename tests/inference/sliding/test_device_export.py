"""Export on a device, tried on the CPU: the labels and probabilities of the export on the host."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.errors import ModelError
from medseg.inference.sliding import device_export, labelling
from medseg.inference.sliding.device_export import export_on_device
from medseg.inference.sliding.labelling import Argmax, FiniteCheck, RegionThreshold
from medseg.inference.sliding.to_file_grid import LinearWeights, export_labels
from medseg.volumes.resampling import AxisMap
from tests.helpers.sliding import blocks_of, smooth_logits


@st.composite
def cases(draw):
    source = tuple(draw(st.integers(1, 9)) for _ in range(3))
    same = draw(st.booleans())
    target = source if same else tuple(draw(st.integers(1, 14)) for _ in range(3))
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    return source, target, draw(st.integers(2, 6)), sizes, draw(st.sampled_from((1, 40, 1 << 24)))


@settings(max_examples=60, deadline=None)
@given(case=cases(), seed=st.integers(0, 100), regions=st.booleans(), wanted=st.booleans())
def test_labels_and_probabilities_are_those_of_the_host(case, seed, regions, wanted):
    source, target, outputs, sizes, at_once = case
    logits = smooth_logits(source, outputs, seed)
    axes = [
        LinearWeights.from_axis_map(AxisMap.resize(n_in, n_out))
        for n_in, n_out in zip(source, target, strict=True)
    ]
    values = np.arange(outputs + regions, dtype=np.uint16) * 9000
    rule = RegionThreshold(values) if regions else Argmax(values)
    found, expected = np.full((2, *target), 7, np.uint16)
    results = []
    for export, out in ((export_on_device, found), (export_labels, expected)):
        written: dict[int, np.ndarray] = {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(device_export, "VALUES_AT_ONCE", at_once)
            export(blocks_of(logits, sizes), axes, rule, out, written.__setitem__ if wanted else None)
        results.append(written)
    np.testing.assert_array_equal(found, expected)
    for number, values in results[1].items():
        np.testing.assert_allclose(results[0][number], values, rtol=1e-6)


def test_labels_fill_a_view_and_no_voxel_outside():
    logits = smooth_logits((3, 4, 5), 3)
    whole = np.full((5, 4, 3), 9, np.uint8, order="F")
    axes = [LinearWeights.from_axis_map(AxisMap.resize(n, n)) for n in (3, 4, 5)]
    export_on_device(
        [logits[:, :, :4]], [*axes[:2], axes[2].part(slice(0, 4))[0]], Argmax(np.arange(3)), whole.T[..., :4]
    )
    np.testing.assert_array_equal(whole.T[..., :4], logits.argmax(-1).numpy()[..., :4])
    assert (whole.T[..., 4] == 9).all()


@pytest.mark.parametrize("rule", [Argmax(np.arange(3)), RegionThreshold(np.arange(4))])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_are_found_at_the_end(monkeypatch, rule, bad):
    class OnDevice(FiniteCheck):
        """Treats values as those of a device: `finish` reads what `add` noticed."""

        def add(self, values):
            failed = torch.isfinite(values).all().logical_not_()
            self._failed = failed if self._failed is None else self._failed.logical_or_(failed)

    monkeypatch.setattr(device_export, "FiniteCheck", OnDevice)
    logits = smooth_logits((6, 4, 5), 3)
    logits[2, 1, 1, 0] = bad
    axes = [LinearWeights.from_axis_map(AxisMap.resize(n, n + 1)) for n in (6, 4, 5)]
    written = []
    with pytest.raises(labelling.NotFiniteError, match="found NaN or infinity"):
        export_on_device(
            logits.split(1),
            axes,
            rule,
            np.empty((7, 5, 6), np.uint8),
            lambda number, _: written.append(number),
        )
    assert written == list(range(7))
    assert issubclass(labelling.NotFiniteError, ModelError)
