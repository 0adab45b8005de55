"""The table of findings: code, severity, meaning and remedy. Codes are stable: they are never renamed or reused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""Severities, the worst first. An error is refused by training or falsifies its result; a warning should be examined; a
note is worth knowing."""


@dataclass(frozen=True)
class FindingKind:
    """What all findings with one code have in common.

    Attributes:
        code: Stable name.
        severity: ``error``, ``warning`` or ``note``.
        meaning: What is wrong, as a phrase.
        expected: What is expected, unless a finding states it in more detail.
        remedy: What to do, as sentences, unless a finding states it in more detail.
    """

    code: str
    severity: Severity
    meaning: str
    expected: str
    remedy: str


_ROWS: tuple[tuple[str, Severity, str, str, str], ...] = (
    # Files
    ("IMAGE_MISSING", "error", "An image that the dataset lists, or that a label map belongs to, does not exist", "an image file", "Restore the image, or leave the case out."),
    ("LABEL_MISSING", "error", "A label map or instance map that the dataset lists does not exist", "a label map for the image", "Restore the label map, or leave the case out."),
    ("FILE_UNREADABLE", "error", "A path cannot be opened: it is no file, or reading it is not permitted", "a file with read permission", "Give the file itself, and correct its permissions."),
    ("FILE_EMPTY", "error", "A file has no content", "an image file", "Copy or download the file again."),
    ("FILE_IS_WEB_PAGE", "error", "An HTML page was saved under the name of an image", "an image file", "The download failed: download the file again."),
    ("FILE_IS_GIT_LFS_POINTER", "error", "A Git LFS pointer is in the place of an image", "an image file", "Run git lfs pull."),
    ("FILE_IS_ARCHIVE", "error", "An archive or packed file has the name of an image", "an image file", "Unpack it."),
    ("FILE_IS_NOT_AN_IMAGE", "error", "A file of another kind has the name of an image", "an image file", "Give the image, or convert the file."),
    ("FILE_DAMAGED", "error", "The voxels end early, or do not match their checksum", "all voxels that the header declares", "Copy the file again."),
    ("HEADER_INVALID", "error", "A field of a header has a value that no reader can use", "a valid header", "Convert the file again from its source."),
    ("HEADER_CONTRADICTORY", "warning", "A field of a header contradicts others; the file can be read", "consistent fields", "Convert the file again from its source."),
    ("NAME_DIFFERS_FROM_CONTENT", "warning", "Gzip data without .gz in the name, or the other way round", "a name that fits the content", "Rename the file."),
    ("READER_NOTE", "warning", "The reader of the file found something unusual that does not prevent reading", "nothing unusual", "Check the file."),
    ("DICOM_SERIES_INVALID", "error", "A DICOM folder is not one complete series", "one complete series", "Export the series again."),
    # Geometry
    ("ORIENTATION_UNKNOWN", "error", "A NIfTI header with neither qform nor sform: left and right are a guess", "qform_code or sform_code above 0", "Set the code of the right one, or choose with --orientation-from."),
    ("QFORM_SFORM_AXES_DIFFER", "error", "The qform and the sform disagree about the directions of the axes", "the same axes", "Correct the wrong one, or choose with --orientation-from."),
    ("QFORM_SFORM_DIFFER", "warning", "The qform and the sform place the image differently; programs differ in which they use", "the same place", "Correct the wrong one, or choose with --orientation-from."),
    ("PIXDIM_DIFFERS", "warning", "The voxel sizes in pixdim and in the affine differ; programs differ in which they use", "the same voxel sizes", "Correct the wrong one, or choose with --orientation-from."),
    ("AFFINE_INVALID", "error", "An affine is not finite, not invertible, or far from right angles", "a finite, invertible affine", "Correct the header."),
    ("AXES_SHEARED", "warning", "The axes are not at right angles, as after a CT with a tilted gantry", "right angles", "Resample the image to an orthogonal grid if other programs must display it."),
    ("VOXEL_SIZE_IMPLAUSIBLE", "error", "Voxel sizes that no scanner produces, often a mistake of units", "0.0001 to 100 mm", "Check the units of the header."),
    ("VOXELS_ANISOTROPIC", "warning", "Voxels are extremely long, often a mistake of units in one axis", "edges that differ at most 100 times", "Check the header."),
    ("SHAPE_CHANNEL_DIFFERS", "error", "Channels of a case have different numbers of voxels", "the shape of the first channel", "Resample the channel to the grid of the first one."),
    ("GRID_CHANNEL_DIFFERS", "error", "Channels of a case are at different places", "the grid of the first channel", "Resample the channel to the grid of the first one."),
    ("SHAPE_LABEL_DIFFERS", "error", "A label map has another number of voxels than its image", "the shape of the image", "Use the label map of this image, or resample it to the grid of the image."),
    ("GRID_LABEL_DIFFERS", "error", "A label map is at another place than its image", "the grid of the image", "Resample it to the grid of the image; if only its header is wrong, take the grid of the image (--repair)."),
    ("ORIENTATIONS_MIXED", "note", "Images are stored in several orientations", "one orientation", "Nothing needs to be done unless one was exported in another way: medseg reorients all images."),
    # Images
    ("CHANNEL_COUNT_DIFFERS", "error", "A case has another number of channels than the dataset", "one channel for each channel name", "Give all channels of the case."),
    ("IMAGE_SEVERAL_CHANNELS", "note", "A volume that belongs to no dataset holds several channels, volumes or colours", "one volume", "Split it, or use a model with as many channels."),
    ("IMAGE_BITS_DIFFER", "note", "Some images are stored with 8 bits and others with more, so some may have been scaled", "the same number of bits", "Check whether the images with 8 bits were scaled; if so, export them again."),
    ("IMAGE_NOT_FINITE", "error", "An image contains NaN or infinity", "finite voxels", "Replace these voxels, for example by the value of the background."),
    ("IMAGE_NOT_EXACT", "warning", "An image contains whole numbers that float32 rounds", "at most 16777216", "Scale the intensities if small differences between them matter."),
    ("IMAGE_CONSTANT", "warning", "All voxels of a channel have the same value", "an image with contrast", "Restore the image, or leave the case out."),
    ("CT_WITHOUT_AIR", "warning", "A channel named CT has no values of air", "values near -1000 HU", "Check that the image is a CT in Hounsfield units: subtract the offset (usually 1024), or rename the channel."),
    ("CT_NAMED_OTHERWISE", "warning", "A channel that is not named CT looks like CT", "the name CT", "Rename the channel to CT, or set preprocess.normalize to ct."),
    ("SPACING_OUTLIER", "warning", "The voxel size differs by far from that of the other cases", "a voxel size like that of the other cases", "Check the header against the source of the image."),
    ("SHAPE_OUTLIER", "note", "The field of view differs by far from that of the other cases", "a field of view like that of the other cases", "Check that the image shows the same part of the body."),
    ("INTENSITY_OUTLIER", "note", "The intensities differ by far from those of the other cases", "intensities like those of the other cases", "Check the units and the modality of the image."),
    # Labels
    ("LABEL_NOT_FINITE", "error", "A label map contains NaN or infinity", "whole numbers", "Save the label map again as integers."),
    ("LABEL_NOT_WHOLE", "error", "A label map contains values that are not whole numbers", "whole numbers", "Give the label map as it was before interpolation; if rounding restores it, use --repair."),
    ("PROBABILITIES_INVALID", "error", "Label probabilities do not fit the image or the labels, or are no probabilities", "one channel per label, with numbers from 0 to 1 whose sum is 1", "Store one channel per label on the grid of the image."),
    ("LABEL_ROUNDED", "note", "A label map is stored as fractions that are whole numbers up to rounding", "whole numbers", "Save the label map again as integers for other programs."),
    ("LABEL_VALUE_UNKNOWN", "error", "A label map contains a value that the dataset does not name", "the values of the dataset's labels", "Add the value to the labels, correct the label map, or map the value to another (--repair)."),
    ("LABEL_LOOKS_LIKE_INSTANCES", "error", "A label map contains consecutive numbers, as instance maps do", "one value for each label", "If it is an instance map, state \"instances\": true in dataset.json or data.instances=true, or give it as instances (folder or column); else convert it."),
    ("LABEL_NOT_ANNOTATED", "error", "A label map contains a label that is not annotated in this case", "no voxel of this label", "Add the label to the annotated ones, or correct the label map."),
    ("LABEL_EMPTY", "warning", "A label map contains only background", "at least one labelled voxel", "Check that there is nothing to segment in this image."),
    ("LABEL_FRAGMENTS", "note", "A label of one large part has tiny fragments", "connected parts", "Remove the fragments if they are slips of the annotation tool."),
    ("LABEL_IN_NO_CASE", "warning", "A label of the dataset occurs in no case and cannot be learnt", "at least one case", "Remove the label, or add cases with it."),
    ("LABEL_NAMES_MISSING", "warning", "The dataset does not name its labels", "labels.tsv, or names in dataset.json", "Add labels.tsv (value, name), or data.labels to the config."),
    ("INSTANCES_INVALID", "error", "An instance map contains negative, too large or fractional ids", "ids from 0 to 2147483647", "Renumber the instances."),
    # Datasets and splits
    ("DATASET_UNREADABLE", "error", "The description of a dataset cannot be used", "a valid dataset", "Correct the description."),
    ("COUNT_DIFFERS", "warning", "dataset.json states another number of cases than it lists", "the number of listed cases", "Correct the number, or restore the missing cases."),
    ("FILE_NOT_LISTED", "warning", "A file in a folder of the dataset belongs to no case", "a case for each file", "List the file in dataset.json, or remove it."),
    ("LABEL_WITHOUT_IMAGE", "error", "A map has no image of the same name", "an image of the same name", "Add the image, or remove the map."),
    ("CASE_UNLABELLED", "note", "Cases without a label map, on which a network cannot be trained", "a label map", "Add label maps to train on these cases."),
    ("IMAGE_DUPLICATE", "warning", "Cases with different ids have the same voxels", "another image for each id", "Remove all but one of them."),
    ("LABEL_DUPLICATE", "warning", "Cases with different images have the same label map", "another label map for each image", "Find the label map that belongs to each image."),
    ("SUBJECTS_UNDECLARED", "warning", "The names of cases suggest that persons have several cases, but no subjects are declared; folds keep these cases together", "the subject of each case", "If the guess is wrong, list the cases in a table with a column subject."),
    ("TEST_SHARES_SUBJECT", "note", "Cases without a label map, such as those of a test list, are of subjects who also have annotated cases", "test cases of other subjects", "Do not use these cases to measure how well a model does on new subjects."),
    ("REPAIR_OUTDATED", "error", "A file changed after its repair was written; no repair is applied", "the content that was checked", "Check the dataset again with --repair, or remove the entry."),
    ("SPLIT_INVALID", "error", "A file with splits does not fit the dataset", "splits of this dataset", "Correct the file."),
    ("SPLIT_LEAKS_IMAGE", "error", "The same voxels are in the training and in the validation cases of a fold", "each image on one side", "Remove one of the cases, or move both to one side."),
    ("SPLIT_LEAKS_SUBJECT", "error", "A subject has cases in training and in validation", "all cases of a subject on one side", "Move all cases of the subject to one side."),
    ("SPLIT_MAY_LEAK_SUBJECT", "warning", "By their names, cases of one person are in training and in validation", "all cases of a person on one side", "Declare the subjects in a table of cases, or move the cases to one side."),
    ("LABEL_MISSING_IN_FOLD", "warning", "A label occurs in no training case of a fold", "at least one training case with the label", "Choose other splits, or add cases with the label."),
    # Runs and models
    ("RUN_UNREADABLE", "error", "A file of a run cannot be used", "a complete run", "Copy the run again."),
    ("MODEL_DAMAGED", "error", "A file of a model folder is missing or changed", "the files of the manifest", "Copy the model folder again."),
    ("MODEL_REFERENCE_DIFFERS", "error", "A model does not compute what it computed when its folder was written", "the stored reference output", "Copy the model folder again from where it was trained; if it is intact, this machine computes something else."),
    ("MODEL_WITHOUT_REFERENCE", "note", "A model folder has no reference output to compare with", "reference.json", "Nothing needs to be done; models trained or imported by this version have one."),
    ("MODEL_WITHOUT_TRAINING_DATA", "note", "A model folder has no record of the training images, so that new images cannot be compared with them", "training_data in config.yaml", "Nothing needs to be done; models trained or imported by this version have one."),
    ("IMAGE_UNLIKE_TRAINING", "warning", "An image, or a predicted volume, is outside of the range of the training data of a model", "the range of the training data", "Check the labels: models may fail on images unlike those of their training."),
    ("MODEL_NOT_INVARIANT", "error", "A model predicts other labels if the same image is stored in another way", "the same labels at the same places", "Check preprocessing.orientation in the config.yaml of the model, and test with an image of its training data."),
    ("MODEL_FOLLOWS_FILE_AXES", "note", "A model was trained on the axes of files, so its labels depend on how an image is stored", "an orientation such as RAS", "Give it images in the orientation of its training data."),
    ("MODEL_PREDICTS_BACKGROUND", "note", "A model finds nothing in the image of its self-test, which then shows nothing", "at least one labelled voxel", "Test with an image of the kind that the model was trained on."),
)  # fmt: skip

KINDS: dict[str, FindingKind] = {row[0]: FindingKind(*row) for row in _ROWS}
"""All kinds of findings by code, in the order of the documentation."""


def codes_table() -> str:
    """Return the table of all codes as Markdown, as the documentation shows it."""
    rows = [f"| `{k.code}` | {k.severity} | {k.meaning}. | {k.remedy} |" for k in KINDS.values()]
    return "\n".join(["| code | severity | meaning | remedy |", "|---|---|---|---|", *rows]) + "\n"
