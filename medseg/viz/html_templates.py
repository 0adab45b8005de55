"""Templates of HTML pages, in which every value is escaped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medseg.runtime.formatting import single_line


def render_html(
    template: Path, filters: Mapping[str, Callable[[Any], Any]] | None = None, /, **values: Any
) -> str:
    """Return a page.

    Values come from files of unknown origin: they are escaped unless the template marks them as safe, and the filter ``line``
    puts them on one line.

    Args:
        template: File of the template; it may include others of its folder.
        filters: Further filters by name; None for none.
        **values: Values for the template.

    Returns:
        The text of the page.
    """
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(template.parent), autoescape=True)
    environment.filters |= {"line": single_line, **(filters or {})}
    return environment.get_template(template.name).render(**values)
