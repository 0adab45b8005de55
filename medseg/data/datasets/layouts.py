"""Reading datasets as they are arranged on disk, without renaming or moving a file.

Layouts: ``msd`` (Medical Segmentation Decathlon; nnU-Net v1 wrote the same list), ``nnunet`` (nnU-Net v2 raw),
``bids`` (raw images with label maps in derivatives), ``table`` (a TSV or CSV file that lists cases), ``images`` and ``masks``
(folders of images with maps of the same names), and those of installed packages.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from medseg.data.datasets.case_tables import TABLE_NAME
from medseg.data.datasets.cases import UNDECIDED, Dataset, ReadingOptions, require_files, with_absent_channels
from medseg.data.datasets.image_folders import IMAGES
from medseg.data.datasets.layout_registry import LAYOUTS, Layout, ordered_layouts
from medseg.data.datasets.repairs import apply_repairs
from medseg.errors import DataError, did_you_mean, no_such_path


def read_dataset(path: str | Path, layout: str = "auto", reading: ReadingOptions | None = None) -> Dataset:
    """Find the cases of a dataset.

    Args:
        path: The dataset's folder, its ``dataset.json``, or a table of cases (TSV or CSV).
        layout: Name of the layout; ``"auto"`` recognises it.
        reading: What the user decided about files whose headers are wrong; None decides nothing.

    Returns:
        Dataset with every file present. Test images that a ``dataset.json`` lists are cases without a label map.

    Raises:
        DataError: The layout is unknown, files are missing (all are listed), a path leaves the folder, ids are
            duplicated or unusable, or labels are not plain values.

    Examples:
        >>> import tempfile
        >>> from medseg.data.datasets.phantom import write_phantoms
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write_phantoms(folder, cases=1, shape=(12, 10, 8), spacing=(30, 30, 30))
        ...     read_dataset(folder).ids
        ('phantom_000',)
    """
    dataset = list_cases(path, layout, reading)
    require_files(dataset.cases, str(path))
    return dataset


def list_cases(path: str | Path, layout: str = "auto", reading: ReadingOptions | None = None) -> Dataset:
    """Find the cases of a dataset without checking that their files exist.

    Args:
        path: As for `read_dataset`.
        layout: As for `read_dataset`.
        reading: As for `read_dataset`.

    Returns:
        Dataset whose files may be missing.

    Raises:
        OutdatedRepairsError: Files changed after their repairs were written.
        UnpairedMapsError: Maps in folders have no image of the same name; the error holds the dataset without them.
        DataError: As for `read_dataset`, except missing files.
    """
    path = Path(path)
    if not path.exists():
        fix = "Give a dataset's folder or a table of cases (TSV or CSV)."
        raise DataError(no_such_path(path, expected="a dataset", fix=fix))
    chosen = _recognised(path) if layout == "auto" else _named(layout)
    wanted = reading or UNDECIDED
    arguments = [wanted.files_root] if chosen.lists_paths else []
    dataset = chosen.read(path, *arguments, *([wanted.absent_channels] if chosen.lists_absent else []))
    if not dataset.cases:
        raise DataError(
            f"{path}: found no case of layout {chosen.name}. Check the folder, or name its layout."
        )
    if reading is None:
        return dataset
    if reading.absent_channels == "zeros" and not chosen.lists_absent:
        cases = with_absent_channels(dataset.cases, len(dataset.channel_names))
        dataset = replace(dataset, cases=cases)
    decided = replace(reading, repairs=None)  # of a case, only what its own repairs say counts
    dataset = replace(dataset, cases=tuple(replace(case, reading=decided) for case in dataset.cases))
    return dataset if reading.repairs is None else apply_repairs(dataset, reading.repairs)


def is_dataset(path: str | Path) -> bool:
    """Return whether `read_dataset` would recognise a layout here; the content is not checked.

    Args:
        path: A file or folder.

    Returns:
        True if a layout is recognised.

    Raises:
        DataError: There is a ``dataset.json`` that cannot be read.
    """
    return _first_layout(Path(path)) is not None


def checked_layout(name: str) -> str:
    """Return the name of a layout, ``auto`` included.

    Args:
        name: Value of ``data.layout``.

    Returns:
        The same name.

    Raises:
        DataError: There is no such layout.
    """
    if name != "auto":
        _named(name)
    return name


def _named(name: str) -> Layout:
    known = ["auto", *LAYOUTS.names()]
    if name not in known:
        raise DataError(
            f"layout: found {name!r}, expected one of {', '.join(known)}.{did_you_mean(name, known)} Correct it."
        )
    return LAYOUTS.get(name)


def _first_layout(path: Path) -> Layout | None:
    return next((layout for layout in ordered_layouts() if layout.recognise(path)), None)


def _recognised(path: Path) -> Layout:
    """Return the first layout that recognises the path, or raise."""
    layout = _first_layout(path)
    if layout is not None:
        return layout
    if (path / IMAGES).is_dir():
        raise DataError(
            f"{path}: found {IMAGES}/ without labels/, masks/, segmentations/ or instances/, expected one of these folders next to it. Add "
            "it, with a map of the same name for each annotated image."
        )
    if path.is_dir() and not any(not item.name.startswith(".") for item in path.iterdir()):
        raise DataError(
            f"{path}: found an empty folder, expected a dataset or images. Check the path, or copy the files there."
        )
    raise DataError(
        f"{path}: found no dataset.json, {TABLE_NAME} or sub-* folder, nor images next to labels, masks, segmentations or instances, "
        "expected one of them. Write a table with the columns case, image and label."
    )
