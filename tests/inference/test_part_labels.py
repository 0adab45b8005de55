"""The combination of the outputs of several networks, against loops over voxels."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medseg.errors import ConfigError, DataError, ModelError
from medseg.inference.part_labels import PartsArgmax, model_rule
from medseg.inference.sliding.labelling import FiniteCheck, NotFiniteError
from medseg.labels.label_table import Labels
from medseg.model_folder.settings import SavedModel

LABELS = Labels.from_names({"background": 0, "liver": 1, "spleen": 2, "rib": 7})


def settings(parts: list[tuple[str, ...]], **more: Any) -> SavedModel:
    """Settings of a folder of parts; each finds the named labels."""
    channel = {"method": "ct", "mean": 0, "std": 1}
    plain = {
        "medseg": "0",
        "name": "toy",
        "model": {"name": "unet_3d", "channels": [4, 8]},
        "channel_names": ["CT"],
        "preprocessing": {"channels": [channel]},
        "window": [8, 8, 8],
        "members": len(parts),
        "parts": [
            {"name": str(i), "labels": names, "normalization": {**channel, "mean": i // 2}}
            for i, names in enumerate(parts)
        ],
    }
    return SavedModel.parse({**plain, **more})


@pytest.fixture
def rule() -> PartsArgmax:
    """Rib and liver in one network, the spleen in a later one."""
    found = model_rule(settings([("rib", "liver"), ("spleen",)]), LABELS)
    assert isinstance(found, PartsArgmax)
    return found


def test_what_a_later_network_finds_is_written_over_the_label_map(rule: PartsArgmax) -> None:
    logits = torch.tensor(
        [
            [0.0, 2.0, 1.0, 3.0, 1.0],  # rib; the second network finds background
            [0.0, 2.0, 3.0, 1.0, 1.5],  # liver, and spleen over it
            [
                5.0,
                2.0,
                1.0,
                9.0,
                0.0,
            ],  # background, although its logit is smaller than that of another network
            [0.0, 2.0, 2.0, 1.0, 1.0],  # the first of equal ones
        ]
    )
    assert rule.values[rule.classes(logits)].tolist() == [7, 2, 0, 7]
    assert rule.present(logits).int().argmax(-1).tolist() == rule.classes(logits).tolist()


def test_probabilities_are_those_of_independent_networks(rule: PartsArgmax) -> None:
    logits = torch.randn(50, 5, generator=torch.Generator().manual_seed(0))
    first, second = torch.softmax(logits[:, :3], -1), torch.softmax(logits[:, 3:], -1)
    expected = torch.stack(
        [
            first[:, 0] * second[:, 0],
            first[:, 2] * second[:, 0],
            second[:, 1],
            first[:, 1] * second[:, 0],
        ],
        -1,
    )
    found = rule.probabilities(logits)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(-1), torch.ones(50))
    assert rule.entropy(found).shape == (50, 1)


def test_equal_classes_are_kept_by_mixtures(rule: PartsArgmax) -> None:
    """Export labels voxels before it interpolates; see `medseg.inference.sliding.to_file_grid`."""
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(4000, 5, generator=generator) for _ in range(2))
    same = rule.classes(a) == rule.classes(b)
    assert same.sum() > 500
    for weight in (0.1, 0.5, 0.9):
        mixed = (1 - weight) * a + weight * b
        assert torch.equal(rule.classes(mixed)[same], rule.classes(a)[same])


def test_voxels_without_windows_are_background_of_all_networks(rule: PartsArgmax) -> None:
    logits = torch.tensor(rule.background_logits)
    assert len(logits) == 5
    assert rule.classes(logits[None]).item() == 0
    torch.testing.assert_close(
        rule.probabilities(logits[None])[0], torch.tensor(rule.background_probabilities)
    )


@pytest.mark.parametrize("place", range(5))
def test_logits_of_every_network_are_checked(rule: PartsArgmax, place: int) -> None:
    logits = torch.zeros(1, 5)
    logits[0, place] = torch.nan
    with pytest.raises(NotFiniteError):
        rule.classes(logits, FiniteCheck())


def test_parts_share_channels_of_equal_normalisations() -> None:
    saved = settings([("rib",), ("liver",), ("spleen",)])
    assert saved.part_channels == (0, 0, 1)
    assert [one.mean for one in saved.seen_preprocessing.channels] == [0, 1]
    assert [saved.outputs_of(LABELS, member) for member in range(3)] == [2, 2, 2]


@pytest.mark.parametrize(
    ("parts", "more", "message"),
    [
        ([("rib",), ("rib", "liver")], {}, "same label in several parts"),
        ([("rib",), ("liver",)], {"members": 3}, "2 for 3 networks"),
        ([("rib",), ("liver",)], {"channel_names": ["T1", "T2"]}, "2 channels"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    parts: list[tuple[str, ...]], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(parts, **more)


def test_a_rule_needs_the_labels_of_all_parts_and_no_temperatures() -> None:
    with pytest.raises(DataError, match="kidney"):
        model_rule(settings([("rib",), ("kidney",)]), LABELS)
    with pytest.raises(ModelError, match="temperatures"):
        model_rule(settings([("rib",), ("liver", "spleen")]), LABELS, (1.5,))
