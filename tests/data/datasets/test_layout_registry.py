"""Layouts of others: registered by name, recognised after medseg's own, and usable in an experiment."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medseg.data.datasets import layout_registry
from medseg.data.datasets.layout_registry import BUILT_IN_LAYOUTS, LAYOUTS, Layout, ordered_layouts
from medseg.data.datasets.layouts import is_dataset, read_dataset
from medseg.data.settings import DataSettings
from medseg.errors import ConfigError

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "add_a_layout.md"


@pytest.fixture
def documented_layouts(monkeypatch):
    """The layouts of the guide, registered for one test."""
    LAYOUTS.names()
    monkeypatch.setattr(LAYOUTS, "_items", dict(LAYOUTS._items))
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)
    for block in blocks[:2]:
        exec(block, {})


def test_every_layout_of_medseg_is_in_the_order(monkeypatch):
    assert set(BUILT_IN_LAYOUTS) <= set(LAYOUTS.names())
    assert [layout.name for layout in ordered_layouts()][: len(BUILT_IN_LAYOUTS)] == list(BUILT_IN_LAYOUTS)


@pytest.mark.usefixtures("documented_layouts")
def test_the_layouts_of_the_guide_are_recognised(tmp_path):
    cells, studies = tmp_path / "cells", tmp_path / "livers"
    for folder in ("photos", "annotations"):
        (cells / folder).mkdir(parents=True)
        Image.fromarray(np.zeros((4, 5), np.uint8)).save(cells / folder / "001.png")
    (case,) = read_dataset(cells).cases
    assert case.label == cells / "annotations" / "001.png"
    assert DataSettings(layout="annotations").layout == "annotations"
    for name in ("p1_a", "p1_b"):
        (studies / "studies" / name).mkdir(parents=True)
        for file in ("ct.nii.gz", "liver.nii.gz"):
            (studies / "studies" / name / file).touch()
    dataset = read_dataset(studies)
    assert dataset.ids == ("p1_a", "p1_b")
    assert {case.subject for case in dataset.cases} == {"p1"}
    assert dataset.labels is not None
    assert dataset.labels.names == ("background", "liver")


def test_without_them_the_folder_is_no_dataset(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "annotations").mkdir()
    assert not is_dataset(tmp_path)


@pytest.mark.usefixtures("documented_layouts")
def test_a_layout_of_medseg_is_preferred(tmp_path):
    for folder in ("photos", "annotations", "images", "labels"):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / folder / "001.png")
    assert read_dataset(tmp_path).cases[0].label == tmp_path / "labels" / "001.png"


def test_an_unknown_layout_is_refused_in_an_experiment():
    with pytest.raises(
        ConfigError, match=r"layout: found 'nnunett', expected one of auto, .*Did you mean 'nnunet'"
    ):
        DataSettings.parse({"layout": "nnunett"})


def test_a_name_is_registered_once():
    layout = Layout("msd", lambda path: None, lambda path: False)  # type: ignore[arg-type, return-value]
    LAYOUTS.names()
    with pytest.raises(ConfigError, match="'msd' is registered twice"):
        layout_registry.register_layout("msd", recognise=layout.recognise)(layout.read)
