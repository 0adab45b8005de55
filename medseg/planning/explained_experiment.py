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
from medseg.runtime.formatting import percent, pluralise

LONG_STEPS, SHORT_BUDGET = 250_000, "40m"
_ORIENTATION = "RAS"
_PROCESSORS_VOXELS = 1 << 16  # of a batch without a GPU, where a step takes long
_PROCESSORS_WIDTH = 2  # divisor of the channels without a GPU: a quarter of the arithmetic
_LONG = 20_000  # steps from which nnU-Net's recipe with SGD is used
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
    """

    name: str
    divisor: tuple[int, ...]


def explained_experiment(
    fingerprint: Fingerprint,
    proposal: Proposal,
    source: DatasetSource,
    steps: int | None,
    other: OtherModel | None,
) -> ExplainedValues:
    """Return all values of an experiment that a plan decides.

    Args:
        fingerprint: Measurements of the dataset.
        proposal: The planned network.
        source: Location of the cases.
        steps: Number of training steps; None chooses by the recipe.
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
        else _unet(proposal, long=_is_long(proposal, steps)),
        "patch": _patch(proposal, other),
        "augment": _augment(fingerprint, proposal, long=_is_long(proposal, steps)),
        "train": _train(proposal, steps, other),
        "predict": _predict(fingerprint, proposal, other, long=_is_long(proposal, steps)),
    }


def _unet_name(proposal: Proposal) -> str:
    return f"{'resunet' if proposal.preset.residual else 'unet'}_{proposal.dims}d"


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


def _is_long(p: Proposal, steps: int | None) -> bool:
    """Return whether the training is as long as nnU-Net's recipe assumes: on a GPU, or because of the requested steps."""
    return p.budget.on_gpu if steps is None else steps >= _LONG


def _channels(p: Proposal, *, long: bool) -> Explained:
    if p.budget.on_gpu or long:
        return Explained(list(p.channels), "per stage")
    narrow = [width // _PROCESSORS_WIDTH for width in p.channels]
    return Explained(
        narrow, f"per stage: half of nnU-Net's {list(p.channels)}, so that more steps fit into the time"
    )


def _unet(p: Proposal, *, long: bool) -> ExplainedValues:
    channels = _channels(p, long=long)
    tree: dict[str, Explained | ExplainedValues] = {
        "name": Explained(_unet_name(p), f"preset {p.preset.name}"),
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
    size = [-(-n // d) * d for n, d in zip(p.patch, divisor, strict=True)]
    why = (
        f"covers {percent(p.covered)} of the median {what} ({median} voxels at this spacing); multiples of "
        f"{' x '.join(map(str, divisor))}"
    )
    tree: dict[str, Explained | ExplainedValues] = {"size": Explained(size, why)}
    if p.dims == 2:
        tree["slice_axis"] = Explained(p.slice_axis, "the coarsest axis")
    return tree


def _augment(f: Fingerprint, p: Proposal, *, long: bool) -> ExplainedValues:
    tree: dict[str, Explained | ExplainedValues] = {}
    if not _mirrors_all(p, long=long):
        # If the patch has axis 0 of the volume, it is also axis 0 of the patch.
        tree["mirror_axes"] = Explained(_mirrored(f, p, long=long), _SIDES_ALONE)
    if p.dims == 2:
        degrees = 15.0 if max(p.patch) / min(p.patch) > _ELONGATED else 180.0
        why = "the patch is elongated" if degrees < 180 else "slices are rotated freely in their plane"
        tree["rotate_degrees"] = Explained(degrees, why)
    elif max(p.patch) / p.patch[p.slice_axis] > _DUMMY_2D:
        why = "the patch is flat, so it is rotated and scaled only within its thick slices"
        tree["dummy_2d_axis"] = Explained(p.slice_axis, why)
        tree["rotate_degrees"] = Explained(180.0, "slices are rotated freely in their plane")
    return tree


def _mirrors_all(p: Proposal, *, long: bool) -> bool:
    """Return whether all axes are mirrored: in a long training, and for natural images, which have no fixed orientation."""
    return long or p.median_shape[p.slice_axis] <= 1


def _mirrored(f: Fingerprint, p: Proposal, *, long: bool) -> list[int]:
    """Return the mirrored axes of the volume: axes of the patch along which no left and right labels or regions differ."""
    opposite = opposite_axes((*f.labels, *f.regions), _ORIENTATION)
    across = (p.slice_axis,) if p.dims == 2 else ()
    axes = range(3) if _mirrors_all(p, long=long) else (0,)
    return [axis for axis in axes if axis not in (*opposite, *across)]


def _train(p: Proposal, steps: int | None, other: OtherModel | None) -> ExplainedValues:
    long = _is_long(p, steps)
    dice = (
        "Dice loss: overlaps are summed over the batch" if p.batch_dice else "overlaps are computed per patch"
    )
    tree: dict[str, Explained | ExplainedValues] = {
        **_length(steps, long=long),
        "batch_size": _batch(p, other),
        "batch_dice": Explained(p.batch_dice, dice),
        "oversample_foreground": Explained(0.33, "fraction of patches centred on a label"),
        "optimizer": _optimizer(long, other),
    }
    if p.budget.on_gpu:
        reason = "processes that prepare patches while the GPU computes: one per core, at most 12"
        tree["workers"] = Explained("auto", reason)
    return tree


def _length(steps: int | None, *, long: bool) -> dict[str, Explained]:
    if steps is not None:
        return {"steps": Explained(steps, "as requested")}
    if long:
        return {"steps": Explained(LONG_STEPS, "nnU-Net's 1000 epochs of 250")}
    why = "a first result on a processor; more time gives better results"
    return {"max_time": Explained(SHORT_BUDGET, why)}


def _batch(p: Proposal, other: OtherModel | None) -> Explained:
    quick = max(2, _PROCESSORS_VOXELS // math.prod(p.patch))
    if not p.budget.on_gpu and p.batch_size > quick:
        allowed = f"{p.batch_size}: {batch_reason(p)}"
        return Explained(quick, f"allows many steps in a short time; nnU-Net's rules allow {allowed}")
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


def _optimizer(long: bool, other: OtherModel | None) -> Explained:
    if _is_foreign(other):
        values: dict[str, Any] = {"name": "adamw", "lr": 0.0001, "weight_decay": 0.05, "warmup_steps": 50}
        return Explained(values, "Mask2Former's (Cheng et al. 2022), slow enough for large models")
    if long:
        values = {"name": "sgd", "lr": 0.01, "momentum": 0.99, "weight_decay": 3e-5, "schedule": "poly"}
        return Explained(values, "nnU-Net's, for a long training (Isensee et al. 2021)")
    values = {"name": "adamw", "lr": 0.001, "weight_decay": 0.01, "warmup_steps": 50}
    return Explained(values, "converges in fewer steps than SGD, which needs a long training")


def _predict(f: Fingerprint, p: Proposal, other: OtherModel | None, *, long: bool) -> ExplainedValues:
    tree: dict[str, Explained | ExplainedValues] = {}
    if not _is_foreign(other):
        axes = _mirrored(f, p, long=long)
        if axes:
            why = f"averages predictions of flipped copies: better, {2 ** len(axes)} times slower; [] turns it off"
        else:
            why = "averages no predictions of flipped copies, because training mirrors no axis"
        tree["mirror_axes"] = Explained(axes, why)
    if p.dims == 2:
        tree["batch_size"] = Explained(min(p.batch_size, _MOST_SLICES_AT_ONCE), "slices per batch")
    return tree
