"""Datasets as they lie on disk, read without renaming or moving a file.

Layouts: ``msd`` (Medical Segmentation Decathlon; nnU-Net v1 wrote the same list), ``nnunet`` (nnU-Net v2 raw),
``bids`` (raw images with label maps in derivatives), ``table`` (a TSV file that lists cases), ``images`` (folders of
pictures with label maps or instance maps of the same names).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from medseg.data.datasets.bids import read_bids
from medseg.data.datasets.case_tables import TABLE_NAME, read_table
from medseg.data.datasets.cases import Case, Dataset, require_files, require_unique
from medseg.data.datasets.dataset_json import read_msd, read_nnunet
from medseg.data.datasets.image_folders import IMAGES, is_image_folder, read_image_folder
from medseg.data.datasets.names import CHANNEL_FILE, sanitised_id, visible_files
from medseg.errors import DataError, did_you_mean
from medseg.io.files import stem_of, suffix_of
from medseg.storage.json_files import read_object

Layout = Literal["auto", "msd", "nnunet", "bids", "table", "images"]

_READERS: Mapping[str, Callable[[Path], Dataset]] = {
    "msd": read_msd,
    "nnunet": read_nnunet,
    "bids": read_bids,
    "table": read_table,
    "images": read_image_folder,
}


def read_dataset(path: str | Path, layout: Layout = "auto") -> Dataset:
    """Find the cases of a dataset.

    Args:
        path: the dataset's folder, its ``dataset.json``, or a TSV table of cases.
        layout: ``"auto"`` looks at what is there.

    Returns:
        Dataset with every file present. Test images that a ``dataset.json`` lists are cases without label.

    Raises:
        DataError: unknown layout; missing files, all of them listed; a path that leaves the folder; ids that
            are doubled or unusable; labels that are not plain values.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such folder or file. Give a dataset's folder or a TSV table of cases.")
    if layout not in get_args(Layout):
        raise DataError(
            f"layout: found {layout!r}, expected one of {', '.join(get_args(Layout))}."
            f"{did_you_mean(layout, get_args(Layout))} Correct it."
        )
    chosen = _recognised(path) if layout == "auto" else layout
    dataset = _READERS[chosen](path)
    if not dataset.cases:
        raise DataError(f"{path}: found no case of layout {chosen}. Check the folder, or name its layout.")
    require_files(dataset.cases, str(path))
    return dataset


def is_dataset(path: str | Path) -> bool:
    """Whether `read_dataset` would recognise a layout here; the content is not checked."""
    try:
        _recognised(Path(path))
    except DataError:
        return False
    return True


def _recognised(path: Path) -> str:
    """Name of the layout, by the files that give it away."""
    if path.suffix.lower() == ".tsv" or (path / TABLE_NAME).is_file():
        return "table"
    description = path if path.suffix == ".json" else path / "dataset.json"
    if description.is_file():
        return "msd" if "training" in read_object(description) else "nnunet"
    if any(path.glob("sub-*/")):
        return "bids"
    if is_image_folder(path):
        return "images"
    if (path / IMAGES).is_dir():
        raise DataError(
            f"{path}: found {IMAGES}/ without labels/ or instances/, expected one of them beside it. Put a map of the same "
            "name there for each image that has one."
        )
    if path.is_dir() and not any(not item.name.startswith(".") for item in path.iterdir()):
        raise DataError(f"{path}: found an empty folder, expected a dataset or images. Check the path.")
    raise DataError(
        f"{path}: found no dataset.json, {TABLE_NAME} or sub-* folder, nor images beside labels or instances, expected "
        "one of them. "
        "Write a table with the columns case, image and label."
    )


def read_images(paths: str | Path | Sequence[str | Path], channels: int = 1) -> list[Case]:
    """Cases without labels, from an image file, several, a folder of images, or a DICOM series.

    With several channels, files named ``<id>_0000`` … ``<id>_0003`` make one case; other files must hold all
    channels themselves. With one channel, ``_0000`` is taken off if every name ends so. A folder that holds no
    image file is one DICOM series, or if it holds only folders, one series in each.

    Args:
        paths: files or folders.
        channels: how many channels an image must have.

    Returns:
        Cases sorted by id. Ids are file names without suffix, unusual characters replaced by ``_``.

    Raises:
        DataError: nothing there; missing channels, all of them listed; two files with the same id.
    """
    given = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]
    files = [file for path in given for file in _image_files(path)]
    cases = sorted(_grouped(files, channels), key=lambda case: case.id)
    require_unique(cases, "images")
    require_files(cases, "images")
    return cases


def output_stem(case: Case) -> str:
    """The name for what is made of a case of `read_images`: the file's own, without suffix and channel number."""
    stem = stem_of(case.images[0])
    match = CHANNEL_FILE.fullmatch(stem)
    own = (stem, match["id"] if match else stem)
    return next((name for name in own if sanitised_id(name) == case.id), case.id)


def _image_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder. Check the path.")
    files = visible_files(path)
    images = [file for file in files if suffix_of(file)]
    headers = {stem_of(file) for file in images if suffix_of(file) == ".hdr"}
    images = [f for f in images if suffix_of(f) != ".img" or stem_of(f) not in headers]
    if images:
        return images
    if files:
        return [path]
    folders = [item for item in sorted(path.iterdir()) if item.is_dir() and not item.name.startswith(".")]
    series = [folder for folder in folders if visible_files(folder)]
    if not series:
        raise DataError(f"{path}: found no image, expected NIfTI, NRRD or MHA files, or a DICOM series.")
    return series


def _grouped(files: Sequence[Path], channels: int) -> list[Case]:
    numbered = [CHANNEL_FILE.fullmatch(stem_of(file)) for file in files]
    if channels == 1 and all(match and match["channel"] == "0000" for match in numbered):
        return [
            Case(sanitised_id(match["id"]), (f,)) for f, match in zip(files, numbered, strict=True) if match
        ]
    if channels == 1 and all(numbered) and len({match["id"] for match in numbered if match}) < len(files):
        raise DataError(
            f"{files[0]}: found several channels a case (_0000, _0001, ...), expected 1 as the model has. Give the "
            "files of that channel, such as FOLDER/*_0000.nii.gz."
        )
    if channels == 1 or not any(numbered):
        return [Case(sanitised_id(stem_of(file)), (file,)) for file in files]
    groups: dict[str, list[Path]] = defaultdict(list)
    for file, match in zip(files, numbered, strict=True):
        groups[match["id"] if match else stem_of(file)].append(file)
    return [_channel_case(name, group, channels) for name, group in groups.items()]


def _channel_case(name: str, files: list[Path], channels: int) -> Case:
    """One case of numbered files, or of one file that holds all channels."""
    if len(files) == 1 and not CHANNEL_FILE.fullmatch(stem_of(files[0])):
        return Case(sanitised_id(name), (files[0],))
    expected = [files[0].with_name(f"{name}_{i:04d}{suffix_of(files[0])}") for i in range(channels)]
    extra = sorted(file.name for file in files if file not in expected)
    if extra:
        raise DataError(
            f"{files[0].parent}: case {name}: found {', '.join(extra)}, expected {expected[0].name} to "
            f"{expected[-1].name} for {channels} channels. Remove or renumber it."
        )
    return Case(sanitised_id(name), tuple(expected))
