"""An image that is ready for the network, and its division into bands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medseg.data.preprocessing.prepare import LabelTarget, Prepared
from medseg.errors import warn_once
from medseg.inference.sliding.slices import Slices
from medseg.inference.sliding.to_file_grid import LinearWeights
from medseg.inference.sliding.windows import SlidingWindow
from medseg.runtime.progress import Progress

Note = Callable[[str], None]
"""A function that is called with a sentence about a prediction, for the user and for its record."""


class LogitObserver(Protocol):
    """An object that receives the blended logits of an image, each voxel of the network's grid once."""

    def begin(self, prepared: PreparedPrediction) -> None:
        """Discard what was received: the prediction begins, or begins again in a smaller layout or another precision."""

    def see(self, logits: Tensor, first: int, columns: slice) -> None:
        """Receive the logits of some voxels.

        Args:
            logits: Logits `(slices, columns, *rest, k)` in the number format of the sums, on their device. They are valid
                during the call only.
            first: Index of the first slice.
            columns: Range of the voxels along the second axis.
        """


@dataclass(frozen=True)
class Band:
    """A part of the target along its second axis, which is predicted by itself to save memory.

    Attributes:
        targets: Voxels of the target along the second axis.
        axis: How these are interpolated from `columns`, counted from the first column.
        columns: Voxels of the network's grid that they are interpolated from.
        own: The part of `columns` that belongs to this band only; together, the bands own every column once.
    """

    targets: slice
    axis: LinearWeights
    columns: slice
    own: slice


@dataclass(frozen=True)
class PreparedPrediction:
    """An image that is ready for the network, and the label map that it will fill.

    Attributes:
        image: The prepared image `(c, Z, X, Y)` float32. Windows are predicted in the order of Z.
        target: The label map on the file's grid.
        axes: For each of the axes Z, X and Y, which network voxels each target voxel is interpolated from.
        empty_up_to: Intensity of each channel up to which a window is empty and need not be predicted; None to predict
            all.
        run_first_stage: Runs the first stage, reporting progress, and returns the prediction of the second one: with the label map
            of the first stage in the last channel of the image, where `image` holds zeros, or of a part of the image, of which
            `image` is a placeholder. None if nothing is left to do.
        where: Name of the image for messages.
        notes: Sentences about the image for the user and for the record, such as how it differs from the training images.
        geometry: The prepared image with its grid; None for an image without one.
        is_background: Whether the first stage found that everything is background, so that no network has to run.
    """

    image: Slices
    target: LabelTarget
    axes: tuple[LinearWeights, ...]
    empty_up_to: tuple[float, ...] | None = None
    run_first_stage: Callable[[Progress | None, Note], PreparedPrediction] | None = None
    where: str = "image"
    notes: tuple[str, ...] = ()
    geometry: Prepared | None = None
    is_background: bool = False

    @property
    def voxel_ml(self) -> float:
        """The volume of a voxel of the network's grid in ml; 0 for an image without a grid."""
        return 0.0 if self.geometry is None else self.geometry.grid.voxel_volume / 1000

    def with_first_stage(
        self, progress: Progress | None = None, note: Note = warn_once
    ) -> PreparedPrediction:
        """Return the prediction after its first stage, which is run if there is one.

        Args:
            progress: Called with (done, total, "window") of the first stage.
            note: Called with a sentence if the image had to be predicted in another way than planned.

        Returns:
            A prediction whose image includes the first stage; this one if there is no first stage or it was run
            already.
        """
        if self.run_first_stage is None:
            return self
        return self.run_first_stage(progress, note)

    def bands(self, count: int, sliding: SlidingWindow) -> list[Band]:
        """Split the target along its second axis into bands of similar size.

        Bands are cut at window edges where possible, because windows that cross a cut are predicted twice.

        Args:
            count: Number of bands; there are fewer if the target has fewer voxels.
            sliding: The windows.

        Returns:
            The bands in ascending order; together they cover the target once, and own each of the network's columns once.
        """
        axis = self.axes[1]
        voxels = len(axis.lower)
        window_edges = np.searchsorted(axis.lower.numpy(), sliding.window_edges(self.image.shape[2]))
        cuts = (
            _nearest_edge(voxels * i // count, window_edges, voxels // (2 * count)) for i in range(1, count)
        )
        pieces = [slice(a, b) for a, b in pairwise([0, *cuts, voxels]) if a < b]
        parts = [axis.part(piece) for piece in pieces]
        firsts = [0, *(sources.start for _, sources in parts[1:]), self.image.shape[2]]
        return [
            _band(piece, *part, slice(*own))
            for piece, part, own in zip(pieces, parts, pairwise(firsts), strict=True)
        ]


def _band(targets: slice, axis: LinearWeights, sources: slice, own: slice) -> Band:
    """Return a band of the columns that its targets are interpolated from and of those that it owns."""
    columns = slice(own.start, max(own.stop, sources.stop))
    return Band(targets, axis.shifted(sources.start - own.start), columns, own)


def _nearest_edge(wanted: int, edges: NDArray[np.int64], reach: int) -> int:
    """Return the edge nearest to a voxel, or the voxel itself if no edge is within reach."""
    if not len(edges):
        return wanted
    nearest = int(edges[np.abs(edges - wanted).argmin()])
    return nearest if abs(nearest - wanted) <= reach else wanted
