"""Export of a model folder as one ONNX file, for programs without PyTorch.

The input ``image`` (n c *window) float32 is prepared as the metadata describes; the output is ``logits`` (n k *window)
float32. The class with the largest logit is the label; in a model of regions, a region is present where its logit
exceeds 0. The batch size n is free. A network with two spatial axes takes slices. What a caller must do before and after
the network is in the file's ``metadata_props``, each value as JSON:

- ``medseg.format``: version of these keys, 1;
- ``medseg.name``, ``medseg.model``, ``medseg.version``: experiment, registry name, version that wrote the model;
- ``medseg.labels``: name, value in label maps and class index of every class, background first;
- ``medseg.regions``: only for models of regions, which have no class indices: name, index in the output, values of the
  labels it contains, and the value written for it; later regions overwrite earlier ones, on a map of 0;
- ``medseg.channel_names``: names of the image's channels, in order;
- ``medseg.orientation``, ``medseg.spacing`` (mm per axis, null keeps the file's own) and the other fields of
  `Preprocessing`; the normalisation of each channel is in ``medseg.normalization``;
- ``medseg.window`` (voxels per array axis, 1 across the slices of a 2D network), ``medseg.slice_axis``;
- ``medseg.slices``: how a 2D network sees a slice, as `SliceSettings`: neighbouring slices or CT windows as channels,
  radiological view, several planes; the caller computes these from the prepared image before running the network;
- ``medseg.divisor``: the sizes of a file with free sizes must be multiples of it;
- ``medseg.predict``: overlap, blending, mirroring, and the labels or regions whose largest component alone is kept.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from medseg.errors import ModelError, error_message
from medseg.inference.engines.onnx_graph import require_packages, require_size, to_onnx
from medseg.inference.engines.runtimes import onnxruntime_session
from medseg.model_folder.folder import FIRST_STAGE, load_model
from medseg.models.layers.memory_format import round_up
from medseg.storage.atomic import replacing

if TYPE_CHECKING:
    from medseg.labels.label_table import Labels
    from medseg.model_folder.settings import SavedModel
    from medseg.models.base import Model

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
TOLERANCE = 1e-4
"""Maximum difference from PyTorch's logits, relative to the largest logit if that exceeds 1."""
SEED = 0
FORMAT = 1
"""Version of the metadata keys; raised when a key changes its name or meaning."""


@dataclass(frozen=True)
class Parity:
    """The agreement of onnxruntime with PyTorch, over all inputs tried.

    Attributes:
        difference: Largest absolute difference of a logit.
        largest: Largest absolute logit.
        shapes: Shapes of the inputs.
    """

    difference: float
    largest: float
    shapes: tuple[tuple[int, ...], ...]

    @property
    def holds(self) -> bool:
        """Whether the difference is within `TOLERANCE`; false if a number is not finite."""
        return self.difference <= TOLERANCE * max(1.0, self.largest)


def export_onnx(folder: str | Path, output: str | Path, *, dynamic: bool = False) -> Parity:
    """Write the network of a model folder as ONNX, provided that onnxruntime computes PyTorch's logits.

    Args:
        folder: Model folder, or a finished run.
        output: File to write; an existing file is replaced only after the new one has been checked.
        dynamic: Whether the spatial sizes are free (multiples of the model's divisor) instead of fixed to the window.

    Returns:
        The measured agreement of onnxruntime with PyTorch.

    Raises:
        ModelError: Packages are missing, the model cannot be read or expressed as ONNX, or its logits differ.
        DataError: The file cannot be written.
    """
    require_packages(PACKAGES, "onnx", "export onnx")
    model, saved, labels = load_model(folder)
    if saved.num_first_stage_labels:
        fix = f"Export the first stage in {FIRST_STAGE}/ of the folder, or predict with medseg"
        raise ModelError(
            error_message(str(folder), "the second stage of a cascade cannot be exported as ONNX", fix=fix)
        )
    if saved.parts or saved.crop_around is not None or saved.preprocessing.resample_raw is not None:
        what = "a model that consists of parts, crops images or resamples raw intensities cannot be exported as ONNX"
        raise ModelError(error_message(str(folder), what, fix="Predict with medseg"))
    window = network_window(model, saved)
    require_size(model, folder)
    graph = to_onnx(model, window, metadata(model, saved, labels), dynamic=dynamic)
    with replacing(output) as temporary:
        temporary.write_bytes(graph.SerializeToString())
        parity = measure_parity(model, temporary, window, dynamic=dynamic)
        if not parity.holds:
            found = f"{parity.difference:.2g} on logits up to {parity.largest:.2g}"
            fix = "The file was not written; predict with medseg"
            what = "onnxruntime's logits differ from PyTorch's"
            raise ModelError(
                error_message(output, what, found=found, expected=f"at most {TOLERANCE:g}", fix=fix)
            )
    return parity


def network_window(model: Model, saved: SavedModel) -> tuple[int, ...]:
    """Return the window of the network, without the slice axis for a 2D network."""
    axes = [axis for axis in range(3) if model.spatial_dims == 3 or axis != saved.slice_axis]
    return tuple(saved.window[axis] for axis in axes)


def metadata(model: Model, saved: SavedModel, labels: Labels) -> dict[str, str]:
    """Return the keys of the file's metadata with their values as JSON; see the module's docstring."""
    preprocessing = saved.preprocessing.to_plain()
    values = {
        "format": FORMAT,
        "name": saved.name,
        "model": saved.model["name"],
        "version": saved.medseg,
        **_outputs(labels),
        "channel_names": saved.channel_names,
        "normalization": preprocessing.pop("channels"),
        **preprocessing,
        "window": saved.window,
        "slice_axis": saved.slice_axis,
        "slices": saved.slices.to_plain(),
        "divisor": model.divisor,
        "predict": saved.predict.to_plain(),
    }
    return {f"medseg.{key}": json.dumps(value, ensure_ascii=False) for key, value in values.items()}


def _outputs(labels: Labels) -> dict[str, Any]:
    """Return the meaning of the outputs."""
    if not labels.regions:
        rows = enumerate(labels)
        return {
            "labels": [{"class_index": index, "label_value": i.value, "name": i.name} for index, i in rows]
        }
    return {
        "labels": [{"label_value": label.value, "name": label.name} for label in labels],
        "regions": [
            {
                "output_index": index,
                "name": r.name,
                "label_values": r.values,
                "output_value": r.output_value,
            }
            for index, r in enumerate(labels.regions)
        ],
    }


def measure_parity(model: Model, file: Path, window: tuple[int, ...], *, dynamic: bool) -> Parity:
    """Compare onnxruntime's logits of `file` with the model's, on noise, with batches of one and two.

    Args:
        model: The model in evaluation mode.
        file: The ONNX file.
        window: Spatial sizes of the input.
        dynamic: Whether a size that is one divisor larger along every axis is tested too.

    Returns:
        The measured agreement.
    """
    session = onnxruntime_session(file, "export onnx")
    size = round_up(window, model.divisor) if dynamic else window
    shapes = [(1, model.in_channels, *size), (2, model.in_channels, *size)]
    if dynamic:
        larger = (n + d for n, d in zip(size, model.divisor, strict=True))
        shapes.append((1, model.in_channels, *larger))
    generator = torch.Generator().manual_seed(SEED)
    differences, largest = [], []
    for shape in shapes:
        image = torch.randn(shape, generator=generator)
        with torch.no_grad():
            expected = model(image)
        found = torch.from_numpy(session.run(["logits"], {"image": image.numpy()})[0])
        # With a NaN among the differences, the maximum is NaN, which fails the check.
        differences.append((found - expected).abs().max())
        largest.append(expected.abs().max())
    return Parity(float(torch.stack(differences).max()), float(torch.stack(largest).max()), tuple(shapes))
