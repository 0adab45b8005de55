"""Model folders: the thing to share. No code, no pickle; every file's hash is checked before it is read.

``config.yaml  labels.tsv  model.safetensors  README.md  manifest.json``; an ensemble has ``member_0.safetensors`` and
so on instead of ``model.safetensors``. That of a later stage of a cascade has the model folder of the earlier stage in
``previous/``, which its manifest covers, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from medseg.data.settings import Spacing
from medseg.errors import ModelError
from medseg.labels.label_table import Labels, Region
from medseg.model_folder.settings import SavedModel
from medseg.models import build_model
from medseg.models.volumetric.logit_ensemble import LogitEnsemble
from medseg.storage.atomic import copy_folder, replacing_folder, write_text
from medseg.storage.manifest import check_manifest, write_manifest

if TYPE_CHECKING:
    from medseg.models.base import Model


Shapes = Mapping[str, tuple[int, ...]]


FIRST_STAGE = "first_stage"
"""Where a model folder, and a run, has the model folder of the earlier stage."""


def save_model(
    folder: str | Path, model: Model, saved: SavedModel, labels: Labels, first_stage: Path | None = None
) -> None:
    """Write a model folder in one step; an existing one is replaced only once the new one is whole.

    Args:
        folder: to write. model: one, or an `Ensemble`. saved: settings. labels: classes.
        first_stage: model folder of the earlier stage, where ``saved.num_first_stage_labels`` says that there is one.
    """
    members = list(model.members) if isinstance(model, LogitEnsemble) else [model]
    parameters = sum(p.numel() for p in model.parameters())
    saved = saved if saved.members == len(members) else saved.replace(members=len(members))
    weights = (member.state_dict() for member in members)
    write_model_folder(folder, weights, saved, labels, parameters, first_stage)


def write_model_folder(
    folder: str | Path,
    weights: Iterable[Mapping[str, Tensor]],
    saved: SavedModel,
    labels: Labels,
    parameters: int,
    first_stage: Path | None = None,
) -> None:
    """Write a model folder in one step from state dicts, of which one at a time is asked for.

    Args:
        folder: as in `save_model`.
        weights: one state dict for each of ``saved.members``.
        saved: settings. labels: classes, and the regions if these are what is predicted.
        parameters: of all members together, for the README.
        first_stage: as in `save_model`.

    Raises:
        ModelError: the earlier stage is missing, damaged, or has other labels than the model was made for.
    """
    if first_stage is not None:
        check_manifest(first_stage)
    _check_first_stage(saved, first_stage)
    with replacing_folder(folder) as temporary:
        for name, state in zip(_weight_files(saved), weights, strict=True):
            _save_weights(state, temporary / name)
        write_text(temporary / "config.yaml", saved.to_yaml())
        write_text(temporary / "labels.tsv", labels.to_tsv())
        write_text(temporary / "README.md", _card(saved, labels, parameters))
        if first_stage is not None:
            copy_folder(first_stage, temporary / FIRST_STAGE)
        write_manifest(temporary)


def _check_first_stage(saved: SavedModel, first_stage: Path | None) -> None:
    """Raise `ModelError` unless `first_stage` is that of a stage with as many labels as `saved` counts on."""
    if (first_stage is None) != (saved.num_first_stage_labels == 0):
        found, expected = ("none", "one") if first_stage is None else (str(first_stage), "none")
        raise ModelError(
            f"{saved.name}: earlier stage: found {found}, expected {expected} (num_first_stage_labels {saved.num_first_stage_labels}). "
            "Give the model folder of the stage that this one was trained behind."
        )
    if first_stage is not None:
        labels = Labels.from_tsv(first_stage / "labels.tsv")
        if len(labels.foreground) != saved.num_first_stage_labels:
            raise ModelError(
                f"{first_stage / 'labels.tsv'}: found {len(labels.foreground)} labels besides background, expected "
                f"{saved.num_first_stage_labels} (num_first_stage_labels). Take the stage that this one was trained behind."
            )


def _save_weights(state: Mapping[str, Tensor], path: Path) -> None:
    save_file({key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}, path)


def _weight_files(saved: SavedModel) -> list[str]:
    several = [f"member_{index}.safetensors" for index in range(saved.members)]
    return several if saved.members > 1 else ["model.safetensors"]


def load_model(folder: str | Path) -> tuple[Model, SavedModel, Labels]:
    """Read a model folder, or the one of a run.

    Weights are copied into the model tensor by tensor, so that they are never held twice.

    Returns:
        The model, an `Ensemble` where the folder has several members; its settings; its labels.

    Raises:
        ModelError: not a model folder, damaged, or weights that do not fit the config.
    """
    folder = find_model_folder(folder)
    check_manifest(folder)
    saved = SavedModel.load(folder / "config.yaml")
    labels = Labels.from_tsv(folder / "labels.tsv")
    _check_first_stage(saved, first_stage_folder(folder, saved))
    # What the training started from is told by the config, and need not be there to load what came of it.
    options = {key: value for key, value in saved.model.items() if key not in ("name", "weights")}
    paths = [folder / name for name in _weight_files(saved)]
    for path in paths:
        if not path.is_file():
            raise ModelError(
                f"{path}: no such file, expected {saved.members} (members). Copy the folder again."
            )
    models = []
    for path in paths:
        model = build_model(
            saved.model["name"], in_channels=saved.in_channels, num_classes=labels.num_outputs, **options
        )
        _fill(model, path)
        models.append(model)
    return (LogitEnsemble(models) if len(models) > 1 else models[0]), saved, labels


def first_stage_folder(folder: Path, saved: SavedModel) -> Path | None:
    """The model folder of the earlier stage in that of a later one; None where there is no earlier stage."""
    return folder / FIRST_STAGE if saved.num_first_stage_labels else None


def find_model_folder(folder: str | Path) -> Path:
    """The folder itself if it is a model folder, or the one of a run.

    Raises:
        ModelError: neither.
    """
    folder = Path(folder)
    if not folder.exists():
        raise ModelError(f"{folder}: no such folder, expected a model folder. Check the path.")
    if (folder / "splits.json").is_file():
        folder = _model_of_run(folder)
    if not (folder / "config.yaml").is_file():
        inside = folder / "model" / "config.yaml"
        hint = f" Did you mean {inside.parent}?" if inside.is_file() else ""
        raise ModelError(f"{folder}: not a model folder: found no config.yaml.{hint} Give RUN/model.")
    return folder


def _fill(model: Model, path: Path) -> None:
    """Copy the weights of a file into `model`, one tensor at a time."""
    own = model.state_dict()
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            _check_shapes(own, {name: tuple(file.get_slice(name).get_shape()) for name in names}, path)
            for name in names:
                own[name].copy_(file.get_tensor(name))
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not readable ({error}). Copy it again.") from None


def _model_of_run(run: Path) -> Path:
    if (run / "model").is_dir():
        return run / "model"
    other = f", or take {run / 'best'}" if (run / "best").is_dir() else ""
    raise ModelError(
        f"{run}: found a run that is not finished, expected its model. Go on with: medseg train --resume {run}{other}."
    )


def load_weights(model: Model, weights: dict[str, Tensor], where: Path) -> None:
    """Copy `weights` into `model`; the first three layers that differ are named in the error."""
    _check_shapes(model.state_dict(), {name: tuple(tensor.shape) for name, tensor in weights.items()}, where)
    model.load_state_dict(weights)


def _check_shapes(tensors: Mapping[str, Tensor], other: Shapes, where: Path) -> None:
    own = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if own != other:
        names = sorted(n for n in own.keys() | other.keys() if own.get(n) != other.get(n))
        shown = "; ".join(f"{n}: found {other.get(n)}, expected {own.get(n)}" for n in names[:3])
        raise ModelError(
            f"{where}: {len(names)} layers do not fit the model: {shown}. Use the weights' own config."
        )


def _card(saved: SavedModel, labels: Labels, parameters: int) -> str:
    window = "x".join(map(str, saved.window))
    several = f"{saved.members} times " if saved.members > 1 else ""
    lines = [
        f"# {saved.name}",
        "",
        f"Segmentation model written by medseg {saved.medseg}. Research use; not a medical device.",
        "",
        "| | |",
        "|---|---|",
        f"| model | {several}{saved.model['name']}, {parameters:,} parameters |",
        f"| input channels | {', '.join(saved.channel_names)} |",
        f"| labels | {', '.join(labels.names)} |",
        *([f"| regions | {'; '.join(map(_region_text, labels.regions))} |"] if labels.regions else []),
        f"| orientation | {saved.preprocessing.orientation or 'the order of the file’s axes'} |",
        f"| spacing | {_spacing_text(saved.preprocessing.spacing)} |",
        f"| window | {window} voxels |",
    ]
    if saved.num_first_stage_labels:
        lines.append(f"| earlier stage | in `{FIRST_STAGE}/`, {saved.num_first_stage_labels} channels more |")
    lines += [f"| {key.replace('_', ' ')} | {value} |" for key, value in saved.trained_on.items()]
    lines += [
        "",
        "```python",
        "import medseg",
        'labels = medseg.load("THIS FOLDER")("image.nii.gz")',
        "```",
        "",
    ]
    return "\n".join(lines)


def _region_text(region: Region) -> str:
    return f"{region.name} ({', '.join(map(str, region.values))}) written as {region.output_value}"


def _spacing_text(spacing: Spacing | None) -> str:
    if spacing is None:
        return "the file’s own"
    return " x ".join("the file’s own" if value is None else f"{value:g}" for value in spacing) + " mm"
