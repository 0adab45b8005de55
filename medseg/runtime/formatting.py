"""Untrusted text for comments, HTML and figures; numbers in readable form."""

from __future__ import annotations

from collections.abc import Sequence


def single_line(text: str) -> str:
    r"""Put text on one line and replace unprintable characters.

    Control characters could end a YAML comment or reverse the direction of text in a page.

    Args:
        text: Text of unknown origin.

    Returns:
        The text without white space at either end. Other white space becomes single spaces, unprintable characters
        become ``?``.

    >>> single_line("a\n b\x07")
    'a b?'
    """
    line = " ".join(text.split())
    return "".join(character if character.isprintable() else "?" for character in line)


def shortened(text: str, most: int) -> str:
    """Shorten text to one line of limited length.

    Args:
        text: Text of unknown origin.
        most: Largest length.

    Returns:
        The text as `single_line` returns it; if that is longer than `most` characters, its beginning and ``…``.
    """
    line = single_line(text)
    return line if len(line) <= most else line[: most - 1] + "…"


def listed(items: Sequence[str], most: int) -> str:
    """Join the first of some items by commas, with the number of the others.

    Args:
        items: Names, or other short texts.
        most: Largest number of items that are shown.

    Returns:
        Text such as ``a, b and 3 more``.

    >>> listed(["a", "b", "c"], 2), listed(["a", "b"], 2)
    ('a, b and 1 more', 'a, b')
    """
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def error_reason(error: BaseException, most: int = 200) -> str:
    r"""Return the text of a library's error for a message, or its class if it has none.

    Args:
        error: The error.
        most: Largest length of the text.

    Returns:
        One line.

    >>> error_reason(ValueError("bad\nheader")), error_reason(ValueError())
    ('bad header', 'ValueError')
    """
    return " ".join(str(error).split())[:most] or type(error).__name__


def format_number(value: float) -> str:
    """Format a number with about four significant digits.

    Args:
        value: The number.

    Returns:
        The number as text; from 1000, a whole number with commas instead of an exponent.

    >>> format_number(0.03120), format_number(48642.3)
    ('0.0312', '48,642')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def percent(share: float) -> str:
    """Format a fraction as a percentage with two significant digits.

    Args:
        share: Fraction in [0, 1].

    Returns:
        Text such as ``0.031 %``, ``12 %`` or ``100 %``.
    """
    return f"{100 * share:.2g} %" if share < 0.0995 else f"{100 * share:.0f} %"


def pluralise(number: int, noun: str) -> str:
    """Format a number together with its noun.

    Args:
        number: How many there are.
        noun: The noun in singular, with a plural in ``s``.

    Returns:
        Text such as ``1 case`` or ``1,205 cases``.
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def format_duration(seconds: float) -> str:
    """Return an approximate time for people, with two digits.

    Args:
        seconds: Seconds.

    Returns:
        Seconds up to 100 s, minutes up to 90 min, and hours beyond.

    >>> format_duration(1.62), format_duration(715), format_duration(12_600)
    ('1.6 s', '12 min', '3.5 h')
    """
    if seconds < 100:
        return f"{_two_digits(seconds)} s"
    return f"{_two_digits(seconds / 60)} min" if seconds < 5400 else f"{_two_digits(seconds / 3600)} h"


def _two_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{float(f'{value:.2g}'):g}"
