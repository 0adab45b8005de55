from __future__ import annotations

from pathlib import Path

from medseg.viz.html_templates import render_html


def test_values_of_templates_are_escaped(tmp_path: Path) -> None:
    template = tmp_path / "page.html.j2"
    template.write_text("{{ name }}|{{ name | line }}|{{ part | safe }}|{{ 3 | twice }}")
    page = render_html(template, {"twice": lambda value: 2 * value}, name="<script>\n&", part="<b>")
    assert page == "&lt;script&gt;\n&amp;|&lt;script&gt; &amp;|<b>|6"
