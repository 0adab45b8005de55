"""Class names of the datasets that published models were trained on."""

from __future__ import annotations

BACKGROUND = "background"

COCO: tuple[str, ...] = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light", "fire hydrant",
    "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra",
    "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle", "wine glass", "cup", "fork",
    "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut",
    "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard",
    "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear",
    "hair drier", "toothbrush",
)  # fmt: skip
"""The 80 classes of COCO in the order of their numbers (Lin et al. 2014, arXiv:1405.0312)."""

_UNUSED_NUMBERS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
_LAST_NUMBER = 90

VOC: tuple[str, ...] = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse",
    "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The 20 classes of Pascal VOC (Everingham et al. 2010)."""


def coco_by_number() -> tuple[str, ...]:
    """Return the 91 outputs of networks that use COCO's own numbers, of which ten belong to no class."""
    names = iter(COCO)
    return (
        BACKGROUND,
        *(
            f"unused {number}" if number in _UNUSED_NUMBERS else next(names)
            for number in range(1, _LAST_NUMBER + 1)
        ),
    )


def known_classes(foreground: int) -> tuple[str, ...] | None:
    """Return the classes of COCO after the background, if there are as many; else None."""
    return (BACKGROUND, *COCO) if foreground == len(COCO) else None
