"""Sources of trained weights: model folders and runs, checkpoints of nnU-Net v2, models of model zoos, and files of tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from medseg.errors import ConfigError, ModelError, no_such_path
from medseg.fine_tuning.match_weights import TrainedWeights
from medseg.fine_tuning.network_ends import Ends, end_axes, input_names
from medseg.fine_tuning.published_source import read_published_source
from medseg.fine_tuning.settings import AdaptSettings
from medseg.fine_tuning.tensor_files import read_tensors_for
from medseg.interop.nnunet.checkpoint_files import is_checkpoint
from medseg.interop.nnunet.model import read_single_checkpoint
from medseg.labels.label_table import Labels
from medseg.model_folder.folder import (
    FIRST_STAGE,
    find_model_folder,
    load_member,
    member_path,
    network_builder,
)
from medseg.model_folder.settings import SavedModel
from medseg.models.base import Model
from medseg.models.catalog import MODELS
from medseg.models.pretrained.sources import file_in_repository
from medseg.models.pretrained.zoos.published_model import PublishedModel
from medseg.models.pretrained.zoos.read_published import PICKLE, find_published_file, is_published
from medseg.storage.manifest import check_manifest

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pkl", ".tar")
_NNUNET = "plans.json"


@dataclass(frozen=True)
class WeightSource:
    """Trained weights with the settings of their model, as far as they are known.

    Attributes:
        path: The model folder, the file, or the name of published weights.
        file: The file with the weights.
        weights: The weights.
        saved: Settings of the model; None for a file that holds tensors only.
        labels: Its labels; None for a file that holds tensors only.
        published: The published model that they are of; None for others.
    """

    path: Path
    file: Path
    weights: TrainedWeights
    saved: SavedModel | None = None
    labels: Labels | None = None
    published: PublishedModel | None = None

    def sha256(self) -> str:
        """Return the hash of the file with the weights."""
        with self.file.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def is_trained_model(path: Path) -> bool:
    """Return whether a path is a model folder, a run, or the file of weights in a model folder.

    Args:
        path: Path that may not exist.

    Returns:
        True also for other folders, which `read_model_folder` refuses with the reason.
    """
    return path.is_dir() or (path.suffix == ".safetensors" and (path.parent / "labels.tsv").is_file())


def read_source(path: Path, model: Model, adapt: AdaptSettings) -> WeightSource:
    """Read the weights that ``model.weights`` names.

    Args:
        path: Model folder, run, file in a model folder, checkpoint of nnU-Net v2, model of a model zoo, or file of tensors.
        model: Network that the weights are for, by which the names in a file of tensors are recognised.
        adapt: Member of an ensemble, entry of a file, and names of channels and outputs of a file of tensors.

    Returns:
        The weights.

    Raises:
        ConfigError: A setting in `adapt` does not fit the source.
        ModelError: The source is missing, damaged, holds code, or is no model.
    """
    if path.is_dir() and is_published(path):
        return _published_source(path, model, adapt)
    if is_trained_model(path):
        return read_model_folder(path, adapt.member)
    if not path.is_file():
        raise ModelError(
            f"model.weights: {no_such_path(path, expected='a model folder, a run or a file of weights')}"
        )
    if path.suffix not in _SUFFIXES:
        raise ModelError(
            f"model.weights: {path}: found a file ending in {path.suffix or 'nothing'}, expected {', '.join(_SUFFIXES)}. Give a "
            "model folder, a run or a file of weights."
        )
    if adapt.member not in (None, 0):
        raise ConfigError(
            f"model.adapt.member: found {adapt.member}, expected null, because {path} holds a single network. Remove it."
        )
    if path.suffix not in (".safetensors", PICKLE) and is_checkpoint(path):
        return _nnunet_source(path)
    if is_published(path):
        return _published_source(path, model, adapt)
    tensors = read_tensors_for(model, path, adapt.key)
    ends = Ends(adapt.source_channels, adapt.source_labels)
    dims = max((tensor.dim() - 2 for tensor in tensors.values()), default=0)
    return WeightSource(path, path, TrainedWeights(path, tensors, ends, max(dims, 2)))


def find_source(source: str | Path) -> Path:
    """Return the file or folder of a source that may be given by its published name, such as ``hub:ORGANISATION/NAME``.

    Args:
        source: Path, or name of published weights in the local cache.

    Returns:
        The absolute path, which may not exist.

    Raises:
        ModelError: Published weights of that name are not in the local cache.
    """
    path = Path(source)
    published = None if path.exists() else find_published_file(str(source), download=False)
    return path.resolve() if published is None else published


def read_described_source(path: Path) -> WeightSource:
    """Read trained weights with the settings of their model; of an ensemble the first network.

    Args:
        path: Model folder, run, file in a model folder, checkpoint of nnU-Net v2, or model of a model zoo.

    Returns:
        The weights with settings and labels.

    Raises:
        ModelError: The source is missing, damaged, holds code, or holds tensors only.
    """
    if path.is_dir() and is_published(path):
        return _published_source(path)
    if is_trained_model(path):
        return read_model_folder(path, None if path.is_file() else 0)
    if not path.is_file():
        raise ModelError(no_such_path(path, expected="a model folder, a run or a checkpoint of nnU-Net v2"))
    if path.suffix == ".pth" and is_checkpoint(path):
        return _nnunet_source(path)
    if is_published(path):
        return _published_source(path)
    raise ModelError(
        f"{path}: found no settings of a model, expected a model folder, a run or a checkpoint of nnU-Net v2. Import the weights "
        "with medseg import, and give the model folder."
    )


def read_model_folder(path: Path, member: int | None = None) -> WeightSource:
    """Read one network of a model folder.

    Args:
        path: Model folder, run, or file of weights in a model folder.
        member: Number of the network of an ensemble; None for a folder with a single network.

    Returns:
        The weights with settings and labels.

    Raises:
        ConfigError: The folder is an ensemble and `member` is None, or there is no such member.
        ModelError: The folder is no model folder, or is damaged.
    """
    file = None if path.is_dir() else path.name
    if path.is_dir() and (path / _NNUNET).is_file():
        raise ModelError(
            f"model.weights: {path}: found a trained folder of nnU-Net, expected a model folder. Give one of its "
            "fold_*/checkpoint_final.pth, or import the folder with medseg import nnunet."
        )
    folder = find_model_folder(path if file is None else path.parent)
    check_manifest(folder)
    saved, labels = SavedModel.load(folder / "config.yaml"), Labels.from_tsv(folder / "labels.tsv")
    if saved.parts:
        raise ConfigError(
            f"model.weights: {folder}: found a model of {len(saved.parts)} parts, expected one network to start from. Give a "
            "fold_*/checkpoint_final.pth of the part's own folder."
        )
    chosen = _chosen_member(folder, saved, member, file)
    model = load_member(folder, saved, labels, chosen)
    inside = folder / FIRST_STAGE / "labels.tsv"
    stage = Labels.from_tsv(inside).foreground if saved.num_first_stage_labels else ()
    ends = _ends(saved, labels, tuple(label.name for label in stage))
    weights = _trained(folder, model.state_dict(), saved, labels, ends)
    return WeightSource(folder, member_path(folder, saved, chosen), weights, saved, labels)


def _chosen_member(folder: Path, saved: SavedModel, member: int | None, file: str | None) -> int:
    if file is not None:
        files = [member_path(folder, saved, number).name for number in range(saved.members)]
        if file not in files:
            raise ModelError(
                f"model.weights: {folder / file}: not the weights of {folder}, expected one of {', '.join(files)}. Give "
                "the folder."
            )
        return files.index(file)
    if member is None and saved.members > 1:
        raise ConfigError(
            f"model.weights: {folder}: found an ensemble of {saved.members} networks, expected one to start from. Choose it with "
            f"model.adapt.member (0 to {saved.members - 1})."
        )
    if member is not None and member >= saved.members:
        raise ConfigError(
            f"model.adapt.member: found {member}, expected 0 to {saved.members - 1}, as {folder} has {saved.members}. "
            "Correct it."
        )
    return member or 0


def _published_source(
    path: Path, model: Model | None = None, adapt: AdaptSettings | None = None
) -> WeightSource:
    """Return a model of a model zoo, refused if it is not the given model."""
    source = read_published_source(path, adapt)
    if model is not None:
        source.published.require_options(model, path)
    file = file_in_repository(path)
    return WeightSource(path, file, source.weights, source.saved, source.labels, source.published)


def _nnunet_source(path: Path) -> WeightSource:
    saved, labels, tensors = read_single_checkpoint(path)
    return WeightSource(
        path, path, _trained(path, tensors, saved, labels, _ends(saved, labels, ())), saved, labels
    )


def _ends(saved: SavedModel, labels: Labels, first_stage: tuple[str, ...]) -> Ends:
    inputs = input_names(saved.channel_names, saved.slices, first_stage)
    return Ends(inputs, labels.output_names, bool(labels.regions))


def _trained(
    where: Path, tensors: Mapping[str, Tensor], saved: SavedModel, labels: Labels, ends: Ends
) -> TrainedWeights:
    axes = end_axes(network_builder(saved), saved.in_channels, labels.num_outputs)
    heads = frozenset(name for name, found in axes.items() if any(end.kind == "output" for end in found))
    dims = MODELS.get(saved.model["name"]).dims
    return TrainedWeights(where, tensors, ends, dims, saved.slice_axis, heads)
