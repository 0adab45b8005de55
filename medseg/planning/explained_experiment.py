"""The experiment of a plan as YAML values, each with its reason."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.data.datasets.cases import UNDECIDED, ReadingOptions
from medseg.data.fingerprint.fingerprint import Fingerprint
from medseg.experiment.mirroring import opposite_axes
from medseg.models.catalog import MODELS
from medseg.models.unet.config import UNetOptions
from medseg.planning.commented_yaml import Explained, ExplainedValues
from medseg.planning.nnunet.configurations import normalization_schemes
from medseg.planning.propose import Proposal
from medseg.planning.training_length import AIMED_STEPS
from medseg.runtime.formatting import format_duration, percent, pluralise
from medseg.train.settings import seconds_of
from medseg.train.timing.nominal_processor import nominal_cores_in_words, step_seconds
from medseg.train.timing.step_estimate import fitting_in_words

_ORIENTATION = "RAS"
_MOST_SLICES_AT_ONCE = 32
_PAPERS_BATCH = 16
_DUMMY_2D = 3.0  # a patch with this ratio of width to depth is rotated only within its slices
_ELONGATED = 1.5
_SIDES_ALONE = "at most left and right, which look alike in a body; a short training does not learn flips that never occur in scans"
_METHOD_REASONS = {
    "ct": "clipped to percentiles 0.5 and 99.5 of its foreground, which training measures",
    "zscore": "mean and standard deviation of each image",
    "zscore_mask": "mean and standard deviation of each image inside its non-zero mask",
    "none": "unchanged",
    "rescale": "each image to [0, 1]",
    "rgb": "divided by 255",
}


@dataclass(frozen=True)
class DatasetSource:
    """The location of the cases.

    Attributes:
        path: Folder or table of the dataset.
        layout: Layout of the dataset; ``auto`` to detect it.
        reading: What the user decided about files whose headers are wrong.
        fingerprint: File with the measurements of the cases; None if it is not stored.
    """

    path: Path
    layout: str
    reading: ReadingOptions = UNDECIDED
    fingerprint: Path | None = None


@dataclass(frozen=True)
class OtherModel:
    """A model of the catalog with its default options, used instead of the planned U-Net.

    Attributes:
        name: Name of the model.
        divisor: Number per axis that must divide the size of its patch.
        forward_flops: Floating-point operations of its forward pass per voxel of the patch; None if unknown.
    """

    name: str
    divisor: tuple[int, ...]
    forward_flops: float | None = None


def explained_experiment(
    fingerprint: Fingerprint,
    proposal: Proposal,
    source: DatasetSource,
    other: OtherModel | None,
) -> ExplainedValues:
    """Return all values of an experiment that a plan decides.

    Args:
        fingerprint: Measurements of the dataset.
        proposal: The planned network.
        source: Location of the cases.
        other: Model to train instead of the planned U-Net; the patch is enlarged to fit it.

    Returns:
        The values with their reasons, by section of the experiment.
    """
    model_name = other.name if other else _unet_name(proposal)
    return {
        "name": Explained(_experiment_name(fingerprint.dataset, model_name, proposal)),
        "data": _data(fingerprint, source),
        "preprocess": _preprocess(fingerprint, proposal),
        "model": {"name": Explained(other.name, "its options are left at their defaults")}
        if other
        else _unet(proposal),
        "patch": _patch(proposal, other),
        "augment": _augment(fingerprint, proposal),
        "train": _train(proposal, other),
        "predict": _predict(fingerprint, proposal, other),
    }


def _unet_name(proposal: Proposal) -> str:
    kind = "instance_unet" if proposal.instances else "resunet" if proposal.preset.residual else "unet"
    return f"{kind}_{proposal.dims}d"


def _experiment_name(dataset: str, model: str, proposal: Proposal) -> str:
    mark = "_lowres" if proposal.kind == "lowres" else ""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", f"{dataset}_{model}{mark}")
    return name if re.match(r"[A-Za-z0-9]", name) else f"plan{name}"


def _data(f: Fingerprint, source: DatasetSource) -> ExplainedValues:
    tree: dict[str, Explained | ExplainedValues] = {
        "path": Explained(str(source.path), f"{pluralise(len(f.cases), 'case')} with a label map")
    }
    if source.layout != "auto":
        tree["layout"] = Explained(source.layout, "as requested")
    if source.reading.orientation_from is not None:
        tree["orientation_from"] = Explained(source.reading.orientation_from, "as requested")
    if source.reading.trust_label_array:
        tree["trust_label_array"] = Explained(True, "as requested")
    if source.reading.files_root is not None:
        tree["files_root"] = Explained(str(Path(source.reading.files_root).resolve()), "as requested")
    if source.reading.series is not None:
        tree["series"] = Explained(source.reading.series, "as requested")
    if source.reading.uneven != "refuse":
        tree["uneven"] = Explained(source.reading.uneven, "as requested")
    if source.reading.absent_channels != "refuse":
        tree["absent_channels"] = Explained(source.reading.absent_channels, "as requested")
    if source.reading.repairs is not None:
        tree["repairs"] = Explained(str(Path(source.reading.repairs).resolve()), "as requested")
    if source.fingerprint is not None and "ct" in normalization_methods(f):
        tree["fingerprint"] = Explained(
            str(source.fingerprint),
            "training takes the statistics of CT from it instead of reading all cases again",
        )
    if not f.named:
        tree["labels"] = Explained(
            f.labels, "the dataset names no labels: these are the values in its label maps; rename them"
        )
    if f.subjects < 2:
        tree["fold"] = Explained("all", "only one subject, so none can be held out for validation")
    elif f.subjects < 5:
        tree["folds"] = Explained(f.subjects, f"the maximum for {f.subjects} subjects")
    return tree


def _preprocess(f: Fingerprint, p: Proposal) -> ExplainedValues:
    median = " x ".join(f"{value:.4g}" for value in f.medians()[0])
    why = {
        "3d": f"target of the dataset (median: {median} mm)",
        "2d": f"target of the dataset (median: {median} mm); across slices each file keeps its own spacing",
        "lowres": f"coarser than the median {median} mm, so that a patch holds a quarter of the median volume",
    }[p.kind]
    spacing = [None if p.kind == "2d" and axis == p.slice_axis else mm for axis, mm in enumerate(p.spacing)]
    left = f.median_relative_size
    crop = "nothing" if left > 0.995 else f"a median of {percent(1 - left)}"
    return {
        "orientation": Explained(
            _ORIENTATION, "all files are reoriented; axes point right, anterior, superior"
        ),
        "spacing": Explained(spacing, f"mm, {why}"),
        "normalize": _normalize(f),
        "crop_to_nonzero": Explained(True, f"removes {crop} of the volume"),
    }


def normalization_methods(f: Fingerprint) -> list[str]:
    """Return one method of `medseg.data.settings.Method` per channel.

    Args:
        f: Measurements of the dataset.

    Returns:
        Names of the methods, in the order of the channels.
    """
    chosen, masked = normalization_schemes(f.channel_names, f.median_relative_size)
    return ["zscore_mask" if inside else scheme for scheme, inside in zip(chosen, masked, strict=True)]


def _normalize(f: Fingerprint) -> Explained:
    methods = normalization_methods(f)
    if len(set(methods)) == 1:
        reason = f"{', '.join(f.channel_names)}: {_METHOD_REASONS[methods[0]]}"
    else:
        pairs = zip(f.channel_names, methods, strict=True)
        reason = "; ".join(f"{name}: {_METHOD_REASONS[method]}" for name, method in pairs)
    return Explained(methods, reason)


def _channels(p: Proposal) -> Explained:
    if p.trained_channels == p.channels:
        return Explained(list(p.channels), "per stage")
    narrow = f"per stage: half of nnU-Net's {list(p.channels)}, so that more steps fit into the time"
    return Explained(list(p.trained_channels), narrow)


def _unet(p: Proposal) -> ExplainedValues:
    channels = _channels(p)
    why = f"; {p.kind_reason}" if p.kind_reason else ""
    if p.instances:
        why += "; finds instances, because the dataset has instance maps"
    tree: dict[str, Explained | ExplainedValues] = {
        "name": Explained(_unet_name(p), f"preset {p.preset.name}{why}"),
        "channels": channels,
        "strides": Explained(
            [list(s) for s in p.strides],
            "per stage and axis; coarse axes are halved once the others are as coarse",
        ),
        "kernel_size": Explained(
            [list(k) for k in p.kernels], "per stage and axis; 1 along axes twice as coarse as the finest"
        ),
        "num_blocks": Explained(
            list(p.blocks), "per stage" + (", residual blocks" if p.preset.residual else "")
        ),
    }
    if p.preset.residual:
        if p.instances:
            tree["block"] = Explained("res", "as in the residual encoder of nnU-Net")
        tree["decoder_block"] = Explained("basic", "only the encoder is residual")
        tree["decoder_num_blocks"] = Explained(p.preset.decoder_blocks)
        tree["stem_channels"] = Explained(channels.value[0])
    why = "losses at the coarser resolutions, too" if p.deep_supervision else "too few resolutions"
    tree["deep_supervision"] = Explained(p.deep_supervision, why)
    return tree


def _patch(p: Proposal, other: OtherModel | None) -> ExplainedValues:
    median = " x ".join(f"{n:g}" for n in p.median_shape)
    what = "slice" if p.dims == 2 else "volume"
    divisor = other.divisor if other else p.divisor
    size = _patch_size(p, other)
    why = (
        f"covers {percent(p.covered)} of the median {what} ({median} voxels at this spacing); multiples of "
        f"{' x '.join(map(str, divisor))}"
    )
    if p.limited_by_time:
        why += f"; no larger, so that about {AIMED_STEPS:,} steps fit into the time"
    tree: dict[str, Explained | ExplainedValues] = {"size": Explained(size, why)}
    if p.dims == 2:
        tree["slice_axis"] = Explained(p.slice_axis, "the coarsest axis")
    return tree


def _patch_size(p: Proposal, other: OtherModel | None) -> list[int]:
    divisor = other.divisor if other else p.divisor
    return [-(-n // d) * d for n, d in zip(p.patch, divisor, strict=True)]


def _augment(f: Fingerprint, p: Proposal) -> ExplainedValues:
    tree: dict[str, Explained | ExplainedValues] = {}
    if not _has_any_pose(p):
        # A patch of a slice does not have the axis across slices, so later axes of the volume move up by one.
        axes = [axis - (p.dims == 2 and p.slice_axis < axis) for axis in _mirrored(f, p)]
        tree["mirror_axes"] = Explained(axes, _SIDES_ALONE)
    if p.dims == 2:
        tree["rotate_degrees"] = _rotation(p, elongated=max(p.patch) / min(p.patch) > _ELONGATED)
    elif max(p.patch) / p.patch[p.slice_axis] > _DUMMY_2D:
        why = "the patch is flat, so it is rotated and scaled only within its thick slices"
        tree["dummy_2d_axis"] = Explained(p.slice_axis, why)
        tree["rotate_degrees"] = _rotation(p, elongated=False)
    return tree


def _rotation(p: Proposal, *, elongated: bool) -> Explained:
    """Return the largest rotation within slices: any in a long training, and for natural images, which have no top."""
    if elongated:
        return Explained(15.0, "the patch is elongated")
    if _has_any_pose(p):
        return Explained(180.0, "slices are rotated freely in their plane")
    return Explained(
        30.0, "bodies lie alike in scans; a short training does not learn poses that never occur"
    )


def _has_any_pose(p: Proposal) -> bool:
    """Return whether patches are shown in any pose: in a long training, and for natural images, which have no fixed orientation."""
    return p.length.is_long or p.median_shape[p.slice_axis] <= 1


def _mirrored(f: Fingerprint, p: Proposal) -> list[int]:
    """Return the mirrored axes of the volume: axes of the patch along which no left and right labels or regions differ."""
    opposite = opposite_axes((*f.labels, *f.regions), p.orientation)
    across = (p.slice_axis,) if p.dims == 2 else ()
    axes = [axis for axis, code in enumerate(p.orientation) if _has_any_pose(p) or code in "LR"]
    return [axis for axis in axes if axis not in (*opposite, *across)]


def _train(p: Proposal, other: OtherModel | None) -> ExplainedValues:
    dice = (
        "Dice loss: overlaps are summed over the batch" if p.batch_dice else "overlaps are computed per patch"
    )
    tree: dict[str, Explained | ExplainedValues] = {
        **_length(p, other),
        "batch_size": _batch(p, other),
        "batch_dice": Explained(p.batch_dice, dice),
        "oversample_foreground": Explained(0.33, "fraction of patches centred on a label"),
        "optimizer": _optimizer(other, long=p.length.is_long),
    }
    if p.budget.on_gpu:
        reason = "processes that prepare patches while the GPU computes: one per core, at most 12"
        tree["workers"] = Explained("auto", reason)
    return tree


def _length(p: Proposal, other: OtherModel | None) -> dict[str, Explained]:
    length, time = p.length, planned_time(p, other)
    lasts = "" if time is None else f"; {time}"
    if length.max_time is not None:
        if length.on_gpu:
            return {"max_time": Explained(length.max_time, "as requested")}
        why = (
            "as requested" if length.time else "a first result on a processor; more time gives better results"
        )
        return {"max_time": Explained(length.max_time, why + lasts)}
    why = "as requested" if length.steps is not None else "nnU-Net's 1000 epochs of 250"
    return {"steps": Explained(length.total_steps, why + lasts)}


def planned_time(p: Proposal, other: OtherModel | None) -> str | None:
    """Return how many steps fit into the time of a plan without a GPU, or how long its steps take.

    Args:
        p: The planned network.
        other: Model to train instead of the planned U-Net.

    Returns:
        A phrase for the plan; None for a GPU, and for models whose arithmetic is unknown.
    """
    patch, length = _patch_size(p, other), p.length
    flops = p.forward_flops if other is None else other.forward_flops
    if length.on_gpu or flops is None:
        return None
    flops *= 1 if other is None else math.prod(patch)
    seconds = step_seconds(flops, _batch(p, other).value)
    step = f"a step takes about {format_duration(seconds)} on {nominal_cores_in_words()}"
    if length.max_time is None:
        return f"{step}, {length.total_steps:,} steps {format_duration(seconds * (length.total_steps or 0))}"
    return f"{step}; {fitting_in_words(int(seconds_of(length.max_time) / seconds), seconds, length.max_time)}"


def _batch(p: Proposal, other: OtherModel | None) -> Explained:
    if p.trained_batch_size < p.batch_size:
        allowed = f"{p.batch_size}: {batch_reason(p)}"
        why = f"allows many steps in a short time; nnU-Net's rules allow {allowed}"
        return Explained(p.trained_batch_size, why)
    if _is_foreign(other) and p.batch_size > _PAPERS_BATCH:
        return Explained(_PAPERS_BATCH, "as in the papers of such models, which are larger than a U-Net")
    return Explained(p.batch_size, batch_reason(p))


def _is_foreign(other: OtherModel | None) -> bool:
    """Return whether the model is not a U-Net."""
    return other is not None and not issubclass(MODELS.get(other.name).options, UNetOptions)


def batch_reason(p: Proposal) -> str:
    """Return what limits the batch size.

    Args:
        p: The planned network.

    Returns:
        A phrase for the comment of the plan.
    """
    return {
        "memory": "limited by memory",
        "voxels": f"at most {percent(p.preset.voxel_share)} of the dataset's voxels",
        "cases": "limited by the number of cases",
        "least": "the minimum",
    }[p.batch_limit]


def _optimizer(other: OtherModel | None, *, long: bool) -> Explained:
    if _is_foreign(other):
        values: dict[str, Any] = {"name": "adamw", "lr": 0.0001, "weight_decay": 0.05, "warmup_steps": 50}
        return Explained(values, "Mask2Former's (Cheng et al. 2022), slow enough for large models")
    if long:
        values = {"name": "sgd", "lr": 0.01, "momentum": 0.99, "weight_decay": 3e-5, "schedule": "poly"}
        return Explained(values, "nnU-Net's, for a long training (Isensee et al. 2021)")
    values = {"name": "adamw", "lr": 0.001, "weight_decay": 0.01, "warmup_steps": 50}
    return Explained(values, "converges in fewer steps than SGD, which needs a long training")


def _predict(f: Fingerprint, p: Proposal, other: OtherModel | None) -> ExplainedValues:
    tree: dict[str, Explained | ExplainedValues] = {}
    if not _is_foreign(other):
        axes = _mirrored(f, p)
        if axes:
            why = f"averages predictions of flipped copies: better, {2 ** len(axes)} times slower; [] turns it off"
        else:
            why = "averages no predictions of flipped copies, because training mirrors no axis"
        tree["mirror_axes"] = Explained(axes, why)
    if p.dims == 2:
        tree["batch_size"] = Explained(min(p.batch_size, _MOST_SLICES_AT_ONCE), "slices per batch")
    return tree
