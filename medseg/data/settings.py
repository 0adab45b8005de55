"""Settings of data, preprocessing, patches and augmentation; torch is not imported, so that validation is instant."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from medseg.config import Config
from medseg.data.datasets.cases import AbsentChannels, ReadingOptions
from medseg.data.datasets.layout_registry import BUILT_IN_LAYOUTS, LAYOUTS
from medseg.errors import DataError, did_you_mean
from medseg.io.dicom.uneven_gaps import Uneven
from medseg.io.nifti.orientation_sources import OrientationFrom
from medseg.volumes.orientation import checked_axcodes

Range = tuple[float, float]
Probability = Annotated[float, Field(ge=0, le=1)]
Axis = Literal[0, 1, 2]
Radius = Annotated[float, Field(ge=1, le=15, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
CaseWeight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
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


def _known_layout(name: str) -> str:
    """Return the name of a layout that is registered, ``auto`` included, or raise."""
    if name in ("auto", *BUILT_IN_LAYOUTS):  # so that the readers are not imported for these
        return name
    known = ["auto", *LAYOUTS.names()]
    if name not in known:
        raise ValueError(f"found {name!r}, expected one of {', '.join(known)}.{did_you_mean(name, known)}")
    return name


Rising = AfterValidator(_rising)
Axes = Annotated[tuple[Axis, ...], AfterValidator(_each_once)]
LayoutName = Annotated[str, AfterValidator(_known_layout)]
Orientation = Annotated[str, AfterValidator(_axcodes)]
Spacing = tuple[Millimetres | None, Millimetres | None, Millimetres | None]
Method = Literal["ct", "zscore", "zscore_nonzero", "zscore_mask", "rescale", "rgb", "none"]
NormalizeChoice = Literal[
    "auto", "ct", "zscore", "zscore_nonzero", "zscore_mask", "rescale", "rgb", "hounsfield", "none"
]


class PhantomSettings(Config):
    """A synthetic dataset that is generated when it is needed, for trying things out.

    Attributes:
        modality: Whether volumes resemble CT or MR.
        cases: Number of cases.
        seed: Seed of the generator; equal seeds give equal cases.
    """

    modality: Literal["ct", "mr"] = "ct"
    cases: int = Field(16, ge=3)
    seed: int = 0


class RegionSettings(Config):
    """A region: a union of labels that the network predicts as one output.

    Attributes:
        values: Values of the labels that form the region.
        output_value: Value of the region in predicted label maps.
    """

    values: tuple[int, ...]
    output_value: int


class DataSettings(Config):
    """The cases of an experiment, the meaning of their labels, and their split.

    Attributes:
        path: Dataset folder or table of cases (TSV or CSV); can be given on the command line instead.
        layout: Layout of the folder: ``msd``, ``nnunet``, ``bids``, ``table``, ``images``, ``masks`` or the name of a layout
            that an installed package registers; ``auto`` recognises it.
        phantom: Settings of a synthetic dataset to use instead of `path`; null for none.
        labels: Label name → value, for layouts without label names; null takes them from the dataset.
        regions: Region name → values of its labels, or ``{values: [...], output_value: 1}``. The network then predicts
            these regions, which may overlap, instead of the labels. In a predicted label map, later regions overwrite
            earlier ones, so list larger regions first. A region is written as its smallest value that no later region
            contains, unless `output_value` is given. ``{}`` predicts labels although the dataset defines regions; null
            follows the dataset.
        ignore: Value of voxels that are not annotated in any label map; they count neither in training nor in
            evaluation. Null if every voxel is annotated.
        instances: Whether label maps are instance maps, in which each value above 0 is one instance, for folders that do not state
            it themselves (``"instances": true`` in a ``dataset.json``). The dataset then has a single label.
        partially_annotated: Case id, or a pattern such as ``liver_*`` → names of the labels that are annotated in these
            cases. Later entries take precedence. Background voxels of these cases may belong to any other label.
        case_weights: Case id, or a pattern such as ``rare_*`` → how often patches of these cases are sampled in training, in
            proportion to the other cases, whose weight is 1 or that of the column ``case_weight`` of a table. Later entries
            take precedence; 0 leaves a case out of training.
        folds: Number of parts into which subjects are divided.
        fold: Part that is held out for validation, from 0; a cross-validation holds out each part in turn. ``all`` trains
            on every case, without validation.
        orientation_from: Description of the geometry to use where a NIfTI header leaves it open or contradicts itself:
            ``sform``, ``qform`` or ``pixdim``. Null refuses files in which left and right are a guess, and otherwise uses
            the sform, or the qform if the code of the sform is 0.
        trust_label_array: Whether a label map with as many voxels as its image, but another grid in its header, is placed
            on the grid of the image as it is stored; otherwise it is refused.
        files_root: Folder that absolute paths and paths with ``..`` in a ``dataset.json`` or a table of cases may point
            into; null allows only the folder of the dataset.
        series: UID of the DICOM series to read in folders with several, or its number in the list that ``medseg inspect FOLDER`` shows.
            Null reads the only volume of a folder.
        uneven: What to do with DICOM series with uneven gaps between slices: ``refuse`` them, or ``resample`` them by linear
            interpolation between the true positions of their slices.
        absent_channels: What to do with cases without a file for some of their channels: ``refuse`` them, or use ``zeros`` after
            normalisation, which are the mean of a channel that is normalised by z-score. Statistics leave absent channels out. A
            model that was trained with ``zeros`` also predicts images that lack channels; see ``augment.drop_channel_p``.
        repairs: File written by ``medseg check --repair`` with repairs to apply when files are read; null for none.
        fingerprint: ``fingerprint.json`` that ``medseg plan`` has written. Cases that have not changed since are not read
            again for the statistics of ``ct``, which are the same with and without it. Null, or a file that is no longer
            there, reads them.
        splits: JSON file with splits, such as nnU-Net's ``splits_final.json``, to use instead of `folds`; null for none.
    """

    path: str | None = None
    layout: LayoutName = "auto"
    phantom: PhantomSettings | None = None
    labels: dict[str, int] | None = None
    regions: dict[str, tuple[int, ...] | RegionSettings] | None = None
    ignore: int | None = None
    instances: bool = False
    partially_annotated: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    case_weights: dict[str, CaseWeight] = Field(default_factory=dict)
    folds: int = Field(5, ge=2)
    fold: Annotated[int, Field(ge=0)] | Literal["all"] = 0
    orientation_from: OrientationFrom | None = None
    trust_label_array: bool = False
    files_root: str | None = None
    series: str | Annotated[int, Field(ge=1)] | None = None
    uneven: Uneven = "refuse"
    absent_channels: AbsentChannels = "refuse"
    repairs: str | None = None
    fingerprint: str | None = None
    splits: str | None = None

    @property
    def reading(self) -> ReadingOptions:
        """What is decided about files that can be read in several ways, and about where files may be."""
        return ReadingOptions(
            self.orientation_from,
            self.trust_label_array,
            self.files_root,
            self.series,
            self.uneven,
            self.repairs,
            absent_channels=self.absent_channels,
        )


class ChannelIntensities(Config):
    """Statistics by which ``ct`` normalises a channel.

    Attributes:
        mean: Intensity that becomes 0.
        std: Difference that becomes 1.
        low: Intensity below which values are clipped; null for none.
        high: Intensity above which values are clipped; null for none.
    """

    mean: float
    std: float = Field(gt=0)
    low: float | None = None
    high: float | None = None


class PreprocessSettings(Config):
    """The preparation of images before they reach the network.

    Statistics are measured on the training cases. In a cross-validation they are measured once, on the cases of all
    folds.

    Attributes:
        orientation: Axis codes of the network's arrays; null keeps the axes of each file, like nnU-Net.
        spacing: Voxel size in mm per array axis; null, for all axes or for one of them, keeps the spacing of each file.
        normalize: One method for all channels, or a list with one per channel. ``auto`` chooses by the channel's name:
            ``ct`` for CT, ``none``, ``rescale`` and ``rgb`` for nnU-Net's names ``noNorm``, ``rescale_to_0_1`` and
            ``rgb_to_0_1``, and ``zscore`` for all others. ``ct`` clips to the percentiles 0.5 and 99.5 of the foreground
            of the training cases and divides by its standard deviation after subtracting its mean. ``zscore`` uses mean
            and standard deviation of each image, ``zscore_nonzero`` those of its non-zero voxels, ``zscore_mask`` those
            of its non-zero voxels and the holes they enclose. ``rescale`` maps each image to 0 to 1, ``rgb`` divides by
            255, ``none`` changes nothing. ``hounsfield`` keeps the whole range of a CT: -1024 HU (air) becomes 0, and
            1000 HU are one unit.
        intensities: Name of a ``ct`` channel → statistics to use instead of those of the training cases, such as the statistics
            that the weights of a trained model have seen. Null, or a missing channel, measures them.
        crop_to_nonzero: Whether margins that are 0 in every channel are removed.
        stored_as: Type of prepared images on the disk. ``float32`` is exact. ``float16`` takes half the space and rounds each
            value by at most 1/2048 of it; a case with values beyond 65504 is stored as float32. ``auto`` is float16 if the
            network computes in float16, which rounds its input in the same way, and float32 otherwise. Prediction does not
            store images.
    """

    orientation: Orientation | None = "RAS"
    spacing: Spacing | None = None
    normalize: NormalizeChoice | tuple[NormalizeChoice, ...] = "auto"
    intensities: dict[str, ChannelIntensities] | None = None
    crop_to_nonzero: bool = True
    stored_as: Literal["auto", "float32", "float16"] = "auto"


class PatchSettings(Config):
    """The box of voxels that a network sees at once, in training and in prediction.

    Attributes:
        size: Voxels per array axis; two numbers for a 2D model, in the plane of its slices.
        slice_axis: Array axis across the slices of a 2D model; 2 gives axial slices in RAS orientation.
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
        """Return the patch as three sizes, with 1 along the slice axis of a 2D patch."""
        size = list(self.size)
        if len(size) == 2:
            size.insert(self.slice_axis, 1)
        return (size[0], size[1], size[2])


class Augmentation(Config):
    """Probabilities and ranges of the random changes of training patches.

    The defaults are nnU-Net's (Isensee et al., Nature Methods 2021). Every range is sampled uniformly, except that factors
    below and above 1 are equally likely for `brightness`, `contrast` and `gamma`.

    Attributes:
        device: Where patches are changed: by a ``worker`` on the processor, or on the ``device`` that trains the network.
            ``auto`` is the device if it is a CUDA device. The random numbers are the same; results differ by rounding.
        rotate_p: Probability of a rotation.
        rotate_degrees: Largest angle; each axis rotates by its own angle within ± this many degrees (2D: one angle).
        scale_p: Probability of scaling.
        scale: Range of the factor, one for all axes; above 1 makes structures smaller.
        noise_p: Probability of Gaussian noise.
        noise_std: Range of the standard deviation of the noise, in normalised intensities.
        blur_p: Probability of a Gaussian blur; each channel is then blurred with probability ½.
        blur_sigma: Range of the standard deviation of the blur, in voxels.
        brightness_p: Probability of a change of brightness.
        brightness: Range of the factor by which intensities are multiplied.
        contrast_p: Probability of a change of contrast.
        contrast: Range of the factor by which the distance to the mean is multiplied; the result is clipped to the
            previous range.
        low_resolution_p: Probability of a simulated low resolution; each channel is then changed with probability ½.
        low_resolution: Range of the zoom factor; the patch is downsampled by nearest neighbour and upsampled linearly.
        gamma_inverted_p: Probability of a gamma change of the negated image.
        gamma_p: Probability of a gamma change.
        gamma: Range of the exponent that is applied to intensities scaled to 0 to 1; mean and deviation are then restored.
        drop_channel_p: Probability of each channel to be 0 in a patch, as if it were absent (see ``data.absent_channels``); at least
            one channel of the case stays.
        mirror_axes: Axes of the patch that are flipped with probability ½ each. Null means all, except left-right if
            labels come in pairs such as left_kidney and right_kidney, which a mirrored image would swap; likewise for
            anterior and posterior, superior and inferior, upper and lower.
        dummy_2d_axis: Array axis across thick slices of a 3D patch: rotation and scaling stay in the plane of the slices,
            and the simulated low resolution leaves this axis unchanged. Null treats all axes alike.
    """

    device: Literal["auto", "worker", "device"] = "auto"
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
    drop_channel_p: Probability = 0.0
    mirror_axes: Axes | None = None
    dummy_2d_axis: Axis | None = None


class FirstStageAugmentation(Config):
    """Random errors added to the label map of a first stage in training, so that the second stage does not trust it blindly.

    The defaults are nnU-Net's (Isensee et al., Nature Methods 2021).

    Attributes:
        morphology_p: Probability that labels of a patch are dilated, eroded, opened or closed by a ball. Voxels that one
            label gains are taken from others.
        morphology_label_p: Probability of that change for each label of such a patch.
        radius: Range of the radius of the ball, in voxels.
        remove_p: Probability that connected components are removed from a patch.
        remove_label_p: Probability that each label of such a patch loses one connected component.
        remove_below_fraction: Largest share of the patch that a removed component may cover.
    """

    morphology_p: Probability = 0.4
    morphology_label_p: Probability = 0.5
    radius: Annotated[tuple[Radius, Radius], Rising] = (1.0, 8.0)
    remove_p: Probability = 0.2
    remove_label_p: Probability = 0.5
    remove_below_fraction: Probability = 0.15


class CascadeSettings(Config):
    """The first stage of a cascade; this experiment is the second stage and sees its label map as one channel per label.

    Attributes:
        first_stage: Run folder of the first stage, relative to the working directory. It must be cross-validated: each
            ``RUN/predictions/CASE.nii.gz`` comes from a fold that did not train on the case. ``RUN/model`` is copied
            into the model folder of this stage.
        perturb: Random errors that are added to the label maps of the first stage in training.
    """

    first_stage: str = Field(min_length=1)
    perturb: FirstStageAugmentation = FirstStageAugmentation()
