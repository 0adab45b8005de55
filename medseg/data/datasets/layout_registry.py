"""The registry of dataset layouts: a name, a reader, and a test that recognises the layout.

A layout is one function decorated with `register_layout`. Installed packages add theirs through the entry point group
``medseg.layouts``. ``docs/guides/add_a_layout.md`` shows both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from medseg.registry import Registry

if TYPE_CHECKING:
    from medseg.data.datasets.cases import Dataset

Reader = TypeVar("Reader", bound="Callable[..., Dataset]")

BUILT_IN_LAYOUTS = ("table", "msd", "nnunet", "bids", "images", "masks")
"""Names of medseg's own layouts, in the order in which a folder is tested for them."""


@dataclass(frozen=True)
class Layout:
    """One way in which a dataset is arranged on disk.

    Attributes:
        name: Value of ``data.layout``.
        read: Function from the dataset's path to its cases.
        recognise: Function that returns whether a path has this layout. It looks at names and at most at one small file.
        lists_paths: Whether the dataset lists paths of files, so that `read` takes the folder that they may be in as its
            second argument `files_root`.
        lists_absent: Whether the dataset itself says which channels a case lacks, so that `read` takes what to do with them as its
            last argument, ``"refuse"`` or ``"zeros"``.
    """

    name: str
    read: Callable[..., Dataset]
    recognise: Callable[[Path], bool]
    lists_paths: bool = False
    lists_absent: bool = False


LAYOUTS: Registry[Layout] = Registry(
    "layout",
    modules=(
        "medseg.data.datasets.case_tables",
        "medseg.data.datasets.dataset_json",
        "medseg.data.datasets.bids",
        "medseg.data.datasets.image_folders",
        "medseg.data.datasets.mask_folders",
    ),
    entry_point="medseg.layouts",
)


def register_layout(
    name: str,
    *,
    recognise: Callable[[Path], bool],
    lists_paths: bool = False,
    lists_absent: bool = False,
) -> Callable[[Reader], Reader]:
    """Return a decorator that registers a reader as a layout.

    The reader receives the path that the user gave, a folder or a file, and returns a `Dataset`. It may list files that
    do not exist: `read_dataset` reports all of them at once.

    Args:
        name: Value of ``data.layout`` that selects the layout.
        recognise: Function that returns whether a path has this layout, used by ``auto``.
        lists_paths: Whether the dataset lists paths of files; the reader then receives ``files_root``, a folder or None, as
            its second argument.
        lists_absent: Whether the dataset itself says which channels a case lacks; the reader then receives ``"refuse"`` or
            ``"zeros"`` as its last argument.

    Returns:
        The decorator, which returns the reader unchanged.

    Raises:
        ConfigError: The name is already registered.
    """

    def register(read: Reader) -> Reader:
        LAYOUTS.add(name, Layout(name, read, recognise, lists_paths, lists_absent))
        return read

    return register


def ordered_layouts() -> list[Layout]:
    """Return all layouts in the order in which a path is tested for them: medseg's own first, others by name."""
    names = LAYOUTS.names()
    others = [name for name in names if name not in BUILT_IN_LAYOUTS]
    return [LAYOUTS.get(name) for name in (*BUILT_IN_LAYOUTS, *others)]
