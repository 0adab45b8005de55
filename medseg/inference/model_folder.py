"""Model folders: the thing to share. No code, no pickle; every file's hash is checked before it is read.

``config.yaml  labels.tsv  model.safetensors  README.md  manifest.json``
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from medseg.errors import ModelError
from medseg.inference.settings import SavedModel
from medseg.io.atomic import replacing_folder, write_text
from medseg.io.manifest import check_manifest, write_manifest
from medseg.labels import Labels
from medseg.models import build_model

if TYPE_CHECKING:
    from medseg.models.base import Model


def save_model(folder: str | Path, model: Model, saved: SavedModel, labels: Labels) -> None:
    """Write a model folder in one step; an existing one is replaced only once the new one is whole."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with replacing_folder(folder) as temporary:
        save_file(weights, temporary / "model.safetensors")
        write_text(temporary / "config.yaml", saved.to_yaml())
        write_text(temporary / "labels.tsv", labels.to_tsv())
        write_text(temporary / "README.md", _card(saved, labels, sum(p.numel() for p in model.parameters())))
        write_manifest(temporary)


def load_model(folder: str | Path) -> tuple[Model, SavedModel, Labels]:
    """Read a model folder, or the one of a run.

    Raises:
        ModelError: not a model folder, damaged, or weights that do not fit the config.
    """
    folder = Path(folder)
    if (folder / "splits.json").is_file():
        folder = _model_of_run(folder)
    if not (folder / "config.yaml").is_file():
        inside = folder / "model" / "config.yaml"
        hint = f" Did you mean {inside.parent}?" if inside.is_file() else ""
        raise ModelError(f"{folder}: not a model folder: found no config.yaml.{hint} Give RUN/model.")
    check_manifest(folder)
    saved = SavedModel.load(folder / "config.yaml")
    labels = Labels.from_tsv(folder / "labels.tsv")
    # What the training started from is told by the config, and need not be there to load what came of it.
    options = {key: value for key, value in saved.model.items() if key not in ("name", "weights")}
    model = build_model(
        saved.model["name"], in_channels=len(saved.channel_names), num_classes=len(labels), **options
    )
    try:
        weights = load_file(folder / "model.safetensors")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{folder / 'model.safetensors'}: not readable ({error}). Copy it again.") from None
    load_weights(model, weights, folder / "model.safetensors")
    return model, saved, labels


def _model_of_run(run: Path) -> Path:
    if (run / "model").is_dir():
        return run / "model"
    other = f", or take {run / 'best'}" if (run / "best").is_dir() else ""
    raise ModelError(
        f"{run}: found a run that is not finished, expected its model. Go on with: medseg train --resume {run}{other}."
    )


def load_weights(model: Model, weights: dict[str, Tensor], where: Path) -> None:
    """Copy `weights` into `model`; the first three layers that differ are named in the error."""
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    other = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if own != other:
        names = sorted(n for n in own.keys() | other.keys() if own.get(n) != other.get(n))
        shown = "; ".join(f"{n}: found {other.get(n)}, expected {own.get(n)}" for n in names[:3])
        raise ModelError(
            f"{where}: {len(names)} layers do not fit the model: {shown}. Use the weights' own config."
        )
    model.load_state_dict(weights)


def _card(saved: SavedModel, labels: Labels, parameters: int) -> str:
    window = "x".join(map(str, saved.window))
    spacing = saved.preprocessing.spacing
    lines = [
        f"# {saved.name}",
        "",
        f"Segmentation model written by medseg {saved.medseg}. Research use; not a medical device.",
        "",
        "| | |",
        "|---|---|",
        f"| model | {saved.model['name']}, {parameters:,} parameters |",
        f"| input channels | {', '.join(saved.channel_names)} |",
        f"| labels | {', '.join(labels.names)} |",
        f"| orientation | {saved.preprocessing.orientation} |",
        f"| spacing | {'the file’s own' if spacing is None else ' x '.join(f'{s:g}' for s in spacing) + ' mm'} |",
        f"| window | {window} voxels |",
    ]
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
