"""Display colours of labels."""

from __future__ import annotations

import colorsys
import re

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255 each."""
IGNORED_COLOUR: Colour = (128, 128, 128)


def distinct_colour(index: int) -> Colour:
    """Return a colour that differs clearly from those of neighbouring indices (hues at the golden angle).

    Args:
        index: Index of a class; 0 is black.

    Returns:
        The colour.

    Examples:
        >>> distinct_colour(0), distinct_colour(1)
        ((0, 0, 0), (31, 81, 204))
    """
    if index == 0:
        return (0, 0, 0)
    hue = (index * 0.618033988749895) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.65 + 0.2 * (index % 2), 0.95 - 0.15 * (index % 3))
    return (round(red * 255), round(green * 255), round(blue * 255))


def colour_to_hex(colour: Colour) -> str:
    """Return a colour as ``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def colour_to_css(colour: Colour) -> str:
    """Return a colour as CSS: ``rgb(31, 81, 204)``."""
    return "rgb({}, {}, {})".format(*colour)


def colour_from_hex(text: str) -> Colour:
    """Return the colour that ``#rrggbb`` stands for; the number sign may be missing.

    Args:
        text: Six hexadecimal digits.

    Returns:
        The colour.

    Raises:
        ValueError: The text is not six hexadecimal digits.
    """
    digits = text.strip().lstrip("#")
    if not re.fullmatch("[0-9a-fA-F]{6}", digits):
        raise ValueError(f"colour: found {text[:20]!r}, expected six hexadecimal digits such as #ff8000")
    return (int(digits[:2], 16), int(digits[2:4], 16), int(digits[4:], 16))
