"""Licences of models, of their data, and of the weights that they go back to."""

from __future__ import annotations

import pytest

import medseg
from medseg.errors import DataWarning, LicenceNotice, collected_warnings, format_warning
from medseg.model_folder.folder import save_model
from medseg.model_folder.licences import is_non_commercial, licence_in, licences_of
from medseg.model_folder.started_from import StartedFrom, WeightOrigin


@pytest.mark.parametrize(
    ("name", "excludes"),
    [
        ("cc-by-nc-4.0", True),
        ("CC BY-NC-SA 3.0", True),
        ("CC BY NC", True),
        ("TotalSegmentator non-commercial licence", True),
        ("Noncommercial", True),
        ("for research use only", True),
        ("research-only", True),
        ("cc-by-sa-4.0", False),
        ("NCSA", False),
        ("Apache-2.0", False),
        ("MIT", False),
        ("inc. commercial use", False),
    ],
)
def test_names_that_exclude_commercial_use(name, excludes):
    assert is_non_commercial(name) == excludes


def chained(saved):
    """A model under a free licence that goes back to weights under another one."""
    first = WeightOrigin(source="organs.pth", dataset="atlas", licence="cc-by-nc-4.0")
    started = StartedFrom(source="liver", licence="apache-2.0", earlier=(first,))
    card = saved.card.replace(licence="cc-by-4.0", dataset_licence="cc-by-sa-4.0")
    return saved.replace(card=card.to_plain(), started_from=started.to_plain())


def test_the_licences_of_the_whole_chain_are_known(make_predictor):
    found = licences_of(chained(make_predictor().saved))
    assert [(one.of, one.name) for one in found] == [
        ("the model", "cc-by-4.0"),
        ("its training data", "cc-by-sa-4.0"),
        ("weights that it started from: liver", "apache-2.0"),
        ("weights that it started from: organs.pth", "cc-by-nc-4.0"),
    ]


def test_prediction_states_once_that_the_weights_exclude_commercial_use(make_predictor, tmp_path):
    """A notice about the model's own licence alone would be silent here."""
    predictor = make_predictor()
    save_model(tmp_path / "model", predictor.model, chained(predictor.saved), predictor.labels)
    with pytest.warns(LicenceNotice) as stated:
        medseg.load(tmp_path / "model", device="cpu")
    medseg.load(tmp_path / "model", device="cpu")  # warnings are errors in tests
    (notice,) = stated
    assert "found cc-by-nc-4.0 (weights that it started from: organs.pth), which excludes commercial" in str(
        notice.message
    )
    assert (
        "**A licence in this table excludes commercial use.**" in (tmp_path / "model/README.md").read_text()
    )


def test_free_licences_are_not_stated(make_predictor, tmp_path):
    predictor = make_predictor()
    card = predictor.saved.card.replace(licence="cc-by-4.0").to_plain()
    save_model(tmp_path / "model", predictor.model, predictor.saved.replace(card=card), predictor.labels)
    with collected_warnings() as messages:
        medseg.load(tmp_path / "model", device="cpu")
    assert messages == []


def test_notices_are_no_warnings_on_the_command_line():
    assert format_warning("m: licence.", LicenceNotice, "x.py", 1) == "notice: m: licence.\n"
    assert format_warning("m: damaged.", DataWarning, "x.py", 1) == "warning: m: damaged.\n"


def test_the_licence_in_the_description_of_a_dataset(tmp_path):
    path = tmp_path / "dataset.json"
    assert licence_in(path) is None
    for content, expected in (
        ('{"licence": "CC-BY-SA 4.0"}', "CC-BY-SA 4.0"),
        ('{"license": "CC0\\n"}', "CC0"),
        ('{"licence": 4}', None),
        ('{"licence": ""}', None),
        ("{}", None),
    ):
        path.write_text(content)
        assert licence_in(path) == expected
