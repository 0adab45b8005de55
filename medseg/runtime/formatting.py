"""Names that others gave, made fit for a comment, a page or a picture; numbers as people write them."""

from __future__ import annotations


def single_line(text: str) -> str:
    """One line of `text`: white space run together, and what cannot be printed shown as ``?``.

    Control characters would end a YAML comment or turn the direction of a page's text.
    """
    line = " ".join(text.split())
    return "".join(character if character.isprintable() else "?" for character in line)


def shortened(text: str, most: int) -> str:
    """`printable` text of at most `most` characters."""
    line = single_line(text)
    return line if len(line) <= most else line[: most - 1] + "…"


def format_number(value: float) -> str:
    """A number with about four significant digits and no exponent where it is large: ``0.0312``, ``31.2``, ``48,642``."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def percent(share: float) -> str:
    """A share in [0, 1] with two significant digits, such as ``0.031 %``."""
    return f"{100 * share:.2g} %" if share < 0.0995 else f"{100 * share:.0f} %"


def pluralise(number: int, noun: str) -> str:
    """How many there are: ``1 case``, ``1,205 cases``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
