"""Settings of prediction and the contents of a model folder; free of torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from medseg.config import Config
from medseg.data.preprocessing.prepare import Preprocessing
from medseg.data.settings import Axes
from medseg.data.slices2d.slice_settings import SliceSettings
from medseg.data.slices2d.slice_view import SliceView
from medseg.model_folder.link_settings import LinkSettings


class PredictSettings(Config):
    """How a volume is cut into windows, and what is done with the label map.

    Attributes:
        overlap: share of a window that its neighbour covers.
        blend: weights inside a window.
        mirror_axes: array axes along which flipped copies are averaged; empty for none.
        batch_size: windows at once.
        precision: ``auto`` takes bfloat16 where the hardware multiplies it natively.
        thick_slices: how logits are brought back across slices thicker than three times the pixels (on the file's or
            the network's grid): ``linear``, or ``nearest`` as nnU-Net does.
        skip_empty: windows in which every channel is constant, or that hold nothing but air in a CT, are background
            without a look by the network.
        crop_to_body: look only at the box around the body, 2 cm wider; for CT alone. Windows then lie elsewhere, so labels
            change a little, with a model that has seen little air by more.
        compile: compile the network first; pays for many or large images. The code is kept for later runs.
        min_instance_score: least score of an instance that is kept, where instances are found.
        link: how the instances of slices are linked into those of a volume.
        keep_largest_foreground: only the largest connected component of all labels together stays.
        keep_largest: names of labels or regions of which only the largest connected component stays, one after the
            other; a region is the union of its labels.
    """

    overlap: float = Field(0.5, ge=0, lt=1)
    blend: Literal["gaussian", "constant"] = "gaussian"
    mirror_axes: Axes = ()
    batch_size: int = Field(1, ge=1)
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    thick_slices: Literal["linear", "nearest"] = "linear"
    skip_empty: bool = True
    crop_to_body: bool = False
    compile: bool = False
    min_instance_score: float = Field(0.5, ge=0, le=1)
    link: LinkSettings = LinkSettings()
    keep_largest_foreground: bool = False
    keep_largest: tuple[str, ...] = ()


class SavedModel(Config):
    """The ``config.yaml`` of a model folder: all that prediction needs besides labels and weights.

    Attributes:
        format: version of the folder's layout.
        name: of the experiment.
        model: registry name and options.
        channel_names: one per input channel, in order.
        preprocessing: resolved, with measured intensities.
        window: voxels per array axis, 1 along the slice axis of a 2-D model.
        slice_axis: array axis across the slices of a 2-D model.
        members: networks in the folder; the logits of several are averaged.
        num_first_stage_labels: foreground labels of the earlier stage in ``previous/``, a model folder, whose label map of the image
            this one sees as that many channels more; 0 for a model of its own.
        slices: how the slices become images of a 2-D model.
        predict: how to run it.
        trained_on: counts and figures for the model's README.
    """

    format: Literal[1] = 1
    medseg: str
    name: str
    model: dict[str, Any]
    channel_names: tuple[str, ...]
    preprocessing: Preprocessing
    window: tuple[int, int, int]
    slice_axis: Literal[0, 1, 2] = 2
    members: int = Field(1, ge=1)
    num_first_stage_labels: int = Field(0, ge=0)
    slices: SliceSettings = SliceSettings()
    predict: PredictSettings = PredictSettings()
    trained_on: dict[str, Any] = Field(default_factory=dict)

    @property
    def in_channels(self) -> int:
        """Channels that the network sees."""
        return self.slices.num_channels(len(self.channel_names)) + self.num_first_stage_labels

    @property
    def slice_view(self) -> SliceView:
        """The view of a 2-D model on prepared volumes."""
        return SliceView.from_preprocessing(self.slices, self.slice_axis, self.preprocessing)
