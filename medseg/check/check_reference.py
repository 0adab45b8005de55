"""The comparison of a model with the reference output in its folder."""

from __future__ import annotations

from pathlib import Path

from medseg.check.finding import Finding, message_parts
from medseg.errors import MedsegError, collected_warnings


def check_reference(model: Path) -> tuple[list[Finding], list[str]]:
    """Compare what a model computes for its generated image with its reference output.

    Args:
        model: A model folder whose files are those of its manifest.

    Returns:
        Findings, and a sentence if the output is the same.
    """
    from medseg.inference.reference_output import FILE, compare_reference, read_reference

    try:
        reference = read_reference(model)
        if reference is None:
            return [Finding("MODEL_WITHOUT_REFERENCE", str(model), FILE, "no such file")], []
        with collected_warnings():
            differences = compare_reference(model, reference)
    except MedsegError as error:
        parts = message_parts(str(error), model)
        field = parts.field or FILE
        return [
            Finding("MODEL_REFERENCE_DIFFERS", str(model), field, parts.found, parts.expected, parts.remedy)
        ], []
    found = [
        Finding("MODEL_REFERENCE_DIFFERS", str(model), one.field, one.found, one.expected)
        for one in differences
    ]
    return found, [] if found else [f"{model}: the reference output is reproduced."]
