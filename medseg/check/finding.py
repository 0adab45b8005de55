"""One finding, and the parts of an error message from which a finding can be built."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from medseg.check.codes import KINDS, SEVERITIES, Severity
from medseg.runtime.formatting import single_line


@dataclass(frozen=True)
class Finding:
    """A possible problem of a file, a case or a dataset.

    Attributes:
        code: Name of the kind of finding, a key of `medseg.check.codes.KINDS`.
        file: The file, relative to the folder of the dataset if it is inside.
        field: Header field, key or property.
        found: What was found.
        expected: What is expected instead; the text of the code if empty.
        remedy: What to do; the text of the code if empty.
        case: Id of the case; empty for a whole dataset.
        cases: Ids of all cases concerned, if there are several.

    Raises:
        KeyError: The code is unknown.

    >>> finding = Finding("LABEL_EMPTY", "labelsTr/a.nii.gz", "voxels", "0 labelled voxels", case="a")
    >>> str(finding)
    'warning LABEL_EMPTY labelsTr/a.nii.gz: voxels: found 0 labelled voxels, expected at least one labelled voxel. Check that there is nothing to segment in this image.'
    """

    code: str
    file: str
    field: str
    found: str
    expected: str = ""
    remedy: str = ""
    case: str = ""
    cases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        kind = KINDS[self.code]
        object.__setattr__(self, "expected", self.expected or kind.expected)
        object.__setattr__(self, "remedy", self.remedy or kind.remedy)

    @property
    def severity(self) -> Severity:
        """The severity of its code."""
        return KINDS[self.code].severity

    @property
    def rank(self) -> int:
        """0 for errors, 1 for warnings, 2 for notes."""
        return SEVERITIES.index(self.severity)

    @property
    def concerned(self) -> tuple[str, ...]:
        """The ids of all cases that the finding is about; empty for a whole dataset."""
        return self.cases or ((self.case,) if self.case else ())

    def __str__(self) -> str:
        """Return the finding in one line."""
        where = single_line(f"{self.file}: {self.field}")
        text = f"found {self.found}, expected {self.expected}. {self.remedy}"
        return f"{self.severity} {self.code} {where}: {single_line(text)}"


@dataclass(frozen=True)
class MessageParts:
    """The parts of an error message of medseg.

    Attributes:
        field: What follows the file, empty if there is nothing.
        found: What was found; the whole statement if it does not say ``found``.
        expected: What was expected, empty if the message does not say so.
        remedy: The last sentence.
    """

    field: str
    found: str
    expected: str
    remedy: str


def message_parts(message: str, *paths: Path | str) -> MessageParts:
    """Divide a message ``where: what: found X, expected Y. Fix.`` into its parts.

    Args:
        message: Text of a `MedsegError` or a warning.
        paths: Files or words at its beginning, which are removed.

    Returns:
        The parts.

    >>> message_parts("a.nii: dim[0]: found 9 axes, expected 1 to 7. Copy the file again.", "a.nii")
    MessageParts(field='dim[0]', found='9 axes', expected='1 to 7', remedy='Copy the file again.')
    """
    text = message
    for path in paths:
        text = text.removeprefix(f"{path}: ")
    *_, last = re.finditer(r"[.;)] (?=[A-Z])", text) if re.search(r"[.;)] (?=[A-Z])", text) else (None,)
    statement, remedy = (text, "") if last is None else (text[: last.start()], text[last.end() :])
    field, mark, rest = statement.partition("found ")
    if not mark:
        statement, *more = re.split(r"[,;] expected ", statement, maxsplit=1)
        field, _, found = statement.rpartition(": ")
        rest = f"{found}, expected {more[0]}" if more else found
    found, *more = re.split(r"[,;] expected ", rest, maxsplit=1)
    expected = more[0] if more else ""
    return MessageParts(field.strip(": "), found.strip().rstrip("."), expected.strip(), remedy.strip())
