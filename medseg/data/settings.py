"""Settings of data, preprocessing, patches and augmentation; free of torch, so that checking them is instant."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from medseg.config import Config
from medseg.errors import DataError
from medseg.volumes.orientation import checked_axcodes

Range = tuple[float, float]
Probability = Annotated[float, Field(ge=0, le=1)]
Axis = Literal[0, 1, 2]
Radius = Annotated[float, Field(ge=1, le=15, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Factor = Annotated[float, Field(gt=0, le=10)]
Share = Annotated[float, Field(gt=0, le=1)]
Millimetres = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _each_once(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    if len(set(axes)) < len(axes):
        raise ValueError(f"found {list(axes)}, expected each axis once")
    return axes


def _axcodes(value: str) -> str:
    try:
        return checked_axcodes(value)
    except DataError as error:
        raise ValueError(str(error)) from None


def _rising(bounds: Range) -> Range:
    if bounds[0] > bounds[1]:
        raise ValueError("expected the smaller number first")
    return bounds


Rising = AfterValidator(_rising)
Axes = Annotated[tuple[Axis, ...], AfterValidator(_each_once)]
Orientation = Annotated[str, AfterValidator(_axcodes)]
Spacing = tuple[Millimetres | None, Millimetres | None, Millimetres | None]
Method = Literal["ct", "zscore", "zscore_nonzero", "zscore_mask", "rescale", "rgb", "none"]
NormalizeChoice = Literal[
    "auto", "ct", "zscore", "zscore_nonzero", "zscore_mask", "rescale", "rgb", "hounsfield", "none"
]


class Phantom(Config):
    """A dataset made on the fly, for trying things out.

    Attributes:
        modality: CT-like or MR-like volumes.
        cases: how many. seed: of the generator.
    """

    modality: Literal["ct", "mr"] = "ct"
    cases: int = Field(16, ge=3)
    seed: int = 0


class RegionSettings(Config):
    """One region: the values of its labels, and the value that stands for it in a label map."""

    values: tuple[int, ...]
    output_value: int


class DataSettings(Config):
    """Where the cases come from and how they are split.

    Attributes:
        path: dataset folder or TSV table; may be given on the command line instead.
        layout: how the folder is laid out; ``auto`` looks.
        phantom: make phantoms instead of reading a dataset.
        labels: name → value, for layouts that carry no names.
        regions: name → values of the labels that it is the union of, or ``{values: [...], written: 1}``. The network
            then predicts these regions, which may overlap, instead of the labels. Later ones overwrite earlier ones in a
            label map, so the larger comes first; a region is written as its smallest value that no later region holds,
            unless `written` says otherwise. ``{}`` predicts labels where the dataset itself has regions.
        ignore: value of voxels in label maps that nobody annotated; nothing is learnt or measured there.
        partial: case id, or a pattern such as ``liver_*``, → names of the labels that were drawn in these cases; a later
            line counts more. Background there may be any of the other labels.
        folds, fold: the split is by subject into `folds` parts; part `fold` is held out, or each in turn in a
            cross-validation. ``all`` trains on every case, with none to see how well it does.
        splits: file with splits instead, such as nnU-Net's ``splits_final.json``.
    """

    path: str | None = None
    layout: Literal["auto", "msd", "nnunet", "bids", "table", "images"] = "auto"
    phantom: Phantom | None = None
    labels: dict[str, int] | None = None
    regions: dict[str, tuple[int, ...] | RegionSettings] | None = None
    ignore: int | None = None
    partially_annotated: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    folds: int = Field(5, ge=2)
    fold: Annotated[int, Field(ge=0)] | Literal["all"] = 0
    splits: str | None = None


class PreprocessSettings(Config):
    """How images are prepared; what must be measured is measured on the training cases, or once for all folds of a
    cross-validation, on the cases of all.

    Attributes:
        orientation: axis codes of the network's arrays; null keeps the order of each file's axes, as nnU-Net does.
        spacing: mm per axis; null, for all axes or one of them, keeps each file's own.
        normalize: ``auto`` (CT by its foreground statistics, all else z-score), or a method, or one a channel;
            ``hounsfield`` keeps all of a CT: -1024 HU (air) becomes 0, and 1000 HU are one unit.
        crop_to_nonzero: cut away margins that are 0 in every channel.
    """

    orientation: Orientation | None = "RAS"
    spacing: Spacing | None = None
    normalize: NormalizeChoice | tuple[NormalizeChoice, ...] = "auto"
    crop_to_nonzero: bool = True


class PatchSettings(Config):
    """The box of voxels that a network sees at once, in training and in prediction.

    Attributes:
        size: voxels per array axis; two numbers for a 2-D model, in the plane of its slices.
        slice_axis: array axis across the slices of a 2-D model: 2 is axial in RAS.
    """

    size: tuple[int, ...] = Field((64, 64, 64), min_length=2, max_length=3)
    slice_axis: Axis = 2

    @field_validator("size")
    @classmethod
    def _positive(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if min(value) < 1:
            raise ValueError("expected positive sizes")
        return value

    def window(self) -> tuple[int, int, int]:
        """The patch as three sizes; 1 along the slice axis of a 2-D patch."""
        size = list(self.size)
        if len(size) == 2:
            size.insert(self.slice_axis, 1)
        return (size[0], size[1], size[2])


class Augmentation(Config):
    """Probabilities and ranges; the defaults are nnU-Net's (Isensee et al., Nature Methods 2021).

    Attributes:
        rotate_p, rotate_degrees: each axis turns by its own uniform angle within ± degrees (2-D: one angle).
        scale_p, scale: one factor for all axes; above 1 makes objects smaller.
        noise_p, noise_std: Gaussian noise, its standard deviation uniform in the range.
        blur_p, blur_sigma: Gaussian blur, each channel with probability ½; sigma in voxels.
        brightness_p, brightness: factor on all values.
        contrast_p, contrast: factor about the mean, within the previous range.
        low_resolution_p, low_resolution: zoom factor, down by nearest and up linearly; channels with ½.
        gamma_p, gamma_inverted_p, gamma: power on the normalised range, mean and deviation kept.
        mirror_axes: axes of the patch flipped with probability ½ each; null means all, without left-right where labels
            come in pairs such as left_kidney and right_kidney, which a mirrored image would swap, and likewise for
            anterior and posterior, superior and inferior, upper and lower.
    """

    rotate_p: Probability = 0.2
    rotate_degrees: NotNegative = 30.0
    scale_p: Probability = 0.2
    scale: Annotated[tuple[Factor, Factor], Rising] = (0.7, 1.4)
    noise_p: Probability = 0.1
    noise_std: Annotated[tuple[NotNegative, NotNegative], Rising] = (0.0, 0.1)
    blur_p: Probability = 0.2
    blur_sigma: Annotated[tuple[Positive, Positive], Rising] = (0.5, 1.0)
    brightness_p: Probability = 0.15
    brightness: Annotated[tuple[NotNegative, NotNegative], Rising] = (0.75, 1.25)
    contrast_p: Probability = 0.15
    contrast: Annotated[tuple[NotNegative, NotNegative], Rising] = (0.75, 1.25)
    low_resolution_p: Probability = 0.25
    low_resolution: Annotated[tuple[Share, Share], Rising] = (0.5, 1.0)
    gamma_inverted_p: Probability = 0.1
    gamma_p: Probability = 0.3
    gamma: Annotated[tuple[Positive, Positive], Rising] = (0.7, 1.5)
    mirror_axes: Axes | None = None
    dummy_2d_axis: Axis | None = None


class FirstStageAugmentation(Config):
    """How the label map of an earlier stage is spoiled in training, so that its mistakes are not taken over.

    The defaults are nnU-Net's (Isensee et al., Nature Methods 2021).

    Attributes:
        morphology_p: probability that a patch is changed by this step; morphology_label_p: that of each of its labels then,
            which is dilated, eroded, opened or closed by a ball. What it gains, other labels lose.
        radius: of the ball, in voxels.
        remove_p: probability that a patch is changed by this step; remove_label_p: that of each of its labels then, of
            which one connected component vanishes. remove_below_fraction: share of the patch that it covers less than.
    """

    morphology_p: Probability = 0.4
    morphology_label_p: Probability = 0.5
    radius: Annotated[tuple[Radius, Radius], Rising] = (1.0, 8.0)
    remove_p: Probability = 0.2
    remove_label_p: Probability = 0.5
    remove_below_fraction: Probability = 0.15


class CascadeSettings(Config):
    """The earlier stage of a cascade, whose label map this one sees as further channels (one for each label).

    Attributes:
        run: folder of the earlier stage, from where the command is run. It must be cross-validated: each
            ``RUN/predictions/CASE.nii.gz`` comes of a fold that did not train on the case, and ``RUN/model`` is packed
            into the model folder of this stage.
        augment: how its label maps are spoiled in training.
    """

    first_stage: str = Field(min_length=1)
    perturb: FirstStageAugmentation = FirstStageAugmentation()
