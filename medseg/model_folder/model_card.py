"""The model card: the ``README.md`` of a model folder, for readers and for hubs.

It begins with the YAML front matter that model hubs read. Facts about the model are in blocks between comments
``<!-- medseg: NAME -->`` and ``<!-- end of NAME -->``, which are rewritten when the facts change; the rest may be edited. The
card is not part of the manifest, so that the folder remains valid.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg.data.settings import Spacing
from medseg.labels.label_table import Labels, Region
from medseg.model_folder.licences import is_non_commercial, licences_of
from medseg.model_folder.settings import SavedModel
from medseg.models.catalog import MODELS
from medseg.runtime.formatting import single_line
from medseg.storage.atomic import write_text
from medseg.yaml_dialect import parse_yaml, to_yaml

CARD = "README.md"
"""Name of the model card in a model folder."""

FIGURES = "figures"
"""Name of the block with the figures of an evaluation."""

NO_FIGURES = "The model has not been evaluated yet. `medseg evaluate RUN` writes its figures here."

_FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_BLOCK = re.compile(r"<!-- medseg: (?P<name>[\w ]+) -->\n(?P<text>.*?)<!-- end of (?P=name) -->", re.DOTALL)
_HUB = re.compile(r"(?:hub:|hf://)([\w.-]+/[\w.-]+)")
_ON_HUBS = frozenset(
    [
        "apache-2.0",
        "mit",
        "bsd-2-clause",
        "bsd-3-clause",
        "cc0-1.0",
        "cc-by-2.0",
        "cc-by-2.5",
        "cc-by-3.0",
        "cc-by-4.0",
        "cc-by-sa-3.0",
        "cc-by-sa-4.0",
        "cc-by-nc-2.0",
        "cc-by-nc-3.0",
        "cc-by-nc-4.0",
        "cc-by-nd-4.0",
        "cc-by-nc-nd-3.0",
        "cc-by-nc-nd-4.0",
        "cc-by-nc-sa-2.0",
        "cc-by-nc-sa-3.0",
        "cc-by-nc-sa-4.0",
        "gpl-2.0",
        "gpl-3.0",
        "lgpl-2.1",
        "lgpl-3.0",
        "agpl-3.0",
        "mpl-2.0",
        "epl-2.0",
        "eupl-1.1",
        "isc",
        "unlicense",
        "wtfpl",
        "zlib",
    ]
)  # the identifiers of licences that model hubs know; others have a name of their own
_MOST_LISTED = 8  # labels in the summary
_AS_FIGURES = (
    "cross-validated_Dice",
    "Dice_by_label",
)  # facts of a cross-validation that are in its figures, too
_INTENDED = "Research on images like those of the training data, with a check of every result by an expert. Not a medical device."
_LIMITS = (
    "Images unlike those of the training data, such as those of other scanners, protocols, diseases or ages, may be segmented "
    "wrongly without any sign of it."
)
_RANGES = " `medseg predict` warns of images outside of the ranges in the section on training."


def model_card(saved: SavedModel, labels: Labels, parameters: int) -> str:
    """Return the card of a model that was not evaluated yet.

    Args:
        saved: Settings of the model.
        labels: Its labels.
        parameters: Number of parameters of all members together.

    Returns:
        Markdown with front matter.
    """
    card, title = saved.card, _text(saved.name)
    blocks = {
        "data": _table(_data_rows(saved)),
        "labels": _labels(labels),
        FIGURES: NO_FIGURES,
        "model": _table(_model_rows(saved, labels, parameters)),
        "licences": _licences(saved),
    }
    data, names, figures, network, licences = (f"{_block(*item)}\n" for item in blocks.items())
    return "\n".join(
        [
            _front_matter(saved),
            f"# {title}\n",
            f"{_summary(saved, labels)} Written by medseg {_text(saved.medseg)}. Research use; not a medical device.\n",
            '```python\nimport medseg\n\nlabels = medseg.load("THIS FOLDER")("image.nii.gz")\n```\n',
            f"## Intended use\n\n{card.intended_use or _INTENDED}\n",
            f"## Limits\n\n{card.limits or _LIMITS + (_RANGES if saved.training_data else '')}\n",
            f"## Figures\n\n{figures}",
            f"## Labels\n\n{names}",
            f"## Training\n\n{data}",
            f"## Model\n\n{network}",
            f"## Licences\n\n{licences}",
            f"## How to cite\n\n{_citation(saved)}\n",
        ]
    )


def merged_card(old: str, new: str) -> str:
    """Return an older card of the same model with the facts of a new one.

    Args:
        old: Card that its authors may have edited.
        new: Card as `model_card` returns it.

    Returns:
        The old card with the blocks and the missing keys of the front matter of the new one. A block that the authors
        removed stays removed.
    """
    blocks = {found["name"]: found["text"] for found in _BLOCK.finditer(new)}
    merged = _BLOCK.sub(lambda found: _block(found["name"], blocks.get(found["name"], found["text"])), old)
    values = {
        key: value for key, value in _front_values(merged).items() if key != "model-index"
    }  # of older weights
    return _with_front_matter(
        merged, {**values, **{k: v for k, v in _front_values(new).items() if k not in values}}
    )


def card_with_figures(card: str, summary: Mapping[str, Any], source: str) -> str:
    """Return a card with the figures of an evaluation, in its block and for hubs in the front matter.

    Args:
        card: The card.
        summary: Contents of the ``summary.json`` of an evaluation of label maps.
        source: What was evaluated, such as "held-out cases of the run".

    Returns:
        The card; unchanged but for the front matter if its authors removed the block.
    """
    text = _figures(summary, source)
    changed = _BLOCK.sub(lambda found: _block(FIGURES, text) if found["name"] == FIGURES else found[0], card)
    front = _front_values(changed)
    if not front:
        return changed
    index = _model_index(_title(changed), summary, source)
    return _with_front_matter(changed, {**front, "model-index": index})


def _summary(saved: SavedModel, labels: Labels) -> str:
    """Return in one paragraph what the model does, and whether it may be used for everything."""
    names = [one.name for one in labels.evaluated]
    if len(names) > _MOST_LISTED:
        names = [*names[:_MOST_LISTED], f"{len(names) - _MOST_LISTED} more labels"]
    images = list(dict.fromkeys(saved.channel_names))
    free = not any(is_non_commercial(one.name) for one in licences_of(saved))
    terms = "" if free else " **Not for commercial use; see the licences below.**"
    return f"This model segments {_listed(names)} in {_listed(images)} images.{terms}"


def _listed(names: Sequence[str]) -> str:
    *first, last = map(_text, names)
    return f"{', '.join(first)} and {last}" if first else last


def _title(card: str) -> str:
    found = re.search(r"^# (.+)$", card, re.MULTILINE)
    return found[1] if found else "model"


def _block(name: str, text: str) -> str:
    return f"<!-- medseg: {name} -->\n{text.rstrip()}\n<!-- end of {name} -->"


def _front_matter(saved: SavedModel) -> str:
    """Return the front matter with the keys that model hubs read."""
    dims = MODELS.get(saved.model["name"]).dims
    values: dict[str, Any] = {
        **_hub_licence(saved),
        "library_name": "medseg",
        "pipeline_tag": "image-segmentation",
        "tags": ["medseg", "medical-imaging", f"{dims}d", str(saved.model["name"])],
    }
    started = saved.started_from
    found = None if started is None else _HUB.match(started.source)
    if found:
        values["base_model"] = found[1]
    return f"---\n{to_yaml(values).strip()}\n---\n"


def _hub_licence(saved: SavedModel) -> dict[str, str]:
    name = saved.card.licence
    if name is None:
        return {}
    known = re.sub(r"\s+", "-", name.strip().lower())
    if known in _ON_HUBS:
        return {"license": known}
    other = {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", known).strip("-") or "other"}
    return other if saved.card.licence_url is None else {**other, "license_link": saved.card.licence_url}


def _front_values(card: str) -> dict[str, Any]:
    """Return the front matter of a card; empty if it has none that can be read."""
    found = _FRONT.match(card)
    try:
        values = parse_yaml(found[1]) if found else {}
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _with_front_matter(card: str, values: Mapping[str, Any]) -> str:
    """Return a card with another front matter, which stays as it is if the values are the same or it cannot be read."""
    own = _front_values(card)
    if not own or own == values:
        return card
    return _FRONT.sub(lambda _: f"---\n{to_yaml(dict(values)).strip()}\n---\n", card, count=1)


def _table(rows: Sequence[tuple[str, str]]) -> str:
    return "\n".join(
        ["| property | value |", "|---|---|", *(f"| {_cell(key)} | {_cell(value)} |" for key, value in rows)]
    )


def _text(value: object) -> str:
    """Return text of unknown origin on one line, without HTML."""
    return single_line(str(value)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _cell(value: object) -> str:
    return _text(value).replace("|", "\\|")


def _data_rows(saved: SavedModel) -> list[tuple[str, str]]:
    rows = [("input channels", ", ".join(saved.channel_names))]
    rows += [
        (key.replace("_", " "), str(value))
        for key, value in saved.trained_on.items()
        if key not in _AS_FIGURES
    ]
    data = saved.training_data
    if data is None:
        return rows
    if data.spacing is not None:
        rows.append(("voxel size of the images", f"{_ranges(data.spacing)} mm"))
    if data.extent is not None:
        rows.append(("field of view of the images", f"{_ranges(data.extent)} mm"))
    if len(data.channels) == len(saved.channel_names):
        for name, channel in zip(saved.channel_names, data.channels, strict=True):
            rows.append((f"intensities of {name}", f"{channel.low[0]:.4g} to {channel.high[1]:.4g}"))
    return rows


def _ranges(ranges: Sequence[tuple[float, float]]) -> str:
    shown = (
        f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g}–{high:.3g}" for low, high in ranges
    )
    return " × ".join(shown)


def _labels(labels: Labels) -> str:
    lines = ["| value | label |", "|---|---|"]
    lines += [f"| {label.value} | {_cell(label.name)} |" for label in labels]
    if labels.regions:
        shown = "; ".join(map(_region_text, labels.regions))
        lines += ["", f"The model predicts regions: {_text(shown)}."]
    return "\n".join(lines)


def _region_text(region: Region) -> str:
    return f"{region.name} ({', '.join(map(str, region.values))}) written as {region.output_value}"


def _model_rows(saved: SavedModel, labels: Labels, parameters: int) -> list[tuple[str, str]]:
    several = f"{saved.members} × " if saved.members > 1 else ""
    rows = [
        ("model", f"{several}{saved.model['name']}, {parameters:,} parameters"),
        ("orientation", saved.preprocessing.orientation or "as in the file"),
        ("spacing", _spacing_text(saved.preprocessing.spacing)),
        ("window", f"{'x'.join(map(str, saved.window))} voxels"),
    ]
    if saved.parts:
        rows.append(("parts", "; ".join(f"{one.name}: {len(one.labels)} labels" for one in saved.parts)))
    if saved.absent_channels == "zeros":
        rows.append(("absent channels", "predicted with zeros"))
    if saved.num_first_stage_labels:
        rows.append(("first stage", f"in `first_stage/`, {saved.num_first_stage_labels} additional channels"))
    if saved.crop_around is not None:
        around = ", ".join(saved.crop_around.labels)
        rows.append(("first stage", f"in `first_stage/`; images are cropped around {around}"))
    return rows


def _spacing_text(spacing: Spacing | None) -> str:
    if spacing is None:
        return "the file’s own"
    return " x ".join("the file’s own" if value is None else f"{value:g}" for value in spacing) + " mm"


def _licences(saved: SavedModel) -> str:
    """Return what is known of the licences of the model, its data and the weights that it goes back to."""
    card = saved.card
    url = f" ({_text(card.licence_url)})" if card.licence_url else ""
    rows = [("this model", f"{card.licence or 'not stated'}{url}")]
    if card.dataset_licence:
        rows.append(("training data", card.dataset_licence))
    for origin in () if saved.started_from is None else saved.started_from.origins:
        rows.append((f"started from {origin.in_words}", origin.licence or "not stated"))
    lines = ["| part | licence |", "|---|---|", *(f"| {_cell(of)} | {_cell(name)} |" for of, name in rows)]
    if any(is_non_commercial(one.name) for one in licences_of(saved)):
        lines += ["", "**A licence in this table excludes commercial use.**"]
    return "\n".join(lines)


def _citation(saved: SavedModel) -> str:
    card = saved.card
    if card.citation is not None:
        bibtex = card.citation.lstrip().startswith("@")
        return f"```bibtex\n{card.citation.strip()}\n```" if bibtex else card.citation.strip()
    authors = f"{', '.join(map(_text, card.authors))}. " if card.authors else ""
    paper = MODELS.get(saved.model["name"]).reference
    return f"{authors}{_text(saved.name)}: a segmentation model trained with medseg. Network: {_text(paper)}."


def _figures(summary: Mapping[str, Any], source: str) -> str:
    labels, intervals = summary["labels"], summary["label_intervals"]
    lines = ["| label | cases | Dice | 95 % interval | HD95 mm | surface Dice |", "|---|---|---|---|---|---|"]
    shown = {name: found for name, found in labels.items() if found["dice"]["n"]}
    for name, found in shown.items():
        means = {metric: found[metric]["mean"] for metric in ("dice", "hd95_mm", "surface_dice")}
        lines.append(_figure_row(name, str(found["dice"]["n"]), means, intervals[name]["dice"]))
    if len(shown) > 1:
        interval = summary["foreground_mean_interval"]["dice"]
        lines.append(_figure_row("foreground mean", "", summary["foreground_mean"], interval))
    tolerance = f"; surface Dice at {summary['tolerance_mm']:g} mm" if "tolerance_mm" in summary else ""
    note = f"{summary['cases']} {source}{tolerance}. Intervals are of the mean, by bootstrap over subjects."
    return "\n".join([*lines, "", _text(note)])


def _figure_row(name: str, cases: str, means: Mapping[str, Any], dice: Mapping[str, Any]) -> str:
    interval = "–" if dice["low"] is None else f"{dice['low']:.3f} to {dice['high']:.3f}"
    cells = [_cell(name), cases, _number(means["dice"], 3), interval]
    cells += [_number(means["hd95_mm"], 2), _number(means["surface_dice"], 3)]
    return f"| {' | '.join(cells)} |"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _model_index(name: str, summary: Mapping[str, Any], source: str) -> list[dict[str, Any]]:
    """Return the figures in the form in which model hubs list results."""
    dice = {"mean over labels": summary["foreground_mean"]["dice"]}
    dice |= {label: found["dice"]["mean"] for label, found in summary["labels"].items() if found["dice"]["n"]}
    metrics = [
        {"type": "dice", "name": f"Dice, {single_line(label)}", "value": round(float(value), 4)}
        for label, value in dice.items()
        if value is not None
    ]
    result = {
        "task": {"type": "image-segmentation"},
        "dataset": {"name": source, "type": "private"},
        "metrics": metrics,
    }
    return [{"name": name, "results": [result]}]


def add_figures(folder: Path, summary: Mapping[str, Any], source: str) -> bool:
    """Write the figures of an evaluation to the card of a model folder.

    Args:
        folder: The model folder.
        summary: Contents of the ``summary.json`` of an evaluation of label maps.
        source: What was evaluated, such as "held-out cases of the run".

    Returns:
        Whether there is a card.
    """
    path = folder / CARD
    if not path.is_file():
        return False
    write_text(path, card_with_figures(path.read_text(encoding="utf-8"), summary, source))
    return True


def keep_edits(old: Path, new: Path) -> None:
    """Take over what the authors wrote in the card of a model folder that is replaced by a newer one of the same training.

    Args:
        old: The model folder that is replaced; it need not exist.
        new: The new model folder, whose card is changed.
    """
    path = old / CARD
    if path.is_file():
        card = merged_card(path.read_text(encoding="utf-8"), (new / CARD).read_text(encoding="utf-8"))
        write_text(new / CARD, card)


def with_figures_of(old: str, new: str) -> str:
    """Return a new card with the figures of an older card of the same weights.

    Args:
        old: The older card.
        new: Card as `model_card` returns it.

    Returns:
        The new card.
    """
    text = next((found["text"] for found in _BLOCK.finditer(old) if found["name"] == FIGURES), None)
    if text is None:
        return new
    card = _BLOCK.sub(lambda found: _block(FIGURES, text) if found["name"] == FIGURES else found[0], new)
    index = _front_values(old).get("model-index")
    return card if index is None else _with_front_matter(card, {**_front_values(card), "model-index": index})
