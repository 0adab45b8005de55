"""Text from files made safe for comments, HTML and figures; numbers in readable form."""

from __future__ import annotations


def single_line(text: str) -> str:
    """Return text on one line: white space becomes single spaces, unprintable characters become ``?``.

    Control characters could end a YAML comment or reverse the direction of text in a page.

    Args:
        text: Text of unknown origin.

    >>> single_line("a\\n b\\x07")
    'a b?'
    """
    line = " ".join(text.split())
    return "".join(character if character.isprintable() else "?" for character in line)


def shortened(text: str, most: int) -> str:
    """Return text on one line of at most `most` characters.

    Args:
        text: Text of unknown origin.
        most: Largest length; longer text ends with ``…``.
    """
    line = single_line(text)
    return line if len(line) <= most else line[: most - 1] + "…"


def format_number(value: float) -> str:
    """Return a number with about four significant digits; large numbers get commas instead of an exponent.

    Args:
        value: The number.

    >>> format_number(0.03120), format_number(48642.3)
    ('0.0312', '48,642')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def percent(share: float) -> str:
    """Return a fraction as a percentage with two significant digits, such as ``0.031 %``.

    Args:
        share: Fraction in [0, 1].
    """
    return f"{100 * share:.2g} %" if share < 0.0995 else f"{100 * share:.0f} %"


def pluralise(number: int, noun: str) -> str:
    """Return a number with its noun, such as ``1 case`` or ``1,205 cases``.

    Args:
        number: How many there are.
        noun: The noun in singular, with a plural in ``s``.
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
