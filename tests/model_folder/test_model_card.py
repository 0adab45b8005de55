"""Model cards: what they say, what people write in them, and the figures of evaluations."""

from __future__ import annotations

import json

import pytest

from medseg.cli.main import main
from medseg.errors import ModelError
from medseg.labels.label_table import Labels
from medseg.model_folder.folder import load_model, save_model
from medseg.model_folder.model_card import add_figures, keep_edits, merged_card, model_card
from medseg.yaml_dialect import parse_yaml


@pytest.fixture
def folder(make_predictor, tmp_path):
    predictor = make_predictor()
    save_model(tmp_path / "model", predictor.model, predictor.saved, predictor.labels)
    return tmp_path / "model"


def summary(dice=0.91, cases=12):
    def metrics(value):
        return {"dice": value, "hd95_mm": 4.5, "surface_dice": 0.8}

    labels = {"liver": dice, "spleen": None}
    return {
        "cases": cases,
        "tolerance_mm": 1.0,
        "labels": {
            name: {
                key: {"mean": mean, "n": 0 if value is None else cases}
                for key, mean in metrics(value).items()
            }
            for name, value in labels.items()
        },
        "label_intervals": {name: {"dice": {"low": 0.88, "high": 0.93}} for name in labels},
        "foreground_mean": metrics(dice),
        "foreground_mean_interval": {"dice": {"low": 0.88, "high": 0.93}},
    }


def front(card):
    return parse_yaml(card.split("---\n")[1])


def test_the_front_matter_is_what_hubs_read(make_predictor):
    predictor = make_predictor()
    saved = predictor.saved

    def values(**card):
        changed = saved.replace(card=saved.card.replace(**card).to_plain())
        return front(model_card(changed, predictor.labels, 10))

    assert values() == {
        "library_name": "medseg",
        "pipeline_tag": "image-segmentation",
        "tags": ["medseg", "medical-imaging", "3d", "unet_3d"],
    }
    assert values(licence="CC-BY-SA 4.0")["license"] == "cc-by-sa-4.0"
    own = values(licence="Clinic licence, v2", licence_url="https://clinic.example/licence")
    assert own["license"] == "other"
    assert own["license_name"] == "clinic-licence-v2"
    assert own["license_link"] == "https://clinic.example/licence"
    started = {"source": "hub:timm/deit_tiny@abc"}
    card = model_card(saved.replace(started_from=started), predictor.labels, 10)
    assert front(card)["base_model"] == "timm/deit_tiny"


def test_text_of_unknown_origin_cannot_break_the_card(make_predictor):
    predictor = make_predictor()
    labels = Labels.from_names({"a|b": 1, "<script>alert(1)</script>": 2})
    saved = predictor.saved.replace(trained_on={"dataset": "one\n---\n# title"})
    card = model_card(saved, labels, 10)
    assert "| 1 | a\\|b |" in card
    assert "<script>" not in card
    assert card.count("\n---\n") == 1


def test_edits_do_not_damage_the_model_and_figures_do_not_undo_them(folder):
    path = folder / "README.md"
    path.write_text(
        path.read_text().replace("# toy", "# Liver of the clinic").replace("## Limits", "## Where it fails")
    )
    front_matter = "---\nlanguage: de\n"
    path.write_text(path.read_text().replace("---\n", front_matter, 1))
    load_model(folder)
    assert add_figures(folder, summary(), "held-out cases")
    card = path.read_text()
    assert "# Liver of the clinic" in card
    assert "## Where it fails" in card
    assert "| liver | 12 | 0.910 | 0.880 to 0.930 | 4.50 | 0.800 |" in card
    assert "spleen | 0 |" not in card
    assert "12 held-out cases; surface Dice at 1 mm" in card
    assert front(card)["language"] == "de"
    (index,) = front(card)["model-index"]
    assert index["name"] == "Liver of the clinic"
    assert index["results"][0]["metrics"][1] == {"type": "dice", "name": "Dice, liver", "value": 0.91}
    add_figures(folder, summary(0.5), "held-out cases")
    assert "0.910" not in path.read_text()
    load_model(folder)


def test_a_block_that_was_removed_stays_removed(folder):
    path = folder / "README.md"
    card = path.read_text()
    start, end = card.index("<!-- medseg: figures -->"), card.index("<!-- end of figures -->")
    path.write_text(card[:start] + card[end + len("<!-- end of figures -->") :])
    add_figures(folder, summary(), "cases")
    assert "| liver | 12 |" not in path.read_text()
    path.write_text("My own card without anything.\n")
    add_figures(folder, summary(), "cases")
    assert path.read_text() == "My own card without anything.\n"
    path.unlink()
    assert not add_figures(folder, summary(), "cases")
    load_model(folder)


def test_a_longer_training_keeps_edits_and_drops_old_figures(folder, make_predictor, tmp_path):
    path = folder / "README.md"
    path.write_text(path.read_text().replace("# toy", "# Mine"))
    add_figures(folder, summary(), "cases")
    predictor = make_predictor()
    longer = predictor.saved.replace(trained_on={"steps": 2000})
    save_model(folder, predictor.model, longer, predictor.labels, finish=lambda new: keep_edits(folder, new))
    card = path.read_text()
    assert "# Mine" in card
    assert "| steps | 2000 |" in card
    assert "| liver | 12 |" not in card
    assert "model-index" not in front(card)
    assert merged_card(card, card) == card


def test_the_command_prints_updates_and_renews_the_card(folder, tmp_path, capsys):
    path = folder / "README.md"
    assert main(["card", str(folder)]) == 0
    assert capsys.readouterr().out == path.read_text()
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    (evaluation / "summary.json").write_text(json.dumps(summary()))
    path.write_text(path.read_text().replace("# toy", "# Mine"))
    assert (
        main(["card", str(folder), "--evaluation", str(evaluation), "--cases", "cases of a second hospital"])
        == 0
    )
    assert "12 cases of a second hospital" in capsys.readouterr().out
    assert main(["card", str(folder), "--new"]) == 0
    shown = capsys.readouterr().out
    assert "# toy" in shown
    assert "| liver | 12 | 0.910 |" in shown
    assert main(["card", str(folder), "--evaluation", str(tmp_path)]) == 1
    assert "summary.json: no such file" in capsys.readouterr().err
    (evaluation / "summary.json").write_text("{}")
    assert main(["card", str(folder), "--evaluation", str(evaluation)]) == 1
    assert "found no figures of label maps" in capsys.readouterr().err


def test_other_files_are_still_part_of_the_manifest(folder):
    (folder / "notes.md").write_text("x")
    with pytest.raises(ModelError, match=r"unexpected files: notes\.md"):
        load_model(folder)
