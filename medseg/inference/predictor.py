"""From an image file to a label map on the file's own grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medseg.data.cases import Case, read_case_image
from medseg.data.preprocess import label_target, prepare
from medseg.errors import ModelError
from medseg.inference.export import export_labels
from medseg.inference.model_folder import load_model
from medseg.inference.postprocess import keep_largest_components
from medseg.inference.precision import autocast, checked_device, resolve_precision, to_channels_last
from medseg.inference.settings import PredictSettings, SavedModel
from medseg.inference.windows import window_slices
from medseg.io import read
from medseg.labels import Labels
from medseg.models.base import Model
from medseg.models.slicewise import SliceWise
from medseg.volume import Volume

Source = Volume | Case | str | Path | Sequence[str | Path]
Progress = Callable[[int, int], None]
_SLAB_FIRST = (
    2,
    0,
    1,
)  # the slab rolls along Z, whatever the file's own axes, so that the sums have one order


class Predictor:
    """A model, its preprocessing and its labels; call it with an image.

    Args:
        model: dense model, 2-D or 3-D, in evaluation or training mode.
        saved: settings of the model folder.
        labels: names and values of the classes.
        device: where to run; None takes CUDA where there is one.

    Raises:
        DataError: ``predict.keep_largest`` names an unknown label.
        ConfigError: there is no such device.
    """

    def __init__(
        self, model: Model, saved: SavedModel, labels: Labels, *, device: torch.device | str | None = None
    ) -> None:
        self.saved = saved
        self.labels = labels
        self._cleaned = [labels.value_of(name) for name in saved.predict.keep_largest]
        self.device = checked_device(device)
        self.dtype = resolve_precision(saved.predict.precision, self.device)
        volumetric = model if model.spatial_dims == 3 else SliceWise(model, axis=saved.slice_axis)
        self.model = to_channels_last(volumetric.to(self.device).eval(), model.spatial_dims)

    @property
    def settings(self) -> PredictSettings:
        """Overlap, mirroring, batch, precision, post-processing."""
        return self.saved.predict

    def with_settings(self, **changes: object) -> Predictor:
        """The same weights with other prediction settings, such as ``overlap=0.25``."""
        saved = self.saved.replace(predict=self.settings.replace(**changes).to_plain())
        model = self.model.model if isinstance(self.model, SliceWise) else self.model
        return Predictor(model, saved, self.labels, device=self.device)

    def __call__(self, source: Source, *, on_window: Progress | None = None) -> Volume:
        """Segment an image.

        Args:
            source: a volume, a file, a DICOM folder, one file per channel, or a case.
            on_window: called with (windows done, windows in all).

        Returns:
            Label volume with the labels' values, on the image's own grid, ready to be written.

        Raises:
            DataError: the image cannot be read or does not fit the model.
        """
        volume, where = self._volume(source)
        prepared = prepare(volume, self.saved.preprocessing, where=where)
        values = self.labels.to_values(np.arange(len(self.labels)))
        target = label_target(prepared, self.saved.preprocessing, values.dtype)
        export_labels(
            self._slices(torch.from_numpy(prepared.image.data), on_window),
            [target.maps[axis] for axis in _SLAB_FIRST],
            values,
            target.view.transpose(_SLAB_FIRST),
        )
        labels = target.volume
        if self._cleaned:
            labels = labels.with_data(keep_largest_components(labels.data[0], self._cleaned)[None])
        return labels

    def logits(self, image: Tensor, *, on_window: Progress | None = None) -> Tensor:
        """Logits `(k, X, Y, Z)` float32 of a prepared image `(c, X, Y, Z)`, on its grid."""
        blocks = [block.clone() for block in self._slices(image, on_window)]
        return torch.cat(blocks).permute(3, 1, 2, 0)

    @torch.inference_mode()
    def _slices(self, image: Tensor, on_window: Progress | None) -> Iterator[Tensor]:
        """Logits of a prepared image, blocks of axial slices `(slices, X, Y, k)`."""

        def network(batch: Tensor) -> Tensor:
            with autocast(self.dtype, self.device):
                logits: Tensor = self.model(batch.movedim(2, -1))
                return logits.movedim(-1, 2)

        settings = self.settings
        yield from window_slices(
            image.to(self.device).movedim(-1, 1),
            network,
            [self.saved.window[axis] for axis in _SLAB_FIRST],
            overlap=settings.overlap,
            batch_size=settings.batch_size,
            blend=settings.blend,
            mirror_axes=[_SLAB_FIRST.index(axis) for axis in settings.mirror_axes],
            on_window=on_window,
        )

    def _volume(self, source: Source) -> tuple[Volume, str]:
        if isinstance(source, Volume):
            return source, "image"
        if isinstance(source, Case):
            return read_case_image(source), f"case {source.id}"
        if isinstance(source, (str, Path)):
            return read(source), str(source)
        paths = tuple(Path(path) for path in source)
        return read_case_image(Case("image", paths, None, "image")), str(paths[0])

    def __repr__(self) -> str:
        window = "x".join(map(str, self.saved.window))
        return (
            f"Predictor({self.saved.name}: {self.saved.model['name']}, {len(self.saved.channel_names)} channel(s) "
            f"-> {len(self.labels)} classes, window {window}, {self.device}, {str(self.dtype).removeprefix('torch.')})"
        )


def load(folder: str | Path, *, device: str | None = None, **settings: object) -> Predictor:
    """Load a model folder for prediction.

    Args:
        folder: ``RUN/model``, or a copy of it; RUN itself; or ``RUN/best``.
        device: such as ``"cpu"`` or ``"cuda:1"``; None takes CUDA where there is one.
        **settings: fields of `PredictSettings` that replace the stored ones, such as ``overlap=0.25``.

    Raises:
        ModelError: the folder is missing, damaged or does not fit.
    """
    model, saved, labels = load_model(folder)
    if settings:
        saved = saved.replace(predict=saved.predict.replace(**settings).to_plain())
    if not np.isfinite([float(p.detach().abs().max()) for p in model.parameters()]).all():
        raise ModelError(
            f"{folder}: found weights that are NaN or infinite. Train again or use an older checkpoint."
        )
    return Predictor(model, saved, labels, device=device)
