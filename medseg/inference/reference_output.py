"""The reference output of a model folder: what the model computed for a generated image when the folder was written.

``reference.json`` holds hashes and a part of the output, not the image, which is generated from whole numbers and is the
same everywhere. A later comparison finds changed weights and preprocessing, and other results of another machine.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.config import Config
from medseg.data.preprocessing.normalize import Normalization
from medseg.errors import MedsegError, ModelError, warn_once
from medseg.inference.predictor import Predictor
from medseg.inference.sliding.windows import window_slices
from medseg.model_folder.folder import first_stage_folder, load_model
from medseg.model_folder.settings import SavedModel
from medseg.runtime.out_of_memory import is_out_of_memory
from medseg.storage.atomic import write_text
from medseg.storage.formats import check_format
from medseg.storage.json_files import read_object
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

FILE = "reference.json"
FORMAT = 1
SAME_LABELS_SHARE = 0.99
"""Share of the voxels that must have the same label on another processor or with another version of torch."""
LOGIT_TOLERANCE = 1e-3
"""Largest difference of logits there, as a part of the largest logit."""
_WHOLE_EDGE = 64  # voxels; longer windows of 3D models are halved, so that the forward pass takes seconds
_MOST_VOXELS = 1 << 16  # of the label map that is stored
_LOGITS = 24
_SLICES = 3  # of the image of a 2D model
_TOP = 255.0
_COARSER = 1.25  # voxels of the image by those of the model, so that resampling takes part


class GeneratedImage(Config):
    """The parameters of the generated image of a model folder.

    Attributes:
        shape: Voxels per axis.
        spacing: Voxel size in mm per axis.
        axcodes: Directions of the axes.
        ranges: Smallest and largest intensity of each channel.
        window: Window with which it is predicted.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    axcodes: str
    ranges: tuple[tuple[float, float], ...]
    window: tuple[int, int, int]

    @classmethod
    def for_model(cls, saved: SavedModel, window: Sequence[int]) -> Self:
        """Return parameters that suit a model: about one window, in another orientation and voxel size than the model's.

        Args:
            saved: Settings of the model.
            window: Voxels of the window with which the image is predicted.

        Returns:
            The parameters.
        """
        settings = saved.preprocessing
        target = settings.target_spacing((1.0, 1.0, 1.0))
        spacing = [size * _COARSER if settings.spacing else size for size in target]
        flat = saved.window[saved.slice_axis] == 1
        wanted = [_SLICES if flat and axis == saved.slice_axis else size for axis, size in enumerate(window)]
        shape = [max(1, round(n * new / old)) for n, new, old in zip(wanted, target, spacing, strict=True)]
        codes = "".join(_OPPOSITE[letter] for letter in settings.orientation or "LPI")
        ranges = [_range_of(channel) for channel in settings.channels]
        return cls.parse(
            {"shape": shape, "spacing": spacing, "axcodes": codes, "ranges": ranges, "window": window}
        )

    def volume(self) -> Volume:
        """Return the image `(C, X, Y, Z)` float32: a ball in noise."""
        pattern = _pattern(self.shape)
        data = [
            np.float32(low)
            + np.roll(pattern, channel, axis=0).astype(np.float32) * np.float32((high - low) / _TOP)
            for channel, (low, high) in enumerate(self.ranges)
        ]
        return Volume(np.stack(data), _oriented(self.shape, self.spacing, self.axcodes))


class Reference(Config):
    """The contents of ``reference.json``.

    Attributes:
        format: Version of the file.
        arithmetic: What results may depend on: version of torch, processor and its instructions.
        generated: Parameters of the image.
        image: SHA-256 of its voxels.
        prepared: SHA-256 of the voxels that the network sees.
        labels: SHA-256 of the label map.
        stride: Every how many voxels of the label map `sample` holds one.
        sample: Label values, uint16, compressed with gzip, as Base64.
        logits: Some logits, from all parts of the image and all classes.
    """

    format: Literal[1] = 1
    arithmetic: dict[str, str]
    generated: GeneratedImage
    image: str
    prepared: str
    labels: str
    stride: int
    sample: str
    logits: tuple[float, ...]

    @property
    def label_sample(self) -> NDArray[np.uint16]:
        """The stored part of the label map."""
        return np.frombuffer(gzip.decompress(base64.b64decode(self.sample)), dtype="<u2")


@dataclass(frozen=True)
class Difference:
    """A difference between the reference output and what the model computes now.

    Attributes:
        field: What differs: ``image``, ``preprocessing``, ``logits`` or ``labels``.
        found: What was found.
        expected: What was expected.
    """

    field: str
    found: str
    expected: str


def write_reference(folder: Path) -> None:
    """Compute the reference output of a complete model folder and write ``reference.json``.

    If the model cannot be run on the processor, for example because memory does not suffice, this is a warning: a finished
    training is not lost for it.

    Args:
        folder: The model folder.
    """
    try:
        reference = _reference_of(folder)
    except Exception as error:
        if not isinstance(error, MedsegError) and not is_out_of_memory(error):
            raise
        warn_once(
            f"{SavedModel.load(folder / 'config.yaml').name}: reference output: found that the model cannot be run on the processor "
            f"({error}), expected labels of a generated image. The model folder is written without {FILE}."
        )
        return
    write_text(folder / FILE, json.dumps(reference.to_plain(), indent=1) + "\n")


def _reference_of(folder: Path) -> Reference:
    """Return the output for the smallest window that the network accepts: half of the model's, all of it, or twice as much."""
    saved = SavedModel.load(folder / "config.yaml")
    for window in (_window(saved), saved.window):
        with suppress(ModelError):
            return compute_reference(folder, GeneratedImage.for_model(saved, window))
    double = tuple(n if n == 1 else 2 * n for n in saved.window)
    return compute_reference(folder, GeneratedImage.for_model(saved, double))


def read_reference(folder: Path) -> Reference | None:
    """Return the reference output of a model folder.

    Args:
        folder: The model folder.

    Returns:
        The output; None if the folder has none.

    Raises:
        ModelError: The file is of another format.
        DataError: The file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    values = read_object(path)
    check_format(values.get("format"), FORMAT, path, "reference output", error=ModelError)
    return Reference.parse(values, source=str(path))


def compare_reference(folder: Path, reference: Reference) -> tuple[Difference, ...]:
    """Compare the stored output with what the model computes now.

    On the same arithmetic, every bit must be the same. Otherwise few labels, and logits within a tolerance, may differ.

    Args:
        folder: The model folder.
        reference: Its reference output.

    Returns:
        The differences.

    Raises:
        ModelError: The model cannot be loaded or applied.
    """
    now = compute_reference(folder, reference.generated)
    if now.image != reference.image:
        return (Difference("image", "another generated image", "the image of the reference output"),)
    return tuple(_differences(reference, now))


def _differences(old: Reference, new: Reference) -> Iterator[Difference]:
    same = old.arithmetic == new.arithmetic
    if same and old.prepared != new.prepared:
        yield Difference(
            "preprocessing",
            "a prepared image with another hash",
            "the same bits as when the folder was written",
        )
    kind = "the same bits, on the same arithmetic" if same else "nearly the same, on another arithmetic"
    apart = _apart(old.logits, new.logits)
    if apart > (0.0 if same else LOGIT_TOLERANCE):
        limit = "" if same else f", at most {LOGIT_TOLERANCE:g} of the largest apart"
        yield Difference("logits", f"logits that differ by {apart:.3g} of the largest", f"{kind}{limit}")
    share = _same_share(old.label_sample, new.label_sample)
    if (same and old.labels != new.labels) or share < SAME_LABELS_SHARE:
        limit = "" if same else f", in at least {SAME_LABELS_SHARE:.0%} of the voxels"
        yield Difference("labels", f"the same label in {share:.2%} of the voxels", f"{kind}{limit}")


def _apart(old: tuple[float, ...], new: tuple[float, ...]) -> float:
    if len(old) != len(new):
        return math.inf
    first, second = np.array(old), np.array(new)
    return float(np.abs(first - second).max() / max(np.abs(first).max(), 1e-30))


def _same_share(old: NDArray[np.uint16], new: NDArray[np.uint16]) -> float:
    return float((old == new).mean()) if old.shape == new.shape else 0.0


def compute_reference(folder: Path, generated: GeneratedImage) -> Reference:
    """Return what a model computes for its generated image, on the processor with one thread, which sums in a fixed order.

    Args:
        folder: The model folder.
        generated: Parameters of the image.

    Returns:
        The output.

    Raises:
        ModelError: The model cannot be loaded or applied.
    """
    predictor, image = _predictor(folder, generated.window), generated.volume()
    with _one_thread():
        labels = predictor(image).data
        prepared = predictor.prepare(image).with_first_stage()
        seen = np.concatenate(
            [prepared.image.slices(z, z + 1) for z in range(prepared.image.shape[1])], axis=1
        )
        blocks = window_slices(prepared.image, predictor.network, predictor.engine.sliding)
        logits = torch.cat([block.clone() for block in blocks]).flatten().double()
    chosen = logits[stored_places(len(logits))]
    stride = math.ceil(labels.size / _MOST_VOXELS)
    sample = np.ascontiguousarray(labels).ravel()[::stride].astype("<u2")
    return Reference(
        arithmetic=_arithmetic(),
        generated=generated,
        image=_hash(image.data),
        prepared=_hash(seen),
        labels=_hash(labels),
        stride=stride,
        sample=base64.b64encode(gzip.compress(sample.tobytes(), 9, mtime=0)).decode(),
        logits=tuple(chosen.tolist()),
    )


def stored_places(count: int) -> Tensor:
    """Return the indices of the logits that are stored, from the first of `count` to the last."""
    # float32 rounds the last index up if there are more than 2**24 logits
    return torch.linspace(0, count - 1, _LOGITS).long().clamp(max=count - 1)


_OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))


def _oriented(shape: Sequence[int], spacing: Sequence[float], codes: str) -> Grid:
    """Return a grid whose axes have the given directions."""
    rows = {letter: row for row, pair in enumerate(("RL", "AP", "SI")) for letter in pair}
    affine = np.zeros((4, 4))
    for axis, letter in enumerate(codes):
        affine[rows[letter], axis] = spacing[axis] * (1 if letter in "RAS" else -1)
    affine[3, 3] = 1
    x, y, z = shape
    return Grid((x, y, z), affine)


def _pattern(shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Return whole numbers from 0 to 255: noise, brighter inside a ball. Whole numbers are the same on every machine."""
    index = np.indices(shape, dtype=np.int64)
    mixed = (index[0] * 73_856_093) ^ (index[1] * 19_349_663) ^ (index[2] * 83_492_791)
    noise = ((mixed * 2_654_435_761) >> 13) & 63
    away = sum(((2 * one - n + 1) * 256 // max(n, 1)) ** 2 for one, n in zip(index, shape, strict=True))
    pattern: NDArray[np.int64] = noise + np.where(away < 160**2, 150, 30)
    return pattern


def _range_of(channel: Normalization) -> tuple[float, float]:
    """Return the intensities of a channel: those that are not clipped, or whole numbers as in a natural image."""
    if channel.method == "ct" and channel.low is not None and channel.high is not None:
        return channel.low, channel.high
    return 0.0, _TOP


def _window(saved: SavedModel) -> tuple[int, int, int]:
    """Return the window of the reference: that of the model, halved along long axes of 3D models."""
    if min(saved.window) == 1:
        return saved.window
    x, y, z = (n if n <= _WHOLE_EDGE else (n + 1) // 2 for n in saved.window)
    return x, y, z


def _predictor(folder: Path, window: tuple[int, int, int]) -> Predictor:
    """Return a predictor on the processor in single precision, without what users may change."""
    model, saved, labels = load_model(folder)
    inner = first_stage_folder(folder, saved)
    predict = saved.predict.merged(
        {
            "mirror_axes": (),
            "engine": "torch",
            "precision": "float32",
            "batch_size": 1,
            "compile": False,
            "skip_empty": False,
        }
    )
    smaller = saved.replace(window=window, predict=predict.to_plain(), training_data=None)
    first_stage = None
    if inner is not None:
        first_stage = _predictor(inner, SavedModel.load(inner / "config.yaml").window)
    return Predictor(model, smaller, labels, device="cpu", first_stage=first_stage)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _arithmetic() -> dict[str, str]:
    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "processor": _processor(),
    }


def _processor() -> str:
    """Return the name of the processor, on which the choice of kernels depends."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")), ""
    )


def _hash(data: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(data).tobytes()).hexdigest()
