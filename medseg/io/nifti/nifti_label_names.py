"""Names of labels in the header of a NIfTI file, as TotalSegmentator and 3D Slicer store them.

They are a header extension that holds a ``LabelTable`` in XML, in the form of the Connectome Workbench's Caret files.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from xml.etree import ElementTree

import nibabel as nib

from medseg.errors import warn_once
from medseg.labels.colours import Colour
from medseg.labels.label_table import Labels

_PARTS = ("Red", "Green", "Blue")
_LONGEST = 4 << 20  # bytes of a table: some ten thousand names


def nifti_label_names(path: Path) -> dict[int, tuple[str, Colour | None]]:
    """Return the names and colours of label values that the header of a NIfTI file holds.

    Args:
        path: A NIfTI file that can be read.

    Returns:
        Name and colour (None without one) by value, the background included if it is named; empty if the header holds
        no table. A table that cannot be understood is reported by a warning and ignored.
    """
    header = nib.loadsave.load(path).header
    for extension in getattr(header, "extensions", ()):
        text = extension.get_content()
        content = text if isinstance(text, bytes) else str(text).encode()
        content = content.rstrip(b"\0 \n")
        if b"<LabelTable" not in content or len(content) > _LONGEST:
            continue
        try:
            return _parsed(content)
        except (ElementTree.ParseError, ValueError) as error:
            warn_once(
                f"{path}: header extension with label names: found {error}, expected a LabelTable in XML; it is ignored."
            )
    return {}


def label_table(labels: Labels) -> bytes:
    """Return the content of the header extension that names the values of a label map.

    Args:
        labels: The labels; a value that represents a region has the name of the region.

    Returns:
        XML that `nifti_label_names`, TotalSegmentator and 3D Slicer read.

    >>> label_table(Labels.from_names({"liver": 1}))[:58]
    b'<CaretExtension><VolumeInformation Index="0"><LabelTable><'
    """
    root = ElementTree.Element("CaretExtension")
    information = ElementTree.SubElement(root, "VolumeInformation", Index="0")
    table = ElementTree.SubElement(information, "LabelTable")
    named = {label.value: (label.name, label.colour) for label in labels}
    named |= {region.output_value: (region.name, region.colour) for region in labels.regions}
    for value, (name, colour) in sorted(named.items()):
        shares = {part: f"{one / 255:.6g}" for part, one in zip(_PARTS, colour, strict=True)}
        attributes = {"Key": str(value), **shares, "Alpha": "1" if value else "0"}
        label = ElementTree.SubElement(table, "Label", attributes)
        label.text = name
    ElementTree.SubElement(information, "VolumeType").text = "Label"
    return ElementTree.tostring(root, encoding="unicode").encode()


def _parsed(content: bytes) -> dict[int, tuple[str, Colour | None]]:
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise ValueError("a document type, which could expand without end")
    found: dict[int, tuple[str, Colour | None]] = {}
    for label in ElementTree.fromstring(content).iter("Label"):
        name = " ".join("".join(label.itertext()).split())
        if name:
            value = _value(label.get("Key", ""))
            if value in found:
                raise ValueError(f"the value {value} twice")
            found[value] = (name, _colour(label))
    return found


def _value(text: str) -> int:
    """Return the value that digits stand for; `int` would also read underscores and digits of other scripts."""
    if not re.fullmatch(r"\s*-?[0-9]{1,12}\s*", text):
        raise ValueError(f"the value {text[:20]!r}")
    return int(text)


def _colour(label: ElementTree.Element) -> Colour | None:
    """Return the colour of a label, which the file gives as shares of 1."""
    shares = [label.get(part) for part in _PARTS]
    if None in shares:
        return None
    numbers = [float(share or 0) for share in shares]
    if any(math.isnan(number) for number in numbers):
        raise ValueError(f"the colour {shares}")
    red, green, blue = (round(255 * min(max(number, 0.0), 1.0)) for number in numbers)
    return red, green, blue
