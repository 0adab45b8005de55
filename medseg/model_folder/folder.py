"""Model folders: what is shared of a trained model, without code and without pickle.

A model folder holds ``config.yaml``, ``labels.tsv``, ``model.safetensors``, ``README.md`` (the model card), ``reference.json`` (what the
model computed for a generated image, see `medseg.inference.reference_output`) and ``manifest.json``, whose
hashes are checked before any file is read; the model card is not part of it. An ensemble has ``member_0.safetensors`` and so on instead of
``model.safetensors``, and so has a model of parts. The second stage of a cascade holds the model folder of the first stage in ``first_stage/``, which
its manifest covers, too. ``medseg quantize`` adds the network with 8-bit integers in ``int8/``, which has a manifest of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from medseg.errors import ModelError, no_such_path
from medseg.labels.label_table import Labels
from medseg.model_folder.model_card import CARD, model_card, with_figures_of
from medseg.model_folder.settings import SavedModel
from medseg.models import build_model
from medseg.models.volumetric.logit_ensemble import LogitEnsemble
from medseg.models.volumetric.part_networks import PartNetworks
from medseg.runtime.formatting import pluralise
from medseg.storage.atomic import copy_folder, replacing_folder, write_text
from medseg.storage.manifest import check_manifest, write_manifest

if TYPE_CHECKING:
    from medseg.models.base import Model


Shapes = Mapping[str, tuple[int, ...]]


FIRST_STAGE = "first_stage"
"""Name of the folder in a model folder, or in a run, that holds the model folder of the first stage of a cascade."""

INT8 = "int8"
"""Name of the folder in a model folder that holds the network with 8-bit integers and what was measured of it."""


def save_model(
    folder: str | Path,
    model: Model,
    saved: SavedModel,
    labels: Labels,
    first_stage: Path | None = None,
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Write a model folder; an existing one is replaced only once the new one is complete.

    Args:
        folder: Folder to write.
        model: The network, or a `LogitEnsemble`.
        saved: Settings of the model.
        labels: Labels of the model's classes.
        first_stage: Model folder of the first stage, if ``saved.num_first_stage_labels`` is not 0.
        finish: As in `write_model_folder`.

    Raises:
        ModelError: The first stage is missing, damaged, or does not fit.

    Examples:
        >>> import tempfile
        >>> from medseg.labels.label_table import Labels
        >>> labels = Labels.from_names({"background": 0, "liver": 1})
        >>> saved = SavedModel.parse({
        ...     "medseg": "0.1", "name": "liver", "model": {"name": "unet_3d", "channels": [4, 8]},
        ...     "channel_names": ["CT"], "preprocessing": {"channels": [{"method": "zscore"}]}, "window": [8, 8, 8],
        ... })
        >>> model = build_model("unet_3d", in_channels=1, num_classes=2, channels=[4, 8])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_model(f"{folder}/model", model, saved, labels)
        ...     loaded, settings, _ = load_model(f"{folder}/model")
        >>> settings.name, settings.window, loaded.num_classes
        ('liver', (8, 8, 8), 2)
    """
    members = list(model.members) if isinstance(model, (LogitEnsemble, PartNetworks)) else [model]
    parameters = sum(p.numel() for p in model.parameters())
    saved = saved if saved.members == len(members) else saved.replace(members=len(members))
    weights = (member.state_dict() for member in members)
    write_model_folder(folder, weights, saved, labels, parameters, first_stage, finish)


def write_model_folder(
    folder: str | Path,
    weights: Iterable[Mapping[str, Tensor]],
    saved: SavedModel,
    labels: Labels,
    parameters: int,
    first_stage: Path | None = None,
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Write a model folder from state dicts.

    The state dicts are taken from `weights` one at a time, so that they need not fit into memory together.

    Args:
        folder: Folder to write, as in `save_model`.
        weights: State dicts of the members, as many as the number ``saved.members``.
        saved: Settings of the model.
        labels: Labels that the model learned, with its regions if it predicts regions.
        parameters: Number of parameters of all members together, for the model card.
        first_stage: Model folder of the first stage, as in `save_model`.
        finish: Called with the complete new folder before it replaces an existing one, to add files such as the reference
            output; None for nothing.

    Raises:
        ModelError: The first stage is missing, damaged, or does not fit.
    """
    stage_labels = 0
    if first_stage is not None:
        check_manifest(first_stage)
        stage_labels = len(Labels.from_tsv(first_stage / "labels.tsv").foreground)
    saved.check_first_stage(stage_labels, first_stage or folder)
    with replacing_folder(folder) as temporary:
        for name, state in zip(_weight_files(saved), weights, strict=True):
            _save_weights(state, temporary / name)
        write_text(temporary / "config.yaml", saved.to_yaml())
        write_text(temporary / "labels.tsv", labels.to_tsv())
        write_text(temporary / CARD, model_card(saved, labels, parameters))
        if first_stage is not None:
            copy_folder(first_stage, temporary / FIRST_STAGE)
        write_manifest(temporary)
        if finish is not None:
            finish(temporary)
            write_manifest(temporary)


def _save_weights(state: Mapping[str, Tensor], path: Path) -> None:
    save_file({key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}, path)


def _weight_files(saved: SavedModel) -> list[str]:
    several = [f"member_{index}.safetensors" for index in range(saved.members)]
    return several if saved.members > 1 else ["model.safetensors"]


def load_model(folder: str | Path) -> tuple[Model, SavedModel, Labels]:
    """Read a model folder.

    Weights are copied into the model tensor by tensor, so that they are never in memory twice.

    Args:
        folder: The model folder, or the run that it belongs to.

    Returns:
        The model, which is a `LogitEnsemble` or, for parts, a `PartNetworks` if the folder has several members; its
        settings; its labels.

    Raises:
        ModelError: The folder is not a model folder, is damaged, or was written by a newer medseg, or the weights do not
            fit the settings.
    """
    folder = find_model_folder(folder)
    check_manifest(folder)
    saved = SavedModel.load(folder / "config.yaml")
    labels = Labels.from_tsv(folder / "labels.tsv")
    models = [load_member(folder, saved, labels, member) for member in range(saved.members)]
    network = _joined(models, saved)
    network.int8_folder = folder / INT8 if (folder / INT8).is_dir() else None
    return network, saved, labels


def _joined(models: list[Model], saved: SavedModel) -> Model:
    """Return the networks of a folder as one model."""
    if saved.parts:
        return PartNetworks(models, saved.part_channels)
    return LogitEnsemble(models) if len(models) > 1 else models[0]


def load_member(folder: Path, saved: SavedModel, labels: Labels, member: int = 0) -> Model:
    """Read one network of a model folder whose manifest was checked.

    Args:
        folder: The model folder.
        saved: Its settings.
        labels: Its labels.
        member: Number of the network, from 0.

    Returns:
        The network.

    Raises:
        ModelError: The file of its weights is missing, or they do not fit the settings.
    """
    path = member_path(folder, saved, member)
    if not path.is_file():
        raise ModelError(
            f"{path}: no such file, expected the weights of {pluralise(saved.members, 'model')}. Copy the folder again."
        )
    model = network_builder(saved)(saved.in_channels, saved.outputs_of(labels, member))
    _fill(model, path)
    return model


def member_path(folder: Path, saved: SavedModel, member: int = 0) -> Path:
    """Return the file with the weights of one network of a model folder."""
    return folder / _weight_files(saved)[member]


def network_builder(saved: SavedModel) -> Callable[[int, int], Model]:
    """Return a function that builds the network of a model folder for numbers of channels and outputs."""
    # The published weights that training started from are not needed any more.
    options = {key: value for key, value in saved.model.items() if key not in ("name", "weights")}

    def build(in_channels: int, num_classes: int) -> Model:
        return build_model(saved.model["name"], in_channels=in_channels, num_classes=num_classes, **options)

    return build


def first_stage_folder(folder: Path, saved: SavedModel) -> Path | None:
    """Return the model folder of the first stage of a cascade.

    Args:
        folder: Model folder of the second stage, or of a model that crops images around labels of a first stage.
        saved: Its settings.

    Returns:
        The folder, or None if the model is not the second stage of a cascade and does not crop images.
    """
    return folder / FIRST_STAGE if saved.has_first_stage else None


def find_model_folder(folder: str | Path) -> Path:
    """Find the model folder that a path names.

    Args:
        folder: A model folder or a run.

    Returns:
        The folder itself if it is a model folder, else the model folder of the run.

    Raises:
        ModelError: It is neither, or the run is not finished.
    """
    folder = Path(folder)
    if not folder.exists():
        raise ModelError(no_such_path(folder, "folder", expected="a model folder"))
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
        f"{run}: found a run that is not finished, expected its model. Continue with: medseg train --resume {run}{other}."
    )


def load_weights(model: Model, weights: dict[str, Tensor], where: Path) -> None:
    """Copy weights into a model.

    Args:
        model: The network to fill.
        weights: Its state dict.
        where: File of the weights, for the message.

    Raises:
        ModelError: Layers differ; the message names the first three.
    """
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


def write_new_card(folder: Path) -> None:
    """Write the card of a model folder anew; only the figures of the present card are kept.

    Args:
        folder: The model folder.

    Raises:
        ModelError: The folder is damaged.
    """
    model, saved, labels = load_model(folder)
    card, path = model_card(saved, labels, sum(p.numel() for p in model.parameters())), folder / CARD
    if path.is_file():
        card = with_figures_of(path.read_text(encoding="utf-8"), card)
    write_text(path, card)
